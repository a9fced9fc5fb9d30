"""A corpus at a glance: how many cells each tissue, disease and type has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter

from celler._utils._messages import column
from celler.pl._chart import NO_CELLS, ROW, name_legend, name_rows, open_chart, strip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"all cells": "#56B4E9", "for testing": "#D55E00"}


def cells_by(
    counts: pd.DataFrame,
    columns: Sequence[str] = ("tissue", "disease", "cell_type"),
    *,
    n_most: int = 25,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Draw the cells of each value of several columns on logarithmic axes, most frequent first.

    The thin bar within a bar is the part kept for testing, where the table has a column ``split``.

    counts: a row per combination and a column ``cells``, such as ``cl.atlas.summary(out).counts``; without
        such a column a row is one cell, as in ``adata.obs``.
    columns: one panel for each.
    n_most: values that a panel shows; the last row is what all others have together.

    The other options, and what is returned, are those of :func:`celler.pl.confusion`.
    """
    if isinstance(columns, str):
        raise TypeError(f"columns={columns!r} is one string; pass a list of names.")
    tables = {name: _table(counts, name, n_most) for name in columns}
    chart = open_chart(
        {name: (2.0, ROW * len(table)) for name, table in tables.items()}, figsize, ax
    )
    for name, table in tables.items():
        panel = chart.panels[name]
        _thousands_axis(panel, 30 * max(1, table["cells"].max()))
        panel.set_title(name, loc="left", fontsize="medium")
        strip(panel)
        rows = np.arange(len(table))
        for part, height in (("cells", 0.75), ("test", 0.25)):
            drawn = table[part].to_numpy() > 0
            color = COLORS["all cells" if part == "cells" else "for testing"]
            panel.barh(rows[drawn], table[part][drawn], height=height, color=color)
        name_rows(panel, list(table.index))
        for row, n in enumerate(table["cells"]):
            style: dict[str, Any] = {
                "textcoords": "offset points",
                "va": "center",
                "size": "x-small",
            }
            panel.annotate(f"{n:,}", (max(n, NO_CELLS), row), (3, 0), **style)
    if any(table["test"].any() for table in tables.values()):
        name_legend(chart.panels[list(tables)[-1]], COLORS)
    chart.arrange(title)
    return chart.finish(show=show, return_fig=return_fig)


def _thousands_axis(panel: Axes, high: float) -> None:
    """A logarithmic axis of up to millions of cells, with few and short numbers."""
    panel.set(xscale="log", xlim=(0.7, high), xlabel="cells")
    powers = range(0, int(np.log10(high)) + 1, 2)
    names = [f"{10 ** (p % 3)}{' kMG'[p // 3]}".strip() for p in powers]
    panel.set_xticks([10.0**p for p in powers], names)
    panel.xaxis.set_minor_formatter(NullFormatter())


def _table(counts: pd.DataFrame, name: str, n_most: int) -> pd.DataFrame:
    """All cells and those for testing of each value, most cells first; the rest in one row."""
    values = column(counts, name, "columns", "the table").astype(object)
    cells = counts["cells"] if "cells" in counts else pd.Series(1, counts.index)
    split = counts["split"] if "split" in counts else pd.Series("", counts.index)
    is_test = split.astype(str) == "test"
    rows = pd.DataFrame({"cells": cells, "test": cells.where(is_test, 0)})
    table = rows.groupby(values.where(values.notna(), "none").astype(str)).sum().astype(int)
    table = table.sort_values("cells", ascending=False, kind="stable")
    if len(table) > n_most:
        rest = table.iloc[n_most - 1 :]
        table = pd.concat(
            [table.iloc[: n_most - 1], rest.sum().rename(f"{len(rest):,} others").to_frame().T]
        )
    return table
