"""Content: a number for each cell that follows from its values alone, so that a sample does not depend on the order."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from celler._utils._compile import compiled
from celler._utils._random import mixed


def content_of(X: sparse.csr_matrix, gene_map: np.ndarray) -> np.ndarray:
    """Return a pseudo-random number ``(n,)``, uint64, of each row of ``X (n, n_vars)``.

    It follows from the values of the model's genes, of which ``gene_map (n_vars,)`` has the number or -1, whatever the
    order of rows and columns. Equal cells get equal numbers, others almost surely different ones.
    """
    return np.asarray(_content(X.indptr, X.indices, X.data.astype(np.float32).view(np.uint32), gene_map))


@compiled
def _content(indptr: np.ndarray, indices: np.ndarray, bits: np.ndarray, gene_map: np.ndarray) -> np.ndarray:
    found = np.zeros(len(indptr) - 1, np.uint64)
    for row in range(len(found)):
        columns, values = indices[indptr[row] : indptr[row + 1]], bits[indptr[row] : indptr[row + 1]]
        total = np.uint64(0)  # a sum, which has no order
        for k in range(len(columns)):
            gene = gene_map[np.uint32(columns[k])]
            number = mixed(np.uint64(np.uint32(gene)) << np.uint64(32) | np.uint64(values[k]))
            total += number * np.uint64((gene >= 0) & (values[k] != 0))  # without a branch, several at once
        found[row] = mixed(total)
    return found
