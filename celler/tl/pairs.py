"""Pairs: the given and the predicted label of each cell, and the parents of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from celler.tl.columns import label_column, listed

if TYPE_CHECKING:
    from anndata import AnnData


class Pair(NamedTuple):
    """Labels as text ``(n,)`` of the cells that have both; ``rows (n,)`` is where these cells are."""

    truth: np.ndarray
    prediction: np.ndarray
    rows: np.ndarray


def read_pair(
    data: AnnData | pd.DataFrame,
    truth_key: str,
    prediction_key: str,
    notes: list[str],
    arguments: tuple[str, str] = ("truth_key", "prediction_key"),
) -> Pair:
    """Both labels of every cell that has both; how many are left out goes to ``notes``."""
    truth = label_column(data, truth_key, arguments[0])
    prediction = label_column(data, prediction_key, arguments[1])
    rows = np.flatnonzero((truth.codes >= 0) & (prediction.codes >= 0))
    if not len(rows):
        raise ValueError(
            f"No cell has a label in both {truth_key!r} and {prediction_key!r}; pass columns of the "
            "same cells."
        )
    if len(rows) < len(truth):
        notes.append(
            f"Left out {len(truth) - len(rows):,} of {len(truth):,} cells, no label in {truth_key!r} "
            f"or {prediction_key!r}."
        )
    return Pair(np.asarray(truth[rows], dtype=str), np.asarray(prediction[rows], dtype=str), rows)


def read_parents(
    data: AnnData | pd.DataFrame, parents: Mapping[str, str] | pd.Series | str, cells: Pair
) -> dict[str, str]:
    """Parent of every class of the truth: from a mapping, or from a column with the cells' parents."""
    classes = np.unique(cells.truth)
    if isinstance(parents, Mapping | pd.Series):
        parent_of = {str(name): str(parent) for name, parent in parents.items()}
        missing = [name for name in classes if name not in parent_of]
        if missing:
            raise ValueError(
                f"parents has no parent for {listed(missing)}; name one for each class."
            )
        return parent_of
    column = label_column(data, parents, "parents")[cells.rows]
    pairs = pd.DataFrame({"class": cells.truth, "parent": np.asarray(column, dtype=object)})
    distinct = pairs.dropna().drop_duplicates()
    n_parents = distinct["class"].value_counts().reindex(classes, fill_value=0)
    if (n_parents != 1).any():
        name = n_parents.index[n_parents != 1][0]
        found = sorted(distinct.loc[distinct["class"] == name, "parent"])
        raise ValueError(
            f"parents={parents!r} gives class {name!r} {listed(found)} as parents; each class needs "
            "exactly one. Correct the column, or pass a mapping."
        )
    return dict(zip(distinct["class"], distinct["parent"], strict=True))
