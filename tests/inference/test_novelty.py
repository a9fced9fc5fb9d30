"""Novelty against SciPy: the distance, the deviance, and known cells."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.stats import entropy
from sklearn.decomposition import PCA
from toy import cells, truth

from celler.data._profile import profile
from celler.inference._novelty import PRIOR_CELLS, SHRINKAGE, fit_novelty, fit_space, measure

EVERY = np.ones(80, bool)


def log_cp10k(X) -> np.ndarray:
    counts = X.toarray().astype(float)
    return np.log1p(counts * 1e4 / counts.sum(1, keepdims=True))


def test_measure_distance_matches_scipy():
    reference, query = cells(400, depth=1.0), cells(20, depth=1.0, seed=1)
    names, codes = np.unique(truth(reference), return_inverse=True)
    space, part = fit_space(reference.X, codes, is_log=False)
    nearest, _, (log_distance, _), points = measure(space, part, query.X, EVERY, is_log=False)

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
    inverse = np.linalg.inv(space.whitening.astype(float)).T
    np.testing.assert_allclose(points @ inverse, Aq @ basis, rtol=1e-3, atol=1e-3)


def test_measure_deviance_matches_scipy():
    reference, query = cells(300), cells(20, seed=1)
    codes = np.unique(truth(reference), return_inverse=True)[1]
    space, part = fit_space(reference.X, codes, is_log=False)
    _, _, (_, deviance), _ = measure(space, part, query.X, EVERY, is_log=False)
    shares = np.expm1(log_cp10k(reference.X)) / 1e4
    n_cells = np.bincount(codes)[:, None]
    of_class = np.stack([shares[codes == k].mean(0) for k in range(len(n_cells))])
    mixed = (of_class * n_cells + PRIOR_CELLS * shares.mean(0)) / (n_cells + PRIOR_CELLS) + 1e-6
    q = np.expm1(log_cp10k(query.X)) / 1e4
    expected = np.min([entropy(q, rates, axis=1) for rates in mixed], axis=0)
    np.testing.assert_allclose(deviance, expected, rtol=1e-5)


def test_score_of_known_cells(rng):
    reference = cells(600)
    codes = np.unique(truth(reference), return_inverse=True)[1]
    part = profile(lambda b: reference.X[b], lambda b: np.eye(4)[codes[b]], 600, is_log=False)
    novelty = fit_novelty(lambda b: reference.X[b], codes, part, is_log=False, seed=0)
    assert novelty.known.mean() == pytest.approx(0, abs=0.05)
    assert novelty.known.std() == pytest.approx(1, abs=1e-3)
    assert novelty.threshold(0.1) == pytest.approx(np.quantile(novelty.known, 0.9))


def test_fit_novelty_of_few_cells():
    codes = np.repeat([0, 1], 9)
    assert fit_novelty(lambda b: None, codes, None, is_log=False, seed=0) is None
