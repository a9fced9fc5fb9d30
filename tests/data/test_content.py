"""The number of a cell: from its values alone."""

import numpy as np
from scipy import sparse

from celler.data._content import content_of


def test_content_of_cells_in_any_order(rng):
    X = sparse.csr_matrix(rng.poisson(0.5, (50, 30)).astype(np.float32))
    genes = np.arange(30)
    found = content_of(X, genes)
    assert len(np.unique(found)) == 50
    rows, columns = rng.permutation(50), rng.permutation(30)
    np.testing.assert_array_equal(content_of(X[rows], genes), found[rows])
    np.testing.assert_array_equal(content_of(sparse.csr_matrix(X[:, columns]), genes[columns]), found)


def test_content_of_zeros_and_genes_that_the_model_lacks(rng):
    X = sparse.csr_matrix(rng.poisson(0.5, (20, 10)).astype(np.float32))
    found = content_of(X, np.arange(10))
    explicit = X.copy()
    explicit.data[3] = 0
    clean = explicit.copy()
    clean.eliminate_zeros()
    np.testing.assert_array_equal(content_of(explicit, np.arange(10)), content_of(clean, np.arange(10)))
    more = sparse.hstack([X, np.ones((20, 1), np.float32)], format="csr")
    np.testing.assert_array_equal(content_of(more, np.r_[np.arange(10), -1]), found)


def test_content_of_cells_is_uniform(rng):
    """The cells with the smallest numbers are a random sample: large and small cells are equally many."""
    depth = np.repeat([1, 20], 2000)
    X = sparse.csr_matrix(rng.poisson(0.1 * depth[:, None], (4000, 40)).astype(np.float32))
    X = X[np.asarray(X.sum(1)).ravel() > 5]  # distinct cells
    smallest = np.argsort(content_of(X, np.arange(40)))[:500]
    assert abs((np.asarray(X.sum(1)).ravel()[smallest] > 40).mean() - (np.asarray(X.sum(1)).ravel() > 40).mean()) < 0.08
