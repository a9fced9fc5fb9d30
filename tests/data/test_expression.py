"""Reading expression: every storage gives the rows of fancy indexing, and what its values are."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from kinds import per_10k, umi_counts
from scipy import sparse

from celler._utils._counts import detect
from celler.data import _expression as expression
from celler.data._expression import (
    ExpressionReader,
    bad_value,
    check_values,
    elsewhere,
    is_log,
)

STORAGES = [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array]
INDICES = {
    "all": np.arange(12),
    "range": np.arange(3, 9),
    "reversed": np.arange(12)[::-1],
    "unsorted": np.array([7, 2, 11, 0]),
    "repeated": np.array([5, 5, 2, 5, 2]),
    "range with a repeat": np.array([3, 4, 4, 6]),  # as long as a range, and none
    "shuffled range": np.array([5, 3, 4, 6]),
    "one": np.array([8]),
    "none": np.array([], dtype=int),
}


@pytest.fixture
def values(rng) -> np.ndarray:
    return rng.poisson(1.0, (12, 7)).astype(np.float32)


def make(values, kind=sparse.csr_matrix, **layers) -> ad.AnnData:
    n_obs, n_vars = values.shape
    obs = pd.DataFrame(index=[f"cell {i}" for i in range(n_obs)])
    var = pd.DataFrame(index=[f"gene {i}" for i in range(n_vars)])
    layers = {name: kind(layer) for name, layer in layers.items()}
    return ad.AnnData(kind(values), obs=obs, var=var, layers=layers)


def assert_reads(adata, values, layer=None):
    """Rows in any order, and the whole, as float32 CSR."""
    reader = ExpressionReader(adata, layer)
    for name, index in INDICES.items():
        block = reader.rows(index)
        assert sparse.isspmatrix_csr(block)
        assert block.dtype == np.float32
        np.testing.assert_array_equal(block.toarray(), values[index], err_msg=name)
    np.testing.assert_array_equal(reader.matrix().toarray(), values)
    np.testing.assert_array_equal(reader.probe().toarray(), values)


@pytest.mark.parametrize("kind", STORAGES)
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.float64])
@pytest.mark.parametrize("layer", [None, "counts"])
def test_expression_reader_with_every_storage_in_memory(values, kind, dtype, layer):
    if layer is None:
        adata = make(values.astype(dtype), kind)
    else:
        adata = make(np.zeros_like(values), kind, counts=values.astype(dtype))
    before = adata.copy()
    assert_reads(adata, values, layer)
    pairs = [(adata.X, before.X)]
    pairs += [(adata.layers[layer], before.layers[layer])] if layer else []
    for X, expected in pairs:
        assert type(X) is type(expected)
        assert X.dtype == expected.dtype
        assert (expected != X).sum() == 0


@pytest.mark.parametrize("kind", STORAGES)
@pytest.mark.parametrize("layer", [None, "counts"])
def test_expression_reader_with_views(values, kind, layer):
    big = np.vstack([values + 1, values])[:, np.r_[0, 0, 0:7]]
    adata = make(big, kind, counts=big)[12:, 2:]
    assert adata.is_view
    assert_reads(adata, values, layer)
    assert adata.is_view


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("layer", [None, "counts"])
@pytest.mark.parametrize("is_view", [False, True])
def test_expression_reader_with_backed_files(values, kind, layer, is_view, tmp_path):
    stored = np.vstack([values + 1, values]) if is_view else values
    make(stored, kind, counts=stored).write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    try:
        assert_reads(adata[12:] if is_view else adata, values, layer)
        assert adata.isbacked
    finally:
        adata.file.close()


def test_matrix_with_float32_csr_in_memory_is_no_copy(values):
    adata = make(values)
    assert np.shares_memory(ExpressionReader(adata).matrix().data, adata.X.data)


def test_probe_spreads_over_the_cells(rng):
    adata = make(np.arange(1, 2501, dtype=np.float32)[:, None])
    probed = ExpressionReader(adata).probe().toarray().ravel()
    assert 1000 <= len(probed) <= 2000
    assert len(np.unique(np.diff(probed))) == 1
    assert probed[-1] > 2490


# ---- counts or logarithms ----


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda counts: counts, False),
        (lambda counts: np.log1p(counts), True),
        (lambda counts: np.log1p(counts / counts.sum(1, keepdims=True) * 1e4), True),
        (lambda counts: np.log2(1 + counts), True),
        (lambda counts: counts / counts.sum(1, keepdims=True) * 1e4, False),
        (lambda counts: counts * 30.5, False),
        (lambda counts: np.minimum(counts, 1), False),
        (lambda counts: counts * 0, False),
    ],
    ids=["counts", "log1p", "CP10K log1p", "log2", "CP10K", "expected counts", "binary", "empty"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_is_log_with_values_of_every_kind(values, change, expected, kind):
    values[0, 0] = 5  # no cell without counts, and more than one value
    values[:, 1] = 2
    assert is_log(ExpressionReader(make(change(values).astype(np.float32), kind))) is expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.5, r"holds the value -0\.5; negative values mean scaled"),
        (np.nan, r"holds the value nan; NaN and infinite values cannot be ranked"),
        (np.inf, r"holds the value inf; NaN and infinite"),
        (-np.inf, r"holds the value -inf; NaN and infinite"),
    ],
)
def test_check_values_with_values_that_cannot_be_used(values, value, message):
    values[3, 2] = value
    reader = ExpressionReader(make(values))
    with pytest.raises(ValueError, match=r"adata\.X " + message):
        is_log(reader)
    with pytest.raises(ValueError, match="the layer or object that holds them"):
        check_values(reader.matrix(), reader)


def test_bad_value_names_the_other_matrices(values):
    adata = make(values - 1, norm=np.log1p(values), counts=values, zscore=values - 2)
    adata.raw = make(np.log1p(values))
    with pytest.raises(ValueError) as caught:
        is_log(ExpressionReader(adata))
    others = "layer='counts' (counts) or layer='norm' (log1p) or adata.raw.to_adata() (log1p)"
    assert f"Here, pass {others}." in str(caught.value)
    without = make(values - 1)
    without.raw = make(values)
    with pytest.raises(ValueError, match=r"pass adata\.raw\.to_adata\(\) \(counts\)\.$"):
        is_log(ExpressionReader(without))
    adata.layers["scaled"] = values - 1
    message = r"adata\.layers\['scaled'\] holds the value -1; .*pass layer='counts' \(counts\) or layer='norm'"
    with pytest.raises(ValueError, match=message):
        is_log(ExpressionReader(adata, "scaled"))
    adata.X = values
    with pytest.raises(ValueError, match=r"adata\.X \(layer=None\) \(counts\)"):
        is_log(ExpressionReader(adata, "scaled"))
    assert "(cell 'cell 3')" in str(bad_value(-1.0, ExpressionReader(adata), "cell 3"))


def test_rows_with_log2_are_natural_logarithms(rng):
    counts = per_10k(umi_counts(rng))
    adata = make(np.log2(1 + counts).astype(np.float32), counts=np.log1p(counts))
    before = adata.X.copy()
    for reader in (ExpressionReader(adata), ExpressionReader(adata, "counts")):
        assert is_log(reader)
        read = reader.rows(np.array([5, 2, 2])).toarray()
        np.testing.assert_allclose(read, np.log1p(counts)[[5, 2, 2]], rtol=1e-5)
        np.testing.assert_allclose(reader.matrix().toarray(), np.log1p(counts), rtol=1e-5)
    assert (before != adata.X).nnz == 0
    adata.X = sparse.csc_matrix(adata.X)
    read = ExpressionReader(adata).rows(np.array([7, 1])).toarray()
    np.testing.assert_allclose(read, np.log1p(counts)[[7, 1]], rtol=1e-5)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_state_with_a_file_reads_a_probe_of_it(rng, kind, tmp_path, monkeypatch):
    X = rng.poisson(1.0, (5000, 4)).astype(np.float32)
    adata = make(X, kind, counts=X)
    adata.raw = adata.copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    sizes = []
    monkeypatch.setattr("celler.data._expression.detect", lambda X: sizes.append(X.shape[0]) or detect(X))
    try:
        reader = ExpressionReader(backed)
        assert reader.state.kind == "counts"
        assert set(elsewhere(reader)) == {"layer='counts'", "adata.raw.to_adata()"}
        assert sizes == [1000] * 3
    finally:
        backed.file.close()


# ---- what is not there ----


def test_expression_reader_with_a_missing_layer(values):
    message = r"layer='count' is not in adata\.layers, .*\['counts'\]\. Closest: 'counts'"
    with pytest.raises(KeyError, match=message):
        ExpressionReader(make(values, counts=values), "count")


def test_expression_reader_without_values(values):
    adata = make(values, counts=values)
    adata.X = None
    with pytest.raises(ValueError, match=r"adata\.X is None; pass layer="):
        ExpressionReader(adata)
    assert_reads(adata, values, "counts")


def test_rows_of_a_sample_are_read_once(values, tmp_path, monkeypatch):
    """Labels, profile and labels again of a query's sample read the same rows; a file is slow to read."""
    make(values).write_h5ad(tmp_path / "cells.h5ad")
    reader, index = ExpressionReader(ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")), np.array([7, 2, 11, 0])
    monkeypatch.setattr(expression, "KEPT_ROWS", 4)
    n_reads, read = [], ExpressionReader._read
    monkeypatch.setattr(ExpressionReader, "_read", lambda self, rows: n_reads.append(rows) or read(self, rows))
    for wanted, n_expected in [(index, 2), (index.copy(), 2), (index[::-1], 3), (np.arange(5), 4), (np.arange(5), 5)]:
        np.testing.assert_array_equal(reader.rows(wanted).toarray(), values[wanted])
        assert len(n_reads) == n_expected  # one of them the probe
    wanted = index.copy()
    reader.rows(wanted)
    wanted[0] = 3  # what a caller does to its index later
    np.testing.assert_array_equal(reader.rows(wanted).toarray(), values[wanted])


def test_rows_with_repeated_entries_sums_a_copy():
    X = sparse.csr_matrix((np.array([1, 2, 4], np.float32), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 3))
    reader = ExpressionReader(ad.AnnData(X))
    expected = [[0, 3, 0], [4, 0, 0]]
    assert reader.rows(np.array([0, 1])).toarray().tolist() == expected
    assert reader.matrix().toarray().tolist() == expected
    assert reader.matrix().nnz == 2
    assert X.nnz == 3


def test_rows_with_columns_out_of_order_are_a_copy_in_order(rng):
    """Repeated entries are summed there as well."""
    dense = rng.poisson(1.0, (9, 30)).astype(np.float32)
    rows, columns = np.repeat(dense.nonzero(), 2, axis=1)
    order = np.lexsort((rng.random(len(rows)), rows))
    values = np.repeat(dense[dense.nonzero()] / 2, 2)[order]
    X = sparse.csr_matrix((values, columns[order], np.r_[0, 2 * (dense > 0).sum(1).cumsum()]), shape=dense.shape)
    before = X.indices.copy()
    found = ExpressionReader(ad.AnnData(X)).rows(np.arange(9))
    assert found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), dense)
    np.testing.assert_array_equal(X.indices, before)


def test_rows_with_csc_converts_once(rng):
    X = sparse.csc_matrix(rng.poisson(1.0, (20, 5)).astype(np.float32))
    reader = ExpressionReader(ad.AnnData(X))
    reader.rows(np.arange(5))
    assert reader._converted is reader._converted
    np.testing.assert_array_equal(reader.rows(np.array([7, 3])).toarray(), X.toarray()[[7, 3]])
