"""Annotations: tables of labels beside the cells of a store, written block by block, whole or not at all."""

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
    """Write each table under the first of its rows in the store; with torch.distributed, each rank its own."""
    folder = store / FOLDER
    path, unfinished = folder / f"{key}.zarr", folder / f".{key}.unfinished"
    if not key or Path(key).name != key:
        raise ValueError(f"key_added={key!r} was given; a name that a folder can have is needed.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it, or another key.")
    is_first = rank_and_size()[0] == 0
    if is_first:
        shutil.rmtree(unfinished, ignore_errors=True)
        zarr.open_group(unfinished, mode="w")
    wait_for_all()
    group = zarr.open_group(unfinished, mode="r+")
    for index, table in tables:
        anndata.io.write_elem(group, f"{int(index[0]):012d}", table)
    wait_for_all()
    if is_first:
        shutil.rmtree(path, ignore_errors=True)
        unfinished.rename(path)
    wait_for_all()
    return path


def read_annotation(store: Path, key: str) -> pd.DataFrame:
    """The table that :func:`write_annotation` wrote, in the order of the store."""
    path = store / FOLDER / f"{key}.zarr"
    if not path.is_dir():
        found = sorted(part.stem for part in (store / FOLDER).glob("*.zarr"))
        raise KeyError(f"the store has no annotation {key!r}; it has {found}.")
    group = zarr.open_group(path, mode="r")
    parts = [anndata.io.read_elem(group[name]) for name in sorted(group.group_keys())]
    table = pd.concat([part.astype(_plain(part)) for part in parts])
    for name in _plain(parts[0]):
        names = [part[name].cat.categories for part in parts]
        table[name] = pd.Categorical(table[name], list(dict.fromkeys(np.concatenate(names))))
    return table


def _plain(table: pd.DataFrame) -> dict[str, type]:
    """The categorical columns, to be read as objects: parts may differ in whether a cell is unknown."""
    return {
        name: object for name in table.columns if isinstance(table[name].dtype, pd.CategoricalDtype)
    }


def wait_for_all() -> None:
    """Go on when all ranks are here."""
    if rank_and_size()[1] > 1:
        distributed.barrier()
