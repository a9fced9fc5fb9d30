"""Neighbourhoods: labelled cells are also shown as the mean of the cells that are nearest to them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from celler.loading import Views
from celler.shift import linear

#: Nearest cells that are averaged.
N_NEIGHBORS = 10
#: Labelled cells of a class at which a cell is shown as itself and as its neighbourhood equally often.
FEW_CELLS = 5
#: Below this share the neighbourhoods are left out.
LEAST_SHARE = 0.05


def neighbourhood_share(n_labelled: int, n_classes: int) -> float:
    """How often a cell is shown as its neighbourhood: the less, the more labelled cells there are of a class."""
    share = FEW_CELLS / (FEW_CELLS + n_labelled / max(1, n_classes))
    return share if share >= LEAST_SHARE else 0.0


def neighbourhoods(
    rows: Callable[[np.ndarray], sparse.csr_matrix],
    labels: np.ndarray,
    embedding: np.ndarray,
    share: float,
    *,
    is_log: bool,
) -> Views:
    """Mean counts per 10,000 of each labelled cell and the ten unlabelled ones nearest to it.

    rows: gives counts or, with ``is_log``, ``log1p`` values ``(n, G)`` of positions ``(n,)``.
    labels: ``(N,)``, −1 where there is none. embedding: ``(N, D)``, in which cells are near.
    """
    labelled, free = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    k = min(N_NEIGHBORS, len(free))
    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(embedding[free])
    near = free[index.kneighbors(embedding[labelled], return_distance=False)]
    members = np.column_stack([labelled, near])
    needed, position = np.unique(members, return_inverse=True)
    X = linear(rows(needed), is_log=is_log)
    start = np.arange(0, members.size + 1, k + 1)
    weights = np.full(members.size, 1 / (k + 1))
    mean = sparse.csr_matrix((weights, position.ravel(), start), (len(labelled), len(needed))) @ X
    of_cell = np.full(len(labels), -1)
    of_cell[labelled] = np.arange(len(labelled))
    return Views(
        sparse.csr_matrix(mean.log1p() if is_log else mean, dtype=np.float32), of_cell, share
    )
