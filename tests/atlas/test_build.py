"""A store holds every cell once as in its source; unusable input is named and leaves nothing."""

import logging
import os
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
from stores import assert_equal_stores, build, change, make_cells, read_store, write_zarr

import celler as cl
from celler.atlas._store import read_manifest


def test_build_holds_every_cell_once_as_in_its_source(files, tmp_path):
    cells, paths = files
    build(paths, tmp_path / "out")
    store = read_store(tmp_path / "out")
    assert len(read_manifest(tmp_path / "out")["datasets"]) > 1, "several datasets are to be tested"
    assert store.n_obs == 360
    assert store.obs_names.is_unique
    assert store.X.dtype == np.uint16
    for name, source in cells.items():
        found = store[[f"{name}:{cell}" for cell in source.obs_names]][:, source.var_names]
        np.testing.assert_array_equal(found.X.toarray(), np.asarray(anndata.AnnData(source.X).to_df()))
        for column, key in (("cell_type", "label"), ("donor", "donor"), ("tissue", "tissue")):
            assert list(found.obs[column].astype(str)) == list(source.obs[key].astype(str))
        assert set(found.obs["dataset"]) == {name}
        absent = store[found.obs_names][:, ~store.var_names.isin(source.var_names)]
        assert absent.X.nnz == 0


def test_build_with_the_same_and_with_another_seed(files, tmp_path):
    _, paths = files
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(paths, tmp_path / name, seed=seed)
    assert_equal_stores(tmp_path / "a", tmp_path / "b")
    first, other = (read_store(tmp_path / name).obs_names for name in "ac")
    assert set(first) == set(other)
    assert list(first) != list(other)


def test_build_from_anndata_equals_that_from_files(files, tmp_path):
    cells, paths = files
    before = cells["one"].copy()
    build(paths, tmp_path / "a")
    build(dict(cells), tmp_path / "b")
    assert_equal_stores(tmp_path / "a", tmp_path / "b")
    build(iter([cells["one"], cells["two"]]), tmp_path / "c")
    assert set(read_store(tmp_path / "c").obs["dataset"]) == {"source_0", "source_1"}
    pd.testing.assert_frame_equal(before.obs, cells["one"].obs)
    assert (before.X != cells["one"].X).nnz == 0


def corrupt(path):
    path.write_bytes(b"no HDF5 at all" * 100)


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_rows(path):
    adata = anndata.read_h5ad(path)
    adata.write_h5ad(path)
    import h5py

    with h5py.File(path, "a") as file:
        kept = file["X/data"][:-100]
        del file["X/data"]
        file["X/data"] = kept


@pytest.mark.parametrize(
    ("spoil", "options", "error", "match"),
    [
        (corrupt, {}, ValueError, r"source 's1' \(.*s1.h5ad\) cannot be read.*corrupt"),
        (cut_off, {}, ValueError, r"source 's1' .*cannot be read.*truncated.*half-written"),
        (lose_rows, {}, ValueError, r"source 's1'.*should hold 120 rows.*half-written"),
        (os.remove, {}, FileNotFoundError, r"source 's1' .* does not exist"),
        (change(genes="Z"), {}, ValueError, r"source 's1' shares under 20% .*'Z0'.*'G0'"),
        (change(X=1.5), {}, ValueError, r"cell 'AC0007-1' of source 's1' .*value 1\.5 in X.*whole"),
        (change(X=-2.0), {}, ValueError, r"cell 'AC0007-1' of source 's1' .*value -2"),
        (change(X=np.nan), {}, ValueError, r"cell 'AC0007-1' of source 's1' .*value nan"),
        (change(label=0.5), {}, ValueError, r"obs\['label'\] of source 's1' .*numbers such as 0.5"),
        (
            None,
            {"labels_key": "lable"},
            KeyError,
            r"labels_key='lable'.*source 's0'.*Closest: 'label'",
        ),
        (None, {"labels_key": {"s0": "label"}}, ValueError, r"lacks the source 's1'"),
        (None, {"labels_key": {"x": "label"}}, ValueError, r"names the source 'x'.*Sources"),
        (None, {"columns": {"organ": "tissue"}}, ValueError, r"columns names 'organ'.*Columns"),
        (None, {"columns": {"tissue": "tisue"}}, KeyError, r"'tisue'.*Closest: 'tissue'"),
        (None, {"layer": "count"}, KeyError, r"layer='count' is not in source 's0'.*\['X'\]"),
        (None, {"drop": ["rar"]}, ValueError, r"drop names 'rar'.*Closest: 'rare'"),
        (None, {"drop": "rare"}, TypeError, r"drop='rare' was given"),
        (None, {"genes": "all"}, ValueError, r"genes='all'"),
        (None, {"test_size": 1.0}, ValueError, r"test_size=1.0"),
        (None, {"mapping": "no.csv"}, FileNotFoundError, r"mapping='no.csv'"),
        (None, {"parents": {"B": "x"}}, ValueError, r"parents has no entry for"),
        (None, {"parents": "parent"}, TypeError, r"parents is a str"),
        (None, {"gene_key": "symbol"}, KeyError, r"source 's0': gene_key='symbol'"),
        (None, {"drop": ["B", "NK", "T", "rare"]}, ValueError, r"none of the 360 cells is left"),
    ],
)
def test_build_of_unusable_input_leaves_nothing(paths, tmp_path, spoil, options, error, match):
    if spoil is not None:
        spoil(paths[1])
    with pytest.raises(error, match=match):
        build(paths, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_build_with_a_wide_count_as_uint32(paths, tmp_path):
    change(X=70000.0)(paths[1])
    build(paths, tmp_path / "out", storage=cl.atlas.Storage(dtype="uint32"))
    parts = [anndata.read_zarr(p) for p in (tmp_path / "out" / "cells.zarr").glob("dataset_*")]
    assert {part.X.dtype for part in parts} == {np.dtype(np.uint32)}
    assert max(part.X.max() for part in parts) == 70000


def test_build_of_a_zarr_store_that_lacks_a_chunk(tmp_path):
    write_zarr(tmp_path / "s.zarr", make_cells(1))
    chunk = next(p for p in (tmp_path / "s.zarr" / "X" / "indices").rglob("*") if p.name == "0")
    chunk.unlink()
    with pytest.raises(ValueError, match=r"source 's'.*0 of 1 chunks of X/indices are there"):
        build([tmp_path / "s.zarr"], tmp_path / "out")


@pytest.mark.parametrize(
    ("sources", "error", "match"),
    [
        ([], ValueError, "sources is empty"),
        ("one.h5ad", TypeError, "sources='one.h5ad' was given"),
        ([3], TypeError, "sources holds a int"),
        (["a/x.h5ad", "b/x.h5ad"], ValueError, r"several sources are named \['x'\]"),
    ],
)
def test_name_sources_of_unusable_sources(tmp_path, sources, error, match):
    with pytest.raises(error, match=match):
        build(sources, tmp_path / "out")


def test_build_without_bars_where_scvi_is_silent(paths, tmp_path, capsys):
    build(paths, tmp_path / "loud")
    assert "Shuffle" in capsys.readouterr().err
    logger = logging.getLogger("scvi")  # scvi.settings.verbosity sets its level
    before = logger.level
    try:
        logger.setLevel(logging.WARNING)
        build(paths, tmp_path / "quiet")
    finally:
        logger.setLevel(before)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the engine runs here")
def test_build_on_python_3_11(monkeypatch, tmp_path):
    monkeypatch.undo()
    for call in (lambda: build([], tmp_path / "out"), lambda: cl.atlas.summary(tmp_path)):
        with pytest.raises(ImportError, match=r"Python 3\.11 was found"):
            call()
