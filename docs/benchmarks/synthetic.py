"""Synthetic cells: sparse counts to measure time and memory with. A helper of other scripts here."""

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

#: Cells that are made at once, so that making them needs no memory beyond theirs.
BLOCK = 1000


def synthetic_cells(
    n_cells: int,
    *,
    n_genes: int = 3000,
    n_expressed: int = 500,
    n_classes: int = 20,
    seed: int = 0,
) -> AnnData:
    """Counts of ``n_cells`` cells that each express ``n_expressed`` of ``n_genes`` genes, float32 CSR.

    ``obs["cell_type"]`` has ``n_classes`` types in equal shares, each with higher counts in genes of its own.
    """
    if not 1 <= n_expressed <= n_genes:
        raise ValueError(f"n_expressed={n_expressed} was given; 1 to n_genes={n_genes} is needed.")
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n_cells) % n_classes)
    stride = next(k for k in range(n_genes // n_expressed, 0, -1) if np.gcd(k, n_genes) == 1)
    indices = np.empty((n_cells, n_expressed), np.int32)
    counts = np.empty((n_cells, n_expressed), np.float32)
    for first in range(0, n_cells, BLOCK):
        rows = slice(first, min(n_cells, first + BLOCK))
        start = rng.integers(n_genes, size=(rows.stop - first, 1))
        indices[rows] = np.sort((start + np.arange(n_expressed) * stride) % n_genes, axis=1)
        is_marker = indices[rows] * n_classes // n_genes == codes[rows, None]
        counts[rows] = rng.poisson(0.8 + 2 * is_marker) + 1
    indptr = np.arange(n_cells + 1, dtype=np.int64) * n_expressed
    X = sparse.csr_matrix((counts.ravel(), indices.ravel(), indptr), (n_cells, n_genes))
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(codes, [f"type {k}" for k in range(n_classes)])},
        index=[f"cell {i}" for i in range(n_cells)],
    )
    return AnnData(X, obs, pd.DataFrame(index=[f"gene {i}" for i in range(n_genes)]))
