"""Cells drawn from class profiles."""

import numpy as np
import pytest

from celler.data._augmentation import draw_cells, n_rehearsed
from celler.data._profile import Profile, profile


def test_draw_cells_returns_their_profile(rng):
    mean = rng.gamma(1.0, 1.0, (2, 60))
    mean *= 1e4 / mean.sum(axis=1, keepdims=True)
    given = Profile(mean, np.array([10.0, 20.0]), np.full(60, 5.0))
    X, codes = draw_cells(given, np.array([4000, 3000]), rng)
    np.testing.assert_array_equal(np.bincount(codes), [4000, 3000])
    back = profile(lambda b: X[b], lambda b: np.eye(2)[codes[b]], len(codes), is_log=False)
    np.testing.assert_allclose(back.mean, mean, rtol=0.1, atol=1)
    # a lognormal depth of spread 0.4 has a mean of 1 / depth that is exp(0.08) larger
    assert np.median(back.dispersion) == pytest.approx(5 * np.exp(0.08), rel=0.1)
    assert ((X.data % 1 == 0) & (X.data > 0)).all()
    assert (X.sum(axis=1) > 0).all()


def test_draw_cells_without_a_measured_gene(rng):
    given = Profile(np.array([[1.0, np.nan, 2.0]]), np.array([5.0]), np.ones(3))
    X, _ = draw_cells(given, np.array([50]), rng)
    assert X[:, [1]].nnz == 0


def test_n_rehearsed_of_a_large_reference():
    np.testing.assert_array_equal(n_rehearsed(np.array([300, 10])), [300, 10])
    np.testing.assert_array_equal(n_rehearsed(np.array([99_000, 1_000, 7])), [4950, 50, 7])
