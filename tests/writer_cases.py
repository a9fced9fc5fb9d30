"""Writers in processes of their own, which are killed, run out of room, may not write, or meet another."""

import errno
import os
import resource
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd


def cells(version: int) -> ad.AnnData:
    adata = ad.AnnData(np.full((400, 300), version, np.float32))
    adata.uns["version"] = version
    return adata


def write_h5ad(place: Path, version: int) -> None:
    from celler._utils._write import write_h5ad

    write_h5ad(cells(version), place, overwrite=True)


def read_h5ad(place: Path) -> int:
    adata = ad.read_h5ad(place)
    assert adata.X.shape == (400, 300)
    assert (adata.uns["version"] == adata.X).all()
    return int(adata.uns["version"])


def write_table(place: Path, version: int) -> None:
    from celler._utils._write import write_table

    write_table(pd.DataFrame({"version": [version] * 20_000}), place)


def read_table(place: Path) -> int:
    table = pd.read_csv(place)
    assert len(table) == 20_000
    (version,) = table["version"].unique()
    return int(version)


def write_model(place: Path, version: int) -> None:
    from celler.model._folder import write_folder

    contents = model()
    plain = contents[0] | {"fitted": contents[0]["fitted"] | {"seed": version}}
    write_folder(place, plain, contents[1], f"card {version}", f"card {version}", overwrite=True)


def read_model(place: Path) -> int:
    from celler.model._folder import read_folder

    return int(read_folder(place)["fitted"]["seed"])


def model() -> tuple:
    """The contents of a small model, read once in a process."""
    if not hasattr(model, "contents"):
        import toy

        from celler.model import _checkpoint
        from celler.model._contents import encoded

        contents = _checkpoint.contents_of(toy.trained()._saved)
        try:
            from celler.model._folder import plain_and_arrays
        except ImportError:
            from celler.model._arrays import plain_and_arrays
        model.contents = plain_and_arrays(_checkpoint._with_curves(contents, encoded))
    return model.contents


def write_rows(place: Path, version: int) -> None:
    from celler._utils._write import append_rows

    append_rows(place, pd.DataFrame({"process": os.getpid(), "version": [version] * 3, "text": ['a, "b"\nc'] * 3}))


def read_rows(place: Path) -> int:
    import io

    from celler._utils._write import whole_rows

    table = pd.read_csv(io.BytesIO(whole_rows(place)))
    assert (table["text"] == 'a, "b"\nc').all()
    assert (table.groupby(["process", "version"]).size() == 3).all()
    return int(table["version"].max())


#: What writes, what reads and checks what was written, and the name of the file or folder.
WRITERS: dict[str, tuple[Callable, Callable, str]] = {
    "h5ad": (write_h5ad, read_h5ad, "cells.h5ad"),
    "table": (write_table, read_table, "table.csv"),
    "model": (write_model, read_model, "model"),
    "rows": (write_rows, read_rows, "runs.csv"),
}


def write_on(name: str, place: str, n: int, pipe) -> None:
    """Write version after version, the first of which is told."""
    warnings.simplefilter("ignore")
    for version in range(1, n + 1):
        WRITERS[name][0](Path(place), version)
        if version == 1 or version == n:
            pipe.send(version)


def write_without_room(name: str, place: str, n_bytes: int | None, pipe) -> None:
    """Write a version that does not fit: on the disk, or into the ``n_bytes`` that a file may have."""
    warnings.simplefilter("ignore")
    if name == "model":
        model()
    if n_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    pipe.send(caught(name, place))


def write_without_rights(name: str, place: str, pipe) -> None:
    """Write as a user who may not."""
    warnings.simplefilter("ignore")
    if name == "model":
        model()
    WRITERS[name][0](Path(place).parents[1] / WRITERS[name][2], 1)  # loads what it needs
    if os.geteuid() == 0:
        os.seteuid(65534)
    pipe.send(caught(name, place))


def caught(name: str, place: str) -> tuple[str, str, bool]:
    try:
        WRITERS[name][0](Path(place), 2)
    except (OSError, ValueError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        return type(error).__name__, str(error), number in (errno.ENOSPC, errno.EFBIG)
    return "", "", False
