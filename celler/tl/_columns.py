"""Columns of obs, or of any table, as labels or numbers, and what to say where one is not there."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

N_LISTED = 8


def column(data: AnnData | pd.DataFrame, key: str, argument: str) -> pd.Series:
    """Column ``key`` of obs or of the table; ``argument`` is what the user calls it."""
    obs, place = table_of(data)
    if key not in obs.columns:
        raise KeyError(f"{argument}={key!r} is not a column of {place}. {closest(key, obs)}")
    return obs[key]


def label_column(data: AnnData | pd.DataFrame, key: str, argument: str) -> pd.Categorical:
    """Label of every cell, as text, in the order of the categories; a missing label stays missing."""
    values = column(data, key, argument)
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 != 0).any():
        raise ValueError(
            f"{argument}={key!r} holds numbers such as {values[values % 1 != 0].iloc[0]:.3g}; a "
            "column of labels is needed. Pass one, or cut the numbers into ranges with pandas.cut."
        )
    labels = pd.Categorical(values).remove_unused_categories()
    if not len(labels.categories):
        raise ValueError(
            f"No cell has a label in {table_of(data)[1]}[{key!r}]; pass a filled column."
        )
    return labels.rename_categories([_as_text(category) for category in labels.categories])


def labelled(labels: pd.Categorical, key: str, notes: list[str]) -> np.ndarray:
    """Whether each cell has a label; how many have none goes to ``notes``."""
    is_labelled = np.asarray(labels.codes >= 0)
    n_missing = int((~is_labelled).sum())
    if n_missing:
        notes.append(f"Left out {n_missing:,} of {len(labels):,} cells, no label in {key!r}.")
    return is_labelled


def share_column(data: AnnData | pd.DataFrame, key: str, argument: str) -> np.ndarray:
    """Numbers between 0 and 1, such as a confidence, as float64; missing ones are NaN."""
    values = column(data, key, argument)
    if not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)):
        raise ValueError(f"{argument}={key!r} holds {values.dtype}; a column of numbers is needed.")
    shares = values.to_numpy(dtype=float, na_value=np.nan)
    is_outside = (shares < 0) | (shares > 1)
    if is_outside.any():
        raise ValueError(
            f"{argument}={key!r} holds {shares[is_outside][0]:.4g}; probabilities from 0 to 1 are needed."
        )
    return shares


def table_of(data: AnnData | pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The table of cells, and its name for messages."""
    if isinstance(data, AnnData):
        return data.obs, "adata.obs"
    if isinstance(data, pd.DataFrame):
        return data, "the table"
    raise TypeError(
        f"a {type(data).__name__} was given; an AnnData or a pandas.DataFrame is needed."
    )


def closest(name: str, names: Iterable[Any]) -> str:
    """Say which of ``names`` is the most like ``name``, and list them."""
    names = [str(other) for other in names]
    similar = _similar(name, names, n=1)
    return (f"Closest: {similar[0]!r}. " if similar else "") + f"There are: {listed(names, 30)}."


def with_closest(name: str, names: Iterable[str]) -> str:
    """``name`` and, in brackets, up to two of ``names`` most like it."""
    similar = _similar(name, names, n=2)
    return f"{name} (closest: {' or '.join(similar)})" if similar else name


def listed(names: Sequence[str] | pd.Index, most: int = N_LISTED) -> str:
    """The first ``most`` of ``names`` and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(map(str, names[:most])) or "none") + more


def _similar(name: str, names: Iterable[str], n: int) -> list[str]:
    """Names most like ``name``, whatever the case of their letters."""
    by_lower = {other.lower(): other for other in names}
    return [by_lower[lower] for lower in get_close_matches(str(name).lower(), by_lower, n)]


def _as_text(category: object) -> str:
    is_whole = isinstance(category, float | np.floating) and float(category).is_integer()
    # whole numbers are floats where one of their column is missing: 2, not 2.0
    return f"{category:.0f}" if is_whole else str(category)
