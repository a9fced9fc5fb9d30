"""Celler.predict with propagate: any AnnData, and what is reported."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from toy import assert_unchanged, cells, fit, snapshot, truth

from celler.data._query import align_query
from celler.inference._propagation import (
    neighbor_graph,
)
from celler.model import Celler
from celler.model._propagate import Part, _labelled_part, log_rows

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


def test_predict_propagate_matches_the_equation(model, both):
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


def test_predict_propagate_is_more_accurate():
    """With few labels; with a hundred of four clear types there is nothing to gain."""
    adata = cells(400, seed=4)
    adata.obs["label"] = np.where(np.arange(400) < 60, truth(adata), "Unknown")
    model = fit(adata, {"labels_key": "label"})
    plain, spread = (model.predict(indices=ALL[60:], propagate=on) for on in (False, True))
    expected = truth(adata)[60:]
    assert (spread == expected).mean() > (plain == expected).mean() + 0.02


def test_predict_propagate_of_labelled_cells(model):
    plain, spread = (model.predict(soft=True, propagate=on) for on in (False, True))
    np.testing.assert_allclose(spread[:100], plain[:100])
    alone = model.predict(indices=ALL[100:], soft=True, propagate=True)
    np.testing.assert_allclose(spread[100:], alone, atol=1e-4)


def test_predict_propagate_of_a_separate_query(model, both):
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


def test_labelled_part_shares_genes_and_scale(model, both):
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


def test_predict_propagate_with_other_genes(model, both):
    query = both[100:, np.r_[:75]].copy()
    with pytest.warns(UserWarning, match="genes"):
        plain, spread = (model.predict(query, propagate=on) for on in (False, True))
    expected = truth(query)
    assert (spread == expected).mean() >= (plain == expected).mean() > 0.9


def test_predict_propagate_after_loading(model, both, tmp_path):
    model.save(tmp_path)
    expected = model.predict(indices=ALL[100:], soft=True, propagate=True)
    reference = both.copy()
    loaded = Celler.load(tmp_path, adata=reference)
    np.testing.assert_allclose(loaded.predict(indices=ALL[100:], soft=True, propagate=True), expected, atol=1e-5)
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


def test_annotate_records_propagation(model, both, tmp_path):
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


def test_predict_propagate_with_levels_and_candidates():
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
def test_predict_propagate_of_few_cells(model, both, n_cells):
    spread = model.predict(both[100 : 100 + n_cells].copy(), soft=True, propagate=True)
    plain = model.predict(both[100 : 100 + n_cells].copy(), soft=True)
    assert spread.shape == (n_cells, 4)
    np.testing.assert_allclose(spread, plain, atol=0.05)  # a cell in 50 labelled ones: little weight


def test_predict_propagate_without_counts(model, both):
    query = both[100:150].copy()
    query.X = sparse.csr_matrix(query.X.toarray() * (np.arange(50) != 3)[:, None])
    with pytest.warns(UserWarning, match="1 cell has no counts"):
        soft = model.predict(query, soft=True, propagate=True)
    np.testing.assert_allclose(soft.iloc[3], 0.25)
    others = model.predict(query[np.arange(50) != 3].copy(), soft=True, propagate=True)
    np.testing.assert_allclose(soft.drop(soft.index[3]), others, atol=1e-4)


def test_predict_propagate_with_nothing_to_label():
    model = fit(cells())
    with pytest.warns(UserWarning, match="changes nothing.*every cell of the query"):
        model.predict(propagate=True)


def test_predict_propagate_twice(model, both):
    query = both[100:].copy()
    first, second = (model.predict(query, soft=True, propagate=True) for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
