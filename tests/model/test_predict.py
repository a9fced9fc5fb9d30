"""predict and get_latent_representation: arguments, bad input, and that the query stays as it is."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from bad_input_cases import assert_says, no_change, repeat_a_gene, scale, with_value
from toy import (
    SMALL,
    assert_equal_frames,
    assert_unchanged,
    cells,
    fit,
    snapshot,
    soft,
    trained,
    truth,
)

import celler as cl
from celler.model import Celler


@pytest.mark.parametrize("method", ["predict", "annotate", "get_latent_representation"], ids=lambda name: name)
def test_predict_before_training(method):
    adata = cells(200)
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(RuntimeError, match=r"not trained; call train\(\) first"):
        getattr(Celler(adata, **SMALL), method)()


def rename_genes(adata):
    adata.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]


#: name: (what happens to the query, arguments of predict, error, what the message says)
PREDICTION = {
    "none of the genes": (
        rename_genes, {}, ValueError, ["only 0 of the model's 80 genes", "'gene 0'", "'ENSG0'", "var_names"],
    ),
    "duplicate genes": (repeat_a_gene, {}, ValueError, ["'gene 0'", "query", "more than once"]),
    "negative": (with_value(-3), {}, ValueError, ["holds the value -3", "scaled"]),
    "NaN": (with_value(np.nan), {}, ValueError, ["the value nan"]),
    "infinite": (with_value(np.inf), {}, ValueError, ["the value inf"]),
    "scaled": (scale, {}, ValueError, ["adata.X", "scaled", "pass layer='counts'"]),
    "level": (no_change, {"level": "family"}, ValueError, ["level='family'", "['class', 'parent']"]),
    "candidates": (
        no_change, {"candidates": ["type1"]}, ValueError, ["'type1'", "Closest: 'type 1'"],
    ),
    "no candidates": (no_change, {"candidates": []}, ValueError, ["candidates is empty", "None"]),
    "candidates as text": (no_change, {"candidates": "type 1"}, TypeError, ["'type 1'", "list"]),
    "threshold": (no_change, {"threshold": 50}, ValueError, ["threshold=50", "between 0 and 1"]),
    "batch_size": (no_change, {"batch_size": 0}, ValueError, ["batch_size=0", "at least 1"]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("case", PREDICTION)
def test_predict_with_bad_input(case):
    change, arguments, kind, words = PREDICTION[case]
    query = cells(60, seed=1)
    change(query)
    before = snapshot(query)
    with pytest.raises(kind) as error:
        trained().predict(query, **arguments)
    assert_says(error, words)
    assert_unchanged(query, before)


def test_predict_checks_arguments_before_it_reads_cells(monkeypatch):
    monkeypatch.setattr("celler.model._forward.network_outputs", lambda *_, **__: pytest.fail("too late"))
    for arguments in ({"level": "x"}, {"threshold": 2}, {"candidates": ["x"]}):
        with pytest.raises(ValueError, match=re.escape(str(next(iter(arguments.values()))).strip("[]"))):
            trained().predict(cells(60, seed=1), **arguments)


def test_predict_with_a_bad_value_in_one_cell(monkeypatch):
    monkeypatch.setattr("celler._utils._matrix.N_PROBED", 2)
    query = cells(60, seed=1)
    query.X = query.X.toarray()
    query.X[17, 4] = -1
    with pytest.raises(ValueError, match=rf"the value -1 \(cell '{query.obs_names[17]}'\); .*scaled"):
        trained().predict(query)
    before = snapshot(query)
    with pytest.raises(ValueError, match="the value -1"):
        trained().annotate(query)
    assert_unchanged(query, before)


def test_predict_with_the_path_of_a_file(tmp_path):
    query = cells(40, seed=1)
    query.write_h5ad(tmp_path / "query.h5ad")
    np.testing.assert_array_equal(trained().predict(tmp_path / "query.h5ad"), trained().predict(query))
    with pytest.raises(FileNotFoundError, match="quer.h5ad does not exist. Closest: 'query.h5ad'"):
        trained().predict(str(tmp_path / "quer.h5ad"))
    with pytest.raises(TypeError, match="AnnData"):
        Celler.setup_anndata("reference.h5ad", "cell_type")


def test_predict_twice():
    query = cells(seed=1)
    assert_equal_frames(trained().predict(query, soft=True), trained().predict(query, soft=True))


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


def test_predict_without_adata():
    assert_equal_frames(soft(None), soft(trained().adata))


def test_get_latent_representation_separates_the_types():
    model, query = fit(cells(300), max_epochs=20), cells(300, seed=1)
    embedding = model.get_latent_representation(query)
    assert embedding.shape == (300, 16)
    assert embedding.dtype == np.float32
    centres = pd.DataFrame(embedding[:150]).groupby(truth(query)[:150]).mean()
    distance = np.linalg.norm(embedding[150:, None] - centres.to_numpy(), axis=2)
    assert (centres.index[distance.argmin(axis=1)] == truth(query)[150:]).mean() > 0.7
    rows = model.get_latent_representation(query, indices=[7, 3], batch_size=1)
    np.testing.assert_allclose(rows, embedding[[7, 3]], atol=1e-5)


def test_predict_without_a_label_column(query):
    bare = ad.AnnData(query.X, var=query.var, obs=pd.DataFrame(index=query.obs_names))
    assert_equal_frames(soft(bare), soft(query))


def test_predict_with_a_new_label_and_batch(query):
    model = fit(cells(), {"batch_key": "donor"})
    expected = model.predict(query, soft=True)
    query.obs["cell_type"], query.obs["donor"] = "a new type", "a new donor"
    assert_equal_frames(model.predict(query, soft=True), expected)


def test_predict_does_not_register_the_query(query):
    soft(query)
    assert not [key for key in [*query.uns, *query.obs] if key.startswith(("_scvi", "_celler"))]


def test_predict_leaves_the_query_untouched(query):
    query.obs["text"], query.obs["n"] = "x", np.arange(60, dtype=np.int16)
    query.obs["category"] = pd.Categorical(["b", "a"] * 30, categories=["b", "a", "unused"])
    query.layers["counts"] = query.X.toarray()
    query.obsm["X_pca"], query.uns["colors"] = np.ones((60, 2)), {"k": [1, 2]}
    before = snapshot(query)
    soft(query)
    trained().predict(query, threshold=0.5, candidates=["type 1"], indices=[3, 1])
    trained().get_latent_representation(query)
    assert_unchanged(query, before)


@pytest.fixture(scope="module")
def model() -> cl.model.Celler:
    return fit(cells(), {"batch_key": "donor"})


def soft_of(model, query):
    return model.predict(query, soft=True)


def test_predict_without_obs(model, query):
    expected = soft_of(model, query)
    bare = ad.AnnData(query.X, obs=pd.DataFrame(index=query.obs_names), var=query.var)
    assert_equal_frames(soft_of(model, bare), expected)


def test_predict_with_a_new_label(model, query):
    expected = soft_of(model, query)
    query.obs["cell_type"] = "a type the reference lacks"
    assert_equal_frames(soft_of(model, query), expected)


def test_predict_with_a_new_batch(model, query):
    expected = soft_of(model, query)
    query.obs["donor"] = pd.Categorical(["a new donor"] * 60)
    assert_equal_frames(soft_of(model, query), expected)


def test_predict_and_pp_leave_the_query_untouched(model, query):
    query.layers["counts"], query.raw = query.X.toarray(), query.copy()
    query.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(80)]
    query.obsm["X_pca"], query.uns["log1p"] = np.ones((60, 2)), {"base": None}
    before = snapshot(query)
    model.predict(query, threshold=0.5)
    soft_of(model, query)
    model.get_latent_representation(query)
    cl.pp.check_input(query)
    cl.pp.align_genes(query, model)
    assert_unchanged(query, before)


def test_predict_adds_no_keys(model, query):
    soft_of(model, query)
    kept = [*query.uns, *query.obs, *query.var, *query.layers, *query.obsm]
    assert not [key for key in kept if key is not None and key.startswith(("_scvi", "_celler"))]
