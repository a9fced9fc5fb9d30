"""Markers: the genes that tell each group from every other one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata.abc import CSCDataset
from scipy import sparse

from celler.tl._columns import closest, label_column, listed

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


#: Average cells added to every group when genes are scored: three cells of a rare type that express a
#: gene by chance must not outrank three hundred that always do.
PRIOR_CELLS = 5


def rank_markers(
    adata: AnnData, groupby: str, n_genes: int = 10, *, layer: str | None = None
) -> pd.DataFrame:
    r"""Rank the genes that are specific to each group of cells, best first.

    .. math:: s_{gk} = (m_{gk} - \bar m_{g, j \ne k}) (d_{gk} - \bar d_{g, j \ne k})
        \Bigl(1 - \max_{j \ne k} m_{gj} / m_{gk}\Bigr)

    with the mean log expression :math:`m` and the share of cells with the gene :math:`d` of group
    :math:`k`, each shrunk to that of all cells by 5 cells, and means :math:`\bar m, \bar d` over the
    other groups. So a marker is stronger and more frequent than elsewhere, and led by its group with a
    margin: a gene that two groups share marks neither. Where a factor is negative the score is 0.

    groupby: column of ``adata.obs``; cells without a label are left out.
    n_genes: most genes for each group. There are fewer where fewer lead.
    layer: a layer, "X" or "raw"; None = ``X``, but ``adata.raw`` where X is scaled. Counts are taken as
        log1p of counts per 10,000, logarithms as they are.

    Returns a row per marker: ``group``, ``gene``, ``score``; the group's ``mean`` and ``share``, not
    shrunk; ``next_group``, which has the next highest mean, and its ``next_mean`` and ``next_share``.
    """
    if n_genes < 1:
        raise ValueError(f"n_genes={n_genes} was given; at least 1 is needed.")
    groups = label_column(adata, groupby, "groupby")
    source = find_source(adata, layer, None)
    means = group_means(adata, source, groups)
    scores, next_group = specificity(means)
    tables = []
    for k, group in enumerate(groups.categories):
        best = np.argsort(-scores[k], kind="stable")[:n_genes]
        best = best[scores[k, best] > 0]
        rival = next_group[k, best]
        tables.append(
            pd.DataFrame(
                {
                    "group": group,
                    "gene": source.gene_names[best],
                    "score": scores[k, best],
                    "mean": means.mean[k, best],
                    "share": means.share[k, best],
                    "next_group": groups.categories.to_numpy()[rival],
                    "next_mean": means.mean[rival, best],
                    "next_share": means.share[rival, best],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


class GroupMeans(NamedTuple):
    """Mean log expression and share of cells above zero ``(groups, genes)``, ``n_cells (groups,)``."""

    mean: np.ndarray
    share: np.ndarray
    n_cells: np.ndarray


def group_means(adata: AnnData, source: Source, groups: pd.Categorical) -> GroupMeans:
    """Sum cells by group, a product of a membership matrix and the values for each piece of rows."""
    n_groups = len(groups.categories)
    total, above = np.zeros((2, n_groups, len(source.gene_names)))
    start, is_log = 0, False
    for piece in read_rows(source.matrix):
        check_values(piece.data, source.name, adata)
        is_log = is_log if start else not are_counts(piece.data)
        codes = np.asarray(groups.codes[start : start + piece.shape[0]], dtype=np.int64)
        start += piece.shape[0]
        rows = np.flatnonzero(codes >= 0)
        member = sparse.csr_matrix(
            (np.ones(len(rows)), (codes[rows], rows)), shape=(n_groups, len(codes))
        )
        values = piece if is_log else log_cp10k(piece)
        total += (member @ values).toarray()
        above += (member @ (values > 0)).toarray()
    n_cells = np.bincount(groups.codes[groups.codes >= 0], minlength=n_groups)
    return GroupMeans(total / n_cells[:, None], above / n_cells[:, None], n_cells)


def log_cp10k(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """``log1p`` of counts per 10,000 of their cell, as a new matrix."""
    depth = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    scale = np.divide(1e4, depth, out=np.zeros_like(depth), where=depth > 0)
    values = np.log1p(counts.data * np.repeat(scale, np.diff(counts.indptr)))
    return sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)


def specificity(means: GroupMeans) -> tuple[np.ndarray, np.ndarray]:
    """Score of every gene in every group, and the group with the next highest mean, ``(groups, genes)``."""
    n_groups, n_cells = len(means.n_cells), means.n_cells[:, None]
    if n_groups == 1:
        return means.mean * means.share, np.zeros(means.mean.shape, dtype=np.int64)
    mean, share = (
        (part * n_cells + PRIOR_CELLS * np.average(part, axis=0, weights=means.n_cells))
        / (n_cells + PRIOR_CELLS)
        for part in (means.mean, means.share)
    )
    order = np.argsort(mean, axis=0)
    is_first = np.arange(n_groups)[:, None] == order[-1]
    next_group = np.where(is_first, order[-2], order[-1])
    next_mean = np.take_along_axis(mean, next_group, axis=0)
    lead = 1 - np.divide(next_mean, mean, out=np.ones_like(mean), where=mean > 0)
    stronger, more_frequent = (
        part - (part.sum(axis=0) - part) / (n_groups - 1) for part in (mean, share)
    )
    return np.prod(np.maximum([stronger, more_frequent, lead], 0), axis=0), next_group
