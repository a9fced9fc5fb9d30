"""Gene alignment: an AnnData under the gene names of a reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celler._utils._check import checked
from celler._utils._matrix import as_csr, check_sparse, check_view
from celler._utils._messages import agreed, check_columns, counted
from celler._utils._text import as_names
from celler.data._expression import ExpressionReader
from celler.data._gene_names import are_row_numbers, check_unique, gene_names
from celler.data._genes import GeneAlignment, describe_others, selector, without_version
from celler.data._genes import align_genes as align_names
from celler.data._mismatch import names_elsewhere


@checked
def align_genes(
    adata: AnnData,
    reference: Any,
    *,
    gene_key: str | None = None,
    mapping: Mapping[str, str] | pd.Series | None = None,
    duplicates: Literal["error", "drop", "sum"] = "error",
    ignore_case: bool = False,
    orthologs: bool = False,
) -> tuple[AnnData, GeneAlignment]:
    """Copy ``adata`` with the genes of a reference, under its names and in its order.

    Equal names match first, then Ensembl ids without their version, then names without the ``-1`` of
    ``var_names_make_unique``, then human or mouse names that mean one gene: Ensembl id and symbol, earlier
    symbol or alias, ``GRCh38_CD3E``, then names with other separators, ``HLA.DRA``. Ambiguous names are not matched,
    nor are row numbers and rows that ``feature_types`` calls no genes. Genes that do not match are dropped, which does
    not change a prediction; genes that ``adata`` lacks are not added. Nothing is downloaded.

    Parameters
    ----------
    adata
        The cells; not changed.
    reference
        A trained model, an AnnData (its ``var_names``) or the names.
    gene_key
        Column of ``adata.var`` with the gene names. ``None`` is ``var_names``, or else a column that matches.
    mapping
        New name by old name. Ensembl ids are found with or without version. A name that is not in it stays.
    duplicates
        What to do if several genes claim one gene of the reference and none has its exact name:
        ``"error"``, ``"drop"`` them all, as ``predict`` does, or ``"sum"`` their values.
    ignore_case
        Match the remaining names in any case, within a species only: mouse and human symbols often differ in case.
    orthologs
        Match mouse genes with their one-to-one orthologs in human, or the reverse. A label may not mean the same
        in both species.

    Returns
    -------
    tuple
        The new AnnData, in memory, with the old names in ``var["original_name"]``, and the
        :class:`GeneAlignment`, whose ``str()`` is a report.

    Raises
    ------
    ValueError
        Under 20 % of the reference's genes match, or ``mapping`` renames no gene.
    KeyError
        ``gene_key`` does not exist.

    Examples
    --------
    >>> aligned, report = cl.pp.align_genes(query, model, mapping=mouse_to_human)
    >>> print(report)
    """
    if duplicates not in ("error", "drop", "sum"):
        raise ValueError(f"duplicates={duplicates!r} was given; 'error', 'drop' or 'sum' is needed.")
    check_columns(adata)
    share = _reference(reference)
    names, reference_key = share.index, share.index.name
    if gene_key is None and reference_key in adata.var.columns:
        gene_key = reference_key
    old_names = gene_names(adata.var, gene_key)
    new_names = old_names if mapping is None else _mapped(old_names, mapping, names)
    var = adata.var if gene_key is None and mapping is None else None
    alignment = align_names(
        new_names, names, var, ignore_case=ignore_case, orthologs=orthologs, others=names_elsewhere(adata)
    )
    alignment = dataclasses.replace(alignment, others=describe_others(adata.var, alignment.gene_map))
    if alignment.n_repeated and duplicates == "error":
        raise _repeated(alignment, new_names, names)
    if duplicates == "sum":
        alignment = _with_repeated(alignment, names)
    found = np.unique(alignment.gene_map[alignment.gene_map >= 0])
    values = share.to_numpy()
    if not np.isnan(values).any():
        carried = float(values[found].sum() / values.sum())
        alignment = dataclasses.replace(alignment, expression_share=carried)
    aligned = _columns(adata, alignment.gene_map)
    aligned.var["original_name"] = aligned.var_names.to_numpy()
    aligned.var_names = names[found].rename(None)
    if reference_key is not None and reference_key in aligned.var.columns:
        aligned.var[reference_key] = aligned.var_names.to_numpy()
    return aligned, alignment


def _reference(reference: Any) -> pd.Series:
    """Share of expression (NaN if unknown) by gene name; the index is named after the var column."""
    genes = getattr(reference, "genes_", None)  # of a model, whose room is above this one
    if genes is not None:
        return genes
    if isinstance(reference, str):
        raise TypeError(f"reference={reference!r} is one string; pass a model or a list of names.")
    names = gene_names(reference.var, None) if isinstance(reference, AnnData) else as_names(reference)
    names = names[names != ""]
    if are_row_numbers(names):
        raise ValueError(
            f"the reference's genes are row numbers such as {list(names[:3])}, which name no gene; pass its names, for "
            "example a column of its var."
        )
    if not len(names):
        raise ValueError("the reference has no name for any gene; pass its names, for example a column of its var.")
    check_unique(names, "the reference's genes")
    return pd.Series(np.nan, names)


def _mapped(names: pd.Index, mapping: Mapping[str, str] | pd.Series, reference: pd.Index) -> pd.Index:
    """Return the new names; an old name is looked up unchanged, then without its version."""
    new = mapping if isinstance(mapping, pd.Series) else pd.Series(mapping, dtype=object)
    new = pd.Series(new.astype(object).to_numpy(), index=as_names(new.index))
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
    return as_names(found.where(found.notna(), old))


def _repeated(alignment: GeneAlignment, names: pd.Index, reference: pd.Index) -> ValueError:
    column = alignment.repeated >= 0
    example = reference[alignment.repeated[column][0]]
    places = np.flatnonzero(alignment.repeated == alignment.repeated[column][0])
    return ValueError(
        f"{counted(alignment.n_repeated, 'genes')} of the reference {agreed(alignment.n_repeated, 'are')} each "
        f"claimed by several of adata (for example {example!r}, by columns {places.tolist()} named "
        f"{sorted(set(map(str, names[places])))}). Pass "
        "duplicates='sum' to add their values up, which needs counts, or 'drop' to leave those genes out."
    )


def _with_repeated(alignment: GeneAlignment, names: pd.Index) -> GeneAlignment:
    """Return the alignment in which every gene that claims a name is matched."""
    gene_map = np.maximum(alignment.gene_map, alignment.repeated)
    return dataclasses.replace(
        alignment,
        gene_map=gene_map,
        missing=np.delete(names.to_numpy(), np.unique(gene_map[gene_map >= 0])),
        n_extra=int((gene_map < 0).sum()),
        repeated=np.full(len(gene_map), -1, np.int32),
    )


def _columns(adata: AnnData, gene_map: np.ndarray) -> AnnData:
    """Return a copy with the matched columns in the reference's order; columns of one gene are added up."""
    rows, first = np.unique(gene_map, return_index=True)
    first = first[rows >= 0]
    for layer in (None, *(name for name in adata.layers if name is not None)):
        check_view(adata, layer)
        X = adata.X if layer is None else adata.layers[layer]
        if sparse.issparse(X):
            check_sparse(X, "adata.X" if layer is None else f"adata.layers[{layer!r}]")
    whole = adata.to_memory() if adata.isbacked else adata
    aligned = whole[:, first].copy()
    if len(first) == (gene_map >= 0).sum():
        return aligned
    adder = selector(gene_map, int(gene_map.max()) + 1)[:, rows[rows >= 0]]
    for layer in (None, *(name for name in whole.layers if name is not None)):
        X = whole.X if layer is None else whole.layers[layer]
        if X is None:
            continue
        reader = ExpressionReader(whole, layer)
        if reader.state.kind not in ("counts", "expected counts", "normalised"):
            raise ValueError(
                f"{reader.name} holds {reader.state.kind} values, which cannot be added up; duplicates='sum' "
                "needs counts in X and every layer, or pass duplicates='drop'."
            )
        total = as_csr(X, reader.name, dtype=None) @ adder
        total = total.toarray() if isinstance(X, np.ndarray) else total
        if layer is None:
            aligned.X = total
        else:
            aligned.layers[layer] = total
    return aligned
