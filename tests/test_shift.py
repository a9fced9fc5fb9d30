"""Shift: factors worked by hand, their laws, and queries whose genes were shifted."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy import fit, truth

from celler.data._profile import Profile, profile
from celler.datasets import toy_long_tail
from celler.inference._shift import HETEROGENEITY, PSEUDO_COUNT, shift_factors


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


def test_factors_of_one_class_worked_by_hand():
    reference = Profile(np.array([[40.0, 10.0, 50.0]]), np.array([100.0]), np.full(3, 2.0))
    query = Profile(np.array([[10.0, 40.0, 50.0]]), np.array([50.0]), np.full(3, 9.9))
    a, b = reference.mean[0] + PSEUDO_COUNT, query.mean[0] + PSEUDO_COUNT
    variance = 2.0 * (1 / (100 * a) + 1 / (50 * b)) + HETEROGENEITY
    ratio, trust = np.log(a / b), 1 / (variance + 0.1)
    tau2 = (trust * (ratio**2 - variance)).sum() / trust.sum()
    expected = np.exp(0.5 * ratio * tau2 / (tau2 + variance))
    np.testing.assert_allclose(shift_factors(reference, query), expected)
    assert expected[0] > 1 > expected[1]


def test_no_shift_no_factors(rng):
    reference, query = random_profiles(rng)
    assert (shift_factors(reference, query) == 1).all()


def test_another_composition_is_no_shift(rng):
    reference, query = random_profiles(rng, query_cells=[10, 600, 5, 30])
    assert (shift_factors(reference, query) == 1).all()


def test_a_shift_of_all_classes_is_undone(rng):
    applied = np.exp(rng.normal(size=300).clip(-1.2, 1.2))
    reference, query = random_profiles(rng, factors=applied)
    found = np.log(shift_factors(reference, query))
    assert np.corrcoef(found, -np.log(applied))[0, 1] > 0.9
    assert 0.3 < -np.polyfit(np.log(applied), found, 1)[0] <= 0.5


def test_a_gene_of_one_class_alone_is_hardly_touched(rng):
    """A type that the reference lacks, or a state of one type, is no shift of the experiment."""
    means = np.full((4, 50), 20.0)
    other = means.copy()
    other[0, 0] *= 20
    dispersion, n_cells = np.full(50, 2.0), np.full(4, 100.0)
    factors = shift_factors(
        Profile(means, n_cells, dispersion), Profile(other, n_cells, dispersion)
    )
    assert np.abs(np.log2(factors)).max() < 0.2


def test_few_cells_say_nothing():
    means = np.array([[10.0, 20.0]])
    reference = Profile(means, np.array([100.0]), np.ones(2))
    query = Profile(means[:, ::-1], np.array([4.0]), np.ones(2))
    assert (shift_factors(reference, query) == 1).all()


# ---- in the model ----


def wide(seed: int):
    """300 cells of four types with 400 genes, which are the same for every seed."""
    full = toy_long_tail(n_obs=1500, n_vars=400, n_classes=4, imbalance=10.0)
    return full[np.random.default_rng(seed).choice(full.n_obs, 300, replace=False)].copy()


@pytest.fixture(scope="module")
def model():
    return fit(wide(0), max_epochs=20)


def shifted(adata, rng):
    """The same cells after an experiment that catches each gene with an efficiency of its own."""
    factors = np.exp(rng.normal(scale=2.5, size=adata.n_vars))
    counts = rng.poisson(adata.to_df().to_numpy() * factors)
    counts[counts.sum(axis=1) == 0, 0] = 1
    other = adata.copy()
    other.X = sparse.csr_matrix(counts.astype(np.float32))
    return other


def test_a_shifted_query_is_labelled_better(model, rng):
    queries = [shifted(wide(1), rng) for _ in range(5)]
    plain, corrected = (
        np.mean([(model.predict(q, correct_shift=on) == truth(q)).mean() for q in queries])
        for on in (False, True)
    )
    assert corrected > plain


def test_what_was_done_is_recorded(model, rng):
    query = shifted(wide(1), rng)
    model.annotate(query)
    assert query.uns["celler"]["shift"] > 0.3
    np.testing.assert_array_equal(query.obs["celler"].astype(str), model.predict(query))
    model.annotate(query, correct_shift=False)
    assert query.uns["celler"]["shift"] == 0


def test_without_a_shift_a_label_depends_on_the_cell_alone(model):
    query = wide(1)
    whole = model.predict(query, soft=True)
    pd.testing.assert_frame_equal(model.predict(query[:7].copy(), soft=True), whole[:7])
    pd.testing.assert_frame_equal(model.predict(query, soft=True, correct_shift=False), whole)


def test_indices_and_order_do_not_change_the_correction(model, rng):
    query = shifted(wide(1), rng)
    whole = model.predict(query, soft=True)
    pd.testing.assert_frame_equal(model.predict(query, [5, 2], soft=True), whole.iloc[[5, 2]])
    order = rng.permutation(query.n_obs)
    turned = model.predict(query[order].copy(), soft=True)
    pd.testing.assert_frame_equal(turned.loc[whole.index], whole, rtol=1e-4, atol=1e-5)


def test_missing_and_foreign_genes_are_left_out_of_it(model, rng):
    query = shifted(wide(1), rng)
    part = query[:, :-10].copy()  # the markers come first
    part.var_names = [*query.var_names[:-15], *(f"other {i}" for i in range(5))]
    with pytest.warns(UserWarning, match="genes"):
        labels = model.predict(part)
    assert (labels == model.predict(query)).mean() > 0.95


def test_a_saved_model_corrects_alike(model, rng, tmp_path):
    query = shifted(wide(1), rng)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.predict(query, soft=True), model.predict(query, soft=True))
    embeddings = [loaded.get_latent_representation(query, correct_shift=on) for on in (True, False)]
    assert not np.allclose(*embeddings)
