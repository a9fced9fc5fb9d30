"""Novelty: both parts against SciPy, laws of the score, false alarms on held-out cells, and errors."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import mahalanobis
from scipy.stats import binom, entropy
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from toy import assert_unchanged, cells, fit, snapshot, trained, truth

from celler.data._profile import profile
from celler.inference._novelty import PRIOR_CELLS, SHRINKAGE, fit_novelty, fit_space, measure
from celler.model import Celler

EVERY = np.ones(80, bool)


def log_cp10k(X) -> np.ndarray:
    counts = X.toarray().astype(float)
    return np.log1p(counts * 1e4 / counts.sum(1, keepdims=True))


def novel_and_known() -> tuple[Celler, ad.AnnData, np.ndarray]:
    """A model without the second class, cells it has not seen, and which of them are of that class."""
    reference, query = cells(1200, seed=0), cells(800, seed=1)
    left_out = np.unique(truth(reference))[1]
    return (
        fit(reference[truth(reference) != left_out].copy(), max_epochs=1),
        query,
        truth(query) == left_out,
    )


@pytest.fixture(scope="module")
def case():
    return novel_and_known()


# ---- the parts ----


def test_the_distance_is_that_of_scipy_in_the_principal_components():
    reference, query = cells(400, depth=1.0), cells(20, depth=1.0, seed=1)
    names, codes = np.unique(truth(reference), return_inverse=True)
    space, part = fit_space(reference.X, codes, is_log=False)
    nearest, _, (log_distance, _) = measure(space, part, query.X, EVERY, is_log=False)

    Z, Zq = log_cp10k(reference.X), log_cp10k(query.X)
    means = np.stack([Z[codes == k].mean(0) for k in range(len(names))])
    within = (Z - means[codes]).std(0)
    expressed = (Z > 0).sum(0) >= 3
    scale = np.where(expressed, 1 / np.maximum(within, np.median(within[expressed])), 0)
    A, Aq, M = ((part - Z.mean(0)) * scale for part in (Z, Zq, means))
    basis = np.zeros((80, len(space.components)))
    basis[space.genes] = space.components.T
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    np.testing.assert_allclose(M @ basis @ basis.T, M, atol=1e-3)  # it holds the class means
    most = PCA(50, svd_solver="full").fit(A).explained_variance_.sum()
    assert (A @ basis).var(0).sum() > 0.98 * most
    residual = (A - M[codes]) @ basis
    covariance = residual.T @ residual / (len(A) - len(names))
    sphere = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    precision = np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * sphere)
    expected = np.array([[mahalanobis(x @ basis, m @ basis, precision) for m in M] for x in Aq])
    np.testing.assert_array_equal(nearest, expected.argmin(1))
    np.testing.assert_allclose(log_distance, 2 * np.log(expected.min(1)), rtol=1e-4)


def test_the_deviance_is_the_relative_entropy_of_scipy():
    reference, query = cells(300), cells(20, seed=1)
    codes = np.unique(truth(reference), return_inverse=True)[1]
    space, part = fit_space(reference.X, codes, is_log=False)
    _, _, (_, deviance) = measure(space, part, query.X, EVERY, is_log=False)
    shares = np.expm1(log_cp10k(reference.X)) / 1e4
    n_cells = np.bincount(codes)[:, None]
    of_class = np.stack([shares[codes == k].mean(0) for k in range(len(n_cells))])
    mixed = (of_class * n_cells + PRIOR_CELLS * shares.mean(0)) / (n_cells + PRIOR_CELLS) + 1e-6
    q = np.expm1(log_cp10k(query.X)) / 1e4
    expected = np.min([entropy(q, rates, axis=1) for rates in mixed], axis=0)
    np.testing.assert_allclose(deviance, expected, rtol=1e-5)


def test_known_cells_are_standard(rng):
    reference = cells(600)
    codes = np.unique(truth(reference), return_inverse=True)[1]
    part = profile(lambda b: reference.X[b], lambda b: np.eye(4)[codes[b]], 600, is_log=False)
    novelty = fit_novelty(lambda b: reference.X[b], codes, part, is_log=False, seed=0)
    assert novelty.known.mean() == pytest.approx(0, abs=0.05)
    assert novelty.known.std() == pytest.approx(1, abs=1e-3)
    assert novelty.threshold(0.1) == pytest.approx(np.quantile(novelty.known, 0.9))


# ---- what it is for ----


def test_a_class_that_was_left_out_is_novel(case):
    model, query, is_novel = case
    assert roc_auc_score(is_novel, model.get_novelty(query)) > 0.9


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_false_alarms_are_as_many_as_asked_for(case, rate):
    model, query, is_novel = case
    labels = model.predict(query, false_alarm_rate=rate)
    n_alarms, n_known = (labels[~is_novel] == "Unknown").sum(), (~is_novel).sum()
    # twice the binomial spread: the threshold is an estimate too
    low, high = binom.interval(0.99, n_known, rate)
    assert 2 * low - rate * n_known < n_alarms < 2 * high - rate * n_known
    assert (labels[is_novel] == "Unknown").mean() > 2 * rate


def test_it_joins_the_probability_threshold(case):
    model, query, _ = case
    by_novelty = model.predict(query, false_alarm_rate=0.1, unknown_label="not in the reference")
    both = model.predict(query, false_alarm_rate=0.1, threshold=0.9)
    by_probability = model.predict(query, threshold=0.9)
    expected = (by_novelty == "not in the reference") | (by_probability == "Unknown")
    np.testing.assert_array_equal(both == "Unknown", expected)


# ---- laws ----


def test_genes_in_any_order_and_any_storage_give_the_same(case, rng):
    model, query, _ = case
    expected = model.get_novelty(query)
    mixed = query[:, rng.permutation(query.n_vars)].copy()
    np.testing.assert_allclose(model.get_novelty(mixed), expected, atol=1e-4)
    for convert in (sparse.csc_matrix, lambda X: X.toarray()):
        stored = query.copy()
        stored.X = convert(query.X)
        np.testing.assert_allclose(model.get_novelty(stored), expected, atol=1e-4)


def test_counts_and_their_logarithm_give_the_same(case):
    model, query, _ = case
    log = query.copy()
    log.X = sparse.csr_matrix(log_cp10k(query.X))
    np.testing.assert_allclose(model.get_novelty(log), model.get_novelty(query), atol=1e-3)


def test_indices_and_save_and_load_give_the_same(case, tmp_path):
    model, query, _ = case
    expected = model.get_novelty(query)
    np.testing.assert_allclose(model.get_novelty(query, [5, 3]), expected[[5, 3]], atol=1e-5)
    model.save(tmp_path)
    np.testing.assert_array_equal(Celler.load(tmp_path).get_novelty(query), expected)


def test_missing_genes_are_no_novelty(case, rng):
    model, query, is_novel = case
    with pytest.warns(UserWarning, match="genes"):
        scores = model.get_novelty(query[:, np.sort(rng.permutation(80)[:68])].copy())
    is_left = ~np.isnan(scores)  # some cells lose all their counts
    assert is_left.mean() > 0.9
    assert roc_auc_score(is_novel[is_left], scores[is_left]) > 0.8
    assert np.median(scores[is_left & ~is_novel]) == pytest.approx(0, abs=1)


# ---- annotate ----


def test_annotate_writes_novelty_the_second_label_and_the_threshold():
    query = cells(50, seed=3)
    trained().annotate(query, false_alarm_rate=0.2)
    np.testing.assert_array_equal(query.obs["celler_novelty"], trained().get_novelty(query))
    limit = query.uns["celler"]["novelty_threshold"]
    is_unknown = query.obs["celler"].astype(str) == "Unknown"
    np.testing.assert_array_equal(is_unknown, query.obs["celler_novelty"] > limit)
    soft = trained().predict(query, soft=True)
    second = soft.apply(lambda row: row.sort_values().index[-2], axis=1)
    np.testing.assert_array_equal(query.obs["celler_second"].astype(str), second)


def test_a_cell_without_counts_has_no_novelty():
    query = cells(20, seed=3)
    counts = query.X.toarray()
    counts[4] = 0
    query.X = sparse.csr_matrix(counts)
    before = snapshot(query)
    with pytest.warns(UserWarning, match="1 cells have no counts"):
        novelty = trained().get_novelty(query)
    assert np.isnan(novelty).nonzero()[0].tolist() == [4]
    assert_unchanged(query, before)


# ---- errors ----


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match=r"false_alarm_rate=.* between 0 and 1"):
        trained().predict(cells(5), false_alarm_rate=rate)


def test_a_model_without_the_score_predicts_and_says_so(tmp_path):
    trained().save(tmp_path)
    model, query = Celler.load(tmp_path), cells(10, seed=1)
    model._become(model._state.with_fitted(replace(model._state.fitted, novelty=None)))
    model.annotate(query)
    assert "celler_novelty" not in query.obs
    for call in (model.get_novelty, lambda q: model.predict(q, false_alarm_rate=0.1)):
        with pytest.raises(RuntimeError, match="no novelty score.*Train it again"):
            call(query)


def test_few_cells_have_no_score():
    codes = np.repeat([0, 1], 9)
    assert fit_novelty(lambda b: None, codes, None, is_log=False, seed=0) is None
