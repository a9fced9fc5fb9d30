"""The long tail: how many cells each class has, and what that does to its F1."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from pandas.api.types import is_numeric_dtype

from celler._utils._check import checked
from celler._utils._messages import closest, warn
from celler.metrics import frequency_groups
from celler.pl._chart import (
    NO_CELLS,
    ROW,
    above,
    apart,
    count_axis,
    name_legend,
    name_rows,
    note_beside,
    open_chart,
    shade,
    strip,
    write_counts,
)
from celler.pl._colors import color_classes, stored_colors
from celler.pl._docs import document
from celler.tl._columns import label_column, note_unlabelled
from celler.tl._evaluate import Evaluation

BANDS = {"head": "#0072B2", "medium": "#56B4E9", "tail": "#D55E00"}
MARKERS = "osD^vPX"
APART = 0.07  # inches between the points of two classes of the same size
ROOF = 0.2  # inches between the panel and the names of the classes over it


@document
@checked
def class_counts(
    data: AnnData | pd.DataFrame | pd.Series | Mapping[str, int],
    key: str | None = None,
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Plot the number of cells of each class on a logarithmic axis, and where the tail begins.

    Head, medium and tail are those of :func:`celler.metrics.frequency_groups`. Bars have the colours of
    ``adata.uns["<key>_colors"]``, or else of their group.

    Parameters
    ----------
    data
        Cells, or a table with the column ``key``; or numbers of cells by class, such as ``value_counts()`` of pandas;
        or a table of :func:`celler.metrics.per_class`, whose column ``reference_cells``, or else ``query_cells``, is
        drawn.
    key
        Column of labels. None if ``data`` holds numbers of cells.
    $layout

    $raises
    TypeError
        If ``data`` holds cells and ``key`` is None.

    $example
    >>> cl.pl.class_counts(query, "cell_type")
    """
    counts = _count(data, key).sort_values(ascending=False, kind="stable")
    group_of = pd.Series(frequency_groups(dict(counts)))
    stored = stored_colors(data, key)
    colors = [stored.get(name, BANDS[group_of[name]]) for name in counts.index]
    chart = open_chart({"main": (3.5, ROW * len(counts))}, figsize, ax)
    panel = chart.panels["main"]
    count_axis(panel, 0.7, 6 * max(counts.max(), 1))
    panel.set_xlabel("cells")
    strip(panel)
    rows = np.arange(len(counts))
    drawn = counts.to_numpy() > 0
    panel.barh(rows[drawn], counts[drawn], height=0.75, color=np.array(colors, object)[drawn])
    name_rows(panel, list(counts.index))
    write_counts(panel, counts)
    for band in BANDS:
        members = np.flatnonzero(group_of[counts.index] == band)
        if len(members):
            share = counts.iloc[members].sum() / max(counts.sum(), 1)
            text = f"{band}: {len(members)}, {share:.1%} of cells"
            _bracket(panel, (members[0] - 0.4, members[-1] + 0.4), text, BANDS[band])
    chart.arrange(title)
    return chart.finish(show=show, return_fig=return_fig, save=save)


@document
@checked
def f1_by_frequency(
    tables: pd.DataFrame | Evaluation | Mapping[str, pd.DataFrame | Evaluation],
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Plot the F1 of each class against its number of cells, for one or several methods.

    The flat lines are a method's mean F1 of the head, medium and tail classes.

    Parameters
    ----------
    tables
        Table with a row per class and the columns, or the index, ``class``, ``reference_cells`` (or else
        ``query_cells``) and ``f1``, such as
        the result of :func:`celler.tl.evaluate` or :func:`celler.metrics.per_class`. For several methods, tables by
        name of the method, or a table with a column ``method``; several rows of a class, such as seeds, are averaged.
    $layout

    Raises
    ------
    TypeError
        If ``tables`` holds no tables.
    KeyError
        If a column is missing. The message names the closest one.
    ValueError
        If the tables have no rows.

    $example
    >>> cl.pl.f1_by_frequency(cl.tl.evaluate(query, "cell_type", "celler"))
    """
    rows = _tidy(tables)
    wide = rows.pivot_table(index="class", columns="method", values="f1", sort=False)
    counted = _counted(rows)
    cells = rows.groupby("class")[counted].mean().sort_values(kind="stable")
    wide = wide.loc[cells.index]
    sizes = np.maximum(cells.to_numpy(dtype=float), NO_CELLS)
    colors = color_classes(wide.columns)
    width = max(4.5, 0.17 * len(wide))
    chart = open_chart({"main": (width, 3.2)}, figsize, ax)
    panel = chart.panels["main"]
    low, high = sizes.min() / 1.3, sizes.max() * 1.3
    strip(panel)
    count_axis(panel, low, high)
    panel.set_xlabel(f"{counted.replace('_', ' ')} of the class", labelpad=16)
    panel.set(ylim=(-0.03, 1.03), ylabel="F1")
    places = apart(np.log(sizes / low) / np.log(high / low), APART / width)
    x = low * (high / low) ** places
    panel.vlines(x, wide.min(axis=1), wide.max(axis=1), color=shade(0.8), lw=0.8, zorder=1)
    for (method, f1), marker in zip(wide.items(), cycle(MARKERS), strict=False):
        panel.scatter(x, f1, s=22, zorder=3, marker=marker, color=colors[method], edgecolors=shade(1), lw=0.4)
    has_bands = "frequency" in rows
    bands = rows.groupby("class")["frequency"].first() if has_bands else pd.Series(frequency_groups(dict(cells)))
    band_names = _draw_bands(panel, wide, x, bands, colors)
    names = [panel.text(0, ROOF, name, transform=above(panel)) for name in wide.index]
    if list(colors) != [""]:
        name_legend(panel, colors, markers=MARKERS)
    plt.setp(names, rotation=90, ha="center", va="bottom", fontsize="small")
    chart.arrange(title)
    _lead(panel, names, places)
    _part(panel, band_names)
    return chart.finish(show=show, return_fig=return_fig, save=save)


def _count(data: AnnData | pd.DataFrame | pd.Series | Mapping[str, int], key: str | None) -> pd.Series:
    """Return the number of cells of each class."""
    if isinstance(data, pd.Series) and is_numeric_dtype(data):
        data = data.to_dict()
    if isinstance(data, Mapping):
        return pd.Series({str(name): int(count) for name, count in data.items()}, dtype=int)
    if key is None:
        if not isinstance(data, pd.DataFrame):
            raise TypeError(
                f"data={type(data).__name__} was given without a key; pass key=, or a table with the "
                "columns class and reference_cells."
            )
        table = _by_class(data)
        return table.set_index("class")[_counted(table)].astype(int)
    notes: list[str] = []
    labels = label_column(data, key, "key")
    note_unlabelled(labels, key, notes)
    if notes:
        warn(" ".join(notes))
    return pd.Series(np.bincount(labels.codes[labels.codes >= 0]), index=labels.categories)


def _by_class(table: Any) -> pd.DataFrame:
    """Return the table with its classes in a column, as text."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"tables={type(table).__name__} was given; pass a table with a row per class, such as cl.tl.evaluate gives."
        )
    table = table if "class" in table else table.rename_axis("class").reset_index()
    for name in ("class", _counted(table)):
        if name not in table:
            raise KeyError(f"The table has no column {name!r}.{closest(name, table)}")
    return table.assign(**{"class": table["class"].astype(str)})


def _counted(table: pd.DataFrame) -> str:
    """Return the column with the cells of each class: of the reference, or else of the query."""
    return "reference_cells" if "reference_cells" in table or "query_cells" not in table else "query_cells"


def _tidy(tables: Any) -> pd.DataFrame:
    """Return a row per method and class: ``method``, ``class``, ``reference_cells``, ``f1``."""
    by_method = tables if isinstance(tables, Mapping) else {None: tables}
    parts = []
    for method, table in by_method.items():
        rows = _by_class(table.per_class if isinstance(table, Evaluation) else table)
        if "f1" not in rows:
            raise KeyError(f"The table has no column 'f1'.{closest('f1', rows)}")
        if method is not None or "method" not in rows:
            rows = rows.assign(method=method or "")
        parts.append(rows)
    if not sum(map(len, parts)):
        raise ValueError("There is no class to draw; pass tables with a row per class.")
    return pd.concat(parts, ignore_index=True).astype({"method": str})


def _bracket(panel: Axes, rows: tuple[float, float], text: str, color: str) -> None:
    """Draw a line beside rows and name them."""
    place = panel.get_yaxis_transform()
    panel.plot((1.01, 1.01), rows, color=color, lw=3, transform=place, clip_on=False, solid_capstyle="butt")
    note_beside(panel, text, float(np.mean(rows)), 1.01)


def _draw_bands(
    panel: Axes, wide: pd.DataFrame, x: np.ndarray, band_of: pd.Series, colors: Mapping[str, Any]
) -> list[Annotation]:
    """Draw lines between tail, medium and head, and the mean of each method in each; returns their names."""
    bands = band_of[wide.index].to_numpy()
    present = [band for band in reversed(BANDS) if (bands == band).any()]
    ends = [(x[bands == one].max(), x[bands == other].min()) for one, other in pairwise(present)]
    borders = [np.sqrt(low * high) for low, high in ends]
    edges = [panel.get_xlim()[0], *borders, panel.get_xlim()[1]]
    for border in borders:
        panel.axvline(border, color=shade(0.6), lw=0.8, ls=":")
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "top"}
    names = []
    for band, span in zip(present, pairwise(edges), strict=True):
        for method, f1 in wide[bands == band].mean().items():
            panel.hlines(f1, *span, color=colors[method], lw=1.5, alpha=0.8, zorder=2)
        place = (np.sqrt(span[0] * span[1]), 0), (0, -18)
        names.append(panel.annotate(band, *place, xycoords=panel.get_xaxis_transform(), size="small", **style))
    return names


def _part(panel: Axes, names: list[Annotation]) -> None:
    """Move names on the logarithmic axis apart where their bands are narrow."""
    low, high = panel.get_xlim()
    gap = 1.2 * max(name.get_window_extent().width for name in names) / panel.bbox.width
    places = np.log([name.xy[0] / low for name in names]) / np.log(high / low)
    for name, place in zip(names, apart(places, gap), strict=True):
        name.xy = (low * (high / low) ** place, name.xy[1])


def _lead(panel: Axes, names: list[Text], places: np.ndarray) -> None:
    """Move names above their points, at ``places`` in widths of the panel, but apart, with a line to each."""
    gap = 1.25 * max(name.get_window_extent().width for name in names) / panel.bbox.width
    style: dict[str, Any] = {"color": shade(0.7), "lw": 0.6, "transform": above(panel)}
    for name, place, point in zip(names, apart(places, gap), places, strict=True):
        name.set_x(place)
        panel.plot((point, point, place), (0, 0.06, ROOF - 0.03), clip_on=False, **style)
