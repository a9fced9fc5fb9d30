"""Profiles: mean expression by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from celler._utils._counts import cp10k


@dataclass(frozen=True)
class Profile:
    """Counts per 10,000 by class: ``mean (C, G)``, ``n_cells (C,)``, ``dispersion (G,)``.

    The dispersion is the variance between cells over the mean, within classes. The mean of a gene that was not
    measured in a class is NaN. Numbers of cells may be fractions.
    """

    mean: np.ndarray
    n_cells: np.ndarray
    dispersion: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Mean share of each gene in a cell's counts ``(G,)``; sums to 1."""
        total = self.n_cells @ np.nan_to_num(self.mean)
        return np.asarray(total / total.sum())

    def restricted(self, is_shared: np.ndarray) -> Profile:
        """Return the profile of the genes ``is_shared (G,)``, each class rescaled to 10,000 counts."""
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
    """Profile of cells whose ``rows (n, G)`` are read in blocks; ``weights (n, C)`` are their shares in the classes."""
    total = squares = in_class = np.zeros(())
    for block in np.split(np.arange(n_cells), range(block_size, n_cells, block_size)):
        X, parts = cp10k(rows(block), is_log=is_log), weights(block)
        total = total + class_sums(X, parts)
        squares = squares + X.power(2).T @ parts.sum(axis=1)
        in_class = in_class + parts.sum(axis=0)
    mean = total / np.maximum(in_class, 1e-9)[:, None]
    within = np.maximum(squares - (total * mean).sum(axis=0), 0)
    of_gene = total.sum(axis=0)
    dispersion = np.divide(within, of_gene, out=np.zeros_like(within), where=of_gene > 0)
    typical = np.median(dispersion[dispersion > 0]) if (dispersion > 0).any() else 1.0
    return Profile(mean, in_class, np.where(dispersion > 0, dispersion, typical))


def class_sums(X: sparse.csr_matrix, weights: np.ndarray) -> np.ndarray:
    """Sum the rows of ``X (n, G)`` by ``weights (n, C)`` to ``(C, G)``."""
    # With 1,000 classes and one label per cell the dense product takes 13 times as long; with ten, a fifth.
    if np.count_nonzero(weights) < 0.04 * weights.size:
        return np.asarray((sparse.csr_matrix(weights.T) @ X).toarray())  # CSR times CSR: X is not turned round
    return np.asarray((X.T @ weights).T)
