"""Checkpoint: a model as plain values and arrays, written to a folder or a hub, and restored from them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from celler._utils._devices import choose_device
from celler._utils._messages import similar, warn
from celler.model import _hub
from celler.model._arrays import check_shapes, check_values, layout, plain_and_arrays
from celler.model._base import NAME
from celler.model._card import license_of, model_card, with_license
from celler.model._contents import decoded, encoded
from celler.model._folder import (
    CARD,
    CONFIG,
    check_target,
    read_card,
    read_folder,
    write_card,
    write_folder,
)
from celler.model._legacy import holds_legacy_model, read_legacy
from celler.model._state import Fitted, ModelState, Pretrained

DIVERGED = (
    "It could not be loaded again, so it is not saved. NaN or infinite weights mean that training diverged: train "
    "again with a lower learning_rate."
)


@dataclass(frozen=True)
class Saved:
    """A trained or pretrained model, with its registry and the arguments of the class."""

    state: ModelState
    registry: dict[str, Any]
    arguments: dict[str, Any]


def save(saved: Saved, folder: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Write a model to a folder; see :meth:`celler.model.Celler.save`."""
    if _hub.is_address(folder):
        raise ValueError(
            f"dir_path={os.fspath(folder)!r} is an address on a hub; model.push_to_hub(repo_id) writes there."
        )
    folder = Path(folder)
    _write(saved, folder, folder.name or "folder", overwrite=overwrite)


def push(saved: Saved, repo_id: str, upload: _hub.Upload, license: str | None) -> str:
    """Write a model to a hub and return its address; see :meth:`celler.model.Celler.push_to_hub`."""
    address = _hub.address_of(repo_id, upload.revision)
    with TemporaryDirectory() as made:
        folder = Path(made) / "model"
        _write(saved, folder, address, license=license)

        def keep(theirs: Path) -> None:
            card = _with_changes(read_card(folder)[0] or "", theirs, f"the card of {address}")
            write_card(folder, with_license(card, license))

        return _hub.push(folder, repo_id, upload, keep)


def _write(saved: Saved, folder: Path, address: str, *, license: str | None = None, overwrite: bool = False) -> None:
    """Write a model, of which ``Celler.load(address)`` is the way to load it, with a card that keeps its author's."""
    check_target(folder, overwrite=overwrite)
    contents, state = contents_of(saved), saved.state
    if state.names_atlases and state.trained().novelty is None:
        raise RuntimeError(
            "this model has met no cells yet, for whose genes it would be saved; call predict or annotate first."
        )
    plain, arrays = plain_and_arrays(_with_curves(contents, encoded))
    expected, found = layout(contents, state.network.config), {k: (v.dtype.name, v.shape) for k, v in arrays.items()}
    check_shapes(found, expected, "the model", DIVERGED)
    check_values(arrays, expected, "the model", DIVERGED)
    own = model_card(state, address)
    card = with_license(own if state.card is None else state.card, license or state.license)
    card = with_license(_with_changes(card, folder, str(folder / CARD)), license)
    write_folder(folder, plain, arrays, card, own, overwrite=overwrite)


def _with_changes(card: str, folder: Path, where: str) -> str:
    """Return the card of a folder if its author changed it, else ``card`` with the licence that the author gave."""
    theirs, is_changed = read_card(folder)
    if theirs is None or theirs == card:
        return card
    if not is_changed:
        return with_license(card, license_of(card) or license_of(theirs))
    warn(
        f"{where} was changed by its author and is kept; its figures may be of another model. Remove it before "
        "saving to have it written anew."
    )
    return theirs


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the contents of a saved model, checked, from a folder or an address on a hub."""
    if similar(path, [NAME], cutoff=0.8) and not os.path.lexists(path):
        raise FileNotFoundError(
            f"{path} is no folder of a model; {NAME} comes in the package: Celler.from_pretrained({NAME!r}, "
            "tissue='blood'), or celler annotate --tissue blood, labels without a reference, and Celler(reference) "
            "starts from it by itself."
        )
    located = _hub.locate(path)
    folder = located.folder
    if holds_legacy_model(folder) and not (folder / CONFIG).exists():
        return read_legacy(folder) | {"origin": located.origin, "card": None, "license": None}
    contents = _with_curves(read_folder(folder), decoded)
    try:
        card, is_changed = read_card(folder)
    except ValueError:  # nothing depends on it
        card, is_changed = None, False
    return contents | {"origin": located.origin, "card": card if is_changed else None, "license": license_of(card)}


def contents_of(saved: Saved) -> dict[str, Any]:
    """Return a trained or pretrained model as arrays and plain values."""
    state, registry = saved.state, saved.registry
    kept = ("model_name", "setup_method_name", "scvi_version")
    plain_registry = {name: registry[name] for name in kept} | {
        "setup_args": _plain(asdict(state.setup)),
        "field_registries": {},
        "celler": state.described,
    }
    return {
        "registry": plain_registry,
        "init_params": _plain(saved.arguments) | {"encoder": state.network.config.encoder},
        "fitted": state.fitted and _plain(state.fitted.to_plain()),
        "pretrained": state.pretrained and state.pretrained.to_plain(),
        "weights": {name: tensor.cpu().numpy() for name, tensor in state.network.state_dict().items()},
    }


def restored(state: ModelState, contents: dict[str, Any], accelerator: str) -> ModelState:
    """Restore the model of a checkpoint from an untrained one of the same sizes."""
    fitted, pretrained, network = contents["fitted"], contents.get("pretrained"), state.network
    if pretrained is not None:
        state = state.with_pretrained(Pretrained.from_plain(pretrained, network.config))
    if fitted is not None:
        state = state.with_fitted(Fitted.from_plain(fitted))
    network.load_state_dict({name: torch.from_numpy(array) for name, array in contents["weights"].items()})
    state = replace(state, **{name: contents[name] for name in ("origin", "card", "license")})
    return state.on(choose_device(accelerator), contents["init_params"]["precision"])


def _with_curves(contents: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the contents with changed curves of training and pretraining."""
    parts = {name: contents[name] for name in ("fitted", "pretrained") if contents[name] is not None}
    return contents | {name: part | {"history": change(part["history"])} for name, part in parts.items()}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same with Python's numbers and strings for NumPy's."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
