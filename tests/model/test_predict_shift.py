"""Celler.predict on a query with shifted genes."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy import fit, truth

from celler.datasets import toy_long_tail

pytestmark = pytest.mark.filterwarnings("ignore:the query is far")


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


def test_predict_a_shifted_query(model, rng):
    queries = [shifted(wide(1), rng) for _ in range(5)]
    plain, corrected = (
        np.mean([(model.predict(q, correct_shift=on) == truth(q)).mean() for q in queries]) for on in (False, True)
    )
    assert corrected > plain


def test_annotate_records_the_shift(model, rng):
    query = shifted(wide(1), rng)
    model.annotate(query)
    assert query.uns["celler"]["shift"] > 0.3
    np.testing.assert_array_equal(query.obs["celler"].astype(str), model.predict(query))
    model.annotate(query, correct_shift=False)
    assert query.uns["celler"]["shift"] == 0


def test_predict_without_a_shift(model):
    query = wide(1)
    whole = model.predict(query, soft=True)
    pd.testing.assert_frame_equal(model.predict(query[:7].copy(), soft=True), whole[:7])
    pd.testing.assert_frame_equal(model.predict(query, soft=True, correct_shift=False), whole)


def test_predict_a_shifted_query_in_another_order(model, rng):
    query = shifted(wide(1), rng)
    whole = model.predict(query, soft=True)
    pd.testing.assert_frame_equal(model.predict(query, [5, 2], soft=True), whole.iloc[[5, 2]])
    order = rng.permutation(query.n_obs)
    turned = model.predict(query[order].copy(), soft=True)
    pd.testing.assert_frame_equal(turned.loc[whole.index], whole, check_exact=True)


def test_predict_a_shifted_query_with_other_genes(model, rng):
    query = shifted(wide(1), rng)
    part = query[:, :-10].copy()  # the markers come first
    part.var_names = [*query.var_names[:-15], *(f"other {i}" for i in range(5))]
    with pytest.warns(UserWarning, match="genes"):
        labels = model.predict(part)
    assert (labels == model.predict(query)).mean() > 0.95


def test_predict_a_shifted_query_after_loading(model, rng, tmp_path):
    query = shifted(wide(1), rng)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.predict(query, soft=True), model.predict(query, soft=True))
    embeddings = [loaded.get_latent_representation(query, correct_shift=on) for on in (True, False)]
    assert not np.allclose(*embeddings)
