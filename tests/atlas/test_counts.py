"""Counts in the genes and types of the store, against plain NumPy."""

import numpy as np
import pytest
from scipy import sparse

from celler.atlas._counts import in_genes

TYPES = np.dtype("u2"), np.dtype("u2")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_in_genes_sorts_and_sums_columns_of_the_same_gene(rng, dtype):
    X = rng.poisson(0.5, (30, 150)) * 60
    gene_map = rng.permutation(np.r_[np.arange(-1, 130), rng.integers(-1, 130, 19)])
    rows = rng.permutation(30)[:20]
    stored = sparse.csr_matrix(X.astype(dtype))
    stored.data[::7] = 0  # stored zeros
    expected = np.zeros((20, 130), int)
    for column, gene in enumerate(gene_map):
        if gene >= 0:
            expected[:, gene] += stored.toarray()[rows, column].astype(int)
    indptr, genes, values, misfit = in_genes(stored, rows, gene_map, 130, TYPES)
    found = sparse.csr_matrix((values, genes.astype(np.int32), indptr), (20, 130))
    np.testing.assert_array_equal(found.toarray(), expected)
    assert all((np.diff(cell) > 0).all() for cell in np.split(genes, indptr[1:-1]))
    assert (values != 0).all()
    assert misfit is None
    assert (genes.dtype, values.dtype) == TYPES


def test_in_genes_names_the_first_count_that_does_not_fit():
    X = sparse.csr_matrix(np.array([[0, 5], [65_535, 0], [65_000, 536], [70_000, 0]], np.float32))
    one, other = np.array([0, 1]), np.array([0, 0])
    assert in_genes(X, np.arange(2), other, 1, TYPES).misfit is None
    assert in_genes(X, np.array([2]), one, 2, TYPES).misfit is None
    assert in_genes(X, np.array([1, 2, 3]), other, 1, TYPES).misfit == (1, 65_536)
    assert in_genes(X, np.array([1, 3, 2]), one, 2, TYPES).misfit == (1, 70_000)
    infinite = sparse.csr_matrix(np.array([[np.inf]], np.float32))
    assert in_genes(infinite, np.array([0]), one, 2, TYPES).misfit == (0, np.inf)


def test_in_genes_of_no_cells():
    found = in_genes(sparse.csr_matrix((3, 2), dtype=np.float32), np.arange(0), np.arange(2), 2, TYPES)
    assert found.indptr.tolist() == [0]
    assert len(found.genes) == len(found.values) == 0
