"""Gene identity: which column of a query is which gene of the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

#: Share of the model's genes a query must hold.
MIN_OVERLAP = 0.2


@dataclass(frozen=True)
class GeneAlignment:
    """How the genes of a query map onto the model's.

    gene_map: ``(n_vars,)`` int32, model row of each query column, −1 for a gene the model lacks.
    missing: the model's genes the query lacks. n_extra: query genes the model lacks.
    """

    gene_map: np.ndarray
    missing: np.ndarray
    n_extra: int

    @property
    def n_matched(self) -> int:
        """Number of genes both have."""
        return int((self.gene_map >= 0).sum())

    def describe(self, expression_share: float) -> str:
        """One sentence for the user; ``expression_share`` is what the matched genes carry."""
        n_genes = self.n_matched + len(self.missing)
        return (
            f"{self.n_matched:,} of the model's {n_genes:,} genes are in the query and carry "
            f"{expression_share:.0%} of the reference's expression; {len(self.missing):,} are missing "
            f"(masked, not taken for zero) and {self.n_extra:,} extra ones are ignored."
        )


def align_genes(query: pd.Index, reference: pd.Index) -> GeneAlignment:
    """Align by name. Raises ``ValueError`` for duplicates or less than 20 % of the model's genes."""
    check_unique(query, "the query's genes")
    gene_map = reference.get_indexer(query).astype(np.int32)
    missing = reference.difference(query, sort=False).to_numpy()
    alignment = GeneAlignment(gene_map, missing, int((gene_map < 0).sum()))
    if alignment.n_matched < MIN_OVERLAP * len(reference):
        raise ValueError(
            f"only {alignment.n_matched:,} of the model's {len(reference):,} genes are in the query; at least "
            f"{MIN_OVERLAP:.0%} are needed. The model has names such as {list(reference[:4])}, the query "
            f"such as {list(query[:4])}. Bring both to the same kind of name: set query.var_names, or name "
            "the var column that holds the model's kind with gene_key in setup_anndata."
        )
    return alignment


def check_unique(names: pd.Index, what: str) -> None:
    """Raise ``ValueError`` where a gene name occurs twice."""
    if not names.is_unique:
        repeated = names[names.duplicated()].unique()
        raise ValueError(
            f"{what} hold {len(repeated):,} names more than once (for example {list(repeated[:3])}); genes are "
            "aligned by name, so each must be unique. adata.var_names_make_unique() renames the repeats."
        )
