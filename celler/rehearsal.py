"""Rehearsal: cells drawn from the profile of classes whose real cells are not there any more."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from celler.shift import Profile

#: Most cells drawn, all classes together, and of a class with as many the least.
MAX_CELLS = 5000
MIN_CELLS = 20
#: Standard deviation of the logarithm of a cell's total count.
DEPTH_SPREAD = 0.4


def n_rehearsed(class_counts: np.ndarray) -> np.ndarray:
    """Cells to draw of each class ``(C,)``: as many as there were, or a share of each to stay below the most."""
    share = min(1.0, MAX_CELLS / class_counts.sum())
    least = np.minimum(class_counts, MIN_CELLS)
    return np.maximum(least, np.round(class_counts * share)).astype(np.int64)


def draw_cells(
    profile: Profile, n_cells: np.ndarray, rng: np.random.Generator, block_size: int = 256
) -> tuple[sparse.csr_matrix, np.ndarray]:
    r"""Counts ``(n, G)`` of ``n_cells (C,)`` cells of each class, and their class codes ``(n,)``.

    Gamma-Poisson, gene by gene on its own: with the class mean :math:`m_{kg}` as a share of the cell's total
    count :math:`D`, and the dispersion :math:`\phi_g` that is beyond Poisson's :math:`10^4 / D`,

    .. math:: x_g \sim \operatorname{Poisson}(D\, m_{kg}\, \gamma_g), \qquad
        \operatorname{Var} \gamma_g = \max(\phi_g - 10^4 / D, 0) / m_{kg} .

    The profile does not say :math:`D`; most genes are nearly Poisson, so their median dispersion does. Genes
    that were never measured in a class have no counts.
    """
    poisson = float(np.median(profile.dispersion))
    parts = []
    for k, n in enumerate(n_cells):
        genes = np.flatnonzero(np.nan_to_num(profile.mean[k]) > 0)
        mean = profile.mean[k, genes].astype(np.float64)
        beyond = np.maximum(profile.dispersion[genes] - poisson, 0) / mean
        shape = 1 / np.maximum(beyond, 1e-3)
        for start in range(0, n, block_size):
            size = (min(block_size, n - start), len(genes))
            depth = 1e4 / poisson * rng.lognormal(0.0, DEPTH_SPREAD, (size[0], 1))
            counts = rng.poisson(depth * mean / mean.sum() * rng.gamma(shape, 1 / shape, size))
            empty = counts.sum(axis=1) == 0
            counts[empty, mean.argmax()] = 1
            rows, columns = np.nonzero(counts)
            values = counts[rows, columns].astype(np.float32)
            shape_of_part = (size[0], profile.mean.shape[1])
            parts.append(sparse.csr_matrix((values, (rows, genes[columns])), shape_of_part))
    return sparse.vstack(parts, format="csr"), np.repeat(np.arange(len(n_cells)), n_cells)
