"""Checkpoint: a trained model as one file of tensors and plain values, written atomically."""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from celler._utils._version import __version__

FORMAT = "celler"
FORMAT_VERSION = 1
FILE_NAME = "model.pt"


def write_checkpoint(
    folder: str | os.PathLike[str], contents: dict[str, Any], *, overwrite: bool
) -> Path:
    """Write ``contents`` to ``folder/model.pt`` and return its path.

    The file appears whole or not at all, and other files of the folder are left alone. ``contents``
    holds tensors, str, int, float, bool, None, lists and dicts; the file opens with
    ``torch.load(weights_only=True)``. Raises ``FileExistsError`` where a model is already and
    ``overwrite`` is false.
    """
    folder = Path(folder)
    path = folder / FILE_NAME
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists; pass overwrite=True to replace it, or another folder."
        )
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "celler_version": __version__}
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".model-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(header | contents, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp's file is its owner's alone
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        if is_new:
            folder.rmdir()
        raise
    return path


def read_checkpoint(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Contents of a folder written by :func:`write_checkpoint`.

    Raises ``FileNotFoundError`` where there is no model, ``ValueError`` where the file is damaged,
    of another program, or of a later version of Celler.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; pass the folder that model.save() wrote.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum is wrong")
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to load the file unsafely
        raise ValueError(
            f"{path} holds more than tensors and plain values, so Celler did not write it; it was not opened."
        ) from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, cut short or no Celler model; save the model again. ({error})"
        ) from error
    if (
        not isinstance(contents, dict)
        or contents.get("format") != FORMAT
        or not isinstance(contents.get("format_version"), int)
    ):
        raise ValueError(f"{path} is a torch file, but not a Celler model.")
    if contents["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by Celler {contents.get('celler_version')} in format "
            f"{contents['format_version']}; this version reads up to {FORMAT_VERSION}. Upgrade celler."
        )
    return contents


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
