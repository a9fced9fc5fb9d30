"""Annotations: tables of labels of all cells of a store, written in blocks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import zarr
from torch import distributed

from celler._utils._distributed import rank_and_size

FOLDER = "annotations"


def write_annotation(
    store: Path, key: str, tables: Iterator[tuple[np.ndarray, pd.DataFrame]], *, overwrite: bool
) -> Path:
    """Write each rank's rows and their ``tables``; an interrupted call leaves the table that was there before."""
    if not key or Path(key).name != key:
        raise ValueError(f"key_added={key!r} was given; a name that a folder can have is needed.")
    path, replaced = _places(store, key)
    if (path.exists() or replaced.exists()) and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it, or another key.")
    unfinished = path.with_name(f".{key}.unfinished")
    is_first = rank_and_size()[0] == 0
    if is_first:
        shutil.rmtree(unfinished, ignore_errors=True)
        zarr.open_group(unfinished, mode="w")
    _wait_for_all()
    group = zarr.open_group(unfinished, mode="r+")
    for index, table in tables:
        anndata.io.write_elem(group, f"{int(index[0]):012d}", table)
    _wait_for_all()
    if is_first:
        # No system call replaces a folder by another: the old table moves aside, where readers find it.
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        unfinished.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    _wait_for_all()
    return path


def read_annotation(store: Path, key: str) -> pd.DataFrame:
    """Return the table that :func:`write_annotation` wrote, in the order of the store."""
    path = next((place for place in _places(store, key) if place.is_dir()), None)
    if path is None:
        found = sorted(part.stem for part in (store / FOLDER).glob("*.zarr"))
        raise KeyError(f"the store has no annotation {key!r}; it has {found}.")
    group = zarr.open_group(path, mode="r")
    parts = [anndata.io.read_elem(group[name]) for name in sorted(group.group_keys())]
    # The categories of the parts differ where a label occurs in some of them only.
    columns = [name for name in parts[0] if isinstance(parts[0][name].dtype, pd.CategoricalDtype)]
    table = pd.concat([part.astype(dict.fromkeys(columns, object)) for part in parts])
    for name in columns:
        names = np.concatenate([part[name].cat.categories for part in parts])
        table[name] = pd.Categorical(table[name], list(dict.fromkeys(names)))
    return table


def _places(store: Path, key: str) -> tuple[Path, Path]:
    """Where the table lies, and where the old one lies while a new one takes its place."""
    return store / FOLDER / f"{key}.zarr", store / FOLDER / f".{key}.replaced"


def _wait_for_all() -> None:
    if rank_and_size()[1] > 1:
        distributed.barrier()
