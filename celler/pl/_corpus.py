"""A corpus at a glance: cells of each tissue, disease and type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from celler._utils._check import checked
from celler._utils._messages import column
from celler.pl._chart import ROW, name_legend, name_rows, open_chart, strip, write_counts
from celler.pl._docs import document
from celler.tl._columns import natural_key, table_of

COLORS = {"all cells": "#56B4E9", "for testing": "#D55E00"}


@document
@checked
def cells_by(
    counts: AnnData | pd.DataFrame,
    columns: Sequence[str] = ("tissue", "disease", "cell_type"),
    *,
    n_most: int = 25,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Plot the number of cells of each value of several columns, most frequent first.

    The axes are logarithmic. If the table has a column ``split``, a thin bar shows the cells kept for testing.

    Parameters
    ----------
    counts
        Cells, or a table of them. A table with a column ``cells``, such as ``cl.atlas.summary(out).counts``, has a row
        for each combination of values.
    columns
        Columns of the table; each gets a panel of its name.
    n_most
        Largest number of rows of a panel. The last one sums up all further values.
    $panels

    Raises
    ------
    TypeError
        If ``columns`` is a string.
    KeyError
        If a column does not exist. The message names the closest one.

    $example
    >>> cl.pl.cells_by(query, ["cell_type", "celler"])
    """
    table, place = table_of(counts)
    tables = {name: _table(table, place, name, n_most) for name in columns}
    sizes = {name: (2.0, ROW * len(table)) for name, table in tables.items()}
    chart = open_chart(sizes, figsize, ax)
    for name, table in tables.items():
        panel = chart.panels[name]
        panel.set(xscale="log", xlim=(0.7, 30 * max(1, table["cells"].max())), xlabel="cells")
        panel.xaxis.set_major_locator(LogLocator(100))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_title(name, loc="left", fontsize="medium")
        strip(panel)
        rows = np.arange(len(table))
        for part, height, color in zip(("cells", "test"), (0.75, 0.25), COLORS.values(), strict=True):
            drawn = table[part].to_numpy() > 0
            panel.barh(rows[drawn], table[part][drawn], height=height, color=color)
        name_rows(panel, list(table.index))
        write_counts(panel, table["cells"])
    if any(table["test"].any() for table in tables.values()):
        name_legend(chart.panels[list(tables)[-1]], COLORS)
    chart.arrange(title)
    return chart.finish(show=show, return_fig=return_fig, save=save)


def _table(counts: pd.DataFrame, place: str, name: str, n_most: int) -> pd.DataFrame:
    """All cells and those for testing of each value, most cells first; the rest in one row."""
    values = column(counts, name, "columns", place).astype(object)
    cells = counts["cells"] if "cells" in counts else pd.Series(1, counts.index)
    split = counts["split"] if "split" in counts else pd.Series("", counts.index)
    rows = pd.DataFrame({"cells": cells, "test": cells.where(split.astype(str) == "test", 0)})
    table = rows.groupby(values.where(values.notna(), "none").astype(str)).sum().astype(int)
    table = table.loc[sorted(table.index, key=natural_key)].sort_values("cells", ascending=False, kind="stable")
    if len(table) > n_most:
        shown, rest = table.iloc[: n_most - 1], table.iloc[n_most - 1 :]
        table = pd.concat([shown, rest.sum().rename(f"{len(rest):,} others").to_frame().T])
    return table
