"""Labels against labels: flows from given to predicted ones, and the composition of groups of cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve
from matplotlib.text import Annotation

from celler._utils._check import checked
from celler._utils._messages import column, warn
from celler.pl._chart import ROW, apart, name_legend, name_rows, open_chart, shade, strip
from celler.pl._colors import UNKNOWN, color_classes, contrast, stored_colors
from celler.pl._confusion import cross
from celler.pl._docs import document
from celler.tl._columns import in_natural_order, label_column
from celler.tl._evaluate import read_pair

BETWEEN = 0.16  # inches between two classes: a line of text, however few cells they have
OTHERS = {"others": "#969696"}  # what classes are summed up as
BAR = 0.03  # width of the bars of the classes, in widths of the panel


@document
@checked
def alluvial(
    adata: AnnData | pd.DataFrame,
    truth_key: str,
    prediction_key: str,
    *,
    parents: Mapping[str, str] | str | None = None,
    n_most: int = 25,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Plot where the cells of each given class go, as flows from given to predicted labels.

    The height of a flow is its number of cells. A flow has the colour of the given class, and is pale if the prediction
    is that class. Where names differ, as those of clusters do, a class has the colour of its best match. Colours are
    those of ``adata.uns["<truth_key>_colors"]`` or of the prediction, else of the palette.

    Parameters
    ----------
    $cells
    $labels
    $parents
    n_most
        Largest number of classes of a side. The smallest ones are summed up as "others", since more flows cannot be
        told apart; :func:`celler.pl.confusion` shows all.
    $layout_and_example
    >>> cl.pl.alluvial(query, "cell_type", "celler")
    """
    counts, _, n_own = cross(adata, read_pair(adata, truth_key, prediction_key), parents)
    counts = _sum_up(counts, n_most)
    types = _types(counts, has_own=n_own > 0)
    stored = stored_colors(adata, truth_key), stored_colors(adata, prediction_key)
    keys = (truth_key, "truth_key"), (prediction_key, "prediction_key")
    names = dict.fromkeys(name for key in keys for name in label_column(adata, *key).categories)
    shown = {*types[0].values(), *types[1].values()}
    colors = OTHERS | color_classes([name for name in names if name in shown], *stored)
    colored = [{name: colors[kind] for name, kind in side.items()} for side in types]
    n_rows = max(counts.shape)
    height = BETWEEN * n_rows + max(2.5, 0.1 * n_rows)
    chart = open_chart({"main": (3.2, height)}, figsize, ax)
    panel = chart.panels["main"]
    # In cells: what is left of the height after the gaps is shared by all cells.
    gap = counts.to_numpy().sum() * BETWEEN / (height - BETWEEN * n_rows)
    left, right = _stack(counts.sum(axis=1), gap, n_rows), _stack(counts.sum(axis=0), gap, n_rows)
    _draw_flows(panel, counts, (left, right), types, colors)
    panel.set(xlim=(0, 1), ylim=(counts.to_numpy().sum() + gap * n_rows, 0), xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    sides = [
        _draw_side(panel, counts.sum(axis=1), left, f"given: {truth_key}", colored[0]),
        _draw_side(panel, counts.sum(axis=0), right, f"predicted: {prediction_key}", colored[1], 1),
    ]
    chart.arrange(title)
    for texts in sides:
        _part(panel, texts)
    return chart.finish(show=show, return_fig=return_fig, save=save)


@document
@checked
def composition(
    adata: AnnData | pd.DataFrame,
    key: str,
    groupby: str,
    *,
    n_key: str | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Plot the labels of the cells in each group, one bar per tissue, disease or donor.

    Labels and groups have the order of their categories. The number of cells follows the name of the group. Labels are
    also written into parts that are wide enough.

    Parameters
    ----------
    $cells
    key
        Column of labels. Colours are those of ``adata.uns["<key>_colors"]``, else of the palette.
    groupby
        Column of groups, such as "tissue", "disease" or "donor".
    n_key
        Column with the cells of each row, as in ``cl.atlas.summary(out).counts``. None counts a row as one cell.
    $layout_and_example
    >>> cl.pl.composition(query, "celler", "cell_type")
    """
    labels, groups = (
        in_natural_order(label_column(adata, name, argument)) for name, argument in ((key, "key"), (groupby, "groupby"))
    )
    has_both = (labels.codes >= 0) & (groups.codes >= 0)
    n_of_row = np.ones(len(has_both), int) if n_key is None else column(adata, n_key, "n_key").to_numpy(dtype=int)
    if not has_both.any():
        raise ValueError(f"No cell has both {key!r} and {groupby!r}; pass columns of the same cells.")
    if n_missing := int(n_of_row[~has_both].sum()):
        warn(f"Left out {n_missing:,} of {n_of_row.sum():,} cells, no label in {key!r} or {groupby!r}.")
    pair = [part[has_both].remove_unused_categories() for part in (groups, labels)]
    names = [np.asarray(part, dtype=str) for part in pair]
    counts = pd.crosstab(*names, values=n_of_row[has_both], aggfunc="sum").fillna(0).astype(int)
    counts = counts.loc[list(pair[0].categories), list(pair[1].categories)]
    n_cells = counts.sum(axis=1)
    shares = counts.div(n_cells, axis=0)
    colors = color_classes(list(counts.columns), stored_colors(adata, key))
    chart = open_chart({"main": (max(5.0, 0.15 * counts.shape[1]), 1.5 * ROW * len(counts))}, figsize, ax)
    panel = chart.panels["main"]
    strip(panel)
    ends = shares.cumsum(axis=1)
    # White lines between parts would hide the thin parts of many labels.
    style: dict[str, Any] = {"height": 0.8, "ec": shade(1), "lw": 0.4 if len(colors) <= 20 else 0}
    for name, color in colors.items():
        left = ends[name] - shares[name]
        panel.barh(range(len(counts)), shares[name], left=left, color=color, **style)
    name_rows(panel, [f"{name} ({n:,})" for name, n in n_cells.items()])
    panel.set(xlim=(0, 1), xlabel="share of cells", ylabel=groupby)
    name_legend(panel, colors, key)
    chart.arrange(title)
    _write_labels(panel, shares, ends - shares / 2, colors)
    return chart.finish(show=show, return_fig=return_fig, save=save)


def _sum_up(counts: pd.DataFrame, n_most: int) -> pd.DataFrame:
    """Sum up the smallest classes of a side that has more than ``n_most``, in the last row and column.

    Rejected cells stay apart.
    """
    sizes = counts.sum(axis=1).add(counts.sum(axis=0), fill_value=0)
    for _ in range(2):
        classes = [name for name in counts.index if name not in UNKNOWN]
        if len(classes) > n_most:
            is_kept = counts.index.isin([*sizes[classes].nlargest(n_most - 1).index, *UNKNOWN])
            counts = pd.concat([counts[is_kept], counts[~is_kept].sum().rename(next(iter(OTHERS))).to_frame().T])
        counts = counts.T
    return counts


def _types(counts: pd.DataFrame, *, has_own: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Return the type of each given and of each predicted class, which has one colour and no flow against itself.

    It is the name of the class. Where names differ, classes of the side that has more have the name of their best
    match on the other side, so that clusters of one type are of one colour.
    """
    given, predicted = dict(zip(*[counts.index] * 2, strict=True)), dict(zip(*[counts.columns] * 2, strict=True))
    fixed = {*UNKNOWN, *OTHERS}
    if not has_own:
        known = counts.drop(index=list(fixed), columns=list(fixed), errors="ignore")
        if known.size and known.shape[0] > known.shape[1]:
            given |= known.idxmax(axis=1).to_dict()
        elif known.size:
            predicted |= known.idxmax(axis=0).to_dict()
    return given, predicted


def _stack(totals: pd.Series, gap: float, n_most: int) -> dict[str, float]:
    """Return the top of each class when all are stacked with gaps, in the middle of ``n_most`` gaps."""
    before = np.cumsum(totals.to_numpy()) - totals.to_numpy()
    tops = before + gap * (0.5 + np.arange(len(totals)) + (n_most - len(totals)) / 2)
    return dict(zip(totals.index, tops, strict=True))


def _draw_flows(
    panel: Axes,
    counts: pd.DataFrame,
    tops: tuple[Mapping[str, float], Mapping[str, float]],
    types: tuple[Mapping[str, str], Mapping[str, str]],
    colors: Mapping[str, Any],
) -> None:
    """Draw a band from each given to each predicted class, below earlier bands at both ends."""
    table = counts.to_numpy()
    starts = np.cumsum(table, axis=1) - table + [[tops[0][name]] for name in counts.index]
    ends = np.cumsum(table, axis=0) - table + [tops[1][name] for name in counts.columns]
    for place in map(tuple, np.argwhere(table)):
        given, predicted = types[0][counts.index[place[0]]], types[1][counts.columns[place[1]]]
        band = _band(starts[place], ends[place], table[place])
        style = {"alpha": 0.3, "zorder": 1} if given == predicted else {"alpha": 0.8, "zorder": 2}
        # The line keeps the flow of a single cell visible.
        panel.add_patch(PathPatch(band, fc=colors[given], ec=colors[given], lw=0.4, **style))


def _band(start: float, end: float, height: float) -> Curve:
    (x, middle, far), below = (BAR, 0.5, 1 - BAR), (start + height, end + height)
    points = [(x, start), (middle, start), (middle, end), (far, end)]
    points += [(far, below[1]), (middle, below[1]), (middle, below[0]), (x, below[0]), (x, start)]
    curve = [Curve.CURVE4] * 3
    return Curve(points, [Curve.MOVETO, *curve, Curve.LINETO, *curve, Curve.CLOSEPOLY])


def _draw_side(
    panel: Axes, totals: pd.Series, tops: Mapping[str, float], heading: str, colors: Mapping[str, Any], x: int = 0
) -> list[Annotation]:
    """Draw the bars of the classes on one side, 0 is left, and return their names."""
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "left" if x else "right"}
    panel.annotate(heading, (x, 1), (0, 6), xycoords="axes fraction", **style)
    texts = []
    for name, n_cells in totals.items():
        middle, color = tops[name] + n_cells / 2, colors[name]
        panel.barh(middle, BAR, left=x - x * BAR, height=n_cells, color=color, ec=color, lw=0.4)
        place = (x, middle), (4 if x else -4, 0)
        texts.append(panel.annotate(f"{name} ({n_cells:,})", *place, va="center", size="small", **style))
    return texts


def _part(panel: Axes, texts: list[Annotation]) -> None:
    """Move names apart if the panel is too low for them."""
    highest = max(text.get_window_extent().height for text in texts) / panel.bbox.height
    floor = panel.get_ylim()[0]
    places = np.array([text.xy[1] for text in texts]) / floor
    for text, place in zip(texts, apart(places, highest) * floor, strict=True):
        text.xy = (text.xy[0], place)


def _write_labels(panel: Axes, shares: pd.DataFrame, middles: pd.DataFrame, colors: Mapping[str, Any]) -> None:
    """Write the label into each part of a bar that is wide enough for it."""
    for row, part in np.argwhere(shares.to_numpy() > 0):
        name, x = shares.columns[part], middles.iloc[row, part]
        text = panel.text(x, row, name, color=contrast(colors[name]), ha="center", va="center", fontsize="x-small")
        if text.get_window_extent().width > 0.95 * shares.iloc[row, part] * panel.bbox.width:
            text.remove()
