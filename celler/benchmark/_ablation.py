"""Ablation: the same network trained with each loss on long-tailed references, the paper's table 4."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from itertools import cycle, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score

from celler._utils._check import check_fields, checked
from celler._utils._write import append_rows, whole_rows
from celler.benchmark._compare import LABELS_KEY, Cells, mean_and_sd, read_rows
from celler.benchmark._figures import lines_by_size
from celler.benchmark._rivals import (
    Adjustment,
    ClassWeighted,
    HeldOut,
    HierarchicalCrossEntropy,
    LogitAdjustment,
    PairwiseCorrection,
)
from celler.benchmark._tasks import group_split, long_tail_split
from celler.benchmark.methods import METHODS
from celler.benchmark.methods._sklearn import log_values, on_genes
from celler.losses import HDM, RIDE, BalancedSoftmax, CrossEntropy, Focal, GInf, Loss
from celler.metrics import per_class
from celler.mining import Replay
from celler.model import Celler
from celler.training._linear import L2, L2_OF_EMBEDDING, logistic_regression

__all__ = ["Variant", "ablation", "ablation_figure", "ablation_table", "ablation_text"]
#: What identifies a result, which has a row per class.
RUN = ["dataset", "seed", "variant", "recipe"]
GROUPS = ["tail", "medium", "head"]
SCORES = ["precision", "recall", "f1", *(f"{group} recall" for group in GROUPS), "accuracy"]
#: Grey for the first, then the colours of Okabe and Ito, which colour-blind readers can tell apart.
COLORS = ["#999999", "#E69F00", "#56B4E9", "#F0E442", "#009E73", "#0072B2", "#D55E00", "#CC79A7"]


@dataclass(frozen=True)
class Variant:
    """Describe a row of an ablation: a training, and what is done with its logits.

    Parameters
    ----------
    loss
        Loss of both experts, see :mod:`celler.losses`. ``None`` passes none to :meth:`celler.model.Celler.train`,
        which then solves the linear experts and chooses a margin.
    replay
        Replay of hard cells; ``None`` for none.
    encoder
        Encoder of the network; ``None`` is the base where it knows the genes.
    adjustment
        Correction of the logits. Variants that differ in nothing else share a training.
    has_new_classifier
        Train the classifiers once more on the frozen encoder, each class with the same weight, as balanced sampling
        does (Kang et al. 2020).
    method
        Name of a method of ``celler.benchmark.methods.METHODS`` to train instead of the network.
    """

    loss: Loss | None = None
    replay: Replay | None = None
    encoder: Literal["additive"] | None = "additive"
    adjustment: Adjustment | None = None
    has_new_classifier: bool = False
    method: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


#: The rows of the paper's table 4, each part alone, Celler's defaults, and rivals that cost nothing.
VARIANTS: dict[str, Variant] = {
    "Cross-entropy": Variant(CrossEntropy()),
    "Focal": Variant(Focal()),
    "RIDE": Variant(RIDE()),
    "Balanced softmax": Variant(BalancedSoftmax()),
    "GInf": Variant(GInf()),
    **{f"GInf + HDM, n = {n}": Variant(HDM(n)) for n in (3, 5, 10, 20)},
    "GInf + HDM, n = all": Variant(HDM(10_000)),
    "GInf + HDM": Variant(HDM()),
    "GInf + HDM + cells": Variant(HDM(), Replay()),
    "Default without base": Variant(None, Replay()),
    "Default": Variant(None, Replay(), encoder=None),
    "Logit adjustment": Variant(CrossEntropy(), adjustment=LogitAdjustment()),
    "Pairwise correction": Variant(CrossEntropy(), adjustment=PairwiseCorrection()),
    "New classifier": Variant(CrossEntropy(), has_new_classifier=True),
    "Class weights": Variant(ClassWeighted()),
    "Hierarchical": Variant(HierarchicalCrossEntropy()),
    "Logistic regression": Variant(method="logreg"),
}


@dataclass(frozen=True)
class Task:
    """How cells become a reference and a query, and how long a network trains; see :func:`ablation`."""

    labels_key: str
    group_key: str | None
    parent_keys: tuple[str, ...]
    imbalance: float
    max_epochs: int | None

    def split(self, adata: AnnData, seed: int) -> tuple[AnnData, AnnData]:
        """Return reference and query."""
        if self.group_key is None:
            return long_tail_split(adata, self.labels_key, imbalance=self.imbalance, seed=seed)
        return group_split(adata, self.labels_key, self.group_key, imbalance=self.imbalance, seed=seed)

    def can_train(self, variant: Variant, adata: AnnData) -> bool:
        """Return whether the cells have what the variant needs."""
        return not isinstance(variant.loss, HierarchicalCrossEntropy) or bool(set(self.parent_keys) & set(adata.obs))

    def recipe(self, variant: Variant) -> str:
        """Return what decides a result but data and seed."""
        group = "" if self.group_key is None else f"group_key={self.group_key} "
        return f"{group}imbalance={self.imbalance:g} max_epochs={self.max_epochs} {variant}"


@checked
def ablation(
    data: Mapping[str, AnnData],
    labels_key: str,
    *,
    variants: Mapping[str, Variant] = VARIANTS,
    group_key: str | None = None,
    parent_keys: Sequence[str] = (),
    imbalance: float = 100.0,
    seeds: Sequence[int] = range(5),
    file: Path | None = None,
    n_jobs: int = 1,
    max_epochs: int | None = None,
) -> pd.DataFrame:
    """Train every variant on every data set and seed, and score it class by class.

    Parameters
    ----------
    data
        AnnData by name, split for every seed by :func:`celler.benchmark.long_tail_split`, or with ``group_key`` by
        :func:`celler.benchmark.group_split`. All variants of a seed train on the same cells from the same initial
        weights.
    labels_key
        Column of obs with the cell types.
    variants
        Variants by name; by default the rows of the paper's table 4, each part alone, Celler's defaults, and rivals.
    group_key
        Column of obs with donors, samples or libraries, every second of which is the reference.
    parent_keys
        Columns of obs with coarser types, for hierarchical cross-entropy; a set without any of them lacks that row.
    imbalance
        Largest type of a reference over its smallest; 1 keeps all cells.
    seeds
        Seeds of split and training.
    file
        CSV file for finished trainings. A stopped call continues from its rows of the same recipe.
    n_jobs
        Number of trainings at the same time.
    max_epochs
        Epochs of a training, as in :meth:`celler.model.Celler.train`.

    Returns
    -------
    A row per data set, seed, variant and class with ``reference_cells``, ``query_cells``, ``precision``, ``recall``,
    ``f1``, ``frequency`` (head, medium or tail), and the training's ``accuracy`` and ``seconds``.
    """
    task = Task(labels_key, group_key, tuple(parent_keys), imbalance, max_epochs)
    done = read_rows(file, RUN) if file is not None and whole_rows(file) else pd.DataFrame(columns=RUN)
    known = set(done[RUN].itertuples(index=False, name=None))
    wanted = [
        (name, seed, label, task.recipe(variant))
        for seed, name, (label, variant) in product(seeds, data, variants.items())
        if task.can_train(variant, data[name])
    ]
    trainings: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for run in wanted:
        if run not in known:
            trainings.setdefault((*run[:2], replace(variants[run[2]], adjustment=None)), []).append(run)
    jobs = (delayed(_train)(data[runs[0][0]], task, runs, variants) for runs in trainings.values())
    tables = [done] if len(done) else []
    for table in _finished(jobs, n_jobs, len(trainings)):
        if file is not None:
            append_rows(file, table)
        tables.append(table)
    return pd.DataFrame(wanted, columns=RUN).merge(pd.concat(tables, ignore_index=True))


@checked
def ablation_table(rows: pd.DataFrame, baseline: str = "Cross-entropy") -> pd.DataFrame:
    """Return mean and standard deviation over seeds of each score, and the gain over a baseline.

    Parameters
    ----------
    rows
        Table of :func:`celler.benchmark.ablation`.
    baseline
        Name of the variant to subtract, on the same data set and seed.

    Returns
    -------
    A row per variant with the columns ``(score, "mean" | "sd" | "gain" | "gain sd")``. Scores are in percent and means
    over the data sets that have the variant: macro precision, recall and F1, recall of tail, medium and head classes,
    and accuracy.
    """
    scores = rows.groupby(RUN[:3], sort=False)[["precision", "recall", "f1", "accuracy"]].mean()
    for group in GROUPS:
        members = rows[rows["frequency"] == group].groupby(RUN[:3], sort=False)
        scores[f"{group} recall"] = members["recall"].mean()
    scores = 100 * scores[SCORES]
    # Differences within a set first: a variant may lack sets.
    of_baseline = scores.xs(baseline, level="variant")
    gains = scores - of_baseline.reindex(scores.index.droplevel("variant")).to_numpy()
    by_seed, gains = (part.groupby(["variant", "seed"], sort=False).mean() for part in (scores, gains))
    parts = {"mean": by_seed, "sd": by_seed, "gain": gains, "gain sd": gains}
    by_variant = {name: part.groupby("variant", sort=False) for name, part in parts.items()}
    columns = {name: part.std() if "sd" in name else part.mean() for name, part in by_variant.items()}
    return pd.concat(columns, axis=1).swaplevel(axis=1)[[(score, name) for score in SCORES for name in parts]]


@checked
def ablation_text(table: pd.DataFrame) -> str:
    """Return an ablation as text, "mean ± sd" of each score, then of each gain.

    Parameters
    ----------
    table
        Table of :func:`celler.benchmark.ablation_table`.
    """
    parts = []
    for prefix, sign, mean, sd in (("", "", "mean", "sd"), ("Δ ", "+", "gain", "gain sd")):
        text = pd.DataFrame(index=table.index.rename(None))
        for score in SCORES:
            pairs = zip(table[score, mean], table[score, sd], strict=True)
            text[prefix + score] = [mean_and_sd(*pair, decimals=1, sign=sign) for pair in pairs]
        parts.append(text.to_string())
    return "\n\n".join(parts)


@checked
def ablation_figure(rows: pd.DataFrame) -> Figure:
    """Draw F1 of each class against its number of reference cells, a line per variant.

    Of more than 12 classes, those of about one size are averaged.

    Parameters
    ----------
    rows
        Table of :func:`celler.benchmark.ablation`.
    """
    colors = dict(zip(rows["variant"].unique(), cycle(COLORS), strict=False))
    return lines_by_size(rows.assign(line=rows["variant"]), "dataset", colors)


def _finished(jobs: Iterator[Any], n_jobs: int, n_total: int) -> Iterator[pd.DataFrame]:
    """Run the jobs; give each table as its job ends, and print a line."""
    start = time.perf_counter()
    results = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(jobs)
    for n, table in enumerate(results, start=1):
        first, elapsed = table.iloc[0], time.perf_counter() - start
        run = f"[{n}/{n_total}] {first['dataset']}, seed {first['seed']}, {first['variant']}"
        left = f"{first['seconds']:.0f} s; {elapsed / n * (n_total - n) / 60:.0f} min left"
        print(f"{run}: macro-F1 {table['f1'].mean():.3f}, {left}", flush=True)
        yield table


def _train(
    adata: AnnData, task: Task, runs: Sequence[tuple[Any, ...]], variants: Mapping[str, Variant]
) -> pd.DataFrame:
    """Train once for the ``runs``, which differ in the adjustment alone, and score each class by class."""
    seed = runs[0][1]
    reference, query = task.split(adata, seed)
    truth = query.obs[task.labels_key].to_numpy().astype(str)
    names, counts = np.unique(reference.obs[task.labels_key].to_numpy().astype(str), return_counts=True)
    training = replace(variants[runs[0][2]], adjustment=None)
    start = time.perf_counter()
    logits = _logits(reference, query, task, training, seed)
    seconds, tables = round(time.perf_counter() - start, 1), []

    @cache
    def held_out() -> HeldOut:
        return _held_out(reference, task, training, seed)

    for run in runs:
        adjustment = variants[run[2]].adjustment
        scores = logits if adjustment is None else adjustment(logits, counts, held_out)
        labels = names[scores.argmax(axis=1)]
        table = per_class(truth, labels, dict(zip(names, counts.tolist(), strict=True)))
        table = table.reset_index().assign(accuracy=accuracy_score(truth, labels), seconds=seconds)
        tables.append(table.assign(**dict(zip(RUN, run, strict=True))))
    return pd.concat(tables)


def _logits(reference: AnnData, query: AnnData, task: Task, variant: Variant, seed: int) -> np.ndarray:
    """Train and return the logits of the query ``(N, C)``, classes sorted by name."""
    if variant.method is not None:
        return _method_logits(reference, query, task.labels_key, variant.method, seed)
    loss = variant.loss
    if isinstance(loss, HierarchicalCrossEntropy):
        loss = loss.of(reference.obs, task.labels_key, task.parent_keys)
    Celler.setup_anndata(reference, labels_key=task.labels_key)
    model = Celler(reference, encoder=variant.encoder)
    model.train(task.max_epochs, loss=loss, replay=variant.replay, seed=seed, show_progress=False)
    if variant.has_new_classifier:
        return _new_classifier(model, reference, query, task.labels_key)
    p = np.asarray(model.predict(query, soft=True), np.float64)
    return np.log(p.clip(np.finfo(p.dtype).tiny)) * model._state.decision.temperature


def _method_logits(reference: AnnData, query: AnnData, labels_key: str, name: str, seed: int) -> np.ndarray:
    """Train a method of ``METHODS`` and return its scores ``(N, C)``."""
    fit = getattr(import_module(METHODS[name].module), name)
    cells = Cells.of(reference, query, labels_key, None, None)
    scores = fit(cells.reference, LABELS_KEY, cells.query, seed)(cells.query)
    return scores[sorted(scores.columns)].to_numpy()


def _new_classifier(model: Celler, reference: AnnData, query: AnnData, labels_key: str) -> np.ndarray:
    """Train the head and the evidence table of ``model`` anew, and return the logits of the query ``(N, C)``."""
    classes, codes = np.unique(reference.obs[labels_key].to_numpy().astype(str), return_inverse=True)
    cells, logits = Cells.of(reference, query, labels_key, None, None), []
    embeddings = [model.get_latent_representation(part, normalize=False) for part in (reference, query)]
    mean, spread = embeddings[0].mean(0), embeddings[0].std(0).clip(min=1e-6)
    genes, of_query = cells.reference.var_names, cells.query
    for known, new, l2 in (
        (*((part - mean) / spread for part in embeddings), L2_OF_EMBEDDING),
        (log_values(cells.reference), on_genes(log_values(of_query), of_query.var_names, genes), L2),
    ):
        weight, bias = logistic_regression(known, codes, len(classes), l2)
        logits.append(new @ weight + bias)
    share = model.module.encoder_share
    return share * logits[0] + (1 - share) * logits[1]


def _held_out(reference: AnnData, task: Task, variant: Variant, seed: int) -> HeldOut:
    """Train on every second cell of each class and return the logits of the others; a single cell trains."""
    labels = reference.obs[task.labels_key]
    is_trained = labels.groupby(labels, observed=True).cumcount().to_numpy() % 2 == 0
    part, rest = reference[is_trained].copy(), reference[~is_trained].copy()
    codes = np.unique(labels.to_numpy().astype(str), return_inverse=True)[1][~is_trained]
    return HeldOut(_logits(part, rest, task, variant, seed), codes)
