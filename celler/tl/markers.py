"""Markers: the genes that tell each group from every other one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from celler.door import suggest_keywords
from celler.tl.columns import label_column
from celler.tl.values import Source, are_counts, check_values, find_source, read_rows

if TYPE_CHECKING:
    from anndata import AnnData

#: Average cells added to every group when genes are scored: three cells of a rare type that express a
#: gene by chance must not outrank three hundred that always do.
PRIOR_CELLS = 5


@suggest_keywords
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
