"""Given against predicted labels: as a bubble chart with the confidence, and as a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from scipy.cluster import hierarchy

from celler._utils._check import checked
from celler.pl._chart import (
    ROW,
    color_bar,
    legend_height,
    name_rows,
    note_beside,
    on_background,
    open_chart,
    room_beside,
    shade,
    size_legend,
    size_of,
)
from celler.pl._colors import UNKNOWN, contrast
from celler.pl._docs import document
from celler.tl._columns import share_column
from celler.tl._evaluate import Pair, read_pair, read_parents

N_WITH_NUMBERS = 15  # largest number of columns of a confusion matrix whose cells hold percentages
WIDE = 0.3
#: Area of a dot of all cells of a class, points squared; its width is that of a row.
LARGEST_DOT = (72 * ROW * 1.1) ** 2 * np.pi / 4
Block = tuple[str, int, int]  # a parent, and the first and the last row of its classes


class Crossed(NamedTuple):
    """Cells of each given class, the rows, and predicted class; rows of the same parent are together.

    The first ``n_own`` columns are classes of the rows, in their order. It is 0 where the names differ: each column
    then stands by the row that most of its cells come from.
    """

    counts: pd.DataFrame
    blocks: list[Block]
    n_own: int


def cross(data: AnnData | pd.DataFrame, cells: Pair, parents: Mapping[str, str] | str | None) -> Crossed:
    """Count the cells of each given and predicted class; classes that nobody predicts have no column."""
    counts = pd.crosstab(cells.truth, cells.prediction)
    names = list(counts.index)
    is_own = has_own_names(counts)
    ordered: list[str] = []
    blocks: list[Block] = []
    if parents is None:
        ordered = by_similarity(counts, is_own)
    else:
        parent_of = read_parents(data, parents, cells)
        families = pd.crosstab(*([parent_of.get(name, name) for name in labels] for labels in cells[:2]))
        for parent in by_similarity(families, has_own_names(families)):
            children = by_similarity(counts[[parent_of[name] == parent for name in names]], is_own)
            blocks.append((parent, len(ordered), len(ordered) + len(children) - 1))
            ordered += children
    counts = counts.loc[ordered]
    own = [name for name in ordered if name in counts.columns] if is_own else []
    others = counts.drop(columns=own)
    # by the row of most cells, then by that of the average cell; rejected cells last
    rows = np.arange(len(counts))
    place = {
        name: (name in UNKNOWN, int(column.argmax()), float(rows @ column / column.sum()))
        for name, column in zip(others.columns, others.to_numpy().T, strict=True)
    }
    return Crossed(counts[own + sorted(others.columns, key=lambda name: place[name])], blocks, len(own))


def has_own_names(counts: pd.DataFrame) -> bool:
    """Whether at least half of the predicted classes have the names of given ones."""
    predicted = counts.columns.difference(list(UNKNOWN))
    return 2 * int(predicted.isin(counts.index).sum()) >= len(predicted)


def by_similarity(counts: pd.DataFrame, is_own: bool) -> list[str]:
    """Order the rows so that classes confused with each other are neighbours.

    The order is that of the leaves of an average linkage. The distance of two classes is 1 minus the mean share of
    their cells that are predicted as the other class. Where names differ, it is 1 minus the share of predictions that
    the two have in common.
    """
    names = list(counts.index)
    if len(names) < 3:
        return names
    n_cells = counts.to_numpy().sum(axis=1, keepdims=True)
    if is_own:
        shares = counts.reindex(columns=names, fill_value=0).to_numpy() / n_cells
        distance = 1 - (shares + shares.T) / 2
    else:
        shares = counts.to_numpy() / n_cells
        distance = np.array([1 - np.minimum(share, shares).sum(axis=1) for share in shares])
    pairs = np.maximum(distance[np.triu_indices(len(names), k=1)], 0)
    tree = hierarchy.linkage(pairs, "average", optimal_ordering=True)
    return [names[leaf] for leaf in hierarchy.leaves_list(tree)]


@document
@checked
def prediction_bubble(
    adata: AnnData | pd.DataFrame,
    truth_key: str,
    prediction_key: str,
    *,
    confidence_key: str | None = None,
    parents: Mapping[str, str] | str | None = None,
    cmap: str | Colormap = "viridis",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Plot given against predicted labels as dots, with the confidence of the predictions.

    The area of a dot is the share of the given class's cells that got this prediction. Its colour is their mean
    confidence, or grey if none has one. Columns are in the order of the rows, then classes that are only predicted.
    Where names differ, as those of clusters do, each column stands by its best match.

    Parameters
    ----------
    $cells
    $labels
    $confidence_key
        None uses ``<prediction_key>_confidence``.
    $parents
    cmap
        Colour map of mean confidences from 0 to 1.
    $layout_and_example
    >>> cl.pl.prediction_bubble(query, "cell_type", "celler")
    """
    cells = read_pair(adata, truth_key, prediction_key)
    key = f"{prediction_key}_confidence" if confidence_key is None else confidence_key
    confidence = share_column(adata, key, "confidence_key")[cells.rows]
    crossed = cross(adata, cells, parents)
    counts = crossed.counts
    by_pair = pd.Series(confidence).groupby([cells.truth, cells.prediction]).mean()
    means = by_pair.unstack().reindex(index=counts.index, columns=counts.columns)
    n_rows, n_columns = counts.shape
    chart = open_chart({"main": (ROW * n_columns, ROW * n_rows)}, figsize, ax)
    panel = chart.first
    _frame(panel, crossed, truth_key, prediction_key)
    style: dict[str, Any] = {"cmap": cmap, "norm": Normalize(0, 1), "ec": "0.3", "lw": 0.4}
    titles = ("Share of given cells (%)", "Mean probability")
    drawn = draw_shares(panel, counts, means.to_numpy(dtype=float), titles, **style)
    chart.arrange(title)
    chart.shrink(ROW, *drawn)
    return chart.finish(show=show, return_fig=return_fig, save=save)


@document
@checked
def confusion(
    adata: AnnData | pd.DataFrame,
    truth_key: str,
    prediction_key: str,
    *,
    parents: Mapping[str, str] | str | None = None,
    cmap: str | Colormap = "YlGnBu",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Plot the confusion matrix: the percentage of each given class that is predicted as each class.

    Rows sum to 100 %; white is 0 cells. The number of cells follows the name of the class. Columns are in the order of
    the rows, then classes that are only predicted. Where names differ, as those of clusters do, each column stands by
    its best match.

    Parameters
    ----------
    $cells
    $labels
    $parents
        Lines separate the parents.
    cmap
        Colour map of 0 to 100 %. The default can be read without colour vision and in grey; it is reversed on a dark
        background.
    $layout_and_example
    >>> cl.pl.confusion(query, "cell_type", "celler")
    """
    crossed = cross(adata, read_pair(adata, truth_key, prediction_key), parents)
    counts = crossed.counts
    percent = 100 * shares_of(counts)
    n_rows, n_columns = percent.shape
    has_numbers = n_columns <= N_WITH_NUMBERS
    step = WIDE if has_numbers else ROW
    chart = open_chart({"main": (step * n_columns, step * n_rows)}, figsize, ax)
    panel = chart.first
    _frame(panel, crossed, truth_key, prediction_key)
    edges = np.arange(-0.5, n_columns), np.arange(-0.5, n_rows)
    style: dict[str, Any] = {"edgecolors": shade(0.9), "linewidth": 0.3, "cmap": on_background(cmap)}
    mesh = panel.pcolormesh(*edges, np.ma.masked_equal(percent, 0), vmin=0, vmax=100, **style)
    color_bar(panel, mesh, "Share of given cells (%)", right=room_beside(panel))
    chart.arrange(title)
    if has_numbers and (size_of(panel) > 0.99 * ROW * np.array([n_columns, n_rows])).all():
        _write_numbers(panel, percent, mesh)
    return chart.finish(show=show, return_fig=return_fig, save=save)


def shares_of(counts: pd.DataFrame) -> np.ndarray:
    """Return the shares of the cells of each row."""
    return counts.div(counts.sum(axis=1), axis=0).to_numpy()


def name_axes(panel: Axes, counts: pd.DataFrame, x: str, y: str) -> None:
    """Write the rows of a table, each with its number of cells, and its columns."""
    n_columns = counts.shape[1]
    name_rows(panel, [f"{name} ({n:,})" for name, n in counts.sum(axis=1).items()])
    panel.set_xticks(range(n_columns), counts.columns, rotation=90)
    panel.set_xlim(-0.5, n_columns - 0.5)
    panel.tick_params(axis="x", length=0, labelsize="small")
    panel.set(xlabel=x, ylabel=y)


def draw_shares(
    panel: Axes,
    counts: pd.DataFrame,
    colors: np.ndarray,
    titles: tuple[str, str],
    *,
    cmap: str | Colormap,
    **style: Any,
) -> list[Collection]:
    """Draw a dot for each pair that has cells, its area the share of its row's cells, and both legends.

    ``colors (n_rows, n_columns)`` are grey where they are NaN, ``titles`` those of the legends of areas and colours,
    and ``style`` has a value for all dots or for each. Returns what shrinks with the chart.
    """
    rows, columns = np.nonzero(counts.to_numpy())
    panel.grid(color=shade(0.92), lw=0.6)
    panel.set_axisbelow(True)
    sizes, shown = LARGEST_DOT * shares_of(counts)[rows, columns], np.ma.masked_invalid(colors[rows, columns])
    cmap = mpl.colormaps.get_cmap(cmap).with_extremes(bad="0.8")
    dots = panel.scatter(columns, rows, s=sizes, c=shown, cmap=cmap, plotnonfinite=True, **style)
    right = room_beside(panel)
    steps = {f"{percent}": LARGEST_DOT * percent / 100 for percent in (5, 25, 50, 100)}
    legend = size_legend(panel, steps, titles[0], right=right)
    color_bar(panel, dots, titles[1], right=right, down=legend_height(titles[0]))
    return [dots, *legend.collections]


def _frame(panel: Axes, crossed: Crossed, truth_key: str, prediction_key: str) -> None:
    """Write rows, columns and parents; draw lines between parents and before additional columns."""
    counts, blocks, n_own = crossed
    name_axes(panel, counts, f"predicted: {prediction_key}", f"given: {truth_key}")
    line: dict[str, Any] = {"color": shade(0.35), "lw": 0.8}
    if 0 < n_own < counts.shape[1]:
        panel.axvline(n_own - 0.5, **line)
    for parent, first, last in blocks:
        if first > 0:
            panel.axhline(first - 0.5, **line)
            before = counts.columns[:n_own].isin(counts.index[:first]).sum()
            if 0 < before < n_own:
                panel.axvline(before - 0.5, **line)
        note_beside(panel, parent, (first + last) / 2)


def _write_numbers(panel: Axes, percent: np.ndarray, colors: ScalarMappable) -> None:
    """Write percentages of 0.5 and more in black or white, whichever has more contrast."""
    for (row, column), value in np.ndenumerate(percent):
        if value >= 0.5:
            color = contrast(colors.to_rgba(value)[:3])
            panel.text(column, row, f"{value:.0f}", color=color, ha="center", va="center", fontsize="x-small")
