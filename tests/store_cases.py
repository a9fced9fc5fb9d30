"""A small store on disk, written with annbatch and not with our own builder."""

import json
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import toy

#: Arguments of a DataModule, or of setup_anndata, for the cells of ``reference``.
SETUP = {"labels_key": "cell_type", "parent_labels_key": "parent_type"}


def write_store(folder: Path, adata: ad.AnnData, n_datasets: int = 2) -> Path:
    """The cells of ``adata`` in their order, split over ``n_datasets``; obs columns as categories."""
    import zarr
    from annbatch import write_sharded

    folder.mkdir(parents=True, exist_ok=True)
    group = zarr.open_group(folder / "cells.zarr", mode="w")
    group.attrs.update({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})
    adata = adata.copy()
    adata.X = adata.X.astype(np.uint16)
    for key in adata.obs.columns:
        column = adata.obs[key]
        names = sorted(column.dropna().astype(str).unique())
        adata.obs[key] = pd.Categorical(column.astype(object), names)
    for i, rows in enumerate(np.array_split(np.arange(adata.n_obs), n_datasets)):
        part = adata[rows].copy()
        for key in adata.obs.columns:
            part.obs[key] = part.obs[key].cat.set_categories(adata.obs[key].cat.categories)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            write_sharded(group, part, key=f"dataset_{i}")
    (folder / "manifest.json").write_text(json.dumps({"format": "celler-atlas", "version": 1}))
    return folder


def shuffled(adata: ad.AnnData, seed: int = 0) -> ad.AnnData:
    """The same cells in random order, as a build leaves them."""
    return adata[np.random.default_rng(seed).permutation(adata.n_obs)].copy()


def reference(n_obs: int, donors: list[str]) -> ad.AnnData:
    """Toy cells in the order of their store, a tenth for tests, two without a label."""
    adata = shuffled(toy.cells(n_obs))
    rng = np.random.default_rng(0)
    adata.obs["split"] = np.where(rng.random(n_obs) < 0.1, "test", "train")
    adata.obs["donor"] = rng.choice(donors, n_obs)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.iloc[[3, 700], adata.obs.columns.get_loc("cell_type")] = np.nan
    return adata
