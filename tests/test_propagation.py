"""Propagation: against scikit-learn and a dense solve, laws of the graph, any AnnData, and what is said."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.semi_supervised import LabelSpreading
from toy import assert_unchanged, cells, fit, snapshot, truth

from celler.data._query import align_query
from celler.inference import _propagation
from celler.inference._propagation import (
    N_NEIGHBORS,
    neighbor_graph,
    nearest,
    neighbor_weight,
    principal_components,
    propagate,
)
from celler.model import Celler
from celler.model._forward import Part, _labelled_part, log_rows

ALL = np.arange(400)


@pytest.fixture(scope="module")
def both() -> ad.AnnData:
    """400 cells, of which the first 100 have labels."""
    adata = cells(400)
    labels = truth(adata).astype(object)
    labels[100:] = "Unknown"
    adata.obs["label"] = labels
    return adata


@pytest.fixture(scope="module")
def model(both) -> Celler:
    return fit(both.copy(), {"labels_key": "label"})


def random_graph(rng, n_cells: int = 60):
    return neighbor_graph(rng.normal(size=(n_cells, 5)))


def random_prior(rng, n_cells: int = 60, n_classes: int = 3) -> np.ndarray:
    return rng.dirichlet(np.ones(n_classes), n_cells)


# ---- against what others wrote ----


def test_it_solves_the_linear_system(rng):
    graph, prior, is_held = random_graph(rng), random_prior(rng), ALL[:60] < 20
    W, w = graph.toarray(), 0.8
    left = np.eye(60) - w * W
    left[is_held] = np.eye(60)[is_held]
    right = np.where(is_held[:, None], prior, (1 - w) * prior)
    np.testing.assert_allclose(
        propagate(graph, prior, is_held, w), np.linalg.solve(left, right), atol=1e-6
    )


def test_it_is_scikit_learns_label_spreading():
    """Which has labels as the prior, holds none, and scales by the degrees of both ends: equal where all are."""
    ring = sparse.csr_matrix(np.roll(np.eye(60), 1, 1) + np.roll(np.eye(60), -1, 1))
    labels = np.where(ALL[:60] % 7 == 0, ALL[:60] % 3, -1)
    peer = LabelSpreading(kernel=lambda a, b: ring.toarray(), alpha=0.6, max_iter=500, tol=1e-12)
    peer.fit(np.zeros((60, 1)), labels)
    prior = np.eye(3)[labels] * (labels >= 0)[:, None]
    spread = propagate(ring / 2, prior, np.zeros(60, bool), 0.6)
    expected = peer.label_distributions_
    np.testing.assert_allclose(spread / spread.sum(1, keepdims=True), expected, atol=1e-5)


def test_components_are_those_of_scikit_learn(rng):
    X = rng.poisson(1.0, size=(200, 90)).astype(np.float32)
    X[:, :5] *= rng.normal(5, 2, size=(200, 5)).astype(np.float32) ** 2
    rows = sparse.csr_matrix(X)
    points = principal_components(lambda block: rows[block], 200, block_size=33)
    expected = PCA(30, svd_solver="full").fit_transform(X.astype(float))
    np.testing.assert_allclose(points @ points.T, expected @ expected.T, rtol=1e-4, atol=0.5)


def test_weights_worked_by_hand():
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
def test_the_neighbours_weight(n_unlabelled, n_labelled, weight):
    assert neighbor_weight(n_unlabelled, n_labelled) == pytest.approx(weight)


# ---- laws ----


def test_rows_sum_to_one_and_held_rows_stay(rng):
    graph, prior, is_held = random_graph(rng), random_prior(rng), ALL[:60] < 20
    spread = propagate(graph, prior, is_held, 0.8)
    np.testing.assert_allclose(spread.sum(axis=1), 1)
    np.testing.assert_array_equal(spread[is_held], prior[is_held])
    np.testing.assert_array_equal(propagate(graph, prior, is_held, 0.0), prior)


def test_equal_probabilities_stay(rng):
    prior = np.tile(random_prior(rng, 1), (60, 1))
    np.testing.assert_allclose(propagate(random_graph(rng), prior, ALL[:60] < 0, 0.8), prior)


@pytest.mark.parametrize("n_cells", [2, 3, N_NEIGHBORS, N_NEIGHBORS + 1, 40])
def test_a_graph_of_few_and_of_equal_cells(rng, n_cells):
    for points in (rng.normal(size=(n_cells, 3)), np.ones((n_cells, 3))):
        graph = neighbor_graph(points)
        np.testing.assert_allclose(graph.sum(axis=1), 1)
        assert not graph.diagonal().any()


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
def test_components_of_any_shape(rng, n_cells, n_genes):
    X = sparse.csr_matrix(rng.poisson(1.0, (n_cells, n_genes)).astype(np.float32))
    points = principal_components(lambda block: X[block], n_cells)
    assert points.shape == (n_cells, min(30, n_cells, n_genes))
    assert np.isfinite(points).all()


def test_components_of_equal_and_of_repeated_cells(rng):
    for n_distinct in (1, 3):
        X = sparse.csr_matrix(
            np.tile(rng.poisson(1.0, (n_distinct, 100)), (90, 1)), dtype=np.float32
        )
        points = principal_components(lambda block, X=X: X[block], X.shape[0])
        for copy in range(n_distinct):
            np.testing.assert_allclose(
                points[copy::n_distinct], points[[copy]].repeat(90, 0), atol=1e-4
            )
        assert len(np.unique(points.round(2), axis=0)) == n_distinct


# ---- in the model ----


def test_it_is_what_the_equation_says_of_the_models_probabilities(model, both):
    free = ALL[100:]
    asked = {"indices": free, "soft": True, "correct_shift": False}
    own = model.predict(**asked)
    X = both.X.toarray().astype(float)
    points = PCA(30, svd_solver="full").fit_transform(np.log1p(X * 1e4 / X.sum(1, keepdims=True)))
    W, w = neighbor_graph(points).toarray(), 3 / 5
    held = np.eye(4)[model.classes_.searchsorted(truth(both)[:100])]
    right = (1 - w) * own.to_numpy() + w * W[100:, :100] @ held
    expected = np.linalg.solve(np.eye(300) - w * W[100:, 100:], right)
    actual = model.predict(**asked, propagate=True)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert list(actual.columns) == list(own.columns)


def test_it_labels_more_cells_rightly(model, both):
    plain, spread = (model.predict(indices=ALL[100:], propagate=on) for on in (False, True))
    expected = truth(both)[100:]
    assert (spread == expected).mean() > (plain == expected).mean()


def test_labelled_cells_keep_the_models_opinion(model):
    plain, spread = (model.predict(soft=True, propagate=on) for on in (False, True))
    np.testing.assert_allclose(spread[:100], plain[:100])
    alone = model.predict(indices=ALL[100:], soft=True, propagate=True)
    np.testing.assert_allclose(spread[100:], alone, atol=1e-4)


def test_a_query_of_its_own_is_labelled_as_if_registered_together(model, both):
    options = {"soft": True, "propagate": True, "correct_shift": False}
    together = model.predict(indices=ALL[100:], **options)
    query = both[100:].copy()
    query.obs = query.obs[[]]
    before = snapshot(query)
    np.testing.assert_allclose(model.predict(query, **options), together, atol=1e-4)
    assert_unchanged(query, before)
    log = query.copy()
    log.X = sparse.csr_matrix(query.X.multiply(1e4 / query.X.sum(axis=1))).log1p()
    np.testing.assert_allclose(model.predict(log, **options), together, atol=1e-3)
    order = np.random.default_rng(0).permutation(query.n_obs)
    turned = model.predict(query[order, query.var_names[::-1]].copy(), **options)
    np.testing.assert_allclose(turned, together.iloc[order], atol=1e-4)


def test_both_sides_are_compared_in_the_genes_they_share_and_the_query_without_its_shift(
    model, both
):
    query = both[100:, 10:70].copy()
    query.var_names = [*query.var_names[:-5], *(f"other {i}" for i in range(5))]
    factors = np.linspace(0.5, 2, 80)
    with pytest.warns(UserWarning, match="55 of the model.s 80 genes"):
        matched = align_query(model._state.genes, query, None)
    labelled = _labelled_part(model._state, matched, ALL[:100], model._reference)
    shared = labelled.is_shared
    parts = [labelled, Part(matched, ALL[:300], shared, factors[shared])]
    linear = both.X.toarray().astype(float)[:, 10:65]
    has_values = linear.sum(axis=1) > 0
    np.testing.assert_array_equal(np.concatenate([part.has_values() for part in parts]), has_values)
    linear[100:] *= factors[10:65]
    expected = np.log1p(linear * 1e4 / np.maximum(linear.sum(1, keepdims=True), 1e-9))
    np.testing.assert_allclose(log_rows(parts, ALL).toarray(), expected, rtol=1e-5)
    some = np.array([3, 99, 100, 250])
    np.testing.assert_allclose(log_rows(parts, some).toarray(), expected[some], rtol=1e-5)


def test_a_query_with_other_genes(model, both):
    query = both[100:, np.r_[:75]].copy()
    with pytest.warns(UserWarning, match="genes"):
        plain, spread = (model.predict(query, propagate=on) for on in (False, True))
    expected = truth(query)
    assert (spread == expected).mean() > (plain == expected).mean()


def test_a_loaded_model_has_labelled_cells_where_it_was_given_them(model, both, tmp_path):
    model.save(tmp_path)
    expected = model.predict(indices=ALL[100:], soft=True, propagate=True)
    reference = both.copy()
    loaded = Celler.load(tmp_path, adata=reference)
    np.testing.assert_allclose(
        loaded.predict(indices=ALL[100:], soft=True, propagate=True), expected, atol=1e-5
    )
    query = both[100:].copy()
    alone = Celler.load(tmp_path)
    with pytest.warns(UserWarning, match=r"no labelled cells.*load\(dir, adata=reference\)"):
        alone.annotate(query, propagate=True)
    assert query.uns["celler"]["propagation"]["labelled_cells"] == 0
    alone.predict(query, propagate=True)  # it is said once
    unnamed = Celler.load(tmp_path, adata=both[100:].copy())
    del unnamed.adata.obs["label"]
    with pytest.warns(UserWarning, match="has no column 'label'"):
        unnamed.predict(propagate=True)


def test_what_was_done_is_recorded(model, both, tmp_path):
    query = both[100:].copy()
    model.annotate(query, propagate=True)
    found = query.uns["celler"]["propagation"]
    assert found == {"labelled_cells": 100, "cells": 300, "neighbor_weight": pytest.approx(0.6)}
    soft = model.predict(query, soft=True, propagate=True)
    np.testing.assert_array_equal(query.obs["celler_confidence"], soft.max(axis=1))
    np.testing.assert_array_equal(query.obs["celler"].astype(str), soft.idxmax(axis=1))
    query.write_h5ad(tmp_path / "query.h5ad")
    model.annotate(query)
    assert query.uns["celler"]["propagation"] == "none"


def test_levels_candidates_and_threshold():
    model, query = fit(cells(), {"parent_labels_key": "parent_type"}), cells(200, seed=1)
    soft = model.predict(query, soft=True, propagate=True)
    parents = model.predict(query, soft=True, propagate=True, level="parent")
    expected = soft.T.groupby(model.parents_).sum().T
    pd.testing.assert_frame_equal(parents, expected, check_names=False)
    two = list(model.classes_[1:3])
    some = model.predict(query, soft=True, propagate=True, candidates=two)
    np.testing.assert_allclose(some[two].sum(axis=1), 1)
    sure = model.predict(query, propagate=True, threshold=0.8)
    np.testing.assert_array_equal(sure == "Unknown", soft.max(axis=1) < 0.8)


@pytest.mark.parametrize("n_cells", [0, 1, 2, 5])
def test_few_cells(model, both, n_cells):
    spread = model.predict(both[100 : 100 + n_cells].copy(), soft=True, propagate=True)
    plain = model.predict(both[100 : 100 + n_cells].copy(), soft=True)
    assert spread.shape == (n_cells, 4)
    np.testing.assert_allclose(
        spread, plain, atol=0.05
    )  # a cell in 50 labelled ones: little weight


def test_cells_without_counts_have_no_neighbours(model, both):
    query = both[100:150].copy()
    query.X = sparse.csr_matrix(query.X.toarray() * (np.arange(50) != 3)[:, None])
    with pytest.warns(UserWarning, match="1 cells have no counts"):
        soft = model.predict(query, soft=True, propagate=True)
    np.testing.assert_allclose(soft.iloc[3], 0.25)
    others = model.predict(query[np.arange(50) != 3].copy(), soft=True, propagate=True)
    np.testing.assert_allclose(soft.drop(soft.index[3]), others, atol=1e-4)


def test_nothing_to_label_is_said():
    model = fit(cells())
    with pytest.warns(UserWarning, match="changes nothing.*every cell of the query"):
        model.predict(propagate=True)


def test_the_same_call_gives_the_same(model, both):
    query = both[100:].copy()
    first, second = (model.predict(query, soft=True, propagate=True) for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
