"""Figures of benchmarks: macro-F1 by method, and F1 of each class against its size in the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from celler.benchmark.methods import METHODS
from celler.pl._chart import count_axis
from celler.pl._colors import color_classes

__all__ = ["class_figure", "score_figure"]
MARKERS = "osD^vP"
#: Panels side by side.
N_COLUMNS = 3


def score_figure(rows: pd.DataFrame) -> Figure:
    """Macro-F1 of each method: a dot for each seed, mean and standard deviation over them.

    rows: of :func:`celler.benchmark.run`; with a column ``task``, a panel for each. The best method,
        in the mean over tasks, is on top.
    """
    rows = _by_task(rows)
    mean = rows.groupby(["method", "task"])["macro_f1"].mean().groupby("method").mean()
    methods = list(mean.dropna().sort_values().index)
    colors = _colors(methods)
    figure, panels = _panels(list(rows["task"].unique()), (3.2, 1 + 0.28 * len(methods)))
    for task, panel in panels.items():
        of_task = rows[rows["task"] == task]
        for height, method in enumerate(methods):
            scores = of_task.loc[of_task["method"] == method, "macro_f1"].dropna()
            if scores.empty:
                continue
            style = {"color": colors[method], "clip_on": False}
            panel.plot(scores, np.full(len(scores), height), "|", ms=9, mew=1.2, **style)
            spread = scores.std() if len(scores) > 1 else 0.0
            panel.errorbar(scores.mean(), height, xerr=spread, fmt="o", ms=6, **style)
        panel.grid(axis="x", color="0.9")
        panel.set(axisbelow=True, xlabel="macro-F1", ylim=(-0.6, len(methods) - 0.4))
        panel.set_yticks(range(len(methods)), [_title(method) for method in methods])
    return figure


def class_figure(classes: pd.DataFrame) -> Figure:
    """F1 of each type against its number of reference cells, a line per method, means over seeds.

    classes: of :func:`celler.benchmark.class_scores`; with a column ``task``, a panel for each.
    """
    classes = _by_task(classes[classes["reference_cells"] > 0])
    methods = [name for name in METHODS if name in set(classes["method"])]
    colors = {_title(name): color for name, color in _colors(methods).items()}
    return lines_by_size(classes.assign(line=classes["method"].map(_title)), "task", colors)


def lines_by_size(rows: pd.DataFrame, panel_key: str, colors: Mapping[str, Any]) -> Figure:
    """Mean F1 of each class against its mean number of reference cells.

    rows: a row per class with the columns ``class``, ``f1``, ``reference_cells`` and ``line``.
    colors: by line, in the order of the legend; the first is drawn over the others.
    """
    figure, panels = _panels(list(rows[panel_key].unique()), (3.6, 3.2))
    for name, panel in panels.items():
        of_panel = rows[rows[panel_key] == name]
        for order, (line, marker) in enumerate(zip(colors, cycle(MARKERS), strict=False)):
            of_class = of_panel[of_panel["line"] == line].groupby("class")
            mean = of_class[["reference_cells", "f1"]].mean().sort_values("reference_cells")
            style = {"color": colors[line], "marker": marker, "ms": 4, "lw": 1.2, "zorder": -order}
            panel.plot(mean["reference_cells"], mean["f1"], label=line, **style)
        count_axis(panel, *np.array([0.8, 1.25]) * of_panel["reference_cells"].agg(["min", "max"]))
        panel.set_xlabel("cells of the class in the reference")
    for panel in figure.axes[::N_COLUMNS]:
        panel.set_ylabel("F1")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _panels(titles: list[str], size: tuple[float, float]) -> tuple[Figure, dict[str, Any]]:
    """A figure with a panel of ``size`` inches for each title."""
    n_columns = min(N_COLUMNS, len(titles))
    n_rows = math.ceil(len(titles) / n_columns)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(1.5 + size[0] * n_columns, size[1] * n_rows),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for spare in axes.flat[len(titles) :]:
        spare.remove()
    for title, panel in zip(titles, axes.flat, strict=False):
        panel.set_title(title)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, dict(zip(titles, axes.flat, strict=False))


def _by_task(rows: pd.DataFrame) -> pd.DataFrame:
    return rows if "task" in rows else rows.assign(task="")


def _colors(methods: list[str]) -> dict[str, Any]:
    """A method has the same colour whichever others are shown."""
    colors = color_classes(list(METHODS))
    return {name: colors[name] for name in methods}


def _title(method: str) -> str:
    return METHODS[method].title
