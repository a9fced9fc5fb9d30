"""Datasets: a synthetic long tail, and the real cells that come with scanpy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

__all__ = ["pbmc68k", "toy_long_tail"]


def pbmc68k() -> AnnData:
    """700 peripheral blood cells of 10 types, 240 down to 8 cells, by 765 genes; nothing is downloaded.

    ``X`` holds log1p-normalised values (scanpy's ``pbmc68k_reduced`` keeps them in ``raw`` and
    scaled ones in ``X``) and ``obs["cell_type"]`` its ``bulk_labels``.
    """
    reduced = sc.datasets.pbmc68k_reduced()
    obs = pd.DataFrame({"cell_type": reduced.obs["bulk_labels"].astype("category")})
    adata = AnnData(
        X=sparse.csr_matrix(reduced.raw.X), obs=obs, var=pd.DataFrame(index=reduced.raw.var_names)
    )
    adata.obsm["X_umap"] = reduced.obsm["X_umap"].copy()
    return adata


def toy_long_tail(
    n_obs: int = 1000, n_vars: int = 200, n_classes: int = 6, imbalance: float = 50.0, seed: int = 0
) -> AnnData:
    """Synthetic counts with an exponential profile of class sizes, for trying things out and for tests.

    Every class has ten marker genes; ``imbalance`` is largest to smallest class. ``X`` is CSR
    counts, ``obs`` has ``cell_type``, ``parent_type`` and ``donor``.
    """
    if n_vars < 10 * n_classes:
        raise ValueError(
            f"n_vars={n_vars} was given; {n_classes} classes need {10 * n_classes} marker genes."
        )
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
