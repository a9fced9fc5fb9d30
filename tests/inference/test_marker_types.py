"""Marker types: markers by hand, likelihoods against scipy's Poisson, the mixture against scipy's optimiser."""

import numpy as np
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import poisson

from celler.data._profile import Profile
from celler.inference._marker_types import AMBIENT, PRIOR_CELLS, Markers, find_markers, mixture, types_of

MEAN = np.array([[9000.0, 900, 50, 50, 0], [9000, 50, 900, 40, 10], [9000, 50, 50, 50, 850]])
PROFILE = Profile(MEAN, np.array([1000.0, 1000, 1000]), np.array([1.0, 1, 2, 1, 4]))


def test_find_markers_by_hand():
    """The first gene is in all types, the fourth leads by less than half."""
    markers = find_markers(PROFILE, np.ones(5, bool))
    np.testing.assert_array_equal(markers.genes, [1, 2, 4])
    np.testing.assert_array_equal(markers.of_type, [0, 1, 2])
    np.testing.assert_allclose(markers.weight, [1, 0.5, 0.25])
    np.testing.assert_allclose(markers.own, [0.09, 0.09, 0.085])
    of_all = MEAN[:, 1].mean() / 1e4
    shrunk = (0.09 * 1000 + PRIOR_CELLS * of_all) / (1000 + PRIOR_CELLS)
    np.testing.assert_allclose(markers.rates[0, 0], (1 - AMBIENT) * shrunk + AMBIENT * of_all + 1e-7)


def test_find_markers_leaves_out_genes_that_a_class_or_the_query_lacks():
    mean = MEAN.copy()
    mean[0, 4] = np.nan
    markers = find_markers(Profile(mean, PROFILE.n_cells, PROFILE.dispersion), np.array([1, 1, 0, 1, 1], bool))
    np.testing.assert_array_equal(markers.genes, [1])


def test_likelihoods_equal_scipys_poisson(rng):
    found = find_markers(PROFILE, np.ones(5, bool))
    markers = Markers(found.genes, found.of_type, found.half, np.ones(3), found.rates, found.own)
    depth, counts = np.array([500.0, 2000.0]), rng.poisson(20, (2, 3))
    actual = markers.likelihoods(sparse.csr_matrix(counts.astype(float)), depth).sum(axis=0)
    mean = depth[:, None, None] * found.rates
    expected = poisson.logpmf(counts[:, None, :], mean).sum(axis=2)
    np.testing.assert_allclose(actual - actual[:, :1], expected - expected[:, :1], rtol=1e-9)


def test_mixture_is_the_likeliest(rng):
    likelihoods = rng.normal(0, 2, (300, 3)) + 3 * np.eye(3)[rng.choice(3, 300, p=[0.7, 0.25, 0.05])]

    def loss(free: np.ndarray) -> float:
        return -np.log((softmax(likelihoods, axis=1) * softmax(free)).sum(axis=1)).sum()

    expected = softmax(minimize(loss, np.zeros(3)).x)
    np.testing.assert_allclose(mixture(likelihoods), expected, atol=0.01)


def test_types_of_needs_both_halves_and_more_evidence_for_a_rare_type():
    halves = np.zeros((2, 1003, 2))
    halves[:, :1000, 0] = 10  # a frequent type, clear
    halves[:, 1000, 1] = 10  # a rare one, clear
    halves[0, 1001, 1] = 30  # by one half alone
    halves[:, 1002, 1] = 1.2  # 11 to 1, which is not enough for one cell in 1000
    np.testing.assert_array_equal(types_of(halves)[[0, 1000, 1001, 1002]], [0, 1, -1, -1])
    assert log_softmax(halves.sum(axis=0)[1002])[1] > np.log(0.9)


def test_types_of_cells_without_evidence():
    np.testing.assert_array_equal(types_of(np.zeros((2, 5, 3))), -1)
