"""Checkpoint: a trained model as one file of tensors and plain values, written atomically.

A file is read twice when it is opened: ``torch.load`` does not check the checksums, and a flipped bit would be silent.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from celler._utils._devices import choose_device
from celler._utils._version import __version__
from celler.model._state import Fitted, ModelState, Pretrained

FORMAT = "celler"
FORMAT_VERSION = 1
FILE_NAME = "model.pt"


def write_checkpoint(folder: str | os.PathLike[str], contents: dict[str, Any], *, overwrite: bool) -> Path:
    """Write ``contents`` to ``folder/model.pt`` and return its path.

    The file appears whole or not at all, and other files of the folder are left alone. ``contents``
    holds tensors, str, int, float, bool, None, lists and dicts; the file opens with
    ``torch.load(weights_only=True)``. Raises ``FileExistsError`` for an existing model unless ``overwrite``.
    """
    folder = Path(folder)
    path = folder / FILE_NAME
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it, or another folder.")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "celler_version": __version__}
    temporary = folder / f".model-{uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            torch.save(header | contents, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum is wrong")
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to load the file unsafely
        raise ValueError(
            f"{path} holds more than tensors and plain values, so Celler did not write it; it was not opened."
        ) from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged, cut short or no Celler model; save the model again. ({error})") from error
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


def registry_of(contents: dict[str, Any]) -> dict[str, Any]:
    """Registry of a checkpoint."""
    registry: dict[str, Any] = contents["registry"]
    # Before there was a base, a file did not say that its model has none.
    return registry | {"celler": {"base": None} | registry["celler"]}


def contents_of(state: ModelState, registry: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Write a trained or pretrained model as tensors and plain values."""
    kept = ("model_name", "setup_method_name", "scvi_version")
    plain_registry = {name: registry[name] for name in kept} | {
        "setup_args": _plain(asdict(state.setup)),
        "field_registries": {},
        "celler": state.described,
    }
    return {
        "registry": plain_registry,
        "init_params": _plain(arguments) | {"encoder": state.network.config.encoder},
        "fitted": state.fitted and state.fitted.to_plain(),
        "pretrained": state.pretrained and state.pretrained.to_plain(),
        "weights": {name: tensor.cpu() for name, tensor in state.network.state_dict().items()},
    }


def restored(state: ModelState, contents: dict[str, Any], accelerator: str) -> ModelState:
    """Restore the model of a checkpoint from an untrained one of the same sizes."""
    fitted, pretrained, network = contents["fitted"], contents.get("pretrained"), state.network
    if pretrained is not None:
        state = state.with_pretrained(Pretrained.from_plain(pretrained, network.config))
    if fitted is not None:
        state = state.with_fitted(Fitted.from_plain(fitted))
        # Earlier versions kept this weight apart from the others.
        network.encoder_share = fitted.get("encoder_share", network.encoder_share)
    network.load_state_dict(contents["weights"])
    return state.on(choose_device(accelerator), contents["init_params"]["precision"])


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same with Python's numbers and strings for NumPy's."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
