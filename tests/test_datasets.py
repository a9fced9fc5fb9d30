"""Datasets: what they promise to hold."""

import numpy as np
import pytest
import scanpy as sc
from scipy import sparse, stats

from celler.datasets import pbmc68k, toy_long_tail


def test_pbmc68k_equals_scanpys_raw():
    adata, original = pbmc68k(), sc.datasets.pbmc68k_reduced()
    assert adata.shape == (700, 765)
    assert sparse.issparse(adata.X)
    np.testing.assert_array_equal(adata.X.toarray(), original.raw.X.toarray())
    assert adata.obs_names.equals(original.obs_names)
    assert adata.var_names.equals(original.raw.var_names)
    assert list(adata.obs["cell_type"]) == list(original.obs["bulk_labels"])
    counts = adata.obs["cell_type"].value_counts()
    assert (len(counts), counts.max(), counts.min()) == (10, 240, 8)
    np.testing.assert_array_equal(adata.obsm["X_umap"], original.obsm["X_umap"])


def test_toy_long_tail_has_the_requested_sizes():
    adata = toy_long_tail(n_obs=2000, n_vars=100, n_classes=5, imbalance=100, seed=1)
    assert adata.shape == (2000, 100)
    sizes = adata.obs["cell_type"].value_counts()
    assert sizes["type 0"] / sizes["type 4"] == pytest.approx(100, rel=0.1)
    ratios = sizes.loc[[f"type {j}" for j in range(5)]].to_numpy()
    np.testing.assert_allclose(ratios[:-1] / ratios[1:], 100**0.25, rtol=0.1)
    assert sizes.index.nunique() == 5
    parents = adata.obs.groupby("cell_type", observed=True)["parent_type"].unique()
    assert [list(p) for p in parents] == [
        [f"lineage {j}"] for j in (0, 0, 1, 1, 2)
    ]  # fmt: skip
    assert adata.obs["donor"].nunique() == 4


def test_toy_long_tail_has_ten_markers_per_class():
    adata = toy_long_tail(n_obs=1000, n_classes=3, imbalance=5)
    assert sparse.isspmatrix_csr(adata.X)
    assert adata.X.min() >= 0
    np.testing.assert_array_equal(adata.X.data, np.round(adata.X.data))
    for j in range(3):
        inside = (adata.obs["cell_type"] == f"type {j}").to_numpy()
        X = adata.X.toarray()
        p = stats.mannwhitneyu(X[inside], X[~inside], alternative="greater").pvalue
        assert set(np.flatnonzero(p < 1e-9)) == set(range(10 * j, 10 * j + 10))


def test_toy_long_tail_with_the_same_seed():
    one, same, other = (toy_long_tail(300, 60, 3, seed=seed) for seed in (1, 1, 2))
    assert (one.X != same.X).nnz == 0
    assert list(one.obs["cell_type"]) == list(same.obs["cell_type"])
    assert (one.X != other.X).nnz > 0


def test_toy_long_tail_with_too_few_genes():
    with pytest.raises(ValueError, match="n_vars=30 was given; 6 classes need 60 marker genes"):
        toy_long_tail(n_vars=30)
