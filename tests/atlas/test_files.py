"""Damaged files are named as such, and errors of our own are not taken for them."""

import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from scipy import sparse
from stores import build, make_cells, read_store, write_zarr

from celler.atlas import _files
from celler.atlas._files import AtlasFile, Matrix, UnreadableFile


@pytest.fixture
def h5ad(tmp_path):
    make_cells(1, 2000, 60).write_h5ad(tmp_path / "s.h5ad", compression="gzip")
    return tmp_path / "s.h5ad"


@pytest.fixture
def zarr_store(tmp_path):
    write_zarr(tmp_path / "s.zarr", make_cells(1, 2000, 60))
    return tmp_path / "s.zarr"


def read_all(path):
    with AtlasFile("s", path).open() as contents:
        found = [contents.column(key, "key") for key in contents.columns]
        found += [contents.names(0, contents.n_obs), contents.var("X")]
        return *found, Matrix(contents, "X").rows(0, contents.n_obs)


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "raw"])
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_rows_are_those_that_anndata_reads(tmp_path, form, kind, monkeypatch):
    monkeypatch.setattr(_files, "BLOCK", 500)
    cells = make_cells(1)
    expected = cells.X.toarray()
    if form == "raw":
        cells.raw = cells.copy()
    else:
        cells.X = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.array}[form](expected)
    path = tmp_path / f"s.{kind}"
    cells.write_h5ad(path) if kind == "h5ad" else write_zarr(path, cells)
    with AtlasFile("s", path).open() as contents:
        matrix = Matrix(contents, "raw/X" if form == "raw" else "X")
        blocks = matrix.blocks(300)
        assert len(blocks) > 2
        found = sparse.vstack([matrix.rows(*limits) for limits in blocks])
        np.testing.assert_array_equal(found.toarray(), expected)
        np.testing.assert_array_equal(contents.names(3, 9), cells.obs_names[3:9])
        assert list(contents.column("label", "key")) == list(cells.obs["label"])


def in_h5(edit):
    def spoil(path):
        with h5py.File(path, "a") as file:
            edit(file)

    return spoil


def without(name):
    return in_h5(lambda file: file.pop(name))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no HDF5" * 100),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        without("obs"),
        without("X/indices"),
        without("obs/label/codes"),
        without("obs/_index"),
        in_h5(lambda file: file["X"].attrs.pop("shape")),
        in_h5(lambda file: file["X"].attrs.pop("encoding-type")),
        in_h5(lambda file: file["obs"].attrs.pop("_index")),
        in_h5(lambda file: file["X/indices"].__setitem__(7, 999)),
        in_h5(lambda file: file["X/indices"].__setitem__(7, -1)),
    ],
    ids=[
        *("empty", "garbage", "half", "obs", "indices", "codes", "index"),
        *("shape", "encoding", "index_name", "column_too_high", "column_negative"),
    ],
)
def test_a_damaged_h5ad_is_refused(h5ad, spoil):
    spoil(h5ad)
    with pytest.raises(UnreadableFile, match=r"source 's' .*cannot be read.*corrupt"):
        read_all(h5ad)


def chunks_of(path):
    return [p for p in path.rglob("*") if p.is_file() and p.name != "zarr.json"]


@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "obs/label/codes"])
def test_a_damaged_zarr_chunk_is_refused(zarr_store, name):
    """The codecs raise ValueError or RuntimeError, by the version of zarr."""
    for chunk in chunks_of(zarr_store / name):
        chunk.write_bytes(b"\x00garbage" * 50)
    with pytest.raises(UnreadableFile, match="cannot be read"):
        read_all(zarr_store)


@pytest.mark.parametrize("name", ["data", "indices"])
def test_a_missing_zarr_chunk_is_refused(zarr_store, name):
    chunks_of(zarr_store / "X" / name)[0].unlink()
    with pytest.raises(UnreadableFile, match=rf"0 of 1 chunks of X/{name} are there"):
        read_all(zarr_store)


def test_a_zarr_folder_without_metadata_is_refused(zarr_store):
    shutil.rmtree(zarr_store)
    zarr_store.mkdir()
    with pytest.raises(UnreadableFile, match="cannot be read"):
        read_all(zarr_store)


@pytest.mark.parametrize("error", [AttributeError, TypeError, KeyError, IndexError, RuntimeError])
def test_rows_do_not_hide_an_error_of_our_own(h5ad, monkeypatch, error):
    """It is a bug to be reported, not a corrupt file to be downloaded again."""

    def mistaken(*_, **__):
        raise error("a mistake")

    monkeypatch.setattr(_files, "sparse", SimpleNamespace(csr_matrix=mistaken))
    with pytest.raises(error, match="a mistake"):
        read_all(h5ad)


@pytest.mark.parametrize("error", [AttributeError, TypeError, IndexError])
def test_reading_lets_errors_pass_that_no_library_raises(h5ad, error):
    with pytest.raises(error), AtlasFile("s", h5ad).reading():
        raise error


def test_contents_column_names_the_closest(h5ad):
    message = r"key='lable'.*source 's'.*Closest: 'label'"
    with AtlasFile("s", h5ad).open() as contents, pytest.raises(KeyError, match=message):
        contents.column("lable", "key")


@pytest.mark.parametrize("place", ["raw", "layer"])
def test_find_counts_in_raw_and_in_a_layer(tmp_path, place):
    source = make_cells(1)
    counts = source.X.copy()
    if place == "raw":
        source.raw = source.copy()
    else:
        source.layers["counts"] = counts
    source.X = np.log1p(source.X)
    source.write_h5ad(tmp_path / "s.h5ad")
    if place == "layer":
        with pytest.raises(ValueError, match=r"the value 0\.69\d* in X.*layer=\{'s': 'counts'\}"):
            build([tmp_path / "s.h5ad"], tmp_path / "no")
    build([tmp_path / "s.h5ad"], tmp_path / "out", layer="counts" if place == "layer" else None)
    store = read_store(tmp_path / "out")
    found = store[[f"s:{cell}" for cell in source.obs_names]]
    np.testing.assert_array_equal(found.X.toarray(), counts.toarray())
