"""Queries: the cells of any AnnData, and how its genes become the model's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celler.door import warn
from celler.genes import GeneAlignment, align_genes, check_unique, gene_names, selector
from celler.inputs import ExpressionReader, is_log, query_reader

if TYPE_CHECKING:
    from celler.model.celler import Celler


@dataclass(frozen=True)
class Genes:
    """The model's genes: ``names`` and each one's mean share of a reference cell's counts ``(n_genes,)``.

    is_vocabulary: they are all genes of a species and not those of a reference.
    """

    names: pd.Index
    share: np.ndarray
    key: str | None = None
    is_vocabulary: bool = False

    def names_of(self, adata: AnnData) -> pd.Index:
        """Gene names of a query: its var column ``key`` where it has one, else ``var_names``."""
        if self.key is not None and self.key in adata.var.columns:
            return gene_names(adata.var, self.key)
        check_unique(adata.var_names, "the query's genes")
        return adata.var_names

    def columns_of(self, adata: AnnData) -> np.ndarray:
        """Columns ``(n_genes,)`` of a registered AnnData, which has all of them."""
        return gene_names(adata.var, self.key).get_indexer(self.names)

    def align(self, adata: AnnData) -> tuple[GeneAlignment, float]:
        """Alignment of a query and the share of the reference's expression its genes carry."""
        names = self.names_of(adata)
        alignment = align_genes(names, self.names, adata.var, is_vocabulary=self.is_vocabulary)
        matched = alignment.gene_map[alignment.gene_map >= 0]
        return alignment, float(self.share[matched].sum())

    def report(
        self, alignment: GeneAlignment, share: float, reader: ExpressionReader
    ) -> str | None:
        """What there is to tell of an alignment, ``None`` where all is as it should be."""
        if not self.is_vocabulary:
            return None if alignment.is_exact else alignment.describe(share)
        if (alignment.gene_map >= 0).all() and not alignment.n_inexact and not alignment.column:
            return None
        X = reader.probe()
        X = X.expm1() if is_log(reader) else X
        by_gene = np.asarray(X.sum(axis=0)).ravel()
        read = by_gene[alignment.gene_map >= 0].sum() / max(by_gene.sum(), 1e-9)
        return alignment.describe_extra(float(read))


@dataclass(frozen=True)
class Query:
    """Cells to label: their ``reader``, and which of the model's ``n_genes`` genes its columns are.

    expression_share: of the reference's expression, what the query's genes carry there.
    """

    reader: ExpressionReader
    alignment: GeneAlignment
    expression_share: float
    n_genes: int

    @property
    def adata(self) -> AnnData:
        """The AnnData of the cells."""
        return self.reader.adata

    @property
    def gene_map(self) -> np.ndarray:
        """The model's gene of each column ``(n_vars,)``, -1 for none."""
        return self.alignment.gene_map

    @cached_property
    def is_log(self) -> bool:
        """Whether the values are logarithms."""
        return is_log(self.reader)

    @cached_property
    def is_shared(self) -> np.ndarray:
        """Which of the model's genes are there ``(n_genes,)``."""
        return np.isin(np.arange(self.n_genes), self.gene_map)

    @cached_property
    def is_exact(self) -> bool:
        """Whether the columns are the model's genes, in their order."""
        return np.array_equal(self.gene_map, np.arange(self.n_genes))

    def block(self, adata: AnnData) -> Query:
        """The cells of ``adata`` in place of these: its ``X`` has the same columns and state."""
        return replace(self, reader=ExpressionReader(adata))

    def values(self, rows: np.ndarray, kept: np.ndarray | None = None) -> sparse.csr_matrix:
        """Values of ``rows (n,)`` in the model's genes or those ``kept (n_genes,)``; 0 for one that is not there."""
        X = self.reader.rows(rows)
        if self.is_exact and (kept is None or kept.all()):
            return X
        to_genes = selector(self.gene_map, self.n_genes)
        return X @ (to_genes if kept is None else to_genes[:, kept])


def align_query(self: Celler, adata: AnnData) -> Query:
    """Match a query's genes with the model's; what there is to tell of them is said once."""
    alignment, share = self._genes.align(adata)
    reader = query_reader(adata, self._setup_args["layer"])
    # Raises for scaled values: the report is said once, and would go down with the error.
    is_log(reader)
    report = self._genes.report(alignment, share, reader)
    if report is not None and report not in self._reported:
        self._reported.add(report)
        warn(report)
    return Query(reader, alignment, share, len(self._genes.names))
