"""Profiles of classes, against pandas."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from celler.data._profile import Profile, class_sums, profile


@pytest.mark.parametrize("is_log", [False, True])
def test_profile_equals_pandas(rng, is_log):
    counts = rng.poisson(2.0, size=(60, 7)).astype(np.float32) + np.eye(60, 7, dtype=np.float32)
    labels = rng.integers(3, size=60)
    X = sparse.csr_matrix(np.log1p(counts) if is_log else counts)
    actual = profile(
        lambda block: X[block],
        lambda block: np.eye(3)[labels[block]],
        60,
        is_log=is_log,
        block_size=13,
    )
    cp10k = pd.DataFrame(counts / counts.sum(1, keepdims=True) * 1e4)
    by_class = cp10k.groupby(labels)
    np.testing.assert_allclose(actual.mean, by_class.mean(), rtol=1e-4)
    np.testing.assert_array_equal(actual.n_cells, by_class.size())
    dispersion = (by_class.var(ddof=0).mul(by_class.size(), axis=0)).sum() / cp10k.sum()
    np.testing.assert_allclose(actual.dispersion, dispersion, rtol=1e-3)


def test_restricted_keeps_the_scale_of_classes():
    both = Profile(np.array([[2e3, 3e3, 5e3], [0.0, 0.0, 1e4]]), np.ones(2), np.arange(3.0))
    part = both.restricted(np.array([True, True, False]))
    np.testing.assert_allclose(part.mean, [[4e3, 6e3], [0, 0]])
    np.testing.assert_array_equal(part.dispersion, [0, 1])


@pytest.mark.parametrize("n_classes", [3, 200])
def test_class_sums_equal_a_dense_product(rng, n_classes):
    X = sparse.random(60, 12, density=0.3, format="csr", rng=rng)
    weights = np.eye(n_classes)[rng.integers(n_classes, size=60)] * rng.uniform(size=(60, 1))
    np.testing.assert_allclose(class_sums(X, weights), weights.T @ X.toarray(), atol=1e-12)
