"""Celler.adapt: parts of a query labelled as the whole, bit by bit; what is said about a query that is far."""

from importlib.util import find_spec

import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from toy import cells, fit, trained, truth

from celler.model import Celler, _forward

RATE = {"false_alarm_rate": 0.2}


@pytest.fixture(scope="module")
def model() -> Celler:
    return fit(cells(900), max_epochs=3)


@pytest.fixture
def query() -> ad.AnnData:
    """Cells of one laboratory whose genes are detected otherwise."""
    adata, rng = cells(400, seed=1), np.random.default_rng(5)
    counts = rng.poisson(adata.X.toarray() * rng.lognormal(0, 0.8, adata.n_vars))
    counts[counts.sum(axis=1) == 0, 0] = 1
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    return adata


pytestmark = pytest.mark.filterwarnings("ignore:the query is far", "ignore:.*of the cells are unknown")


@pytest.mark.parametrize("n_sampled", [5000, 150])
def test_predict_parts_as_the_whole(model, query, monkeypatch, n_sampled):
    monkeypatch.setattr(_forward, "SHIFT_CELLS", n_sampled)
    monkeypatch.setattr("celler.model._predict.SHIFT_CELLS", n_sampled)
    monkeypatch.setattr(_forward, "N_CELLS", 2 * n_sampled // 3)  # some of the sample are not among the neighbours
    parts = [query[rows].copy() for rows in (slice(0, 3), slice(3, 4), slice(4, 400))]
    soft, labels, novelty = model.predict(query, soft=True), model.predict(query, **RATE), model.get_novelty(query)
    own = model.get_novelty(query, correct_shift=False)
    assert np.abs(np.corrcoef(novelty, own)[0, 1] - 0.85) < 0.14  # each cell's is mixed with that of its neighbours
    alone = [model.predict(part, soft=True) for part in parts]
    assert not np.array_equal(np.concatenate(alone), soft)  # parts by themselves are judged otherwise
    for whole in (model.adapt(query), model.adapt(parts), model.adapt([parts[2], parts[0], parts[1]])):
        found = [model.predict(part, soft=True, adaptation=whole) for part in parts]
        np.testing.assert_array_equal(np.concatenate(found), soft)
        found = [model.predict(part, adaptation=whole, **RATE) for part in parts]
        np.testing.assert_array_equal(np.concatenate(found), labels)
        np.testing.assert_array_equal(
            np.concatenate([model.get_novelty(part, adaptation=whole) for part in parts]), novelty
        )
    whole = model.adapt(query)
    model.annotate(query, **RATE)
    model.annotate(parts[2], adaptation=whole, **RATE)
    np.testing.assert_array_equal(parts[2].obs["celler"].astype(str), query.obs["celler"].astype(str)[4:])
    assert query.uns["celler"]["shift"] == parts[2].uns["celler"]["shift"] == whole.shift > 0.3


def test_adapt_backed(model, query, tmp_path):
    query.write_h5ad(tmp_path / "query.h5ad")
    backed = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
    whole = model.adapt(backed)
    np.testing.assert_array_equal(whole.factors, model.adapt(query).factors)
    np.testing.assert_array_equal(model.predict(backed), model.predict(query))
    backed.file.close()


@pytest.mark.skipif(find_spec("annbatch") is None, reason="stores need annbatch")
@pytest.mark.parametrize("n_sampled", [5000, 150])
def test_predict_stores_in_any_order(model, query, tmp_path, monkeypatch, n_sampled):
    """A store, the same cells in another order, and in memory: the same labels."""
    from store_cases import write_store

    from celler.atlas import DataModule

    monkeypatch.setattr(_forward, "SHIFT_CELLS", n_sampled)
    monkeypatch.setattr("celler.model._predict.SHIFT_CELLS", n_sampled)
    order = np.random.default_rng(2).permutation(query.n_obs)
    soft = model.predict(query, soft=True)
    for rows in (np.arange(query.n_obs), order):
        dm = DataModule(write_store(tmp_path / str(rows[0]), query[rows].copy()))
        found = model.predict(dataloader=dm.inference_dataloader(), soft=True)
        np.testing.assert_array_equal(found, soft.iloc[rows])
        whole = model.adapt(dm.inference_dataloader())
        np.testing.assert_array_equal(model.predict(query, soft=True, adaptation=whole), soft)
        labels = model.predict(dataloader=dm.inference_dataloader(), **RATE)
        np.testing.assert_array_equal(labels, model.predict(query, **RATE)[rows])


def test_adapt_with_bad_input(model, query):
    with pytest.raises(TypeError, match="adaptation=0.5 was given.*what model.adapt"):
        model.predict(query, adaptation=0.5)
    with pytest.raises(ValueError, match="correct_shift=False undoes no shift"):
        model.predict(query, adaptation=model.adapt(query), correct_shift=False)
    with pytest.raises((TypeError, ValueError), match="an AnnData, its path, a list of AnnData or the dataloader"):
        model.adapt([])
    with pytest.raises(ValueError, match="differ in their genes"):
        model.adapt([query, query[:, 1:].copy()])
    other = fit(cells(300)[:, :70].copy(), max_epochs=1)
    with pytest.raises(ValueError, match="a model with 80 genes; this one has 70"):
        other.predict(query[:, :70].copy(), adaptation=model.adapt(query))


@pytest.mark.filterwarnings("default")
def test_predict_says_that_the_query_is_far(model, query):
    near = cells(400, seed=1)
    assert model.adapt(near).shift < 0.2
    counts = query.X.toarray() * np.exp2(np.random.default_rng(3).normal(0, 2, 80))
    query.X = sparse.csr_matrix(np.round(counts + 0.3).astype(np.float32))
    with pytest.warns(UserWarning, match="is far from the reference: .*-fold .* are expected to be right"):
        fit(cells(900), max_epochs=1).predict(query)


@pytest.mark.filterwarnings("default")
def test_predict_says_that_the_rate_is_exceeded():
    reference, query = cells(900), cells(400, seed=1)
    known = np.unique(truth(reference))[1:]
    model = fit(reference[np.isin(truth(reference), known)].copy(), max_epochs=1)
    unknown = query[~np.isin(truth(query), known)].copy()
    with pytest.warns(UserWarning, match=r"\d+% of the cells are unknown, far above false_alarm_rate=0.05"):
        model.predict(unknown, false_alarm_rate=0.05)


def test_annotate_records_the_expected_accuracy(query):
    trained().annotate(query)
    record = query.uns["celler"]
    assert record["expected_accuracy"] == pytest.approx(query.obs["celler_confidence"].mean())
    assert record["novelty_location"] == trained().adapt(query).novelty.location
    trained().annotate(query, correct_shift=False)
    assert query.uns["celler"]["expected_accuracy"] == "none"
    assert query.uns["celler"]["novelty_location"] == 0
