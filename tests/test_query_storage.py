"""Prediction from every storage: formats, views, files, layers, rows in any order, and chunks."""

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
)

from celler.datasets import pbmc68k


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


# ---- storage ----


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
    "unsorted": lambda X: sparse.csr_matrix(
        (X.data[::-1], X.indices[::-1], X.nnz - X.indptr[::-1]), X.shape
    )[::-1],
}


@pytest.mark.parametrize("name", STORAGES)
def test_any_matrix_format(query, name):
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
def test_any_view(query, name):
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
def test_any_backed_file(query, tmp_path, name, view):
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


def test_counts_and_their_logarithm_give_the_same_labels(query):
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
def test_labels_do_not_depend_on_the_form_of_real_data(reference_is):
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


def test_the_layer_of_the_reference_is_read_and_x_where_the_query_lacks_it(query):
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


# ---- which cells, and how many at once ----


@pytest.mark.parametrize(
    "indices",
    [
        [3, 1, 2],
        [5, 5, 2, 5],
        [-1, 0],
        np.arange(60) % 7 == 0,
        np.array([4], np.uint8),
        [],
        range(9),
    ],
    ids=["list", "repeated", "negative", "mask", "uint8", "none", "range"],
)
def test_indices_select_rows(query, indices):
    rows = np.array(indices, dtype=None if len(indices) else int)
    assert_close(soft(query, indices=indices), soft(query).iloc[rows])


@pytest.mark.parametrize(
    ("indices", "error", "words"),
    [
        ([0, 60], IndexError, "60; there are 60 cells"),
        ([-61], IndexError, "-61"),
        (np.ones(59, bool), IndexError, "mask of 59 values .* 60 cells"),
        ([0.5], TypeError, r"\[0.5\] was given; .*whole numbers"),
        (["cell 3"], TypeError, "get_indexer"),
        (3, TypeError, "indices=3"),
        (slice(3), TypeError, "slice"),
        (np.ones((60, 1), bool), TypeError, "boolean mask"),
    ],
)
def test_indices_that_select_nothing_sensible(query, indices, error, words):
    with pytest.raises(error, match=words):
        soft(query, indices=indices)


@pytest.mark.parametrize("batch_size", [1, 7, 60, 1000])
def test_batch_size_has_no_influence(query, batch_size):
    assert_close(soft(query, batch_size=batch_size), soft(query))


def test_more_cells_than_one_chunk(query, monkeypatch):
    expected, order = soft(query), np.random.default_rng(0).permutation(60)
    monkeypatch.setattr("celler.data._query.CHUNK_SIZE", 7)
    monkeypatch.setattr("celler.model._forward.CHUNK_SIZE", 7)
    assert_close(soft(query), expected)
    assert_close(soft(query, indices=order), expected.iloc[order])
    monkeypatch.setattr("celler.data._query.TOKENS_PER_PASS", 50)
    assert_close(soft(query), expected)


def test_chunks_are_all_that_is_read_at_once(query, monkeypatch):
    sizes = []
    read = ad.AnnData.__getitem__
    monkeypatch.setattr("celler.data._query.CHUNK_SIZE", 7)
    monkeypatch.setattr("celler.model._forward.CHUNK_SIZE", 7)
    monkeypatch.setattr("celler.data._expression.N_PROBED", 4)
    monkeypatch.setattr(
        ad.AnnData,
        "__getitem__",
        lambda self, index: sizes.append(len(v := read(self, index))) or v,
    )
    soft(query)
    assert sizes
    assert max(sizes) <= 7
