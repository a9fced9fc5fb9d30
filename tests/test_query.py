"""Prediction on any AnnData: the traps of other tools, every storage, and what a cell may lack."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy import (
    assert_close,
    assert_equal_frames,
    assert_unchanged,
    celler_warning,
    cells,
    fit,
    snapshot,
    soft,
    trained,
    truth,
)

from celler.datasets import toy_long_tail


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


# ---- what comes back ----


def test_labels_are_the_most_probable_columns(query):
    probabilities, labels = soft(query), trained().predict(query)
    assert labels.dtype.kind == "U"
    np.testing.assert_array_equal(labels, probabilities.idxmax(axis=1))
    assert list(probabilities.columns) == sorted(probabilities.columns) == list(trained().classes_)
    pd.testing.assert_index_equal(probabilities.index, query.obs_names)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    assert (labels == truth(query)).mean() > 0.7


def test_the_default_is_the_models_own_anndata():
    assert_equal_frames(soft(None), soft(trained().adata))


def test_a_parents_probability_is_the_sum_of_its_classes(query):
    parents, children = soft(query, level="parent"), soft(query)
    assert list(parents.columns) == ["lineage 0", "lineage 1"]
    np.testing.assert_allclose(parents["lineage 0"], children["type 0"] + children["type 1"])
    np.testing.assert_allclose(parents["lineage 1"], children["type 2"] + children["type 3"])
    labels = trained().predict(query, level="parent")
    np.testing.assert_array_equal(labels, parents.idxmax(axis=1))
    assert_equal_frames(soft(query, level="class"), children)


def test_candidates_share_the_probability_among_them(query):
    chosen = soft(query, candidates=["type 3", "type 1"])
    expected = soft(query)[["type 1", "type 3"]]
    assert (chosen[["type 0", "type 2"]] == 0).all(axis=None)
    np.testing.assert_allclose(
        chosen[["type 1", "type 3"]], expected.div(expected.sum(axis=1), axis=0), rtol=1e-9
    )
    assert set(trained().predict(query, candidates=["type 2"])) == {"type 2"}
    parents = soft(query, candidates=["type 3", "type 1"], level="parent")
    np.testing.assert_allclose(parents["lineage 1"], chosen["type 3"])


def test_below_the_threshold_a_cell_is_unknown(query):
    confidence = soft(query).max(axis=1)
    threshold = float(confidence.median())
    labels = trained().predict(query, threshold=threshold, unknown_label="?")
    np.testing.assert_array_equal(labels == "?", confidence < threshold)
    assert set(trained().predict(query, threshold=1.0)) == {"Unknown"}
    np.testing.assert_array_equal(trained().predict(query, threshold=0.0), trained().predict(query))


def test_latent_representation_tells_the_types_apart():
    model, query = fit(cells(300), max_epochs=20), cells(300, seed=1)
    embedding = model.get_latent_representation(query)
    assert embedding.shape == (300, 16)
    assert embedding.dtype == np.float32
    centres = pd.DataFrame(embedding[:150]).groupby(truth(query)[:150]).mean()
    distance = np.linalg.norm(embedding[150:, None] - centres.to_numpy(), axis=2)
    assert (centres.index[distance.argmin(axis=1)] == truth(query)[150:]).mean() > 0.7
    rows = model.get_latent_representation(query, indices=[7, 3], batch_size=1)
    np.testing.assert_allclose(rows, embedding[[7, 3]], atol=1e-5)


# ---- annotate ----


def test_annotate_writes_what_predict_returns(query):
    expected, parents = soft(query), soft(query, level="parent")
    before = list(query.obs.columns)
    trained().annotate(query, "c", threshold=0.5)
    ends = ["", "_confidence", "_margin", "_second", "_novelty", "_parent", "_parent_confidence"]
    assert list(query.obs.columns) == [*before, *(f"c{end}" for end in ends)]
    labels = trained().predict(query, threshold=0.5)
    np.testing.assert_array_equal(query.obs["c"].astype(str), labels)
    np.testing.assert_array_equal(query.obs["c_confidence"], expected.max(axis=1))
    ranked = np.sort(expected.to_numpy(), axis=1)
    np.testing.assert_allclose(query.obs["c_margin"], ranked[:, -1] - ranked[:, -2])
    expected_parents = np.where(parents.max(axis=1) < 0.5, "Unknown", parents.idxmax(axis=1))
    np.testing.assert_array_equal(query.obs["c_parent"].astype(str), expected_parents)
    assert query.uns["c"]["threshold"] == 0.5
    assert query.uns["c"]["classes"] == list(trained().classes_)


def test_annotate_twice_overwrites(query):
    trained().annotate(query, threshold=1.0)
    trained().annotate(query)
    np.testing.assert_array_equal(query.obs["celler"].astype(str), trained().predict(query))
    assert query.uns["celler"]["threshold"] == "none"


def test_annotations_survive_a_file(query, tmp_path):
    trained().annotate(query)
    query.write_h5ad(tmp_path / "query.h5ad")
    read = ad.read_h5ad(tmp_path / "query.h5ad")
    np.testing.assert_array_equal(read.obs["celler"].astype(str), query.obs["celler"].astype(str))
    assert list(read.uns["celler"]["classes"]) == list(trained().classes_)


def test_without_parents_there_is_no_parent_column(query):
    fit(cells(), max_epochs=1).annotate(query)
    assert "celler_parent" not in query.obs


# ---- traps ----


def test_genes_in_another_order_give_the_same_labels(query, rng):
    shuffled = query[:, rng.permutation(query.n_vars)].copy()
    assert_close(soft(shuffled), soft(query))


def test_query_without_label_column(query):
    bare = ad.AnnData(query.X, var=query.var, obs=pd.DataFrame(index=query.obs_names))
    assert_equal_frames(soft(bare), soft(query))


def test_new_label_and_new_batch_in_query_are_fine(query):
    model = fit(cells(), {"batch_key": "donor"})
    expected = model.predict(query, soft=True)
    query.obs["cell_type"], query.obs["donor"] = "a new type", "a new donor"
    assert_equal_frames(model.predict(query, soft=True), expected)


def test_foreign_queries_are_not_registered(query):
    soft(query)
    assert not [key for key in [*query.uns, *query.obs] if key.startswith(("_scvi", "_celler"))]


def test_query_object_is_untouched(query):
    query.obs["text"], query.obs["n"] = "x", np.arange(60, dtype=np.int16)
    query.obs["category"] = pd.Categorical(["b", "a"] * 30, categories=["b", "a", "unused"])
    query.layers["counts"] = query.X.toarray()
    query.obsm["X_pca"], query.uns["colors"] = np.ones((60, 2)), {"k": [1, 2]}
    before = snapshot(query)
    soft(query)
    trained().predict(query, threshold=0.5, candidates=["type 1"], indices=[3, 1])
    trained().get_latent_representation(query)
    assert_unchanged(query, before)


def test_missing_genes_are_masked_not_zero(query):
    """A gene that is not there says nothing; a gene that is there and zero says something."""
    kept = query.var_names[:40]  # the markers of all types
    present, absent = query.copy(), query[:, kept].copy()
    is_kept = present.var_names.isin(kept)
    present.X = sparse.csr_matrix(query.X.toarray() * is_kept)
    with pytest.warns(UserWarning, match="40 of the model's 80 genes"):
        masked = fresh().predict(absent, soft=True)
    zero = fresh().predict(present, soft=True)
    assert np.abs(masked - zero).max(axis=None) > 0.01
    # as zero, the genes that are left would be scaled up to the whole library
    complete = soft(query)
    assert np.abs(masked - complete).mean(axis=None) < np.abs(zero - complete).mean(axis=None)


def fresh():
    """A model that has reported nothing yet."""
    return fit(cells())


def test_missing_genes_are_reported_once_with_the_overlap(query):
    model, fewer = fresh(), query[:, :70]
    with pytest.warns(UserWarning, match="70 of the model's 80 genes") as caught:
        model.predict(fewer)
    assert "10 are missing" in str(celler_warning(caught).message)
    assert "0 extra" in str(celler_warning(caught).message)
    assert celler_warning(caught).filename == __file__
    model.predict(fewer)  # a second warning would be an error
    with pytest.warns(UserWarning, match="75 of the model's 80 genes"):
        model.predict(query[:, :75])


def test_extra_genes_are_ignored_without_a_word(query, rng):
    extra = ad.AnnData(
        sparse.csr_matrix(rng.poisson(5.0, (60, 30)).astype(np.float32)),
        obs=query.obs,
        var=pd.DataFrame(index=[f"other {i}" for i in range(30)]),
    )
    both = ad.concat([extra, query], axis=1, merge="same")
    assert_close(soft(both), soft(query))


def test_too_few_genes_are_an_error_that_shows_both_sides(query):
    names = [f"ENSG{i:05d}" for i in range(80)]
    names[3:18] = query.var_names[3:18]
    query.var_names = names
    with pytest.raises(ValueError, match=r"only 15 of the model's 80 genes") as error:
        soft(query)
    assert "'gene 0'" in str(error.value)
    assert "'ENSG00000'" in str(error.value)
    assert "gene_key" in str(error.value)


def test_gene_names_may_stand_in_a_column(query, tmp_path):
    reference = cells()
    for adata in (reference, query):
        adata.var["symbol"] = adata.var_names
        adata.var_names = [f"ENSG{i:05d}" for i in range(80)]
    model = fit(reference, {"gene_key": "symbol"})
    expected = fit(cells()).predict(cells(60, seed=1), soft=True)
    query = query[:, ::-1].copy()
    query.var["symbol"] = query.var["symbol"].astype("category")  # as files give it back
    assert_close(model.predict(query, soft=True), expected)
    query.var_names = query.var["symbol"].astype(str)
    del query.var["symbol"]
    assert_close(model.predict(query, soft=True), expected)


# ---- what a query may lack ----


def test_one_cell(query):
    assert_close(soft(query[8]), soft(query).iloc[[8]])


def test_no_cells(query):
    nothing = query[:0].copy()
    assert trained().predict(nothing).shape == (0,)
    assert trained().predict(nothing).dtype.kind == "U"
    assert soft(nothing).shape == (0, 4)
    assert soft(nothing, level="parent").shape == (0, 2)
    assert trained().get_latent_representation(nothing).shape == (0, 16)
    trained().annotate(nothing)
    assert "celler_margin" in nothing.obs


def test_repeated_cell_names(query):
    expected = soft(query).to_numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Observation names are not unique")
        query.obs_names = ["same"] * 60
        probabilities = soft(query)
        trained().annotate(query)
    np.testing.assert_array_equal(probabilities, expected)
    assert list(probabilities.index) == ["same"] * 60


def test_a_cell_without_counts_is_unknown(query):
    expected = soft(query)
    X = query.X.toarray()
    X[[4, 50]] = 0
    query.X = sparse.csr_matrix(X)
    with pytest.warns(UserWarning, match="2 cells have no counts") as caught:
        labels = trained().predict(query, unknown_label="nothing")
    assert query.obs_names[4] in str(celler_warning(caught).message)
    assert celler_warning(caught).filename == __file__
    np.testing.assert_array_equal(np.flatnonzero(labels == "nothing"), [4, 50])
    with pytest.warns(UserWarning, match="no counts"):
        probabilities = soft(query)
    np.testing.assert_array_equal(probabilities.iloc[[4, 50]], 0.25)
    others = np.setdiff1d(np.arange(60), [4, 50])
    assert_close(probabilities.iloc[others], expected.iloc[others])
    with pytest.warns(UserWarning, match="no counts"):
        halves = soft(query, candidates=["type 0", "type 3"])
    np.testing.assert_array_equal(halves.iloc[4], [0.5, 0, 0, 0.5])


def test_counts_in_other_genes_only_are_no_counts(query):
    other = toy_long_tail(60, 100, 4)
    X = np.zeros((60, 100), np.float32)
    X[:, 80:] = 1
    other.X = sparse.csr_matrix(X)
    with pytest.warns(UserWarning, match="60 cells have no counts in the model's genes"):
        assert set(trained().predict(other)) == {"Unknown"}
