"""Propagation: class probabilities spread over the nearest cells while labelled cells keep their labels.

scikit-learn's ``LabelSpreading`` takes no prior, so the iteration is our own; the neighbour search is a library's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

N_COMPONENTS, N_NEIGHBORS = 30, 10  #: principal components in which distances are taken, and neighbours of each cell
#: Cells up to which all distances are computed: 8 s on a core, growing with the square. Beyond, nearest-neighbour
#: descent finds most of the neighbours in a time that grows with the number of cells.
EXACT_CELLS = 50_000
FIT_CELLS = 20_000  #: most cells that the components are fitted on; all are projected
MAX_WEIGHT = 0.8  #: largest weight of the neighbours; 0.95 was worse on some data
TOLERANCE = 1e-7  #: change of the probabilities at which the iteration stops


def neighbor_weight(n_unlabelled: int, n_labelled: int) -> float:
    """Return the neighbours' weight in a cell's probabilities: r / (r + 2), r unlabelled cells per labelled, <= 0.8."""
    return min(MAX_WEIGHT, n_unlabelled / max(1, n_unlabelled + 2 * n_labelled))


def principal_components(
    rows: Callable[[np.ndarray], sparse.csr_matrix], n_cells: int, *, block_size: int = 10_000
) -> np.ndarray:
    """Return principal components ``(n_cells, 30)``, or fewer for few cells or genes, read in blocks and never dense.

    ``rows`` returns ``log1p`` values ``(n, G)`` at ascending positions. The components are fitted on 20,000 cells at
    most, drawn at random.
    """
    every = np.arange(n_cells)
    drawn = every
    if n_cells > FIT_CELLS:
        drawn = np.sort(np.random.default_rng(0).choice(every, FIT_CELLS, replace=False))
    X = rows(drawn)
    if np.array_equal(X.max(axis=0).toarray(), X.min(axis=0).toarray()):  # all cells are equal
        return np.zeros((n_cells, 1), np.float32)
    if min(X.shape) <= 2 * N_COMPONENTS:  # arpack needs more rows and columns than components
        pca = PCA(min(N_COMPONENTS, *X.shape), svd_solver="full").fit(X.toarray())
    else:
        pca = PCA(N_COMPONENTS, svd_solver="arpack", random_state=0).fit(X)
    offset = pca.mean_ @ pca.components_.T
    if n_cells <= min(block_size, FIT_CELLS):
        return np.asarray(X @ pca.components_.T - offset)
    blocks = np.split(every, range(block_size, n_cells, block_size))
    return np.concatenate([rows(block) @ pca.components_.T - offset for block in blocks])


def neighbor_graph(points: np.ndarray) -> sparse.csr_matrix:
    r"""Return the weights ``(N, N)`` of a neighbour graph; rows sum to 1, the diagonal is 0.

    A cell's ten nearest, at distances d, have the weights :math:`e^{-(d/d_{10})^2}` with :math:`d_{10}` the tenth
    distance. Of both directions the larger weight is taken, then each row is divided by its sum.
    """
    n_cells = len(points)
    distance, neighbor = nearest(points, min(N_NEIGHBORS, n_cells - 1))
    farthest = distance.max(axis=1, keepdims=True)
    ratio = np.divide(distance, farthest, out=np.zeros_like(distance), where=farthest > 0)
    start = np.arange(0, neighbor.size + 1, neighbor.shape[1])
    weights = np.exp(-(ratio.astype(np.float64) ** 2))
    directed = sparse.csr_matrix((weights.ravel(), neighbor.ravel(), start), shape=(n_cells, n_cells))
    weights = directed.maximum(directed.T)
    return sparse.csr_matrix(sparse.diags_array(1 / np.asarray(weights.sum(axis=1)).ravel()) @ weights)


def nearest(points: np.ndarray, n_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and positions ``(N, n_neighbors)`` of each point's nearest others, exact up to 50,000 points."""
    if len(points) > EXACT_CELLS:
        # Imported here: its compiled code takes seconds to load, and few queries are as large.
        from pynndescent import NNDescent

        neighbor, distance = NNDescent(points, n_neighbors=n_neighbors + 1, random_state=0).neighbor_graph
        is_left_out = neighbor == np.arange(len(points))[:, None]
        is_left_out[~is_left_out.any(axis=1), -1] = True  # equal cells may crowd a cell out of its own list
        if (neighbor >= 0).all():
            shape = (len(points), n_neighbors)
            return distance[~is_left_out].reshape(shape), neighbor[~is_left_out].reshape(shape)
    return NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(points).kneighbors()


def propagate(graph: sparse.csr_matrix, prior: np.ndarray, is_held: np.ndarray, weight: float) -> np.ndarray:
    r"""Return probabilities ``(N, C)`` that mix the prior of each cell with the mean of its neighbours.

    .. math:: P = (1 - w)\, P^0 + w\, W P, \qquad P_i = P^0_i \text{ where held}

    Label spreading :cite:p:`Zhou04` with a classifier as the prior. Rows sum to 1, as do those of W, the ``graph``.
    ``prior (N, C)`` is :math:`P^0`, ``is_held (N,)`` marks cells that keep it, and ``weight`` is w, below 1.
    """
    probabilities = prior.copy()
    of_free, own = graph[~is_held], (1 - weight) * prior[~is_held]
    change = 1.0
    while change > TOLERANCE:  # a round changes at most w times as much as the last
        updated = own + weight * (of_free @ probabilities)
        change = float(np.abs(updated - probabilities[~is_held]).max(initial=0))
        probabilities[~is_held] = updated
    return probabilities
