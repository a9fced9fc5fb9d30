"""The genes of an AnnData under the names of a reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celler.data._expression import ExpressionReader
from celler.data._genes import (
    GeneAlignment,
    check_unique,
    gene_names,
    without_version,
)
from celler.data._genes import (
    align_genes as align_names,
)


def align_genes(
    adata: AnnData,
    reference: Any,
    *,
    gene_key: str | None = None,
    mapping: Mapping[str, str] | pd.Series | None = None,
    duplicates: Literal["error", "drop", "sum"] = "error",
) -> tuple[AnnData, GeneAlignment]:
    """A copy of ``adata`` with the genes that match a reference, under and in the order of its names.

    Equal names match first, then Ensembl ids without their version, then names without the ``-1`` of
    ``var_names_make_unique``, then names in any case; nothing ambiguous is matched. Genes that do not
    match are dropped, which does not change a prediction, and genes that ``adata`` lacks are not
    added. ``var["original_name"]`` keeps the names of before. Nothing is fetched.

    reference: a trained model, an AnnData (its ``var_names``) or the names themselves.
    gene_key: column of ``adata.var`` with the names; ``None`` is ``var_names``, or the column that
        matches where those do not.
    mapping: new name for each old one; Ensembl ids are found with or without version, and a name
        that is not in it stays.
    duplicates: what to do where several genes claim one of the reference, and none of them by its exact
        name alone: ``"error"``, ``"drop"`` them all, as ``predict`` does, or ``"sum"`` their values.

    Returns the new AnnData, in memory, and the report. Raises ``ValueError`` when under 20 % match.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"a {type(adata).__name__} was given; an AnnData is needed.")
    if duplicates not in ("error", "drop", "sum"):
        raise ValueError(
            f"duplicates={duplicates!r} was given; 'error', 'drop' or 'sum' is needed."
        )
    names, share, reference_key = _reference(reference)
    if gene_key is None and reference_key in adata.var.columns:
        gene_key = reference_key
    old_names = gene_names(adata.var, gene_key)
    new_names = old_names if mapping is None else _mapped(old_names, mapping, names)
    is_free = gene_key is None and mapping is None
    alignment = align_names(new_names, names, adata.var if is_free else None)
    if alignment.n_repeated and duplicates == "error":
        raise _repeated(alignment, new_names, names)
    gene_map = alignment.gene_map
    if duplicates == "sum":
        gene_map = np.maximum(gene_map, alignment.repeated)
        alignment = _with_all(alignment, gene_map, names)
    if share is not None:
        found = np.unique(gene_map[gene_map >= 0])
        alignment = dataclasses.replace(
            alignment, expression_share=float(share[found].sum() / share.sum())
        )
    aligned = _columns(adata, gene_map)
    aligned.var["original_name"] = aligned.var_names.to_numpy()
    aligned.var_names = names[np.unique(gene_map[gene_map >= 0])]
    if reference_key is not None and reference_key in aligned.var.columns:
        aligned.var[reference_key] = aligned.var_names.to_numpy()
    return aligned, alignment


def _reference(
    reference: Any,
) -> tuple[pd.Index, np.ndarray | None, str | None]:
    """Names of a reference, each gene's share of its expression, and the var column of the names."""
    genes = getattr(reference, "genes_", None)  # of a Celler, whose room this one does not know
    if genes is not None:
        return genes.index.rename(None), genes.to_numpy(), genes.index.name
    if isinstance(reference, str):
        raise TypeError(f"reference={reference!r} is one string; pass a model or a list of names.")
    names = reference.var_names if isinstance(reference, AnnData) else pd.Index(reference)
    names = names.astype(str)
    check_unique(names, "the reference's genes")
    return names, None, None


def _mapped(
    names: pd.Index, mapping: Mapping[str, str] | pd.Series, reference: pd.Index
) -> pd.Index:
    """The new names; an old one is looked up as it is, then without its version."""
    new = mapping if isinstance(mapping, pd.Series) else pd.Series(mapping, dtype=object)
    new = pd.Series(new.astype(object).to_numpy(), index=new.index.astype(str))
    check_unique(new.index, "the old names of mapping")
    old = pd.Series(names.astype(object))
    found = old.map(new)
    found = found.where(found.notna(), pd.Series(without_version(names)).map(new))
    if found.isna().all():
        is_turned = names.union(without_version(names)).isin(new.astype(str)).any()
        turn = " It runs the other way: {new: old for old, new in mapping.items()} turns it around."
        raise ValueError(
            f"mapping renames none of the {len(names):,} genes: its old names are such as {list(new.index[:4])}, "
            f"the genes' {list(names[:4])}. The reference has {list(reference[:4])}; map from the genes' names "
            f"to those.{turn if is_turned else ''}"
        )
    return pd.Index(found.where(found.notna(), old).astype(str))


def _repeated(alignment: GeneAlignment, names: pd.Index, reference: pd.Index) -> ValueError:
    column = alignment.repeated >= 0
    example = reference[alignment.repeated[column][0]]
    places = np.flatnonzero(alignment.repeated == alignment.repeated[column][0])
    return ValueError(
        f"{alignment.n_repeated:,} genes of the reference are each claimed by several of adata (for example "
        f"{example!r}, by columns {places.tolist()} named {sorted(set(map(str, names[places])))}). Pass "
        "duplicates='sum' to add their values up, which needs counts, or 'drop' to leave those genes out."
    )


def _with_all(alignment: GeneAlignment, gene_map: np.ndarray, names: pd.Index) -> GeneAlignment:
    """The alignment after the repeated genes were added up."""
    missing = np.delete(names.to_numpy(), np.unique(gene_map[gene_map >= 0]))
    return dataclasses.replace(
        alignment,
        gene_map=gene_map,
        missing=missing,
        n_extra=int((gene_map < 0).sum()),
        repeated=np.full(len(gene_map), -1, np.int32),
    )


def _columns(adata: AnnData, gene_map: np.ndarray) -> AnnData:
    """A copy with the matched columns in the reference's order, those of one gene added up."""
    rows, first = np.unique(gene_map, return_index=True)
    rows, first = rows[rows >= 0], first[rows >= 0]
    whole = adata.to_memory() if adata.isbacked else adata
    aligned = whole[:, first].copy()
    if len(rows) == (gene_map >= 0).sum():
        return aligned
    matched = np.flatnonzero(gene_map >= 0)
    place = np.searchsorted(rows, gene_map[matched])
    ones = np.ones(len(matched), np.float32)
    adder = sparse.csr_matrix((ones, (matched, place)), (len(gene_map), len(rows)))
    for layer in (None, *(name for name in whole.layers if name is not None)):
        X = whole.X if layer is None else whole.layers[layer]
        if X is None:
            continue
        reader = ExpressionReader(whole, layer)
        if reader.state.is_log or not reader.state.is_usable:
            raise ValueError(
                f"{reader.name} holds {reader.state.kind} values, which cannot be added up; duplicates='sum' "
                "needs counts in X and every layer, or pass duplicates='drop'."
            )
        total = X @ adder
        if layer is None:
            aligned.X = total
        else:
            aligned.layers[layer] = total
    return aligned
