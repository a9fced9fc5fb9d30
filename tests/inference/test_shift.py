"""Shift factors: worked by hand, and laws."""

import numpy as np
from scipy import sparse

from celler.data._profile import Profile, profile
from celler.inference._shift import HETEROGENEITY, PSEUDO_COUNT, shift_factors, shift_size


def random_profiles(rng, n_classes=4, n_genes=300, n_cells=200, query_cells=None, factors=1.0):
    """Profiles of a reference and of a query of the same cells whose genes were multiplied by ``factors``."""
    means = rng.gamma(0.5, 20, size=(n_classes, n_genes))
    made = []
    for n, by in ((n_cells, 1.0), (query_cells or [n_cells] * n_classes, factors)):
        labels = np.repeat(np.arange(n_classes), n)
        X = sparse.csr_matrix(rng.poisson(means[labels] * by).astype(np.float32))
        made.append(
            profile(
                lambda b, X=X: X[b],
                lambda b, y=labels: np.eye(n_classes)[y[b]],
                len(labels),
                is_log=False,
            )
        )
    return made


def test_shift_factors_worked_by_hand():
    reference = Profile(np.array([[40.0, 10.0, 50.0]]), np.array([100.0]), np.full(3, 2.0))
    query = Profile(np.array([[10.0, 40.0, 50.0]]), np.array([50.0]), np.full(3, 9.9))
    a, b = reference.mean[0] + PSEUDO_COUNT, query.mean[0] + PSEUDO_COUNT
    variance = 2.0 * (1 / (100 * a) + 1 / (50 * b)) + HETEROGENEITY
    ratio, trust = np.log(a / b), 1 / (variance + 0.1)
    tau2 = (trust * (ratio**2 - variance)).sum() / trust.sum()
    expected = np.exp(0.5 * ratio * tau2 / (tau2 + variance))
    np.testing.assert_allclose(shift_factors(reference, query), expected)
    assert expected[0] > 1 > expected[1]


def test_shift_factors_without_a_shift(rng):
    reference, query = random_profiles(rng)
    assert (shift_factors(reference, query) == 1).all()
    assert shift_size(reference, query) == 0


def test_shift_size_is_that_of_the_genes(rng):
    for sd in (1.0, 1.5, 2.0):  # below, part of it counts as the classes' own differences
        applied = np.exp2(rng.normal(scale=sd, size=300))
        assert abs(shift_size(*random_profiles(rng, factors=applied)) / sd - 1) < 0.2


def test_shift_factors_of_another_composition(rng):
    reference, query = random_profiles(rng, query_cells=[10, 600, 5, 30])
    assert (shift_factors(reference, query) == 1).all()


def test_shift_factors_undo_a_common_shift(rng):
    applied = np.exp(rng.normal(size=300).clip(-1.2, 1.2))
    reference, query = random_profiles(rng, factors=applied)
    found = np.log(shift_factors(reference, query))
    assert np.corrcoef(found, -np.log(applied))[0, 1] > 0.9
    assert 0.3 < -np.polyfit(np.log(applied), found, 1)[0] <= 0.5


def test_shift_factors_of_a_gene_of_one_class(rng):
    """A type that the reference lacks, or a state of one type, is no shift of the experiment."""
    means = np.full((4, 50), 20.0)
    other = means.copy()
    other[0, 0] *= 20
    dispersion, n_cells = np.full(50, 2.0), np.full(4, 100.0)
    factors = shift_factors(Profile(means, n_cells, dispersion), Profile(other, n_cells, dispersion))
    assert np.abs(np.log2(factors)).max() < 0.2


def test_shift_factors_of_few_cells():
    means = np.array([[10.0, 20.0]])
    reference = Profile(means, np.array([100.0]), np.ones(2))
    query = Profile(means[:, ::-1], np.array([4.0]), np.ones(2))
    assert (shift_factors(reference, query) == 1).all()
