"""Neighbourhoods: means of unlabelled cells that training sees in place of a labelled one, where labels are few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import sparse

from celler.loading import Views
from celler.shift import linear

Rows = Callable[[np.ndarray], sparse.csr_matrix]

#: Unlabelled cells that are averaged.
N_AVERAGED = 10
#: A cell is shown as a mean half of the times where a class has so many labelled cells in the mean over classes,
#: and never where it has more than that.
FEW_CELLS, MOST_CELLS = 10, 45


def mean_share(n_labelled: int, n_classes: int) -> float:
    """How often a labelled cell is shown as a mean: the less, the more labelled cells there are of a class."""
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
    """Means of each labelled cell and the ten unlabelled ones nearest to it.

    rows: gives counts or, with ``is_log``, ``log1p`` values ``(n, G)`` of positions ``(n,)``.
    labels: ``(N,)``, −1 where there is none. embedding: ``(N, D)``, in which cells are near.
    found: ``(N,)``, codes of a first training; only cells found to be of its class are then near a cell.
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
    """The views, and for each labelled cell the mean of ten unlabelled ones that were found to be of its class.

    found: ``(N,)``, as above. Where a class was not found there is the neighbourhood alone.
    """
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
    """Unlabelled cells, and with ``found`` those of them that are of the class ``code``."""
    is_free = labels < 0
    return np.flatnonzero(is_free if found is None else is_free & (found == code))


def means(rows: Rows, members: list[np.ndarray], *, is_log: bool) -> sparse.csr_matrix:
    """Mean counts per 10,000 ``(M, G)`` of each group of positions, or with ``is_log`` the logarithm of it and 1."""
    needed, position = np.unique(np.concatenate(members), return_inverse=True)
    sizes = np.array([len(group) for group in members])
    weights = np.repeat(1 / sizes, sizes)
    start = np.concatenate([[0], np.cumsum(sizes)])
    averaging = sparse.csr_matrix((weights, position, start), (len(members), len(needed)))
    mean = averaging @ linear(rows(needed), is_log=is_log)
    return sparse.csr_matrix(mean.log1p() if is_log else mean, dtype=np.float32)
