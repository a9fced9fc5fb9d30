"""Registered: labels and genes of the AnnData that a model is made of, kept by the model itself.

The user's AnnData may be set up again, filtered or relabelled while the model lives; what the model was made of does
not change with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._messages import agreed, counted
from celler.data._gene_names import check_names, gene_names
from celler.model._setup import LABELS_COLUMN, read_labels
from celler.model._state import Setup

AGAIN = "call Celler.setup_anndata(adata, ...) again, then make the model: Celler(adata)"


@dataclass(frozen=True)
class Registered:
    """Labels of the cells and names of the columns at the time a model was made."""

    labels: pd.Series  # label of each cell, by obs_name
    genes: pd.Index  # name of each column, "" for none
    setup: Setup

    @classmethod
    def of(cls, adata: AnnData, setup: Setup) -> Registered:
        """Read a registered AnnData; raise ``ValueError`` where its labels are not those that setup read."""
        labels = read_labels(adata, setup)
        recorded = adata.obs.get(LABELS_COLUMN)
        if recorded is None:
            raise ValueError(f"adata.obs[{LABELS_COLUMN!r}], which setup_anndata wrote, is gone; {AGAIN}.")
        _check_same(recorded.to_numpy().astype(object), labels, adata.obs_names, setup, "setup_anndata was called")
        genes = gene_names(adata.var, setup.gene_key)
        check_names(genes, adata.var, setup.gene_key)
        return cls(_series(labels, adata.obs_names), genes, setup)

    def labels_of(self, adata: AnnData) -> pd.Series:
        """Labels of the cells that ``adata`` has now; raise ``ValueError`` where cells or labels were changed."""
        key, names = self.setup.labels_key, adata.obs_names
        known = self.labels.to_numpy().astype(object)
        # A column that Celler wrote may have been written again, for another model.
        is_given = key in adata.obs.columns and not str(key).startswith("_celler")
        now = read_labels(adata, self.setup) if is_given else None
        if len(names) == len(known) and (names.equals(self.labels.index) or (now is not None and (now == known).all())):
            found = known
        else:
            own = self.labels.index
            rows = own.get_indexer(names) if own.is_unique else np.full(len(names), -1)
            if (rows < 0).any():
                raise ValueError(
                    f"adata has other cells than when this model was made of it: {(n := int((rows < 0).sum())):,} of "
                    f"{len(names):,} {agreed(n, 'are')} new to the model (first: {str(names[np.argmin(rows)])!r}); "
                    f"{AGAIN}."
                )
            found = known[rows]
        if now is not None:
            _check_same(found, now, names, self.setup, "this model was made")
        return _series(found, names)

    def columns_of(self, adata: AnnData, genes: pd.Index) -> np.ndarray:
        """Columns ``(n_genes,)`` of the model's ``genes``; raise ``ValueError`` where the genes were changed."""
        names = gene_names(adata.var, self.setup.gene_key)
        columns = np.flatnonzero(names != "")
        places = np.append(columns, -1)[pd.Index(names[columns]).get_indexer(genes)]
        if (places < 0).any():
            missing = genes[places < 0]
            raise ValueError(
                f"adata has other genes than when this model was made of it: {len(missing):,} of its {len(genes):,} "
                f"{agreed(len(missing), 'are')} gone (first: {str(missing[0])!r}); {AGAIN}."
            )
        return places

    def check_columns(self, adata: AnnData) -> None:
        """Raise ``ValueError`` unless the columns are those of when the model was made."""
        if not gene_names(adata.var, self.setup.gene_key).equals(self.genes):
            raise ValueError(f"the genes of adata were changed after this model was made of it; {AGAIN}.")


def _series(labels: np.ndarray, names: pd.Index) -> pd.Series:
    return pd.Series(pd.Categorical(labels), index=names)


def _check_same(before: np.ndarray, now: np.ndarray, names: pd.Index, setup: Setup, since: str) -> None:
    """Raise ``ValueError`` where labels differ from those of before."""
    changed = np.flatnonzero(before != now)
    if len(changed):
        first = changed[0]
        raise ValueError(
            f"adata.obs[{setup.labels_key!r}] was changed after {since}: {counted(len(changed), 'labels differ')} "
            f"(first: cell {str(names[first])!r}, {before[first]!r} then and {now[first]!r} now); {AGAIN}."
        )
