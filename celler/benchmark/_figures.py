"""Figures: macro-F1 by method, and F1 of each class against its size in the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from celler._utils._check import checked
from celler.benchmark.methods import METHODS
from celler.pl._chart import count_axis
from celler.pl._colors import color_classes

__all__ = ["class_figure", "score_figure"]
MARKERS = "osD^vP"
#: Panels side by side, and points of a line: more classes than these are averaged with those of about their size.
N_COLUMNS, N_POINTS = 3, 12


@checked
def score_figure(rows: pd.DataFrame) -> Figure:
    """Draw macro-F1 of each method: a tick per seed, mean and standard deviation, best method on top.

    Parameters
    ----------
    rows
        Table of :func:`celler.benchmark.run`. A column ``task`` gives a panel for each task.
    """
    rows = _titled(rows)
    mean = rows.groupby(["line", "task"])["macro_f1"].mean().groupby("line").mean()
    lines, colors = list(mean.dropna().sort_values().index), _colors()
    figure, panels = _panels(list(rows["task"].unique()), (3.2, 1 + 0.28 * len(lines)))
    for task, panel in panels.items():
        of_task = rows[rows["task"] == task]
        for height, line in enumerate(lines):
            scores = of_task.loc[of_task["line"] == line, "macro_f1"].dropna()
            if scores.empty:
                continue
            style = {"color": colors[line], "clip_on": False}
            panel.plot(scores, np.full(len(scores), height), "|", ms=9, mew=1.2, **style)
            spread = scores.std() if len(scores) > 1 else 0.0
            panel.errorbar(scores.mean(), height, xerr=spread, fmt="o", ms=6, **style)
        panel.grid(axis="x", color="0.9")
        panel.set(axisbelow=True, xlabel="macro-F1", ylim=(-0.6, len(lines) - 0.4))
        panel.set_yticks(range(len(lines)), lines)
    return figure


@checked
def class_figure(classes: pd.DataFrame) -> Figure:
    """Draw F1 of each type against its number of reference cells, a line per method, means over seeds.

    Parameters
    ----------
    classes
        Table of :func:`celler.benchmark.class_scores`. A column ``task`` gives a panel for each task.
    """
    classes = _titled(classes[classes["reference_cells"] > 0])
    shown = set(classes["line"])
    colors = {line: color for line, color in _colors().items() if line in shown}
    return lines_by_size(classes, "task", colors)


def lines_by_size(rows: pd.DataFrame, panel_key: str, colors: Mapping[str, Any]) -> Figure:
    """Draw mean F1 of each class, or of a few of about one size, against reference cells; ``colors`` in order."""
    figure, panels = _panels(list(rows[panel_key].unique()), (3.6, 3.2))
    for name, panel in panels.items():
        of_panel = rows[rows[panel_key] == name]
        for order, (line, marker) in enumerate(zip(colors, cycle(MARKERS), strict=False)):
            of_class = of_panel[of_panel["line"] == line].groupby("class")
            mean = of_class[["reference_cells", "f1"]].mean().sort_values("reference_cells")
            if len(mean) > N_POINTS:
                rank = mean["reference_cells"].rank(method="min") - 1  # classes of one size stay together
                mean = mean.groupby(rank * N_POINTS // len(mean)).mean()
            style = {"color": colors[line], "marker": marker, "ms": 4, "lw": 1.2, "zorder": -order}  # the first on top
            panel.plot(mean["reference_cells"], mean["f1"], label=line, **style)
        count_axis(panel, *np.array([0.8, 1.25]) * of_panel["reference_cells"].agg(["min", "max"]))
        panel.set_xlabel("cells of the class in the reference")
    for panel in figure.axes[::N_COLUMNS]:
        panel.set_ylabel("F1")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _panels(titles: list[str], size: tuple[float, float]) -> tuple[Figure, dict[str, Any]]:
    """Make a figure with a panel of ``size`` inches for each title."""
    n_columns = min(N_COLUMNS, len(titles))
    n_rows = math.ceil(len(titles) / n_columns)
    inches = 1.5 + size[0] * n_columns, size[1] * n_rows
    figure, axes = plt.subplots(n_rows, n_columns, figsize=inches, sharey=True, squeeze=False, layout="constrained")
    for spare in axes.flat[len(titles) :]:
        spare.remove()
    for title, panel in zip(titles, axes.flat, strict=False):
        panel.set_title(title)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, dict(zip(titles, axes.flat, strict=False))


def _titled(rows: pd.DataFrame) -> pd.DataFrame:
    """Add each method's title as ``line``, and an empty ``task`` if there is none."""
    titles = {name: method.title for name, method in METHODS.items()}
    return rows.assign(line=rows["method"].map(titles), task=rows.get("task", ""))


def _colors() -> dict[str, Any]:
    """Give each title a colour that does not depend on the methods shown."""
    return color_classes([method.title for method in METHODS.values()])
