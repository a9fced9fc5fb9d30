"""Legacy: ``model.pt``, the one file in which Celler 0.1.0 saved a model; it is read, no longer written.

A file is read twice when it is opened: ``torch.load`` does not check the checksums, and a flipped bit would be silent.
"""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from celler._utils._messages import warn
from celler.model._arrays import check_shapes, check_values, layout, plain_and_arrays
from celler.model._contents import AGAIN, FITTED, FORMAT, check_config, encoded
from celler.model._contents import FORMAT_VERSION as FOLDER_VERSION
from celler.model._state import Setup
from celler.network._scgpt import is_scgpt_folder

FORMAT_VERSION = 1
FILE_NAME = "model.pt"
#: Arrays of what training left.
FITTED_ARRAYS = ("train_indices", "validation_indices", "class_counts", "gene_share")


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
    path = folder / FILE_NAME
    contents = _read(path)
    try:
        contents = _completed(_with_arrays(contents))
    except (AttributeError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is a torch file, but holds no Celler model ({error!r}). {AGAIN}") from None
    _check(contents, path)
    warn(
        f"{folder / FILE_NAME} is in the format of Celler {contents.get('celler_version')}, which a later version will "
        f"not read. Convert it once: model = Celler.load({str(folder)!r}), then model.save({str(folder)!r}, "
        "overwrite=True).",
        FutureWarning,
    )
    return contents


def _completed(contents: dict[str, Any]) -> dict[str, Any]:
    """Return contents with what versions before 0.1.0 did not write, and without what later ones do not read."""
    registry, fitted, weights = contents["registry"], contents["fitted"], dict(contents["weights"])
    described = {"base": None} | registry["celler"]  # before there was a base
    if isinstance(described["base"], dict):
        described["base"] = {"n_profiles": 0, "n_types": 0} | described["base"]
    setup = asdict(Setup()) | registry["setup_args"]
    arguments = dict(contents["init_params"])
    if arguments.get("encoder") is None:
        arguments["encoder"] = "additive" if described["base"] is None else "base"
    # At first kept apart from the other weights, and before that always a half; without the second one.
    share = weights.get("_extra_state", np.array([(fitted or {}).get("encoder_share", 0.5)]))
    weights["_extra_state"] = np.array([*share.reshape(-1), 0.0])[:2]
    if "evidence.bias" in weights:
        weights.setdefault("evidence.enough", np.zeros((), np.float32))
    if fitted is not None:
        known = {name: fitted[name] for name in (*FITTED, *FITTED_ARRAYS) if name in fitted}
        fitted = {"profile": None, "seed": None, "novelty": None, "class_prior": None} | known
    return contents | {
        "init_params": arguments,
        "registry": registry | {"celler": described, "setup_args": setup, "field_registries": {}},
        "fitted": fitted,
        "pretrained": contents.get("pretrained"),
        "weights": weights,
    }


def _check(contents: dict[str, Any], path: Path) -> None:
    """Raise ``ValueError`` for contents that no model has, as of a folder, before any network is made."""
    try:
        parts = {name: contents[name] for name in ("registry", "init_params", "fitted", "pretrained", "weights")}
        for name in ("fitted", "pretrained"):
            if parts[name] is not None:
                parts[name] = parts[name] | {"history": encoded(parts[name]["history"])}
        plain, arrays = plain_and_arrays(parts)
        head = {"format": FORMAT, "format_version": FOLDER_VERSION, "celler_version": contents["celler_version"]}
        tail = {"tensors": {"file": FILE_NAME, "size": 8, "sha256": "0" * 64}, "card": {"sha256": "0" * 64}}
        sizes = check_config(head | plain | tail, path)
        expected = layout(plain, sizes)
    except (AttributeError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"{path} is a torch file, but holds no Celler model ({error!r}). {AGAIN}") from None
    check_shapes({name: (array.dtype.name, array.shape) for name, array in arrays.items()}, expected, str(path))
    check_values(arrays, expected, str(path))


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
