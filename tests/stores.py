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
from celler.atlas._checksums import OF_CELL


def make_cells(seed: int, n_obs: int = 120, n_vars: int = 40, donors: str = "D", offset: int = 0) -> anndata.AnnData:
    """Counts of four types and six donors; genes are numbered from ``offset`` on."""
    rng = np.random.default_rng(seed)
    X = sparse.csr_matrix(rng.poisson(0.7, (n_obs, n_vars)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "label": pd.Categorical(rng.choice(["B", "NK", "T", "rare"], n_obs, p=[0.4, 0.3, 0.25, 0.05])),
            "donor": [f"{donors}{i}" for i in rng.integers(6, size=n_obs)],
            "tissue": rng.choice(["lung", "liver"], n_obs),
        },
        index=[f"AC{i:04d}-{seed}" for i in range(n_obs)],
    )
    return anndata.AnnData(X, obs, pd.DataFrame(index=[f"G{offset + i}" for i in range(n_vars)]))


def write_sources(folder: Path) -> list[Path]:
    """Three files of the same genes and of six donors each."""
    found = []
    for seed in range(3):
        found.append(folder / f"s{seed}.h5ad")
        make_cells(seed, donors="DEF"[seed]).write_h5ad(found[-1])
    return found


def write_forms(folder: Path) -> tuple[dict[str, anndata.AnnData], list[Path]]:
    """CSR in h5ad, CSC in zarr with other genes in another order, dense in h5ad."""
    one, two, three = make_cells(1), make_cells(2, donors="E", offset=5), make_cells(3, donors="F")
    two = two[:, ::-1].copy()
    two.X = sparse.csc_matrix(two.X)
    three.X = three.X.toarray()
    one.write_h5ad(folder / "one.h5ad")
    write_zarr(folder / "two.zarr", two)
    three.write_h5ad(folder / "three.h5ad")
    paths = [folder / "one.h5ad", folder / "two.zarr", folder / "three.h5ad"]
    return {"one": one, "two": two, "three": three}, paths


def build(sources, out: Path, **options):
    """Build with the column of :func:`make_cells`."""
    return celler.atlas._build.build(sources, out, **{"labels_key": "label"} | options)


class Killed(BaseException):
    """What no handler of the package may catch."""


def kill_at(monkeypatch, place, name: str, n_call: int, *, after: bool) -> None:
    """Raise ``Killed`` at the n-th call of a function, before or after its work."""
    whole, n_done = getattr(place, name), [0]

    def dying(*args, **kwargs):
        n_done[0] += 1
        if n_done[0] == n_call and not after:
            raise Killed
        result = whole(*args, **kwargs)
        if n_done[0] == n_call:
            raise Killed
        return result

    monkeypatch.setattr(place, name, dying)


def change(**what):
    """An edit of the AnnData in a file."""

    def edit(path):
        adata = anndata.read_h5ad(path)
        for name, value in what.items():
            if name == "X":
                adata.X[7, np.flatnonzero(adata.X[7].toarray())[0]] = value
            elif name == "genes":
                adata.var_names = [f"{value}{i}" for i in range(adata.n_vars)]
            else:
                adata.obs[name] = value
        adata.write_h5ad(path)

    return edit


def write_zarr(path: Path, adata: anndata.AnnData) -> None:
    """Write format 3, which newer anndata does by itself."""
    older = {} if sys.version_info >= (3, 12) else {"zarr_write_format": 3, "auto_shard_zarr_v3": False}
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
    names = celler.atlas._summary.dataset_names(zarr.open_group(out / "cells.zarr", mode="r"))
    parts = [anndata.read_zarr(out / "cells.zarr" / name) for name in names]
    for part in parts:
        assert part.obs.pop(OF_CELL).dtype == np.uint32
    whole = anndata.concat(parts)
    for part in parts:
        for column in part.obs:
            assert list(part.obs[column].cat.categories) == list(parts[0].obs[column].cat.categories)
        assert list(part.var_names) == list(parts[0].var_names)
    return whole


def assert_equal_stores(one: Path, other: Path) -> None:
    """Same cells in the same order in the same datasets."""
    names = celler.atlas._summary.dataset_names(zarr.open_group(one / "cells.zarr", mode="r"))
    assert names == celler.atlas._summary.dataset_names(zarr.open_group(other / "cells.zarr", mode="r"))
    for name in names:
        a, b = (anndata.read_zarr(out / "cells.zarr" / name) for out in (one, other))
        pd.testing.assert_frame_equal(a.obs, b.obs)
        pd.testing.assert_frame_equal(a.var, b.var)
        for x, y in zip((a.X.data, a.X.indices, a.X.indptr), (b.X.data, b.X.indices, b.X.indptr), strict=True):
            np.testing.assert_array_equal(x, y)
