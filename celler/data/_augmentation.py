"""Augmentation: means of unlabelled cells shown for labelled ones, and synthetic cells drawn from a profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import sparse

from celler._utils._counts import cp10k
from celler.data._profile import Profile
from celler.data._sources import Views

Rows = Callable[[np.ndarray], sparse.csr_matrix]  # counts, or their log1p with is_log, at given positions
N_AVERAGED = 10  #: unlabelled cells in a mean
#: Mean number of labelled cells per class at which half of the views are means, and above which none is.
FEW_CELLS, MOST_CELLS = 10, 45
MAX_CELLS, MIN_CELLS = 5000, 20  #: most synthetic cells in all, and fewest of a class that has as many
DEPTH_SPREAD = 0.4  #: standard deviation of the log total count of synthetic cells


def mean_share(n_labelled: int, n_classes: int) -> float:
    """Return the share of a labelled cell's views that are means; it falls with the labelled cells per class."""
    n = n_labelled / max(1, n_classes)
    return FEW_CELLS / (FEW_CELLS + n) if n <= MOST_CELLS else 0.0


def neighbourhoods(
    rows: Rows,
    labels: np.ndarray,
    embedding: np.ndarray,
    share: float,
    *,
    is_log: bool,
    found: np.ndarray | None = None,
) -> Views:
    """Return the mean of each labelled cell and its ten nearest unlabelled cells, as views of it.

    ``labels (N,)`` are codes, −1 for unlabelled cells; distances are those of ``embedding (N, D)``. With ``found``, the
    codes ``(N,)`` predicted by a first training, only cells predicted as the cell's class are averaged.
    """
    labelled, members = np.flatnonzero(labels >= 0), []
    for cell in labelled:
        others = of_class(int(labels[cell]), labels, found)
        distance = np.square(embedding[others] - embedding[cell]).sum(axis=1)
        members.append(np.array([cell, *others[np.argsort(distance, kind="stable")][:N_AVERAGED]]))
    of_cell = np.full((len(labels), 1), -1)
    of_cell[labelled, 0] = np.arange(len(labelled))
    return Views(means(rows, members, is_log=is_log), of_cell, share)


def with_class_means(
    views: Views, rows: Rows, labels: np.ndarray, found: np.ndarray, seed: int, *, is_log: bool
) -> Views:
    """Add to the views of each labelled cell the mean of ten random unlabelled cells ``found (N,)`` to be its class."""
    rng, of_cell = np.random.default_rng(seed), np.repeat(views.of_cell, 2, axis=1)
    members: list[np.ndarray] = []
    for cell in np.flatnonzero(labels >= 0):
        others = of_class(int(labels[cell]), labels, found)
        if len(others):
            of_cell[cell, 1] = views.X.shape[0] + len(members)
            members.append(rng.choice(others, min(N_AVERAGED, len(others)), replace=False))
    if not members:
        return views
    X = sparse.vstack([views.X, means(rows, members, is_log=is_log)], format="csr")
    return replace(views, X=X, of_cell=of_cell)


def of_class(code: int, labels: np.ndarray, found: np.ndarray | None) -> np.ndarray:
    """Return positions of the unlabelled cells, with ``found`` those predicted as class ``code``."""
    is_free = labels < 0
    return np.flatnonzero(is_free if found is None else is_free & (found == code))


def means(rows: Rows, members: list[np.ndarray], *, is_log: bool) -> sparse.csr_matrix:
    """Return mean counts per 10,000 of each group of positions ``(M, G)``, with ``is_log`` their ``log1p``."""
    needed, position = np.unique(np.concatenate(members), return_inverse=True)
    sizes = np.array([len(group) for group in members])
    start = np.concatenate([[0], np.cumsum(sizes)])
    averaging = sparse.csr_matrix((np.repeat(1 / sizes, sizes), position, start), (len(members), len(needed)))
    mean = averaging @ cp10k(rows(needed), is_log=is_log)
    return sparse.csr_matrix(mean.log1p() if is_log else mean, dtype=np.float32)


def n_rehearsed(class_counts: np.ndarray) -> np.ndarray:
    """Return the number of synthetic cells of each class ``(C,)``: all, or a share to stay below ``MAX_CELLS``."""
    share = min(1.0, MAX_CELLS / class_counts.sum())
    return np.maximum(np.minimum(class_counts, MIN_CELLS), np.round(class_counts * share)).astype(np.int64)


def draw_cells(
    profile: Profile, n_cells: np.ndarray, rng: np.random.Generator, block_size: int = 256
) -> tuple[sparse.csr_matrix, np.ndarray]:
    r"""Draw ``n_cells (C,)`` cells of each class; return counts ``(n, G)`` and class codes ``(n,)``.

    Gamma-Poisson, each gene independently: with the class mean :math:`m_{kg}` as a share of the cell's total count
    :math:`D`, and the dispersion :math:`\phi_g` in excess of Poisson's :math:`10^4 / D`,

    .. math:: x_g \sim \operatorname{Poisson}(D\, m_{kg}\, \gamma_g), \qquad
        \operatorname{Var} \gamma_g = \max(\phi_g - 10^4 / D, 0) / m_{kg} .

    The profile does not hold :math:`D`. It is estimated from the median dispersion, as most genes are nearly Poisson.
    Genes that were never measured in a class have no counts.
    """
    poisson, n_genes, parts = float(np.median(profile.dispersion)), profile.mean.shape[1], []
    for k, n in enumerate(n_cells):
        genes = np.flatnonzero(np.nan_to_num(profile.mean[k]) > 0)
        mean = profile.mean[k, genes].astype(np.float64)
        beyond = np.maximum(profile.dispersion[genes] - poisson, 0) / mean
        shape = 1 / np.maximum(beyond, 1e-3)
        for start in range(0, n, block_size):
            size = (min(block_size, n - start), len(genes))
            depth = 1e4 / poisson * rng.lognormal(0.0, DEPTH_SPREAD, (size[0], 1))
            counts = rng.poisson(depth * mean / mean.sum() * rng.gamma(shape, 1 / shape, size))
            counts[counts.sum(axis=1) == 0, mean.argmax()] = 1
            rows, columns = np.nonzero(counts)
            values = counts[rows, columns].astype(np.float32)
            parts.append(sparse.csr_matrix((values, (rows, genes[columns])), (size[0], n_genes)))
    return sparse.vstack(parts, format="csr"), np.repeat(np.arange(len(n_cells)), n_cells)
