"""Blocks and counts on their way to a dataset, against plain NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from celler.atlas._write import _to_genes, read_block, write_block


@pytest.mark.parametrize(
    ("n_genes", "dtype"), [(50, "uint16"), (70_000, "uint32")], ids=["narrow", "wide"]
)
def test_read_block_gives_the_cells_of_a_bucket(tmp_path, rng, n_genes, dtype):
    X = sparse.random(40, n_genes, 0.05, "csr", random_state=1)
    X.data = rng.integers(1, np.iinfo(dtype).max, X.nnz).astype(np.float64)
    codes = rng.integers(-1, 5, (40, 3)).astype(np.int32)
    names = np.array([f"study:Zelle-Ü{i}" * (1 + i % 3) for i in range(40)], object)
    bucket = rng.integers(0, 4, 40)
    bucket[bucket == 2] = 0  # a dataset without cells here
    settings = {"dtype": dtype}
    plan = SimpleNamespace(n_buckets=4, genes=range(n_genes), settings=settings)
    write_block(plan, tmp_path / "block", X, codes, names, bucket)
    for number in range(4):
        found, found_codes, found_names = read_block(tmp_path / "block", number, n_genes)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.toarray(), X[bucket == number].toarray())
        np.testing.assert_array_equal(found_codes, codes[bucket == number])
        assert [name.decode() for name in found_names] == list(names[bucket == number])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_to_genes_sums_columns_of_the_same_gene(rng, dtype):
    X = rng.poisson(0.5, (30, 12)) * 60
    gene_map = np.array([3, -1, 0, 3, 3, 5, 1, -1, 0, 7, 6, 3])
    expected = np.zeros((30, 9), int)
    for column, gene in enumerate(gene_map):
        if gene >= 0:
            expected[:, gene] += X[:, column]
    stored = sparse.csr_matrix(X.astype(dtype))
    stored.data[::7] = 0  # stored zeros
    for column, gene in enumerate(gene_map):
        if gene >= 0:
            expected[:, gene] -= (X - stored.toarray().astype(int))[:, column]
    found = _to_genes(stored, gene_map, 9)
    np.testing.assert_array_equal(found.toarray(), expected)
    assert found.has_sorted_indices
    assert (found.data != 0).all()
