"""Datasets: a synthetic long tail, and the real cells that come with scanpy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from celler._utils._check import checked

__all__ = ["pbmc68k", "toy_long_tail"]


@checked
def pbmc68k() -> AnnData:
    """Return 700 peripheral blood cells of 10 types, 8 to 240 cells each, by 765 genes.

    They come with scanpy as ``pbmc68k_reduced``; nothing is downloaded.

    Returns
    -------
    anndata.AnnData
        log1p-normalised values in ``X``, scanpy's ``bulk_labels`` in ``obs["cell_type"]``.

    Examples
    --------
    >>> adata = cl.datasets.pbmc68k()
    """
    reduced = sc.datasets.pbmc68k_reduced()
    obs = pd.DataFrame({"cell_type": reduced.obs["bulk_labels"].astype("category")})
    adata = AnnData(X=sparse.csr_matrix(reduced.raw.X), obs=obs, var=pd.DataFrame(index=reduced.raw.var_names))
    adata.obsm["X_umap"] = reduced.obsm["X_umap"].copy()
    return adata


@checked
def toy_long_tail(
    n_obs: int = 1000, n_vars: int = 200, n_classes: int = 6, imbalance: float = 50.0, seed: int = 0
) -> AnnData:
    """Generate counts of classes whose sizes fall exponentially, each with ten marker genes.

    Parameters
    ----------
    n_obs
        Number of cells.
    n_vars
        Number of genes, at least ten per class.
    n_classes
        Number of classes.
    imbalance
        Ratio of the largest to the smallest class.
    seed
        Seed of the random numbers.

    Returns
    -------
    anndata.AnnData
        CSR counts in ``X``; ``cell_type``, ``parent_type`` and ``donor`` in ``obs``.

    Raises
    ------
    ValueError
        There are too few genes for the markers.

    Examples
    --------
    >>> adata = cl.datasets.toy_long_tail(500, n_classes=4)
    """
    if n_vars < 10 * n_classes:
        raise ValueError(f"n_vars={n_vars} was given; {n_classes} classes need {10 * n_classes} marker genes.")
    rng = np.random.default_rng(seed)
    profile = imbalance ** -np.linspace(0, 1, n_classes)
    counts = np.maximum(2, (n_obs * profile / profile.sum()).astype(int))
    counts[0] += n_obs - counts.sum()
    codes = rng.permutation(np.repeat(np.arange(n_classes), counts))
    rates = np.tile(rng.gamma(0.5, 1.0, n_vars), (n_classes, 1))
    for j in range(n_classes):
        rates[j, 10 * j : 10 * j + 10] += 3.0
    depth = rng.lognormal(0, 0.3, (n_obs, 1))
    X = sparse.csr_matrix(rng.poisson(rates[codes] * depth).astype(np.float32))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type {j}" for j in codes]),
            "parent_type": pd.Categorical([f"lineage {j // 2}" for j in codes]),
            "donor": pd.Categorical([f"donor {j}" for j in rng.integers(4, size=n_obs)]),
        },
        index=[f"cell {i}" for i in range(n_obs)],
    )
    return AnnData(X=X, obs=obs, var=pd.DataFrame(index=[f"gene {i}" for i in range(n_vars)]))
