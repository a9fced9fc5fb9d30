"""Shift: gene-wise differences of a query from the reference that all cell types share, and how to undo them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

#: Counts per 10,000 added to both means: a gene that is hardly there says nothing of a shift.
PSEUDO_COUNT = 0.02
#: Variance, over cell types, of the logarithm of a gene's ratio around the one they share.
HETEROGENEITY = 0.25
#: Share of a shift, on the scale of logarithms, that is undone: all of it would raise the noise of genes that
#: the query hardly catches.
STRENGTH = 0.5
#: A gene is divided or multiplied by this at most.
MAX_FACTOR = 4.0
#: Types with fewer cells, in the reference or expected in the query, are not asked.
MIN_CELLS = 5


@dataclass(frozen=True)
class Profile:
    """Expression by class: ``mean (C, G)`` counts per 10,000 and ``n_cells (C,)``, which may be fractions.

    dispersion: ``(G,)``, variance of a cell over mean, within classes.

    A mean is NaN where the cells of the class were never measured for the gene.
    """

    mean: np.ndarray
    n_cells: np.ndarray
    dispersion: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Mean share of a cell's counts that each gene has ``(G,)``; sums to 1."""
        total = self.n_cells @ np.nan_to_num(self.mean)
        return np.asarray(total / total.sum())

    def restricted(self, is_shared: np.ndarray) -> Profile:
        """The genes ``is_shared (G,)`` alone, those of each class scaled to 10,000 counts."""
        mean = self.mean[:, is_shared]
        total = np.nansum(mean, axis=1, keepdims=True)
        mean = mean * np.divide(1e4, total, out=np.ones_like(total), where=total > 0)
        return Profile(mean, self.n_cells, self.dispersion[is_shared])


def profile(
    rows: Callable[[np.ndarray], sparse.csr_matrix],
    weights: Callable[[np.ndarray], np.ndarray],
    n_cells: int,
    *,
    is_log: bool,
    block_size: int = 10_000,
) -> Profile:
    """Profile of ``n_cells`` cells, read in blocks of positions ``(n,)``.

    rows: gives counts or, with ``is_log``, ``log1p`` values ``(n, G)`` of a block.
    weights: ``(n, C)``, how much of each cell of a block is of each class; rows sum to 1 or are 0.
    """
    total: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0
    in_class: np.ndarray | float = 0.0
    for block in np.split(np.arange(n_cells), range(block_size, n_cells, block_size)):
        X, parts = linear(rows(block), is_log=is_log), weights(block)
        total = total + class_sums(X, parts)
        of_value = np.repeat(parts.sum(axis=1), np.diff(X.indptr))
        squares = squares + np.bincount(X.indices, X.data**2 * of_value, X.shape[1])
        in_class = in_class + parts.sum(axis=0)
    total, in_class = np.asarray(total), np.asarray(in_class)
    mean = total / np.maximum(in_class, 1e-9)[:, None]
    within = np.maximum(np.asarray(squares) - (total * mean).sum(axis=0), 0)
    of_gene = total.sum(axis=0)
    dispersion = np.divide(within, of_gene, out=np.zeros_like(within), where=of_gene > 0)
    typical = np.median(dispersion[dispersion > 0]) if (dispersion > 0).any() else 1.0
    return Profile(mean, in_class, np.where(dispersion > 0, dispersion, typical))


def class_sums(X: sparse.csr_matrix, weights: np.ndarray) -> np.ndarray:
    """Sums ``(C, G)`` of the rows of ``X (n, G)`` by ``weights (n, C)``, most of which may be 0."""
    # With 1,000 classes and a label a cell the dense product takes thirteen times as long; with ten, a fifth.
    if np.count_nonzero(weights) < 0.04 * weights.size:
        return np.asarray((sparse.csr_matrix(weights).T @ X).toarray())
    return np.asarray((X.T @ weights).T)


def linear(X: sparse.csr_matrix, *, is_log: bool) -> sparse.csr_matrix:
    """Counts per 10,000 of each row of counts or ``log1p`` values."""
    X = sparse.csr_matrix(X)
    values = X.data.astype(np.float64)
    values = np.expm1(values) if is_log else values
    rows, counts = np.diff(X.indptr), sparse.csr_matrix((values, X.indices, X.indptr), X.shape)
    total = np.asarray(counts.sum(axis=1)).ravel()
    counts.data *= np.repeat(np.divide(1e4, total, out=np.zeros_like(total), where=total > 0), rows)
    return counts


def shift_factors(reference: Profile, query: Profile) -> np.ndarray:
    r"""Factors ``(G,)`` by which the query's genes are to be multiplied; 1 where no shift is seen.

    Within each class the logarithm of reference over query mean is compared, so that a query of another
    composition is no shift. The classes' ratios are averaged with weights :math:`w_{kg}`, the inverse of their
    sampling variance plus ``HETEROGENEITY``, and shrunk by the variance :math:`\tau^2` they have beyond chance:

    .. math:: r_g = \frac{\sum_k w_{kg}\, \rho_{kg}}{\sum_k w_{kg}}, \qquad
        \log f_g = \tfrac{1}{2}\, \frac{\tau^2}{\tau^2 + 1 / \sum_k w_{kg}}\, r_g .

    Where the ratios scatter no more than their variances say, :math:`\tau = 0` and nothing is changed.
    """
    of_reference, of_query = reference.mean + PSEUDO_COUNT, query.mean + PSEUDO_COUNT
    n_reference, n_query = reference.n_cells[:, None], query.n_cells[:, None]
    variance = reference.dispersion * (
        1 / (np.maximum(n_reference, 1) * of_reference) + 1 / (np.maximum(n_query, 1) * of_query)
    )
    is_asked = (n_reference >= MIN_CELLS) & (n_query >= MIN_CELLS)
    is_asked = is_asked & ~np.isnan(reference.mean)
    weights = np.where(is_asked, 1 / (variance + HETEROGENEITY), 0)
    precision = np.maximum(
        weights.sum(axis=0), 1e-9
    )  # next to nothing is known where no class is asked
    if not is_asked.any():
        return np.ones(len(precision))
    log_ratio = np.where(is_asked, np.log(of_reference / of_query), 0)
    ratio = (weights * log_ratio).sum(axis=0) / precision
    trust = is_asked.any(axis=0) / (1 / precision + 0.1)
    tau2 = max(0.0, float((trust * (ratio**2 - 1 / precision)).sum() / trust.sum()))
    bound = np.log(MAX_FACTOR)
    return np.exp(np.clip(STRENGTH * ratio * tau2 / (tau2 + 1 / precision), -bound, bound))
