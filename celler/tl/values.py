"""Expression values of an AnnData: which matrix holds them, and its columns or rows as CSR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata.abc import CSCDataset
from scipy import sparse

from celler.tl.columns import closest, listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

#: Rows of a matrix that are held at once where the whole is not needed.
ROWS_AT_ONCE = 50_000
#: ``log1p`` of a cell's largest value stays below this; counts and CP10K go far beyond.
LARGEST_LOG = 30.0


class Source(NamedTuple):
    """Where values come from: ``matrix (n_obs, n_vars)``, the names of its genes, its own name."""

    matrix: Any
    gene_names: pd.Index
    name: str


def find_source(adata: AnnData, layer: str | None, genes: Sequence[str] | None) -> Source:
    """Choose ``layer``, "X" or "raw"; None = ``X``, or ``raw`` where X is scaled or lacks ``genes``.

    Genes go by ``var_names``, or where these hold none of ``genes`` by the column of var that does.
    None asks for all genes of whatever is chosen.
    """
    asked = [] if genes is None else genes
    if layer is not None:
        return _place(adata, layer, asked)
    places = _held(adata)
    if not places:
        raise ValueError(f"adata.X is empty; pass layer=. Layers: {listed(layers(adata))}.")
    first, last = (_place(adata, place, asked) for place in (places[0], places[-1]))
    n_first, n_last = (len(found.gene_names.intersection(asked)) for found in (first, last))
    return last if n_last > n_first or _is_scaled(first, genes) else first


def places_of(adata: AnnData) -> list[str]:
    """What ``layer`` may be: every layer, and "X" and "raw" where they exist."""
    return layers(adata) + _held(adata)


def layers(adata: AnnData) -> list[str]:
    """Names of the layers; anndata 0.13 counts ``X`` among them, as None."""
    names: list[str | None] = list(adata.layers.keys())
    return [name for name in names if name is not None]


def read_columns(matrix: Any, columns: np.ndarray) -> sparse.csr_matrix:
    """Columns of a matrix in memory or on disk; a row-wise file is read in pieces of rows."""
    if isinstance(matrix, np.ndarray | CSCDataset) or sparse.issparse(matrix):
        return sparse.csr_matrix(matrix[:, columns])
    pieces = [piece[:, columns] for piece in _pieces(matrix)]
    return sparse.vstack([sparse.csr_matrix(piece) for piece in pieces], format="csr")


def read_rows(matrix: Any) -> Iterator[sparse.csr_matrix]:
    """All rows in order, a piece of them at a time."""
    if isinstance(matrix, CSCDataset):
        matrix = matrix.to_memory()
    if sparse.issparse(matrix) and matrix.format != "csr":
        matrix = matrix.tocsr()  # a row of CSC costs a pass over everything
    for piece in map(sparse.csr_matrix, _pieces(matrix)):
        if not piece.has_canonical_format:
            piece = piece.copy()
            piece.sum_duplicates()
        yield piece


def are_counts(values: np.ndarray) -> bool:
    """Whether values are proportional to counts: whole numbers, or beyond what a logarithm reaches."""
    return bool((values % 1 == 0).all() or values.max(initial=0) > LARGEST_LOG)


def check_values(values: np.ndarray, name: str, adata: AnnData) -> None:
    """Raise ``ValueError`` for NaN, infinite and negative values."""
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values; pass a layer without, with layer=.")
    if values.min(initial=0) < 0:
        raise ValueError(
            f"{name} holds {values.min():.2f}: scaled values do not tell whether a cell "
            f"expresses a gene. Pass log-normalised ones, layer=: {listed(places_of(adata))}."
        )


def _pieces(matrix: Any) -> Iterator[Any]:
    for start in range(0, matrix.shape[0], ROWS_AT_ONCE):
        yield matrix[start : start + ROWS_AT_ONCE]


def _held(adata: AnnData) -> list[str]:
    return [place for place in ("X", "raw") if getattr(adata, place) is not None]


def _place(adata: AnnData, place: str, genes: Sequence[str]) -> Source:
    if place in layers(adata):
        matrix, var, name = adata.layers[place], adata.var, f"adata.layers[{place!r}]"
    elif place == "X" and adata.X is not None:
        matrix, var, name = adata.X, adata.var, "adata.X"
    elif place == "raw" and adata.raw is not None:
        matrix, var, name = adata.raw.X, adata.raw.var, "adata.raw"
    else:
        raise KeyError(
            f"layer={place!r} is not in adata.layers. {closest(place, places_of(adata))}"
        )
    return Source(matrix, _gene_names(var, genes), name)


def _gene_names(var: Any, genes: Sequence[str]) -> pd.Index:
    """``var_names``, or where they hold none of ``genes`` the column of var with most of them."""
    names = var.index.astype(str)
    if not len(genes) or names.isin(genes).any():
        return names
    columns = [pd.Index(var[key].astype(str)) for key in var]
    return max([names, *columns], key=lambda names: names.isin(genes).sum())


def _is_scaled(source: Source, genes: Sequence[str] | None) -> bool:
    if genes is None:
        first = next(read_rows(source.matrix), sparse.csr_matrix((0, 0)))
        return bool(first.data.min(initial=0) < 0)
    columns = np.flatnonzero(source.gene_names.isin(genes))
    return bool(read_columns(source.matrix, columns).data.min(initial=0) < 0)
