"""Ablation: the same network trained with each loss on long-tailed references, the paper's table 4."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score

from celler.benchmark._figures import lines_by_size
from celler.benchmark._tasks import long_tail_split
from celler.losses import DEFAULT, HDM, RIDE, BalancedSoftmax, CrossEntropy, Focal, GInf, Loss
from celler.metrics import per_class
from celler.mining import Replay
from celler.model import Celler

__all__ = ["Variant", "ablation", "ablation_figure", "ablation_table", "ablation_text"]
#: One training is known by these; a row per class of it.
RUN = ["dataset", "seed", "variant", "recipe"]
SCORES = [
    "precision",
    "recall",
    "f1",
    "tail recall",
    "medium recall",
    "head recall",
    "accuracy",
]
#: Grey for the first, then the colours of Okabe and Ito, which colour-blind readers tell apart.
COLORS = ["#999999", "#E69F00", "#56B4E9", "#F0E442", "#009E73", "#0072B2", "#D55E00", "#CC79A7"]


@dataclass(frozen=True)
class Variant:
    """A recipe to compare: the loss, and which hard cells are replayed."""

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

    variants: name -> :class:`celler.benchmark.Variant`; the default is the rows of the paper's table 4,
        balanced softmax, and Celler's default.
    data: name -> AnnData, each split and thinned by :func:`celler.benchmark.long_tail_split` anew for
        every seed; all variants of a seed see the same cells and the same initial weights.
    file: CSV to which each finished training is added. What it holds already, of the same recipe,
        is not run again, so that a run that was stopped goes on.
    n_jobs: trainings at the same time.
    max_epochs: as in :meth:`celler.model.Celler.train`.

    Returns a row per data set, seed, variant and class: ``reference_cells``, ``query_cells``,
    ``precision``, ``recall``, ``f1``, ``frequency`` (head, medium or tail), and the training's
    ``accuracy`` and ``seconds``.
    """
    recipe = f"imbalance={imbalance:g} max_epochs={max_epochs}"
    done = pd.read_csv(file) if file is not None and file.exists() else pd.DataFrame(columns=RUN)
    known = set(done[RUN].itertuples(index=False, name=None))
    wanted = [
        (name, seed, label, f"{recipe} {variant}")
        for seed in seeds
        for name in data
        for label, variant in variants.items()
    ]
    todo = [run for run in wanted if run not in known]
    jobs = (
        delayed(_train)(data[run[0]], labels_key, run, variants[run[2]], imbalance, max_epochs)
        for run in todo
    )
    tables = [done]
    for table in _finished(jobs, n_jobs, len(todo)):
        if file is not None:
            table.to_csv(file, mode="a", header=not file.exists(), index=False)
        tables.append(table)
    rows = pd.concat([table for table in tables if len(table)], ignore_index=True)
    return rows.merge(pd.DataFrame(wanted, columns=RUN))


def ablation_table(rows: pd.DataFrame, baseline: str = "Cross-entropy") -> pd.DataFrame:
    """Mean and standard deviation over seeds of each score by variant, and the gain over ``baseline``.

    Scores are percent: macro precision, recall and F1, recall of tail, medium and head classes, and
    accuracy, each the mean over data sets first. A gain is paired: the difference on the same data
    set and seed. Columns ``(score, "mean" | "sd" | "gain" | "gain sd")``.
    """
    by_run = rows.groupby(RUN[:3], sort=False)
    scores = by_run[["precision", "recall", "f1", "accuracy"]].mean()
    for group in ("tail", "medium", "head"):
        members = rows[rows["frequency"] == group].groupby(RUN[:3], sort=False)
        scores[f"{group} recall"] = members["recall"].mean()
    by_seed = 100 * scores[SCORES].groupby(["variant", "seed"], sort=False).mean()
    gains = by_seed - by_seed.xs(baseline, level="variant").reindex(by_seed.index, level="seed")
    parts = {"mean": by_seed, "sd": by_seed, "gain": gains, "gain sd": gains}
    table = pd.concat(
        {
            name: part.groupby("variant", sort=False).agg("std" if "sd" in name else "mean")
            for name, part in parts.items()
        },
        axis=1,
    )
    return table.swaplevel(axis=1)[[(score, name) for score in SCORES for name in parts]]


def ablation_text(table: pd.DataFrame) -> str:
    """An :func:`celler.benchmark.ablation_table` to read: mean ± sd of each score, then the gains."""
    text = {
        f"{title}{score}": [
            f"{mean:{sign}.1f} ± {sd:.1f}" if mean == mean else "–"  # no class of that size
            for mean, sd in table[[(score, part), (score, spread)]].itertuples(index=False)
        ]
        for title, sign, part, spread in (("", "", "mean", "sd"), ("Δ ", "+", "gain", "gain sd"))
        for score in SCORES
    }
    wide = pd.DataFrame(text, index=table.index.rename(None))
    gains = wide[[f"Δ {score}" for score in SCORES]]
    return f"{wide[SCORES].to_string()}\n\n{gains.to_string()}"


def ablation_figure(rows: pd.DataFrame) -> Figure:
    """F1 of each class against its number of reference cells, a panel per data set and a line per variant."""
    colors = dict(zip(rows["variant"].unique(), cycle(COLORS), strict=False))
    return lines_by_size(rows.assign(line=rows["variant"]), "dataset", colors)


def _finished(jobs: Iterator[Any], n_jobs: int, n_total: int) -> Iterator[pd.DataFrame]:
    """Results in the order in which they come, each reported in a line."""
    start = time.perf_counter()
    results = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(jobs)
    for n, table in enumerate(results, start=1):
        first, elapsed = table.iloc[0], time.perf_counter() - start
        print(
            f"[{n}/{n_total}] {first['dataset']}, seed {first['seed']}, {first['variant']}: macro-F1 "
            f"{table['f1'].mean():.3f}, {first['seconds']:.0f} s; "
            f"{elapsed / n * (n_total - n) / 60:.0f} min left",
            flush=True,
        )
        yield table


def _train(
    adata: AnnData,
    labels_key: str,
    run: tuple[str, int, str, str],
    variant: Variant,
    imbalance: float,
    max_epochs: int | None,
) -> pd.DataFrame:
    """One training, scored class by class."""
    reference, query = long_tail_split(adata, labels_key, imbalance=imbalance, seed=run[1])
    truth = query.obs[labels_key].to_numpy()
    start = time.perf_counter()
    Celler.setup_anndata(reference, labels_key=labels_key)
    model = Celler(reference)
    model.train(
        max_epochs, loss=variant.loss, replay=variant.replay, seed=run[1], show_progress=False
    )
    seconds = time.perf_counter() - start
    labels = model.predict(query)
    table = per_class(truth, labels, reference.obs[labels_key].value_counts().to_dict())
    table = table.assign(accuracy=accuracy_score(truth, labels), seconds=round(seconds, 1))
    return table.reset_index().assign(**dict(zip(RUN, run, strict=True)))
