"""Inputs: every storage gives the rows that fancy indexing gives, and says what the values are."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from celler.data._expression import (
    ExpressionReader,
    bad_value,
    check_values,
    detect,
    elsewhere,
    is_log,
    query_reader,
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
def test_every_storage_in_memory(values, kind, dtype, layer):
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
def test_views(values, kind, layer):
    big = np.vstack([values + 1, values])[:, np.r_[0, 0, 0:7]]
    adata = make(big, kind, counts=big)[12:, 2:]
    assert adata.is_view
    assert_reads(adata, values, layer)
    assert adata.is_view


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("layer", [None, "counts"])
@pytest.mark.parametrize("is_view", [False, True])
def test_backed_files(values, kind, layer, is_view, tmp_path):
    stored = np.vstack([values + 1, values]) if is_view else values
    make(stored, kind, counts=stored).write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    try:
        assert_reads(adata[12:] if is_view else adata, values, layer)
        assert adata.isbacked
    finally:
        adata.file.close()


def test_no_copy_of_float32_csr_in_memory(values):
    adata = make(values)
    assert np.shares_memory(ExpressionReader(adata).matrix().data, adata.X.data)


def test_the_probe_spreads_over_the_cells(rng):
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
def test_what_the_values_are(values, change, expected, kind):
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
def test_values_that_cannot_be_used(values, value, message):
    values[3, 2] = value
    reader = ExpressionReader(make(values))
    with pytest.raises(ValueError, match=r"adata\.X " + message):
        is_log(reader)
    with pytest.raises(ValueError, match="the layer or object that holds them"):
        check_values(reader.matrix(), reader)


def test_the_error_names_what_else_there_is(values):
    adata = make(values - 1, norm=np.log1p(values), counts=values, zscore=values - 2)
    adata.raw = make(np.log1p(values))
    with pytest.raises(ValueError) as caught:
        is_log(ExpressionReader(adata))
    others = "layer='counts' (counts) or layer='norm' (log1p) or adata.raw.to_adata() (log1p)"
    assert f"Here, pass {others}; predict has no layer argument" in str(caught.value)
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


# ---- which kind, exactly ----


def per_10k(counts, total=1e4):
    return counts / counts.sum(axis=1, keepdims=True) * total


def full_length(rng, n_obs, n_vars):
    """Smart-seq counts: lognormal, up to 1e5 and beyond."""
    return np.floor(rng.lognormal(3, 3, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < 0.4))


def rsem(rng, n_obs, n_vars):
    """Expected counts: most whole, some shared among genes in fractions of a read."""
    counts = full_length(rng, n_obs, n_vars)
    return counts + (rng.random(counts.shape) < 0.3) * rng.random(counts.shape).round(2)


def bins(counts, n_bins=51):
    """scGPT's binning, by its own words: quantiles of the non-zeros, then digitize."""
    binned = np.zeros_like(counts)
    for row, out in zip(counts, binned, strict=True):
        edges = np.quantile(row[row > 0], np.linspace(0, 1, n_bins - 1))
        out[row > 0] = np.digitize(row[row > 0], edges)
    return binned


#: name: (kind, made of counts (60, 300) and an rng)
KINDS = {
    "counts": ("counts", lambda c, rng: c),
    "shallow counts": ("counts", lambda c, rng: rng.binomial(c.astype(int), 0.05)),
    "binary": ("counts", lambda c, rng: np.minimum(c, 1)),
    "all zero": ("counts", lambda c, rng: c * 0),
    "Smart-seq": ("counts", lambda c, rng: full_length(rng, *c.shape)),
    "RSEM": ("expected counts", lambda c, rng: rsem(rng, *c.shape)),
    "RSEM, small": ("expected counts", lambda c, rng: np.minimum(rsem(rng, *c.shape), 25.5)),
    "CP10K": ("normalised", lambda c, rng: per_10k(c)),
    "CP10K, some genes": ("normalised", lambda c, rng: per_10k(c)[:, :40]),
    "proportions": ("normalised", lambda c, rng: per_10k(c, 1)),
    "to the median": ("normalised", lambda c, rng: per_10k(c, np.median(c.sum(axis=1)))),
    "to a small sum": ("normalised", lambda c, rng: per_10k(c, 50)),
    "log1p of counts": ("log1p", lambda c, rng: np.log1p(c)),
    "log1p of shallow counts": (
        "log1p", lambda c, rng: np.log1p(rng.binomial(c.astype(int), 0.1)),
    ),
    "log1p of CP10K": ("log1p", lambda c, rng: np.log1p(per_10k(c))),
    "log1p of CPM": ("log1p", lambda c, rng: np.log1p(per_10k(c, 1e6))),
    "log1p of CP10K, some genes": ("log1p", lambda c, rng: np.log1p(per_10k(c))[:, :40]),
    "log1p, three decimals": ("log1p", lambda c, rng: np.log1p(per_10k(c)).round(3)),
    "log1p of full-length CP10K": (
        "log1p", lambda c, rng: np.log1p(per_10k(rsem(rng, *c.shape))),
    ),
    "log1p, of no trace": ("log1p", lambda c, rng: c * rng.random(c.shape)),
    "log2 of counts": ("log2", lambda c, rng: np.log2(1 + c)),
    "log2 of CP10K": ("log2", lambda c, rng: np.log2(1 + per_10k(c))),
    "log2 of CP10K, some genes": ("log2", lambda c, rng: np.log2(1 + per_10k(c))[:, :40]),
    "log2 of full-length TPM": (
        "log2", lambda c, rng: np.log2(1 + per_10k(rsem(rng, *c.shape), 1e6)),
    ),
    "log2 of TPM, some genes": (
        "log2", lambda c, rng: np.log2(1 + per_10k(rsem(rng, *c.shape), 1e6))[:, :150],
    ),
    "bins": ("binned", lambda c, rng: bins(c)),
    "scaled": ("scaled", lambda c, rng: (c - c.mean(axis=0)) / (c.std(axis=0) + 1)),
    "centred logarithms": ("scaled", lambda c, rng: np.log1p(c) - np.log1p(c).mean(axis=0)),
    "NaN": ("not finite", lambda c, rng: np.where(c == c.max(), np.nan, c)),
    "infinite": ("not finite", lambda c, rng: np.where(c == c.max(), np.inf, c)),
}  # fmt: skip


def umi_counts(rng, n_obs=60, n_vars=300) -> np.ndarray:
    rates = rng.gamma(0.4, 3.0, n_vars) * rng.lognormal(0, 0.4, (n_obs, 1))
    return rng.poisson(rates).astype(float)


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_kind_of_values(case, dtype, rng):
    kind, change = KINDS[case]
    X = change(umi_counts(rng), rng).astype(dtype)
    state = detect(sparse.csr_matrix(X))
    assert state.kind == kind, state.evidence
    assert state.is_log == (kind in ("log1p", "log2"))
    assert state.is_usable == (kind not in ("scaled", "not finite"))


@pytest.mark.parametrize("case", ["counts", "CP10K", "log1p of CP10K", "log2 of CP10K"])
def test_the_kind_of_one_cell(case, rng):
    kind, change = KINDS[case]
    X = sparse.csr_matrix(change(umi_counts(rng), rng).astype(np.float32))
    assert detect(X[:1]).kind == kind


def test_counts_that_happen_to_share_a_maximum_are_not_bins(rng):
    counts = np.minimum(umi_counts(rng), 5)
    counts[:5] = np.minimum(counts[:5], 4)
    assert detect(sparse.csr_matrix(counts)).kind == "counts"


def test_log2_is_read_as_the_natural_logarithm(rng):
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
def test_a_file_is_probed_and_not_read_whole(rng, kind, tmp_path, monkeypatch):
    X = rng.poisson(1.0, (5000, 4)).astype(np.float32)
    adata = make(X, kind, counts=X)
    adata.raw = adata.copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    sizes = []
    monkeypatch.setattr(
        "celler.data._expression.detect", lambda X: sizes.append(X.shape[0]) or detect(X)
    )
    try:
        reader = ExpressionReader(backed)
        assert reader.state.kind == "counts"
        assert set(elsewhere(reader)) == {"layer='counts'", "adata.raw.to_adata()"}
        assert sizes == [1000] * 3
    finally:
        backed.file.close()


# ---- what is not there ----


def test_a_missing_layer_lists_the_layers(values):
    message = r"layer='count' is not in adata\.layers, .*\['counts'\]\. Closest: 'counts'"
    with pytest.raises(KeyError, match=message):
        ExpressionReader(make(values, counts=values), "count")


def test_no_values_at_all(values):
    adata = make(values, counts=values)
    adata.X = None
    with pytest.raises(ValueError, match=r"adata\.X is None; pass layer="):
        ExpressionReader(adata)
    assert_reads(adata, values, "counts")


def test_a_query_without_the_layer_is_read_from_X_with_a_warning(values):
    adata = make(values, counts=values * 2)
    assert query_reader(adata, None).layer is None
    assert query_reader(adata, "counts").layer == "counts"
    with pytest.warns(UserWarning, match="layer='raw_counts', which this AnnData lacks; its X"):
        reader = query_reader(adata, "raw_counts")
    assert_reads(reader.adata, values, reader.layer)


def test_repeated_entries_are_summed_and_the_users_matrix_is_left_alone():
    X = sparse.csr_matrix(
        (np.array([1, 2, 4], np.float32), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 3)
    )
    reader = ExpressionReader(ad.AnnData(X))
    expected = [[0, 3, 0], [4, 0, 0]]
    assert reader.rows(np.array([0, 1])).toarray().tolist() == expected
    assert reader.matrix().toarray().tolist() == expected
    assert reader.matrix().nnz == 2
    assert X.nnz == 3


def test_csc_is_converted_once(rng):
    X = sparse.csc_matrix(rng.poisson(1.0, (20, 5)).astype(np.float32))
    reader = ExpressionReader(ad.AnnData(X))
    reader.rows(np.arange(5))
    assert reader._converted is reader._converted
    np.testing.assert_array_equal(reader.rows(np.array([7, 3])).toarray(), X.toarray()[[7, 3]])
