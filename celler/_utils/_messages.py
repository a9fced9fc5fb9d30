"""Messages: warnings that point at the user's call, and the closest name to one that does not exist."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

PACKAGE = str(Path(__file__).parents[1]) + os.sep


def warn(message: str) -> None:
    """A UserWarning at the line that called the package, however deep inside the reason was found."""
    frame, level, found = inspect.currentframe(), 0, 1
    while frame is not None:
        level += 1
        if frame.f_code.co_filename.startswith(PACKAGE):
            found = level + 1
        frame = frame.f_back
    warnings.warn(message, UserWarning, stacklevel=found)


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


def has_progress() -> bool:
    """Whether progress is shown at all."""
    # scvi.settings.verbosity is the level of this logger: one setting keeps all its models silent
    return logging.getLogger("scvi").level <= logging.INFO
