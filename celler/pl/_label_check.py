"""Labels against the types that markers speak for, as a bubble chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from celler._utils._check import checked
from celler.pl._chart import ROW, note_beside, on_background, open_chart, shade
from celler.pl._confusion import draw_shares, name_axes
from celler.pl._docs import document
from celler.tl._label_check import LabelCheck


@document
@checked
def label_check(
    check: LabelCheck,
    *,
    cmap: str | Colormap = "YlGnBu",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Plot labels against the types whose markers the cells express, to see which types the labels miss.

    A row is a type with its number of cells by markers, a column a label. The area of a dot is the share of the row's
    cells with this label. Its colour is how strongly they express the type's markers: 100 % is as in the reference, and
    grey a type without a marker of its own.
    Types that labels miss are above the line, and cells that speak for them are outlined in red.

    Parameters
    ----------
    check
        Result of :meth:`celler.model.Celler.check_labels`.
    cmap
        Colour map of 0 to 100 %. The default can be read without colour vision and in grey; it is reversed on a dark
        background.
    $layout_and_example
    >>> query.obs["celler"] = query.obs["celler"].astype(str).replace("CD56+ NK", "CD8+ Cytotoxic T")
    >>> cl.pl.label_check(model.check_labels(query))
    """
    if not check.counts.size:
        raise ValueError("the markers decide for no cell; nothing can be drawn.")
    missed = list(check.table["type"])
    names = missed + [name for name in check.counts.index if name not in missed]
    shown = [name for name in names if name in check.counts.columns]
    shown += [name for name in check.counts.columns if name not in shown]
    counts, strength = (table.loc[names, shown] for table in (check.counts, check.strength))
    rows, columns = np.nonzero(counts.to_numpy())
    is_missed = (rows < len(missed)) & (np.array(names)[rows] != np.array(shown)[columns])
    chart = open_chart({"main": (ROW * len(shown), ROW * len(names))}, figsize, ax)
    panel = chart.first
    name_axes(panel, counts, "label", "type by markers")
    if 0 < len(missed) < len(names):
        panel.axhline(len(missed) - 0.5, color=shade(0.35), lw=0.8)
    for row, markers in enumerate(check.table["markers"]):
        note_beside(panel, markers, row)
    style: dict[str, Any] = {"cmap": on_background(cmap), "norm": Normalize(0, 100)}
    style |= {"ec": np.where(is_missed, "tab:red", "0.3"), "lw": np.where(is_missed, 1.6, 0.4)}
    titles = ("Share of the type (%)", "Expression of its\nmarkers (%)")
    drawn = draw_shares(panel, counts, 100 * strength.to_numpy(), titles, **style)
    chart.arrange(title)
    chart.shrink(ROW, *drawn)
    return chart.finish(show=show, return_fig=return_fig, save=save)
