"""Sources and stores for the tests of the atlas."""

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import zarr
from scipy import sparse

import celler.atlas._build
import celler.atlas._plan
import celler.atlas._summary
import celler.atlas._write


def make_cells(
    seed: int, n_obs: int = 120, n_vars: int = 40, donors: str = "D", offset: int = 0
) -> anndata.AnnData:
    """Counts of four types and six donors; genes are numbered from ``offset`` on."""
    rng = np.random.default_rng(seed)
    X = sparse.csr_matrix(rng.poisson(0.7, (n_obs, n_vars)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "label": pd.Categorical(
                rng.choice(["B", "NK", "T", "rare"], n_obs, p=[0.4, 0.3, 0.25, 0.05])
            ),
            "donor": [f"{donors}{i}" for i in rng.integers(6, size=n_obs)],
            "tissue": rng.choice(["lung", "liver"], n_obs),
        },
        index=[f"AC{i:04d}-{seed}" for i in range(n_obs)],
    )
    return anndata.AnnData(X, obs, pd.DataFrame(index=[f"G{offset + i}" for i in range(n_vars)]))


def write_zarr(path: Path, adata: anndata.AnnData) -> None:
    """Write format 3, which newer anndata does by itself."""
    older = (
        {} if sys.version_info >= (3, 12) else {"zarr_write_format": 3, "auto_shard_zarr_v3": False}
    )
    with anndata.settings.override(**older), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        adata.write_zarr(path)


def use_any_engine(monkeypatch) -> None:
    """Without annbatch, as on Python 3.11, anndata writes the datasets; all else is as it is."""
    if find_spec("annbatch") is not None:
        return

    def close(store: Path) -> None:
        zarr.open_group(store, mode="a", zarr_format=3)

    monkeypatch.setattr(celler.atlas._build, "require_engine", lambda: None)
    monkeypatch.setattr(celler.atlas._summary, "require_engine", lambda: None)
    monkeypatch.setattr(celler.atlas._write, "_write_zarr", write_zarr)
    monkeypatch.setattr(celler.atlas._build, "close_collection", close)


def cut_small(monkeypatch) -> None:
    """Several blocks per source and several datasets, although the sources are small."""
    monkeypatch.setattr(celler.atlas._plan, "BYTES_PER_VALUE", 6e5)
    monkeypatch.setattr(celler.atlas._write, "N_VALUES", 1200)


def read_store(out: Path) -> anndata.AnnData:
    """All cells of a store in their order, read by anndata alone."""
    names = celler.atlas._summary.dataset_names(out / "cells.zarr")
    parts = [anndata.read_zarr(out / "cells.zarr" / name) for name in names]
    whole = anndata.concat(parts)
    for part in parts:
        for column in part.obs:
            assert list(part.obs[column].cat.categories) == list(
                parts[0].obs[column].cat.categories
            )
        assert list(part.var_names) == list(parts[0].var_names)
    return whole


def assert_equal_stores(one: Path, other: Path) -> None:
    """Same cells in the same order in the same datasets."""
    names = celler.atlas._summary.dataset_names(one / "cells.zarr")
    assert names == celler.atlas._summary.dataset_names(other / "cells.zarr")
    for name in names:
        a, b = (anndata.read_zarr(out / "cells.zarr" / name) for out in (one, other))
        pd.testing.assert_frame_equal(a.obs, b.obs)
        pd.testing.assert_frame_equal(a.var, b.var)
        for x, y in zip(
            (a.X.data, a.X.indices, a.X.indptr), (b.X.data, b.X.indices, b.X.indptr), strict=True
        ):
            np.testing.assert_array_equal(x, y)
