"""Values: which matrix of a query is read, compared with the labels of the same values as ``X``."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy import cells, trained

from celler.data._read import read_cells
from celler.data._values import opened, query_reader


@pytest.fixture
def query() -> ad.AnnData:
    """What scanpy leaves: scaled values of some genes in X, the logarithms of all in raw."""
    counts = cells(60, seed=1)
    log = counts.copy()
    log.X = sparse.csr_matrix(np.log1p(log.X.toarray() / log.X.sum(axis=1) * 1e4))
    query = log[:, :40].copy()
    query.raw = log
    query.layers["counts"] = counts[:, :40].X
    query.layers["all zero"] = query.X * 0
    query.X = np.asarray(query.X.toarray() - query.X.toarray().mean(axis=0))
    return query


def n_of(adata: ad.AnnData) -> int:
    return adata.n_vars


def read(adata: ad.AnnData, layer: str | None = None, of_setup: str | None = None) -> tuple[str, list[str]]:
    """Name of the matrix that is read, and what was said."""
    said: list[str] = []
    return query_reader(adata, of_setup, layer, n_of, said.append).name, said


def test_query_reader_with_scaled_values_reads_raw(query):
    name, said = read(query)
    assert name == "adata.raw.X"
    assert len(said) == 1
    assert said[0].startswith("adata.X cannot be used: ")
    assert said[0].endswith("below zero. adata.raw.X (log1p) is read instead.")
    assert read(query[10:20])[0] == "adata.raw.X"


def test_query_reader_with_some_of_the_genes_reads_raw(query):
    query.X = query.layers["counts"]
    name, said = read(query)
    assert name == "adata.raw.X"
    assert said == [
        "adata.raw.X has 80 of the model's genes, adata.X 40; adata.raw.X is read. layer='X' reads adata.X."
    ]
    assert read(query, of_setup="counts")[0] == "adata.raw.X"
    as_many = lambda adata: 40
    assert query_reader(query, None, None, as_many).name == "adata.X"

    def none(adata: ad.AnnData) -> int:
        raise ValueError("too few")

    assert query_reader(query, None, None, none).name == "adata.X"


def test_query_reader_with_a_named_layer(query):
    assert read(query, "counts") == ("adata.layers['counts']", [])
    assert read(query, "X", of_setup="counts") == ("adata.X", [])
    assert read(query, "raw") == ("adata.raw.X", [])
    query.layers["raw"] = query.layers["counts"]
    assert read(query, "raw") == ("adata.layers['raw']", [])
    with pytest.raises(KeyError, match="layer='count' is not in adata.layers; there are .*Closest: 'counts'"):
        read(query, "count")
    query.raw = None
    del query.layers["raw"]
    with pytest.raises(KeyError, match="layer='raw' was given; adata.raw is None"):
        read(query, "raw")


def test_query_reader_without_the_layer_of_the_setup(query):
    query.raw = None
    assert read(query, of_setup="counts") == ("adata.layers['counts']", [])
    message = "the model was set up with layer='spliced', which this AnnData lacks; its X is used instead."
    assert read(query, of_setup="spliced") == ("adata.X", [message])


def test_query_reader_with_raw_that_cannot_be_used(query):
    bad = query.raw.to_adata()
    bad.X = bad.X.toarray() - 1
    query.raw = bad
    assert read(query) == ("adata.X", [])


def test_query_reader_without_x(query):
    empty = ad.AnnData(obs=query.obs, var=query.var)
    empty.raw = query.raw.to_adata()
    assert read(empty) == ("adata.raw.X", ["adata.X is None; adata.raw.X is read instead."])


def test_query_reader_with_a_backed_file(query, tmp_path):
    del query.layers["all zero"]
    query.write_h5ad(tmp_path / "query.h5ad")
    backed = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
    assert read(backed) == ("adata.X", [])
    assert read(backed, "counts")[0] == "adata.layers['counts']"
    with pytest.raises(ValueError, match="layer='raw' was given for a file in backed mode"):
        read(backed, "raw")


def test_opened_reads_a_path(query, tmp_path):
    query.write_h5ad(tmp_path / "query.h5ad")
    assert opened(query) is query
    pd.testing.assert_frame_equal(opened(tmp_path / "query.h5ad").obs, read_cells(tmp_path / "query.h5ad").obs)


def test_predict_with_raw_is_that_of_its_values(query):
    whole = query.raw.to_adata()
    expected = trained().predict(whole, soft=True)
    before = query.copy()
    with pytest.warns(UserWarning, match="adata.raw.X \\(log1p\\) is read instead"):
        actual = trained().predict(query, soft=True)
    pd.testing.assert_frame_equal(actual, expected)
    with warnings.catch_warnings():  # it was said
        warnings.simplefilter("error")
        novelty = trained().get_novelty(query)
    np.testing.assert_allclose(novelty, trained().get_novelty(whole))
    np.testing.assert_array_equal(query.X, before.X)


def test_predict_with_raw_and_a_column_of_names(query):
    whole = query.raw.to_adata()
    expected = trained().predict(whole)
    named = whole.copy()
    named.var_names = [f"id {i}" for i in range(80)]
    named.raw = named.copy()
    named.var["symbol"] = whole.var_names
    named.X = named.X.toarray() - 1
    with pytest.warns(UserWarning, match="adata.raw.X|of the model") as caught:
        actual = trained().predict(named)
    assert [str(one.message)[:14] for one in caught] == ["adata.X cannot", "80 of the mode"]
    np.testing.assert_array_equal(actual, expected)


def test_annotate_with_a_layer_and_a_path(query, tmp_path):
    of_layer = query.copy()
    of_layer.X = query.layers["counts"]
    of_layer.raw = None
    with pytest.warns(UserWarning, match="40 of the model's 80 genes"):
        trained().annotate(of_layer)
    query.write_h5ad(tmp_path / "query.h5ad")
    assert trained().annotate(query, layer="counts") is None
    found = trained().annotate(tmp_path / "query.h5ad", layer="counts")
    for annotated in (query, found):
        pd.testing.assert_series_equal(annotated.obs["celler"], of_layer.obs["celler"])
    assert "celler" not in ad.read_h5ad(tmp_path / "query.h5ad").obs
