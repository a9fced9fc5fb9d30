"""Legacy: ``model.pt``, the one file in which Celler 0.1.0 saved a model; it is read, no longer written.

A file is read twice when it is opened: ``torch.load`` does not check the checksums, and a flipped bit would be silent.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from celler._utils._messages import warn
from celler.network._scgpt import is_scgpt_folder

FORMAT, FORMAT_VERSION = "celler", 1
FILE_NAME = "model.pt"


def holds_legacy_model(folder: Path) -> bool:
    """Return whether ``folder`` has a ``model.pt`` that is not scGPT's."""
    return (folder / FILE_NAME).is_file() and not is_scgpt_folder(folder)


def remove_legacy_model(folder: Path) -> None:
    """Remove the ``model.pt`` of a folder that Celler wrote; one of another program stays."""
    if not holds_legacy_model(folder):
        return
    try:
        _read(folder / FILE_NAME)
    except ValueError:
        return
    (folder / FILE_NAME).unlink()


def read_legacy(folder: Path) -> dict[str, Any]:
    """Return the contents of ``model.pt``, with a ``FutureWarning``.

    Raises ``ValueError`` where the file is damaged, of another program, or of a later version of Celler.
    """
    contents = _read(folder / FILE_NAME)
    registry = contents["registry"]
    # Before there was a base, a file did not say that its model has none.
    contents["registry"] = registry | {"celler": {"base": None} | registry["celler"]}
    fitted = contents["fitted"]
    if fitted is not None and "encoder_share" in fitted:  # at first kept apart from the other weights
        contents["weights"].setdefault("_extra_state", torch.tensor([fitted["encoder_share"], 0.0]).double())
    warn(
        f"{folder / FILE_NAME} is in the format of Celler {contents.get('celler_version')}, which a later version will "
        f"not read. Convert it once: model = Celler.load({str(folder)!r}), then model.save({str(folder)!r}, "
        "overwrite=True).",
        FutureWarning,
    )
    return _with_arrays(contents)


def _read(path: Path) -> dict[str, Any]:
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


def _with_arrays(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same with arrays for tensors."""
    arrays = {name: value.numpy() for name, value in values.items() if isinstance(value, torch.Tensor)}
    return values | arrays | {name: _with_arrays(value) for name, value in values.items() if isinstance(value, dict)}
