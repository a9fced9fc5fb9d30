"""Forward passes over cells of every storage, form of values and content."""

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
)

import celler as cl
from celler.datasets import pbmc68k, toy_long_tail


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


def test_predict_of_one_cell(query):
    assert_close(soft(query[8]), soft(query).iloc[[8]])


def test_predict_of_no_cells(query):
    nothing = query[:0].copy()
    assert trained().predict(nothing).shape == (0,)
    assert trained().predict(nothing).dtype.kind == "U"
    assert soft(nothing).shape == (0, 4)
    assert soft(nothing, level="parent").shape == (0, 2)
    assert trained().get_latent_representation(nothing).shape == (0, 16)
    trained().annotate(nothing)
    assert "celler_margin" in nothing.obs


def test_predict_with_repeated_cell_names(query):
    expected = soft(query).to_numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Observation names are not unique")
        query.obs_names = ["same"] * 60
        probabilities = soft(query)
        trained().annotate(query)
    np.testing.assert_array_equal(probabilities, expected)
    assert list(probabilities.index) == ["same"] * 60


def test_predict_of_a_cell_without_counts(query):
    expected = soft(query)
    X = query.X.toarray()
    X[[4, 50]] = 0
    query.X = sparse.csr_matrix(X)
    with pytest.warns(UserWarning, match="2 cells have no counts") as caught:
        labels = trained().predict(query, unknown_label="nothing")
    assert query.obs_names[4] in str(celler_warning(caught).message)
    assert celler_warning(caught).filename == __file__
    np.testing.assert_array_equal(np.flatnonzero(labels == "nothing"), [4, 50])
    probabilities = soft(query)  # of the same cells, which is no news
    np.testing.assert_array_equal(probabilities.iloc[[4, 50]], 0.25)
    others = np.setdiff1d(np.arange(60), [4, 50])
    assert_close(probabilities.iloc[others], expected.iloc[others])
    halves = soft(query, candidates=["type 0", "type 3"])
    np.testing.assert_array_equal(halves.iloc[4], [0.5, 0, 0, 0.5])


def test_predict_of_cells_with_counts_in_other_genes(query):
    other = toy_long_tail(60, 100, 4)
    X = np.zeros((60, 100), np.float32)
    X[:, 80:] = np.random.default_rng(0).poisson(3.0, (60, 20)) + 1
    other.X = sparse.csr_matrix(X)
    with pytest.warns(UserWarning, match="60 cells have no counts in the model's genes"):
        assert set(trained().predict(other)) == {"Unknown"}


STORAGES = {
    "csc": sparse.csc_matrix,
    "csr array": sparse.csr_array,
    "dense": lambda X: X.toarray(),
    "fortran": lambda X: np.asfortranarray(X.toarray()),
    "float64": lambda X: X.astype(np.float64),
    "int32": lambda X: X.astype(np.int32),
    "dense uint16": lambda X: X.toarray().astype(np.uint16),
    "explicit zeros": lambda X: sparse.csr_matrix(
        (np.r_[X.data, 0.0], np.r_[X.indices, 79], np.r_[X.indptr[:-1], X.nnz + 1]), X.shape
    ),
    "unsorted": lambda X: sparse.csr_matrix((X.data[::-1], X.indices[::-1], X.nnz - X.indptr[::-1]), X.shape)[::-1],
}


@pytest.mark.parametrize("name", STORAGES)
def test_predict_with_any_matrix_format(query, name):
    expected = soft(query)
    query.X = STORAGES[name](query.X)
    assert_close(soft(query), expected)


VIEWS = {
    "rows": lambda adata: adata[10:30],
    "list": lambda adata: adata[[5, 2, 40]],
    "reversed": lambda adata: adata[::-1],
    "columns": lambda adata: adata[:, ::-1],
    "view of a view": lambda adata: adata[::2][3:9, ::-1],
}


@pytest.mark.parametrize("name", VIEWS)
def test_predict_of_any_view(query, name):
    view = VIEWS[name](query)
    before = snapshot(query)
    actual = soft(view)
    assert view.is_view
    assert_unchanged(query, before)
    assert_close(actual, soft(query).loc[view.obs_names])


#: What anndata itself can read of a file: no step of -1, no view of a view.
FILE_VIEWS = {
    "all": lambda adata: adata,
    "rows": lambda adata: adata[10:30],
    "list": lambda adata: adata[[5, 2, 40]],
    "mask": lambda adata: adata[np.arange(60) % 3 == 0],
    "columns": lambda adata: adata[:, np.arange(80)[::-1]],
    "rows and columns": lambda adata: adata[np.array([7, 3, 9]), np.arange(80)[::-1]],
}


@pytest.mark.parametrize("view", FILE_VIEWS)
@pytest.mark.parametrize("name", ["csr", "csc", "dense"])
def test_predict_in_backed_mode(query, tmp_path, name, view):
    expected, path = soft(query), tmp_path / "query.h5ad"
    query.X = {"csr": query.X, "csc": query.X.tocsc(), "dense": query.X.toarray()}[name]
    query.write_h5ad(path)
    content = path.read_bytes()
    backed = ad.read_h5ad(path, backed="r")
    part = FILE_VIEWS[view](backed)
    assert_close(soft(part), expected.loc[part.obs_names])
    if view == "all":
        assert_close(soft(part, indices=[9, 2, 2, 30]), expected.iloc[[9, 2, 2, 30]])
    backed.file.close()
    assert path.read_bytes() == content


def test_predict_of_counts_and_their_logarithm(query):
    expected = soft(query)
    counts = query.X.toarray()
    for scale in (1e4, 1e6):
        query.X = sparse.csr_matrix(np.log1p(counts / counts.sum(axis=1, keepdims=True) * scale))
        pd.testing.assert_frame_equal(soft(query), expected, atol=1e-3)
        query.X = sparse.csr_matrix(np.log2(1 + counts / counts.sum(axis=1, keepdims=True) * scale))
        pd.testing.assert_frame_equal(soft(query), expected, atol=1e-3)
    query.X = sparse.csr_matrix(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    pd.testing.assert_frame_equal(soft(query), expected, atol=1e-3)


@pytest.mark.parametrize("reference_is", ["log1p", "log2", "CP10K"])
def test_predict_of_real_data_in_every_form(reference_is):
    """Real cells, some of their genes: at least 99 % get the same label from every form of the values."""
    cells = pbmc68k()
    forms = {
        "log1p": lambda X: X,
        "log2": lambda X: X / np.float32(np.log(2)),
        "CP10K": np.expm1,
    }
    queries = {name: cells[400:].copy() for name in forms}
    for name, query in queries.items():
        query.X.data = forms[name](query.X.data)
    reference = cells[:400].copy()
    reference.X.data = forms[reference_is](reference.X.data)
    model = fit(reference, max_epochs=3)
    labels = {name: model.predict(query) for name, query in queries.items()}
    assert len(set(labels["log1p"])) > 2
    for name in forms:
        assert (labels[name] == labels["log1p"]).mean() >= 0.99, name


def test_predict_with_and_without_the_layer(query):
    reference, expected = cells(), soft(query)
    reference.layers["counts"], reference.X = reference.X.copy(), -reference.X
    model = fit(reference, {"layer": "counts"})
    query.layers["counts"], query.X = query.X.copy(), -query.X
    actual = model.predict(query, soft=True)
    query.X = query.layers.pop("counts")
    with pytest.warns(UserWarning, match=r"layer='counts'.* X is used") as caught:
        assert_equal_frames(model.predict(query, soft=True), actual)
    assert celler_warning(caught).filename == __file__
    assert_close(actual, fit(cells()).predict(query, soft=True))
    assert len(actual) == len(expected)


@pytest.fixture(scope="module")
def model() -> cl.model.Celler:
    return fit(cells(), {"batch_key": "donor"})


def soft_of(model, query):
    return model.predict(query, soft=True)


def test_predict_with_another_form_of_values(model, query):
    """A peer that is given log values for counts, or the reverse, answers without a word."""
    expected, counts = soft_of(model, query), query.X.toarray()
    per_10k = counts / counts.sum(axis=1, keepdims=True) * 1e4
    for values in (per_10k, np.log1p(per_10k), np.log2(1 + per_10k), np.log1p(counts)):
        query.X = sparse.csr_matrix(values)
        pd.testing.assert_frame_equal(soft_of(model, query), expected, atol=1e-3)


def test_predict_with_scaled_values(model, query):
    query.layers["counts"] = query.X
    query.X = query.X.toarray() - query.X.toarray().mean(axis=0)
    with pytest.raises(ValueError, match=r"scaled or centred.*pass layer='counts' \(counts\)"):
        model.predict(query)


def test_predict_with_binned_values(query):
    X = query.X.toarray()
    ranks = np.array([np.searchsorted(np.unique(row[row > 0]), row) + 1 for row in X]) * (X > 0)
    query.X = (ranks * 50 // ranks.max(axis=1, keepdims=True)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"adata\.X looks binned already .* is 50 in every") as said:
        fit(cells()).predict(query)
    assert celler_warning(said).filename == __file__
    with pytest.warns(UserWarning, match="looks binned already") as said:
        cl.model.Celler.setup_anndata(query, "cell_type")
    assert celler_warning(said).filename == __file__


def test_predict_makes_no_matrix_dense(model, query, monkeypatch):
    def refuse(self, *args, **kwargs):
        pytest.fail("a matrix was made dense")

    for kind in (sparse.csr_matrix, sparse.csc_matrix):
        monkeypatch.setattr(kind, "toarray", refuse)
        monkeypatch.setattr(kind, "todense", refuse)
    query.X = query.X.tocsc()
    assert soft_of(model, query).shape == (60, 4)
    assert cl.pp.check_input(query).kind == "counts"
    assert cl.pp.align_genes(query, model)[0].shape == query.shape


def test_predict_with_another_layer(model, query):
    expected = soft_of(model, query)
    query.layers["counts"] = query.X.copy()
    assert_equal_frames(soft_of(model, query), expected)
    assert set(cl.pp.check_input(query).elsewhere) == {"layer='counts'"}


FORMS = {
    "copy": lambda adata: adata.copy(),
    "view": lambda adata: adata[:],
    "reordered": lambda adata: adata[np.random.default_rng(0).permutation(adata.n_obs)],
    "unlabelled": lambda adata: adata[adata.obs["few"].isna().to_numpy()].copy(),
}


@pytest.mark.parametrize(
    ("form", "is_shifted"),
    # Without its labelled cells the query has a shift of its own.
    [(form, False) for form in FORMS] + [(form, True) for form in FORMS if form != "unlabelled"],
)
def test_predict_with_propagate_of_the_reference_in_any_form(form, is_shifted, monkeypatch):
    """Labelled cells are held whether the query is the reference, a copy, a view or a part of it."""
    reference = cells(150)
    labels = reference.obs["cell_type"].astype(object)
    reference.obs["few"] = labels.where(labels.groupby(labels).cumcount() < 8, None)
    model = fit(reference, {"labels_key": "few"})
    factors = np.linspace(0.5, 2, 80) if is_shifted else np.ones(80)
    monkeypatch.setattr("celler.model._forward.shift_factors", lambda *_: factors)
    expected = model.predict(soft=True, propagate=True)
    assert np.abs(expected - model.predict(soft=True)).max(axis=None) > 0.05
    query = FORMS[form](reference)
    actual = model.predict(query, soft=True, propagate=True)
    pd.testing.assert_frame_equal(actual, expected.loc[query.obs_names], rtol=0, atol=1e-5)
