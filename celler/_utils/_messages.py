"""Messages: warnings at the user's line, helpful errors for missing names."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

PACKAGE = str(Path(__file__).parents[1]) + os.sep
_COLLECTED: ContextVar[list[str] | None] = ContextVar("collected", default=None)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Give a list that fills with the messages of all warnings, also of those that an earlier call has issued."""
    messages: list[str] = []
    before = _COLLECTED.set(messages)
    try:
        yield messages
    finally:
        _COLLECTED.reset(before)


def collect(message: str) -> None:
    """Add a message to the list of :func:`collected`, once, where there is one."""
    messages = _COLLECTED.get()
    if messages is not None and message not in messages:
        messages.append(message)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the line that called the package, however deep the cause."""
    collect(message)
    frame, level, found = inspect.currentframe(), 0, 1
    while frame is not None:
        level += 1
        if frame.f_code.co_filename.startswith(PACKAGE):
            found = level + 1
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=found)


def column(table: pd.DataFrame, key: str, argument: str, place: str = "adata.obs") -> pd.Series:
    """Return ``table[key]``; a ``KeyError`` names the user's ``argument`` and the closest column."""
    if key in table.columns:
        found: Any = table[key]
        if isinstance(found, pd.DataFrame):
            raise ValueError(
                f"{argument}={key!r} is the name of {found.shape[1]} columns of {place}; rename all but one of them."
            )
        return found if isinstance(found, pd.Series) else found.to_series()  # of a table that is read lazily
    columns = list(map(str, table.columns))
    more = f" and {len(columns) - 30:,} more" if len(columns) > 30 else ""
    raise KeyError(
        f"{argument}={key!r} is not a column of {place}.{closest(key, columns)} Columns: {columns[:30]}{more}."
    )


def check_columns(adata: AnnData) -> None:
    """Raise ``ValueError`` where two columns of obs or var have one name, with which AnnData cannot be copied."""
    for place, table in (("obs", adata.obs), ("var", adata.var)):
        if not table.columns.is_unique:
            twice = table.columns[table.columns.duplicated()].unique()
            raise ValueError(
                f"adata.{place} has several columns named {listed(list(map(repr, twice)))}; rename or drop all but one."
            )


def closest(name: object, names: Iterable[object]) -> str:
    """Return ``" Closest: 'x'."``, the one of ``names`` most like ``name``, or an empty string."""
    close = similar(name, names)
    return f" Closest: {close[0]!r}." if close else ""


def similar(name: object, names: Iterable[object], n: int = 1, cutoff: float = 0.4) -> list[str]:
    """Return up to ``n`` of ``names`` that resemble ``name``, ignoring case, best first."""
    by_lower = {str(other).lower(): str(other) for other in names}
    found = difflib.get_close_matches(str(name).lower(), by_lower, n, cutoff)
    return [by_lower[lower] for lower in found]


def listed(names: Sequence[str] | pd.Index, most: int = 8) -> str:
    """Return the first ``most`` of ``names`` and the number of the others."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(map(str, names[:most])) or "none") + more


#: Words of messages in the singular, where they do not only lose the s of the plural.
_SINGULAR = {
    **{"are": "is", "have": "has", "were": "was", "they": "it", "them": "it", "these": "this", "those": "that"},
    **{"classes": "class", "atlases": "atlas", "match": "matches", "express": "expresses", "repeat": "repeats"},
    **{"differ": "differs", "start": "starts", "stay": "stays", "as": "as"},
}


def agreed(n: int, words: str) -> str:
    """Return ``words``, nouns and verbs in the plural, as they stand beside ``n``: "cells have", or "cell has"."""
    if n != 1:
        return words
    return " ".join([_SINGULAR.get(word, word.removesuffix("s")) for word in words.split(" ")])


def counted(n: int, words: str) -> str:
    """Return a number and what it counts, with its verb: "1,200 cells have", "1 cell has"."""
    return f"{n:,} {agreed(n, words)}"


def has_progress() -> bool:
    """Whether progress bars are shown."""
    # scvi.settings.verbosity is the level of this logger, so one setting silences all scvi-tools models
    return logging.getLogger("scvi").level <= logging.INFO
