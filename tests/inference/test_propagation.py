"""Propagation against scikit-learn and a dense solve, and laws of the graph."""

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.semi_supervised import LabelSpreading

from celler.inference import _propagation
from celler.inference._propagation import (
    N_NEIGHBORS,
    nearest,
    neighbor_graph,
    neighbor_weight,
    principal_components,
    propagate,
)

ALL = np.arange(400)


def random_graph(rng, n_cells: int = 60):
    return neighbor_graph(rng.normal(size=(n_cells, 5)))


def random_prior(rng, n_cells: int = 60, n_classes: int = 3) -> np.ndarray:
    return rng.dirichlet(np.ones(n_classes), n_cells)


def test_propagate_solves_the_linear_system(rng):
    graph, prior, is_held = random_graph(rng), random_prior(rng), ALL[:60] < 20
    W, w = graph.toarray(), 0.8
    left = np.eye(60) - w * W
    left[is_held] = np.eye(60)[is_held]
    right = np.where(is_held[:, None], prior, (1 - w) * prior)
    np.testing.assert_allclose(propagate(graph, prior, is_held, w), np.linalg.solve(left, right), atol=1e-6)


def test_propagate_matches_label_spreading():
    """Which has labels as the prior, holds none, and scales by the degrees of both ends: equal where all are."""
    ring = sparse.csr_matrix(np.roll(np.eye(60), 1, 1) + np.roll(np.eye(60), -1, 1))
    labels = np.where(ALL[:60] % 7 == 0, ALL[:60] % 3, -1)
    peer = LabelSpreading(kernel=lambda a, b: ring.toarray(), alpha=0.6, max_iter=500, tol=1e-12)
    peer.fit(np.zeros((60, 1)), labels)
    prior = np.eye(3)[labels] * (labels >= 0)[:, None]
    spread = propagate(ring / 2, prior, np.zeros(60, bool), 0.6)
    expected = peer.label_distributions_
    np.testing.assert_allclose(spread / spread.sum(1, keepdims=True), expected, atol=1e-5)


def test_principal_components_match_scikit_learn(rng):
    X = rng.poisson(1.0, size=(200, 90)).astype(np.float32)
    X[:, :5] *= rng.normal(5, 2, size=(200, 5)).astype(np.float32) ** 2
    rows = sparse.csr_matrix(X)
    points = principal_components(lambda block: rows[block], 200, block_size=33)
    expected = PCA(30, svd_solver="full").fit_transform(X.astype(float))
    np.testing.assert_allclose(points @ points.T, expected @ expected.T, rtol=1e-4, atol=0.5)


def test_neighbor_graph_worked_by_hand():
    W = neighbor_graph(np.array([[0.0], [1.0], [3.0]])).toarray()
    # every cell's farthest neighbour, of two, has the weight 1/e; of both directions the larger counts
    near, far = np.exp(-(0.5**2)), np.exp(-1.0)
    near = max(np.exp(-((1 / 3) ** 2)), near)
    middle = max(np.exp(-((2 / 3) ** 2)), far)
    expected = np.array([[0, near, far], [near, 0, middle], [far, middle, 0]])
    np.testing.assert_allclose(W, expected / expected.sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("n_unlabelled", "n_labelled", "weight"),
    [
        (0, 0, 0),
        (10, 0, 0.8),
        (100, 100, 1 / 3),
        (200, 100, 0.5),
        (900, 100, 0.8),
        (1, 1000, 1 / 2001),
    ],
)
def test_neighbor_weight_by_labelled_cells(n_unlabelled, n_labelled, weight):
    assert neighbor_weight(n_unlabelled, n_labelled) == pytest.approx(weight)


def test_propagate_keeps_held_rows(rng):
    graph, prior, is_held = random_graph(rng), random_prior(rng), ALL[:60] < 20
    spread = propagate(graph, prior, is_held, 0.8)
    np.testing.assert_allclose(spread.sum(axis=1), 1)
    np.testing.assert_array_equal(spread[is_held], prior[is_held])
    np.testing.assert_array_equal(propagate(graph, prior, is_held, 0.0), prior)


def test_propagate_equal_probabilities(rng):
    prior = np.tile(random_prior(rng, 1), (60, 1))
    np.testing.assert_allclose(propagate(random_graph(rng), prior, ALL[:60] < 0, 0.8), prior)


@pytest.mark.parametrize("n_cells", [2, 3, N_NEIGHBORS, N_NEIGHBORS + 1, 40])
def test_neighbor_graph_of_few_or_equal_cells(rng, n_cells):
    for points in (rng.normal(size=(n_cells, 3)), np.ones((n_cells, 3))):
        graph = neighbor_graph(points)
        np.testing.assert_allclose(graph.sum(axis=1), 1)
        assert not graph.diagonal().any()


@pytest.mark.slow
@pytest.mark.parametrize("n_distinct", [2000, 40])
def test_nearest_beyond_the_exact_size(rng, monkeypatch, n_distinct):
    points = np.repeat(rng.normal(size=(n_distinct, 8)).astype(np.float32), 2000 // n_distinct, 0)
    exact, _ = nearest(points, 10)
    monkeypatch.setattr(_propagation, "EXACT_CELLS", 1999)
    distance, neighbor = nearest(points, 10)
    assert distance.shape == neighbor.shape == (2000, 10)
    assert not (neighbor == np.arange(2000)[:, None]).any()
    between = cdist(points[:50], points)
    of_pair = np.take_along_axis(between, neighbor[:50].astype(int), axis=1)
    np.testing.assert_allclose(distance[:50], of_pair, rtol=1e-4, atol=1e-3)
    # each found neighbour is one of the ten nearest, ties of equal cells included
    assert (distance <= exact[:, -1:] + 1e-3).mean() > 0.97
    for part, same in zip(nearest(points, 10), (distance, neighbor), strict=True):
        np.testing.assert_array_equal(part, same)


@pytest.mark.parametrize(("n_cells", "n_genes"), [(2, 500), (5, 1), (70, 3), (61, 61), (90, 400)])
def test_principal_components_of_any_shape(rng, n_cells, n_genes):
    X = sparse.csr_matrix(rng.poisson(1.0, (n_cells, n_genes)).astype(np.float32))
    points = principal_components(lambda block: X[block], n_cells)
    assert points.shape == (n_cells, min(30, n_cells, n_genes))
    assert np.isfinite(points).all()


def test_principal_components_of_equal_cells(rng):
    for n_distinct in (1, 3):
        X = sparse.csr_matrix(np.tile(rng.poisson(1.0, (n_distinct, 100)), (90, 1)), dtype=np.float32)
        points = principal_components(lambda block, X=X: X[block], X.shape[0])
        for copy in range(n_distinct):
            np.testing.assert_allclose(points[copy::n_distinct], points[[copy]].repeat(90, 0), atol=1e-4)
        assert len(np.unique(points.round(2), axis=0)) == n_distinct
