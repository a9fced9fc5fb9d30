"""Cells in memory."""

import numpy as np
from scipy import sparse

from celler.data._sources import InMemoryCells


def test_in_memory_cells_holds_the_rows(rng):
    X, labels = rng.poisson(1.0, (9, 4)), rng.integers(-1, 3, size=9)
    source, index = InMemoryCells(sparse.csr_matrix(X), labels), np.array([4, 0, 4])
    block = source[index]
    assert len(source) == 9
    assert source.n_labelled == np.isin(labels, [0, 1, 2]).sum() < 9
    assert sparse.isspmatrix_csr(block.X)
    np.testing.assert_array_equal(block.X[block.rows].toarray(), X[index])
    np.testing.assert_array_equal(block.labels, labels[index])
    np.testing.assert_array_equal(block.index, index)
