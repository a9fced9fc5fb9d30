"""Blocks and counts on their way to a dataset, against plain NumPy."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse
from stores import build, make_cells, read_store

from celler.atlas._counts import Counts
from celler.atlas._store import read_manifest
from celler.atlas._write import read_blocks, write_block


@pytest.mark.parametrize(("n_genes", "dtype"), [(50, "uint16"), (70_000, "uint32")], ids=["narrow", "wide"])
def test_read_blocks_gives_the_cells_of_a_bucket(tmp_path, rng, n_genes, dtype):
    settings = {"dtype": dtype}
    plan = SimpleNamespace(n_buckets=4, genes=range(n_genes), settings=settings)
    blocks, parts = [tmp_path / name for name in ("one", "two", "none")], []
    for path, n_obs in zip(blocks, (40, 25, 0), strict=True):
        X = sparse.random(n_obs, n_genes, 0.05, "csr", random_state=1)
        X.data = rng.integers(1, np.iinfo(dtype).max, X.nnz).astype(np.float64)
        codes = rng.integers(-1, 5, (n_obs, 3)).astype(np.int32)
        names = np.array([f"{path.name}:Zelle-Ü{i}" * (1 + i % 3) for i in range(n_obs)], object)
        bucket = rng.integers(0, 4, n_obs)
        bucket[bucket == 2] = 0  # a dataset without cells
        bucket = np.sort(bucket)
        counts = Counts(X.indptr, X.indices, X.data.astype(dtype), None)
        write_block(plan, path, counts, codes, names, bucket)
        parts.append((X, codes, names, bucket))
    for number in (0, 1, 3):
        X, codes, names = read_blocks(blocks, number, n_genes)
        assert X.dtype == dtype
        is_in = [part[3] == number for part in parts]
        expected = [part[0][rows].toarray() for part, rows in zip(parts, is_in, strict=True)]
        np.testing.assert_array_equal(X.toarray(), np.concatenate(expected))
        expected = [part[1][rows] for part, rows in zip(parts, is_in, strict=True)]
        np.testing.assert_array_equal(codes, np.concatenate(expected))
        expected = np.concatenate([part[2][rows] for part, rows in zip(parts, is_in, strict=True)])
        assert [name.decode() for name in names] == list(expected)


def test_write_blocks_sums_columns_of_the_same_gene(tmp_path):
    source = make_cells(1)
    source.var_names = [*source.var_names[:-1], source.var_names[0]]
    source.X = source.X.astype(np.uint8) * np.uint8(60)  # the largest sums pass 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's, of names that are not unique
        build({"one": source}, tmp_path / "out")
    store = read_store(tmp_path / "out")
    found = store[[f"one:{cell}" for cell in source.obs_names]][:, "G0"].X.toarray().ravel()
    X = source.X.toarray().astype(int)
    np.testing.assert_array_equal(found, X[:, 0] + X[:, -1])


def test_write_blocks_leaves_out_cells_without_counts(tmp_path):
    source = make_cells(1)
    source.X.data[source.X.indptr[3] : source.X.indptr[4]] = 0
    build({"s": source}, tmp_path / "out")
    assert read_manifest(tmp_path / "out")["dropped"]["empty"] == 1
    assert read_store(tmp_path / "out").n_obs == 119


def test_write_dataset_mixes_the_sources(files, tmp_path):
    _, paths = files
    build(paths, tmp_path / "out")
    source = read_store(tmp_path / "out").obs["dataset"].cat.codes.to_numpy()
    # of random neighbours, one in three pairs is of one source
    assert 0.23 < (source[1:] == source[:-1]).mean() < 0.43


def test_close_collection_makes_what_annbatch_opens(files, tmp_path):
    annbatch = pytest.importorskip("annbatch")
    cells, paths = files
    build(paths, tmp_path / "out")
    collection = annbatch.DatasetCollection(tmp_path / "out" / "cells.zarr", mode="r")
    assert not collection.is_empty
    loader = annbatch.Loader(batch_size=32, chunk_size=8, preload_nchunks=8, preload_to_gpu=False)
    total = sum(part["X"].sum() for part in loader.use_collection(collection))
    assert total == sum(source.X.sum() for source in cells.values())
