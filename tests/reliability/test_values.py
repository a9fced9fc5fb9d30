"""Values of every kind that other tools leave in ``X``: what each public function makes of them, and its words."""

import os
import warnings
from functools import cache

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse
from toy import assert_unchanged, cells, snapshot, trained

import celler as cl

N_OBS = 200


@cache
def counts() -> np.ndarray:
    return cells(N_OBS, depth=0.5, seed=1).X.toarray()


@cache
def labels() -> np.ndarray:
    return trained().predict(query(counts()))


def query(X, **parts) -> ad.AnnData:
    made = cells(N_OBS, depth=0.5, seed=1)
    return ad.AnnData(X, obs=made.obs, var=made.var, **parts)


def per_10k(total=1e4):
    X = counts().astype(float)
    return X / X.sum(1, keepdims=True) * total


def log(base=np.e, total=1e4):
    return np.log1p(per_10k(total)) / np.log(base)


def halves(first, second):
    """Every second cell of one, the others of the other."""
    return np.where(np.arange(N_OBS)[:, None] % 2 == 0, first, second)


def corrected():
    return counts() * np.random.default_rng(0).uniform(0.6, 0.98, counts().shape)


def scaled(**options):
    adata = query(log())
    sc.pp.scale(adata, **options)
    return adata.X


def bins():
    return np.array([np.digitize(row, np.quantile(row[row > 0], np.linspace(0, 1, 8))) * (row > 0) for row in log()])


def by_length():
    return np.log1p(per_10k(1e5) / np.random.default_rng(0).lognormal(0, 0.7, counts().shape[1]))[:, :60]


def sparse_like(change):
    X = sparse.csr_matrix(counts())
    change(X)
    return X


def set_first(name, value, at=0):
    return lambda X: getattr(X, name).__setitem__(at, value)


def cut(name):
    return lambda X: setattr(X, name, getattr(X, name)[:7])


def as_type(dtype):
    return lambda X: setattr(X, "data", X.data.astype(dtype))


def long_indices(X):
    X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)


def turned(X):
    """SciPy believes its flag, and so did whoever made it."""
    for row in range(X.shape[0]):
        cell = slice(X.indptr[row], X.indptr[row + 1])
        X.indices[cell], X.data[cell] = X.indices[cell][::-1].copy(), X.data[cell][::-1].copy()
    X.has_sorted_indices = True


def locked(X):
    """As joblib hands large arrays to its processes."""
    for part in (X.data, X.indices, X.indptr):
        part.setflags(write=False)


def with_value(value, dtype=float):
    X = counts().astype(dtype)
    X[3, 2] = value
    return X


READS, WARNS, REFUSES = "reads", "warns", "refuses"
MIXTURE = "adata.X is a mixture: some cells hold"
DAMAGED = "adata.X is damaged"
#: what X holds: (X, kind of check_input, outcome, words of the warning or error)
VALUES = {
    "counts": (lambda: counts(), "counts", READS, ""),
    "counts, whole as floats": (lambda: counts().astype(float), "counts", READS, ""),
    "float16": (lambda: counts().astype("float16"), "counts", READS, ""),
    "float16 logarithms": (lambda: log().astype("float16"), "log1p", READS, ""),
    "longdouble": (lambda: counts().astype("longdouble"), "counts", READS, ""),
    "other byte order": (lambda: counts().astype(">f4"), "counts", READS, ""),
    "int8": (lambda: counts().astype("int8"), "counts", READS, ""),
    "uint16": (lambda: counts().astype("uint16"), "counts", READS, ""),
    "int64 beyond 2^31": (lambda: counts().astype("int64") * 2**40, "counts", READS, ""),
    "Python's numbers": (lambda: counts().astype(object), "counts", READS, ""),
    "negative zero": (lambda: np.where(counts() == 0, -0.0, counts()), "counts", READS, ""),
    "nothing masked": (lambda: np.ma.array(counts()), "counts", READS, ""),
    "csr_array": (lambda: sparse.csr_array(counts()), "counts", READS, ""),
    "csc_array": (lambda: sparse.csc_array(counts()), "counts", READS, ""),
    "csc_matrix": (lambda: sparse.csc_matrix(counts()), "counts", READS, ""),
    "huge": (lambda: counts() * 1e30, "counts", READS, ""),
    "tiny": (lambda: per_10k() * 1e-30, "normalised", READS, ""),
    "below single precision's normal numbers": (lambda: per_10k() * 1e-42, "normalised", READS, ""),
    "64-bit indices": (lambda: sparse_like(long_indices), "counts", READS, ""),
    "indices out of order, marked as sorted": (lambda: sparse_like(turned), "counts", READS, ""),
    "read-only": (lambda: sparse_like(locked), "counts", READS, ""),
    "read-only, dense": (lambda: np.broadcast_to(counts(), counts().shape), "counts", READS, ""),
    "every second column of another": (lambda: np.repeat(counts(), 2, 1)[:, ::2], "counts", READS, ""),
    "CP10K": (lambda: per_10k(), "normalised", READS, ""),
    "CPM": (lambda: per_10k(1e6), "normalised", READS, ""),
    "proportions": (lambda: per_10k(1), "normalised", READS, ""),
    "CP10K, two decimals": (lambda: per_10k().round(2), "normalised", READS, ""),
    "counts and CP10K": (lambda: halves(counts(), per_10k()), "normalised", READS, ""),
    "log1p": (lambda: log(), "log1p", READS, ""),
    "log1p of counts": (lambda: np.log1p(counts()), "log1p", READS, ""),
    "log1p of another factor": (lambda: log(total=1e6), "log1p", READS, ""),
    "log1p of two sums": (lambda: halves(log(), log(total=1e6)), "log1p", READS, ""),
    "log1p, two decimals": (lambda: log().round(2), "log1p", READS, ""),
    "log1p, four decimals": (lambda: log().round(4), "log1p", READS, ""),
    "log2": (lambda: log(2), "log2", READS, ""),
    "log10": (lambda: log(10), "log10", READS, ""),
    "square roots": (lambda: np.sqrt(counts()), "sqrt", READS, ""),
    "square roots of CP10K": (lambda: np.sqrt(per_10k()), "sqrt", READS, ""),
    "corrected counts": (corrected, "expected counts", READS, ""),
    "corrected counts, scaled up": (lambda: corrected() * 20, "normalised", READS, ""),
    "logarithms without a trace": (by_length, "log1p", WARNS, "no trace of counts was found"),
    "binarised": (lambda: counts() > 0, "binary", WARNS, "only which genes a cell expresses"),
    "bins": (bins, "binned", WARNS, "looks binned already"),
    "one gene has nearly all": (
        lambda: np.where(np.arange(80) == 3, 1e9, counts()), "counts", WARNS,
        "'gene 3' carries more than 95% of the expression",
    ),
    "scaled, not centred": (lambda: scaled(zero_center=False), "scaled", REFUSES, "looks scaled (the standard"),
    "scaled, clipped": (lambda: scaled(zero_center=False, max_value=3), "scaled", REFUSES, "looks scaled (the"),
    "by root mean square": (
        lambda: log() / np.sqrt((log() ** 2).sum(0) / (N_OBS - 1)).clip(1e-9), "scaled", REFUSES, "looks scaled",
    ),
    "by the largest": (lambda: log() / log().max(0).clip(1e-9), "scaled", REFUSES, "largest value of most genes is 1"),
    "cells of unit length": (
        lambda: log() / np.sqrt((log() ** 2).sum(1, keepdims=True)), "scaled", REFUSES, "squares of each cell sum to 1",
    ),
    "centred": (lambda: scaled(), "scaled", REFUSES, "negative values mean scaled"),
    "negative by rounding": (
        lambda: np.where(counts() == 0, -1e-9, counts() * 0.93), "scaled", REFUSES, "may be set to 0",
    ),
    "overflowed": (
        lambda: (counts().astype(int) * 9000).astype("int16"), "scaled", REFUSES, "integer type that overflowed",
    ),
    "NaN": (lambda: with_value(np.nan), "not finite", REFUSES, "NaN and infinite values cannot be ranked"),
    "infinite": (lambda: with_value(np.inf), "not finite", REFUSES, "NaN and infinite values cannot be ranked"),
    "float16 overflow": (
        lambda: with_value(np.inf, "float16"), "not finite", REFUSES, "NaN and infinite values cannot be ranked",
    ),
    "beyond single precision": (lambda: with_value(1e300), None, REFUSES, "holds the value 1e+300; numbers up to"),
    "counts and logarithms": (lambda: halves(counts(), log()), "mixed", REFUSES, MIXTURE),
    "CP10K and logarithms": (lambda: halves(per_10k(), log()), "mixed", REFUSES, MIXTURE),
    "two bases": (lambda: halves(log(2), log()), "mixed", REFUSES, MIXTURE),
    "counts and log10": (lambda: halves(counts(), log(10)), "mixed", REFUSES, MIXTURE),
    "one in twenty counts": (
        lambda: np.where(np.arange(N_OBS)[:, None] % 20 == 7, counts(), log()), "mixed", REFUSES, MIXTURE,
    ),
    "one in twenty logarithms": (
        lambda: np.where(np.arange(N_OBS)[:, None] % 20 == 7, log(), counts()), "mixed", REFUSES, MIXTURE,
    ),
    "masked": (lambda: np.ma.array(counts(), mask=counts() > 3), None, REFUSES, "of its values; each must be known"),
    "text": (lambda: counts().astype(str), None, REFUSES, "numbers are needed. The table was read as text"),
    "decimal commas": (
        lambda: np.char.replace(log().astype(str), ".", ",").astype(object), None, REFUSES, "decimal=','",
    ),
    "complex": (lambda: counts().astype(complex), None, REFUSES, "(complex128); numbers are needed"),
    "dates": (lambda: counts().astype("datetime64[s]"), None, REFUSES, "numbers are needed"),
    "column -1": (lambda: sparse_like(set_first("indices", -1)), None, REFUSES, f"{DAMAGED}: it names column -1 of 80"),
    "column 80 of 80": (lambda: sparse_like(set_first("indices", 80, 9)), None, REFUSES, f"{DAMAGED}: it names column"),
    "indptr falls": (lambda: sparse_like(set_first("indptr", 0, 5)), None, REFUSES, f"{DAMAGED}: its indptr"),
    "indptr too far": (lambda: sparse_like(set_first("indptr", 2**30, 5)), None, REFUSES, f"{DAMAGED}: its indptr"),
    "indptr negative": (lambda: sparse_like(set_first("indptr", -7, 3)), None, REFUSES, f"{DAMAGED}: its indptr"),
    "indptr ends too far": (lambda: sparse_like(set_first("indptr", 2**30, -1)), None, REFUSES, DAMAGED),
    "values cut off": (lambda: sparse_like(cut("data")), None, REFUSES, f"{DAMAGED}: its indptr"),
    "indices cut off": (lambda: sparse_like(cut("indices")), None, REFUSES, f"{DAMAGED}: its indptr"),
}  # fmt: skip


def made(name: str) -> ad.AnnData:
    """An AnnData of the values; a damaged matrix is damaged in it, where anndata does not look."""
    X = VALUES[name][0]()
    genes = cells(1).var[: X.shape[1]]
    if VALUES[name][3].startswith(DAMAGED):
        adata = query(sparse.csr_matrix(counts()))
        adata.X.data, adata.X.indices, adata.X.indptr = X.data, X.indices, X.indptr
        return adata
    return ad.AnnData(X, obs=query(counts()).obs, var=genes)


def check(adata, name):
    report = cl.pp.check_input(adata)
    assert report.kind == VALUES[name][1]
    can_be_used = VALUES[name][2] != REFUSES
    assert report.is_usable == can_be_used
    assert ("cannot be used" in str(report)) != can_be_used  # each kind has its sentence


def predict(adata, name):
    found = trained().predict(adata)
    if VALUES[name][2] == READS and not name.startswith("corrected"):
        assert (found == labels()).mean() > 0.98  # ties between ranks may fall the other way


def annotate(adata, name):
    columns = adata.obs.columns
    trained().annotate(adata, key_added="found")
    assert adata.obs["found"].notna().all()
    adata.obs = adata.obs[columns]
    adata.uns.pop("found", None)


def setup(adata, name):
    adata = adata if DAMAGED in VALUES[name][3] else adata.copy()
    cl.model.Celler.setup_anndata(adata, labels_key="cell_type")


def prepare(adata, name):
    cl.model.Celler.prepare_query_anndata(adata, trained())


def rank_markers(adata, name):
    found = cl.tl.rank_markers(adata, "cell_type", 3)
    expected = cl.tl.rank_markers(query(counts()), "cell_type", 3)
    if name in ("float16", "csc_array", "Python's numbers", "CP10K", "log2", "log10", "square roots of CP10K"):
        assert (found["gene"] == expected["gene"]).mean() > 0.9


def marker_bubble(adata, name):
    cl.pl.marker_bubble(adata, ["gene 1", "gene 4"], "cell_type", return_fig=True)


def view(adata, name):
    trained().predict(adata[3:, :])


#: Functions that judge the values, and those that only read them.
JUDGES = (predict, annotate, setup, rank_markers, marker_bubble, view)
READERS = (prepare,)
#: These say what the values are, or show them as they are.
SILENT = (rank_markers, marker_bubble, prepare)


@pytest.fixture(autouse=True)
def _no_figures():
    yield
    from matplotlib import pyplot as plt

    plt.close("all")


def is_left_open(door, name) -> bool:
    """Functions that only move values look whether they are numbers that lie where they say."""
    return door in READERS and VALUES[name][1] is not None


@pytest.mark.parametrize("door", [*JUDGES, *READERS], ids=lambda door: door.__name__)
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.filterwarnings("ignore:.*of the model's 80 genes:UserWarning")
def test_values(name, door):
    _, _, outcome, words = VALUES[name]
    adata = made(name)
    before = None if outcome == REFUSES and DAMAGED in words else snapshot(adata)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if outcome == REFUSES and not is_left_open(door, name):
            with pytest.raises((ValueError, TypeError)) as error:
                door(adata, name)
            message = str(error.value)
            assert words.replace("adata.X", "") in message.replace("adata.X", ""), message
            assert os.sep + "celler" + os.sep not in message
        else:
            door(adata, name)
    said = [str(warning.message) for warning in caught if words and words in str(warning.message)]
    assert bool(said) == (outcome == WARNS and door not in SILENT), [str(w.message) for w in caught]
    if before is not None:
        assert_unchanged(adata, before)


@pytest.mark.parametrize("name", [name for name, row in VALUES.items() if row[1] is not None])
def test_check_input_names_values_of_every_kind(name):
    check(made(name), name)


@pytest.mark.parametrize("name", [name for name, row in VALUES.items() if row[1] is None])
def test_check_input_refuses_what_is_no_matrix_of_numbers(name):
    with pytest.raises((ValueError, TypeError)) as error:
        check(made(name), name)
    assert VALUES[name][3] in str(error.value)


@pytest.mark.parametrize("chunk", [sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix, np.asarray])
def test_predict_and_markers_read_dask_arrays(chunk):
    dask = pytest.importorskip("dask.array")
    adata = query(dask.from_array(counts(), chunks=(30, 80)).map_blocks(chunk))
    np.testing.assert_array_equal(trained().predict(adata), labels())
    np.testing.assert_array_equal(trained().predict(adata[::2]), trained().predict(query(counts())[::2]))
    expected = cl.tl.rank_markers(query(counts()), "cell_type", 3)
    assert cl.tl.rank_markers(adata, "cell_type", 3).equals(expected)
    assert cl.pp.check_input(adata).kind == "counts"
    cl.model.Celler.setup_anndata(adata, labels_key="cell_type")


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_predict_reads_a_lazy_file_and_setup_says_to_load_it(suffix, tmp_path):
    pytest.importorskip("dask.array")
    pytest.importorskip("xarray")
    getattr(query(sparse.csr_matrix(counts())), f"write_{suffix}")(tmp_path / f"cells.{suffix}")
    lazy = ad.experimental.read_lazy(tmp_path / f"cells.{suffix}")
    np.testing.assert_array_equal(trained().predict(lazy), labels())
    with pytest.raises(TypeError, match=r"read lazily.*adata\.to_memory\(\)"):
        cl.model.Celler.setup_anndata(lazy, labels_key="cell_type")


def test_setup_with_one_gene_says_so():
    with pytest.raises(ValueError, match=r"values of one gene alone, 'gene 3'; at least two"):
        cl.model.Celler.setup_anndata(query(counts() * (np.arange(80) == 3)), labels_key="cell_type")


#: Storage that AnnData does not take, but holds where something put it into another matrix of its own.
UNUSUAL = {
    "coo_matrix": lambda: sparse.coo_matrix(counts()),
    "coo_array": lambda: sparse.coo_array(counts()),
    "bsr_matrix": lambda: sparse.bsr_matrix(counts()),
    "lil_matrix": lambda: sparse.lil_matrix(counts()),
    "half precision": lambda: sparse_like(as_type("float16")),
    "Python's numbers": lambda: sparse_like(as_type(object)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_sparse_matrices_of_any_format_are_read(name):
    adata = query(counts())
    adata._X = UNUSUAL[name]()
    np.testing.assert_array_equal(trained().predict(adata), labels())
    assert cl.pp.check_input(adata).kind == "counts"
    found = cl.tl.rank_markers(adata, "cell_type", 3)
    assert found.equals(cl.tl.rank_markers(query(counts()), "cell_type", 3))


@pytest.mark.parametrize("X", [np.ones((N_OBS, 80)), np.outer(np.arange(1, N_OBS + 1), np.arange(1, 81))])
def test_setup_with_cells_that_are_all_equal_says_so(X):
    """Also where they differ in depth alone; scikit-learn found no feature."""
    with pytest.raises(ValueError, match="has the same values in every cell; cells cannot be told apart"):
        cl.model.Celler.setup_anndata(query(X.astype(np.float32)), labels_key="cell_type")


def test_check_input_without_genes_says_so():
    with pytest.raises(ValueError, match="adata has no genes"):
        cl.pp.check_input(query(counts())[:, :0].copy())


def test_predict_with_few_odd_cells_beyond_the_probe_names_one(monkeypatch, rng):
    """Every row that is read is checked, not the probed ones alone."""
    monkeypatch.setattr("celler._utils._matrix.N_PROBED", 20)
    X = rng.poisson(4.0, (N_OBS, 80)).astype(float)
    X[3:9] = np.log1p(X[3:9] / X[3:9].sum(1, keepdims=True) * 1e4)
    with pytest.raises(ValueError, match="is a mixture: some cells hold counts.*others natural logarithms"):
        trained().predict(query(sparse.csr_matrix(X)))


def test_predict_with_a_damaged_file_names_it(tmp_path):
    h5py = pytest.importorskip("h5py")
    query(sparse.csr_matrix(counts())).write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        file["X/indices"][4] = 80
        file["X/indptr"][7] = 2
    for backed in (None, "r"):
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed=backed)
        with pytest.raises(ValueError, match=r"adata\.X is damaged"):
            trained().predict(adata)
        with pytest.raises(ValueError, match=r"adata\.X is damaged"):
            cl.tl.rank_markers(adata, "cell_type")


def test_predict_with_scaled_values_reads_raw():
    adata = query(scaled(zero_center=False))
    with pytest.raises(ValueError, match="looks scaled"):
        trained().predict(adata)
    adata.raw = query(log())
    with pytest.warns(UserWarning, match=r"adata\.X cannot be used: .* adata\.raw\.X \(log1p\) is read instead"):
        found = trained().predict(adata)
    np.testing.assert_array_equal(found, trained().predict(query(log())))
    assert len(cl.tl.rank_markers(adata, "cell_type", 1))  # of raw
