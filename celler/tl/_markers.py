"""Markers: the genes that tell each group of cells from every other group.

Group means are summed here, in pieces of rows. ``scanpy.get.aggregate`` on the same pieces takes as long, as
much memory and as many lines, and on a whole table of 200,000 cells 2.3 times the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.abc import CSCDataset
from scipy import sparse

from celler._utils import _counts
from celler._utils._arguments import checked
from celler._utils._counts import cp10k, detect
from celler._utils._messages import closest, listed
from celler.tl._columns import label_column

ROWS_AT_ONCE = 50_000  # rows in memory at once
#: Average cells added to every group before genes are scored: a gene that three cells of a rare type
#: express by chance must not outrank one that three hundred always express.
PRIOR_CELLS = 5


@checked
def rank_markers(adata: AnnData, groupby: str, n_genes: int = 10, *, layer: str | None = None) -> pd.DataFrame:
    r"""Rank the genes that are specific to each group of cells, best first.

    Parameters
    ----------
    adata
        The cells, in memory or backed; not changed.
    groupby
        Column of ``adata.obs`` with the groups. Cells without a group are left out.
    n_genes
        Genes per group. A group has fewer where fewer genes are highest in it.
    layer
        A layer, ``"X"`` or ``"raw"``. ``None`` is ``X``, or ``adata.raw`` where ``X`` is scaled. Counts are converted
        to log1p of counts per 10,000; logarithms stay.

    Returns
    -------
    pandas.DataFrame
        A row per marker: ``group``, ``gene`` and ``score``; ``mean`` and ``share`` of the group, not shrunk;
        ``next_group``, the group with the next highest mean, and its ``next_mean`` and ``next_share``.

    Raises
    ------
    KeyError
        ``groupby`` or ``layer`` does not exist.
    ValueError
        The values are scaled, NaN or infinite.

    Notes
    -----
    .. math:: s_{gk} = (m_{gk} - \bar m_{g, j \ne k}) (d_{gk} - \bar d_{g, j \ne k})
        \Bigl(1 - \max_{j \ne k} m_{gj} / m_{gk}\Bigr)

    Here m is the mean log expression and d the share of cells above zero of group k, each shrunk towards all cells by 5
    cells; the bars are means over the other groups. A marker is stronger and more frequent than elsewhere and leads by
    a margin, so a gene of two groups marks neither. The score is 0 where a factor is negative.

    Examples
    --------
    >>> markers = cl.tl.rank_markers(adata, "cell_type", n_genes=3)
    >>> cl.pl.marker_bubble(adata, markers, "cell_type")
    """
    groups = label_column(adata, groupby, "groupby")
    source = find_source(adata, layer, None)
    means = group_means(adata, source, groups)
    scores, next_group = specificity(means)
    tables = []
    for k, group in enumerate(groups.categories):
        best = np.argsort(-scores[k], kind="stable")[:n_genes]
        best = best[scores[k, best] > 0]
        rival = next_group[k, best]
        columns = {
            "group": group,
            "gene": source.gene_names[best],
            "score": scores[k, best],
            "mean": means.mean[k, best],
            "share": means.share[k, best],
            "next_group": groups.categories.to_numpy()[rival],
            "next_mean": means.mean[rival, best],
            "next_share": means.share[rival, best],
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


class GroupMeans(NamedTuple):
    """Mean log expression and share of cells above zero ``(groups, genes)``, ``n_cells (groups,)``."""

    mean: np.ndarray
    share: np.ndarray
    n_cells: np.ndarray


def group_means(adata: AnnData, source: Source, groups: pd.Categorical) -> GroupMeans:
    """Mean and share of each group, summed over pieces of rows."""
    n_groups, start, is_log = len(groups.categories), 0, False
    total, above = np.zeros((2, n_groups, len(source.gene_names)))
    for piece in read_rows(source.matrix):
        check_values(piece.data, source.name, adata)
        is_log = is_log if start else detect(piece[:: max(1, piece.shape[0] // 1000)]).is_log
        codes = np.asarray(groups.codes[start : start + piece.shape[0]], dtype=np.int64)
        start += piece.shape[0]
        rows = np.flatnonzero(codes >= 0)
        entries = np.ones(len(rows)), (codes[rows], rows)
        member = sparse.csr_matrix(entries, shape=(n_groups, len(codes)))
        values = piece if is_log else cp10k(piece).log1p()
        total += (member @ values).toarray()
        above += (member @ (values > 0)).toarray()
    n_cells = np.bincount(groups.codes[groups.codes >= 0], minlength=n_groups)
    return GroupMeans(total / n_cells[:, None], above / n_cells[:, None], n_cells)


def specificity(means: GroupMeans) -> tuple[np.ndarray, np.ndarray]:
    """Score of every gene in every group, and the group with the next highest mean, ``(groups, genes)``."""
    n_groups, n_cells = len(means.n_cells), means.n_cells[:, None]
    if n_groups == 1:
        return means.mean * means.share, np.zeros(means.mean.shape, dtype=np.int64)
    mean, share = (
        (part * n_cells + PRIOR_CELLS * np.average(part, axis=0, weights=means.n_cells)) / (n_cells + PRIOR_CELLS)
        for part in (means.mean, means.share)
    )
    order = np.argsort(mean, axis=0)
    is_first = np.arange(n_groups)[:, None] == order[-1]
    next_group = np.where(is_first, order[-2], order[-1])
    next_mean = np.take_along_axis(mean, next_group, axis=0)
    lead = 1 - np.divide(next_mean, mean, out=np.ones_like(mean), where=mean > 0)
    stronger, more_frequent = (part - (part.sum(axis=0) - part) / (n_groups - 1) for part in (mean, share))
    return np.prod(np.maximum([stronger, more_frequent, lead], 0), axis=0), next_group


class Source(NamedTuple):
    """A matrix ``(n_obs, n_vars)``, the names of its genes, and its own name in messages."""

    matrix: Any
    gene_names: pd.Index
    name: str


def find_source(adata: AnnData, layer: str | None, genes: Sequence[str] | None) -> Source:
    """Find ``layer``, "X" or "raw"; ``None`` is ``X``, or ``raw`` where X is scaled or lacks ``genes``.

    Genes are looked up in ``var_names``, or if these hold none of ``genes`` in the best column of var.
    """
    wanted = [] if genes is None else genes
    if layer is not None:
        return _place(adata, layer, wanted)
    places = _held(adata)
    if not places:
        raise ValueError(f"adata.X is empty; pass layer=. Layers: {listed(places_of(adata))}.")
    first, last = (_place(adata, place, wanted) for place in (places[0], places[-1]))
    n_first, n_last = (len(found.gene_names.intersection(wanted)) for found in (first, last))
    return last if n_last > n_first or _is_scaled(first, genes) else first


def places_of(adata: AnnData) -> list[str]:
    """List what ``layer`` may be: every layer, and "X" and "raw" where they exist."""
    # anndata 0.13 lists X among the layers, as None
    names: list[str | None] = list(adata.layers.keys())
    return [name for name in names if name is not None] + _held(adata)


def read_columns(matrix: Any, columns: np.ndarray) -> sparse.csr_matrix:
    """Columns of a matrix in memory or on disk; a row-wise file is read in pieces of rows."""
    if isinstance(matrix, np.ndarray | CSCDataset) or sparse.issparse(matrix):
        return sparse.csr_matrix(matrix[:, columns])
    pieces = [sparse.csr_matrix(piece[:, columns]) for piece in _pieces(matrix)]
    return sparse.vstack(pieces, format="csr")


def read_rows(matrix: Any) -> Iterator[sparse.csr_matrix]:
    """All rows in order, in pieces."""
    if isinstance(matrix, CSCDataset):
        matrix = matrix.to_memory()
    if sparse.issparse(matrix) and matrix.format != "csr":
        matrix = matrix.tocsr()  # each row of CSC costs a pass over all values
    for piece in map(sparse.csr_matrix, _pieces(matrix)):
        if not piece.has_canonical_format:
            piece = piece.copy()
            piece.sum_duplicates()
        yield piece


def check_values(values: np.ndarray, name: str, adata: AnnData) -> None:
    """Raise ``ValueError`` for negative, NaN and infinite values."""
    _counts.check_values(values, name, lambda: f" Pass one that holds them, layer=: {listed(places_of(adata))}.")


def _pieces(matrix: Any) -> Iterator[Any]:
    for start in range(0, matrix.shape[0], ROWS_AT_ONCE):
        yield matrix[start : start + ROWS_AT_ONCE]


def _held(adata: AnnData) -> list[str]:
    return [place for place in ("X", "raw") if getattr(adata, place) is not None]


def _place(adata: AnnData, place: str, genes: Sequence[str]) -> Source:
    known = places_of(adata)
    if place not in known:
        raise KeyError(
            f"layer={place!r} is not in adata.layers.{closest(place, known)} There are: {listed(known, 30)}."
        )
    if place in adata.layers:
        return Source(adata.layers[place], _gene_names(adata.var, genes), f"adata.layers[{place!r}]")
    held = adata if place == "X" else adata.raw
    return Source(held.X, _gene_names(held.var, genes), f"adata.{place}")


def _gene_names(var: Any, genes: Sequence[str]) -> pd.Index:
    """``var_names``, or if they hold none of ``genes`` the column of var with most of them."""
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
