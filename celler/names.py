"""Names: a column by its name, and what comes closest to a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import pandas as pd


def column(table: pd.DataFrame, key: str, argument: str, place: str = "adata.obs") -> pd.Series:
    """``table[key]``, or a KeyError that suggests the closest column to the one named by ``argument``."""
    if key in table.columns:
        return table[key]
    columns = list(map(str, table.columns))
    raise KeyError(
        f"{argument}={key!r} is not a column of {place}.{closest(key, columns)} Columns: {columns}."
    )


def closest(name: object, names: Iterable[str], cutoff: float = 0.4) -> str:
    """``" Closest: 'x'."``, the one of ``names`` most like ``name``; empty where none is."""
    close = most_like(name, names, cutoff)
    return "" if close is None else f" Closest: {close!r}."


def most_like(name: object, names: Iterable[str], cutoff: float = 0.4) -> str | None:
    """The one of ``names`` most like ``name``, ``None`` where none is.

    cutoff: how alike they must be, from 0 to 1.
    """
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=cutoff)
    return close[0] if close else None
