"""Cells as every method gets them: labelled, under the reference's gene names, apart from the user's objects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import joblib
import numpy as np
import pandas as pd
from anndata import AnnData

from celler.door import warn
from celler.genes import align_genes, check_unique
from celler.inputs import ExpressionReader, check_values
from celler.labels import as_strings
from celler.names import column

#: The column of obs that holds the labels of a reference, whatever it is called in the user's.
LABELS_KEY = "label"
UNLABELED = "Unknown"


@dataclass(frozen=True)
class Cells:
    """reference: counts or logarithms, labels and gene names. query: the same without labels.
    truth: labels ``(N,)`` of the query."""

    reference: AnnData
    query: AnnData
    truth: np.ndarray

    @classmethod
    def of(
        cls,
        reference: AnnData,
        query: AnnData,
        labels_key: str,
        query_labels_key: str | None,
        layer: str | None,
    ) -> Cells:
        """Copies of what methods need. Cells without a label are left out, with a warning; genes are
        matched by name, and those that the reference lacks are left out."""
        labels = _labels(reference, labels_key, "labels_key", "reference")
        argument = "labels_key" if query_labels_key is None else "query_labels_key"
        truth = _labels(query, query_labels_key or labels_key, argument, "query")
        is_learned, is_scored = labels != UNLABELED, truth != UNLABELED
        check_unique(reference.var_names, "the reference's genes")
        genes = align_genes(query.var_names, reference.var_names, query.var)
        place = np.flatnonzero(genes.gene_map >= 0)
        place = place[np.argsort(genes.gene_map[place])]
        known = _plain(reference, is_learned, layer, np.arange(reference.n_vars))
        asked = _plain(query, is_scored, layer, place)
        known.obs[LABELS_KEY] = labels[is_learned]
        known.var_names = reference.var_names.astype(str)
        asked.var_names = known.var_names[np.sort(genes.gene_map[place])]
        return cls(known, asked, truth[is_scored])

    @property
    def kinds(self) -> set[str]:
        """What the values are, such as counts or log1p."""
        return {self.reference.uns["kind"], self.query.uns["kind"]}

    @property
    def reference_counts(self) -> dict[str, int]:
        """Cells of each type of the reference."""
        return dict(self.reference.obs[LABELS_KEY].value_counts())

    @cached_property
    def fingerprint(self) -> str:
        """A hash that changes with any value, gene, label or the order of cells."""
        parts = [list(self.reference.obs[LABELS_KEY]), list(self.truth)]
        for adata in (self.reference, self.query):
            X = adata.X
            parts += [adata.uns["kind"], list(adata.var_names), X.data, X.indices, X.indptr]
        return str(joblib.hash(parts))


def _labels(adata: AnnData, key: str, argument: str, what: str) -> np.ndarray:
    """Labels as text, ``Unknown`` where there is none; warns of those, raises where there are no others."""
    values = column(adata.obs, key, argument, f"{what}.obs")
    labels = as_strings(values, key, UNLABELED).astype(str)
    n_unlabeled = int((labels == UNLABELED).sum())
    if n_unlabeled == len(labels):
        raise ValueError(f"{what}.obs[{key!r}] labels no cell; name a column with cell types.")
    if n_unlabeled:
        warn(
            f"{n_unlabeled:,} of the {what}'s {len(labels):,} cells have no label; they are left out."
        )
    return labels


def _plain(adata: AnnData, is_kept: np.ndarray, layer: str | None, columns: np.ndarray) -> AnnData:
    """The kept cells' values as CSR float32, and what they are in ``uns["kind"]``; no obs, no var."""
    reader = ExpressionReader(adata, layer)
    X = reader.matrix()
    check_values(X, reader)
    X = X[is_kept][:, columns]
    obs = pd.DataFrame(index=adata.obs_names[is_kept].astype(str))
    return AnnData(X, obs=obs, uns={"kind": reader.state.kind})
