"""Ablation: the same network trained with each loss on long-tailed references, the paper's table 4."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score

from celler.benchmark._compare import append, mean_and_sd
from celler.benchmark._figures import lines_by_size
from celler.benchmark._tasks import long_tail_split
from celler.losses import DEFAULT, HDM, RIDE, BalancedSoftmax, CrossEntropy, Focal, GInf, Loss
from celler.metrics import per_class
from celler.mining import Replay
from celler.model import Celler

__all__ = ["Variant", "ablation", "ablation_figure", "ablation_table", "ablation_text"]
#: What identifies a training, which has a row per class.
RUN = ["dataset", "seed", "variant", "recipe"]
GROUPS = ["tail", "medium", "head"]
SCORES = ["precision", "recall", "f1", *(f"{group} recall" for group in GROUPS), "accuracy"]
#: Grey for the first, then the colours of Okabe and Ito, which colour-blind readers can tell apart.
COLORS = ["#999999", "#E69F00", "#56B4E9", "#F0E442", "#009E73", "#0072B2", "#D55E00", "#CC79A7"]


@dataclass(frozen=True)
class Variant:
    """Name a loss and the replay of hard cells for an ablation.

    Parameters
    ----------
    loss
        Loss of the training, see :mod:`celler.losses`.
    replay
        Replay of hard cells; ``None`` for none.
    """

    loss: Loss
    replay: Replay | None = None


#: The rows of the paper's table 4, balanced softmax, which is GInf without noise, and Celler's defaults.
VARIANTS: dict[str, Variant] = {
    "Cross-entropy": Variant(CrossEntropy()),
    "Focal": Variant(Focal()),
    "RIDE": Variant(RIDE()),
    "Balanced softmax": Variant(BalancedSoftmax()),
    "GInf": Variant(GInf()),
    "GInf + HDM categories": Variant(HDM()),
    "GInf + HDM categories and cells": Variant(HDM(), Replay()),
    "Celler's default": Variant(DEFAULT, Replay()),
}


def ablation(
    data: Mapping[str, AnnData],
    labels_key: str,
    *,
    variants: Mapping[str, Variant] = VARIANTS,
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
        AnnData by name, split for every seed by :func:`celler.benchmark.long_tail_split`. All variants of a seed train
        on the same cells from the same initial weights.
    labels_key
        Column of obs with the cell types.
    variants
        Variants by name; by default the rows of the paper's table 4, balanced softmax and Celler's default.
    imbalance
        Largest type of a reference over its smallest.
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
    recipe = f"imbalance={imbalance:g} max_epochs={max_epochs}"
    done = pd.read_csv(file) if file is not None and file.exists() else pd.DataFrame(columns=RUN)
    known = set(done[RUN].itertuples(index=False, name=None))
    runs = product(seeds, data, variants.items())
    wanted = [(name, seed, label, f"{recipe} {variant}") for seed, name, (label, variant) in runs]
    todo = [run for run in wanted if run not in known]
    jobs = (delayed(_train)(data[run[0]], labels_key, run, variants[run[2]], imbalance, max_epochs) for run in todo)
    tables = [done] if len(done) else []
    for table in _finished(jobs, n_jobs, len(todo)):
        if file is not None:
            append(file, table)
        tables.append(table)
    return pd.concat(tables, ignore_index=True).merge(pd.DataFrame(wanted, columns=RUN))


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
    over data sets: macro precision, recall and F1, recall of tail, medium and head classes, and accuracy.
    """
    scores = rows.groupby(RUN[:3], sort=False)[["precision", "recall", "f1", "accuracy"]].mean()
    for group in GROUPS:
        members = rows[rows["frequency"] == group].groupby(RUN[:3], sort=False)
        scores[f"{group} recall"] = members["recall"].mean()
    by_seed = 100 * scores[SCORES].groupby(["variant", "seed"], sort=False).mean()
    gains = by_seed - by_seed.xs(baseline, level="variant").reindex(by_seed.index, level="seed")
    parts = {"mean": by_seed, "sd": by_seed, "gain": gains, "gain sd": gains}
    by_variant = {name: part.groupby("variant", sort=False) for name, part in parts.items()}
    columns = {name: part.std() if "sd" in name else part.mean() for name, part in by_variant.items()}
    return pd.concat(columns, axis=1).swaplevel(axis=1)[[(score, name) for score in SCORES for name in parts]]


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


def ablation_figure(rows: pd.DataFrame) -> Figure:
    """Draw F1 of each class against its number of reference cells, a line per variant.

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
    adata: AnnData, labels_key: str, run: tuple[Any, ...], variant: Variant, imbalance: float, max_epochs: int | None
) -> pd.DataFrame:
    """Train once, and score class by class; ``run`` has the values of ``RUN``."""
    reference, query = long_tail_split(adata, labels_key, imbalance=imbalance, seed=run[1])
    truth = query.obs[labels_key].to_numpy()
    start = time.perf_counter()
    Celler.setup_anndata(reference, labels_key=labels_key)
    model = Celler(reference)
    model.train(max_epochs, loss=variant.loss, replay=variant.replay, seed=run[1], show_progress=False)
    seconds = round(time.perf_counter() - start, 1)
    labels = model.predict(query)
    table = per_class(truth, labels, reference.obs[labels_key].value_counts().to_dict())
    table = table.reset_index().assign(accuracy=accuracy_score(truth, labels), seconds=seconds)
    return table.assign(**dict(zip(RUN, run, strict=True)))
