"""Columns of obs or of any table as labels or as probabilities."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._messages import column, similar
from celler._utils._text import as_categories

N_LISTED = 8


def label_column(data: AnnData | pd.DataFrame, key: str, argument: str) -> pd.Categorical:
    """Labels as text, categories in their order, unused ones removed; missing labels stay missing."""
    table, place = table_of(data)
    values = column(table, key, argument, place)
    labels = as_categories(values, f"{place}[{key!r}]")
    numbers = [value for value in pd.Categorical(values).categories if isinstance(value, float | np.floating)]
    if fractions := [value for value in numbers if not float(value).is_integer()]:
        raise ValueError(
            f"{argument}={key!r} holds numbers such as {fractions[0]:.3g}; a "
            "column of labels is needed. Pass one, or cut the numbers into ranges with pandas.cut."
        )
    if not len(labels.categories):
        raise ValueError(f"No cell has a label in {place}[{key!r}]; pass a filled column.")
    return labels


def in_natural_order(labels: pd.Categorical) -> pd.Categorical:
    """Order categories that are merely sorted as text so that "2" comes before "10"; an order of the user's stays."""
    names = list(labels.categories)
    if labels.ordered or names != sorted(names):
        return labels
    return labels.reorder_categories(sorted(names, key=natural_key))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return what sorts names by the numbers in them: "type 2" before "type 10"."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def note_unlabelled(labels: pd.Categorical, key: str, notes: list[str]) -> None:
    """Add the number of cells without a label, if there are any, to ``notes``."""
    if n_missing := int((labels.codes < 0).sum()):
        notes.append(f"Left out {n_missing:,} of {len(labels):,} cells, no label in {key!r}.")


def share_column(data: AnnData | pd.DataFrame, key: str, argument: str) -> np.ndarray:
    """Probabilities from 0 to 1, such as a confidence, as float64; missing ones are NaN."""
    table, place = table_of(data)
    values = column(table, key, argument, place)
    if not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)):
        raise ValueError(f"{argument}={key!r} holds {values.dtype}; a column of numbers is needed.")
    shares = values.to_numpy(dtype=float, na_value=np.nan)
    is_outside = (shares < 0) | (shares > 1)
    if is_outside.any():
        raise ValueError(f"{argument}={key!r} holds {shares[is_outside][0]:.4g}; probabilities from 0 to 1 are needed.")
    return shares


def table_of(data: AnnData | pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the table of cells and its name in messages."""
    if isinstance(data, AnnData):
        return data.obs, "adata.obs"
    if isinstance(data, pd.DataFrame):
        return data, "the table"
    raise TypeError(f"a {type(data).__name__} was given; an AnnData or a pandas.DataFrame is needed.")


def with_closest(name: str, names: Iterable[str]) -> str:
    """``name`` with up to two of ``names`` that resemble it in brackets."""
    found = similar(name, names, n=2, cutoff=0.6)
    return f"{name} (closest: {' or '.join(found)})" if found else name
