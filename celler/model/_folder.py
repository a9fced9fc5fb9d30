"""Folder: the three files of a saved model, written whole or not at all and checked in full before they are used.

``config.json`` holds plain values, ``model.safetensors`` the arrays and ``README.md`` the model card. Nothing in them
can be executed. The config has size and SHA-256 of the arrays, so that a mixture of two models is refused.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from celler._utils._digest import digest_of, sha256_of
from celler._utils._lock import locked
from celler._utils._owner import is_left_behind
from celler._utils._version import __version__
from celler._utils._write import PART, explained, owner_in, part_of, remove_left_behind, sync_folder
from celler.model._arrays import Array, check_shapes, check_values, layout
from celler.model._card import digest
from celler.model._contents import AGAIN, FORMAT, FORMAT_VERSION, check_config, shown
from celler.model._legacy import holds_legacy_model, remove_legacy_model

CONFIG, WEIGHTS, CARD = FILES = "config.json", "model.safetensors", "README.md"
#: Most bytes of each file, and of the header of the arrays: above what a model can need.
MAX_OF, MAX_HEADER = {CONFIG: 2**26, WEIGHTS: 2**34, CARD: 2**20}, 2**23
#: Suffixes of a writer's own folder, before and after its files have their names, and the name of its lock.
STAGE, DONE, LOCK = ".model", ".done", ".writing"
COPIED = ("weights.", "pretrained.decoder.")
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
}


def holds_model(folder: Path) -> bool:
    """Return whether ``folder`` has a file of a saved model, of this version or of 0.1.0."""
    return any(os.path.lexists(folder / name) for name in (CONFIG, WEIGHTS)) or holds_legacy_model(folder)


# ---- writing ----
def write_folder(
    folder: Path, plain: dict[str, Any], arrays: dict[str, np.ndarray], card: str, own_card: str, *, overwrite: bool
) -> None:
    """Write a model; the files appear together or not at all, and others of the folder are left alone.

    ``own_card`` is the model card as Celler made it, by which one that its author changed is known later. Raises
    ``FileExistsError`` for an existing model unless ``overwrite``.
    """
    check_target(folder, overwrite=overwrite)
    is_new = not folder.exists()
    place = folder.parent if is_new else folder
    with explained(folder):
        place.mkdir(parents=True, exist_ok=True)
        recover(folder)
        for suffix in (STAGE, DONE):
            remove_left_behind(place / f"{folder.name}{suffix}")
        stage = part_of(place / f"{folder.name}{STAGE}")
        stage.mkdir()
        try:
            tensors = _write(stage / WEIGHTS, _safetensors(arrays))
            config = {"format": FORMAT, "format_version": FORMAT_VERSION, "celler_version": __version__} | plain
            config |= {"tensors": {"file": WEIGHTS} | tensors, "card": {"sha256": digest(own_card)}}
            check_config(config, folder / CONFIG)  # what is written can be read
            _write(stage / CONFIG, [_json_bytes(config | {"digest": digest_of(config)})])
            write_card(stage, card)
            sync_folder(stage)
            _place(stage, folder, is_new=is_new, overwrite=overwrite)
            sync_folder(place)
        finally:
            if not list(stage.glob("*.old")):  # else the only copy of a file
                shutil.rmtree(stage, ignore_errors=True)


def _place(stage: Path, folder: Path, *, is_new: bool, overwrite: bool) -> None:
    """Give the files of ``stage`` their names, one writer at a time."""
    if is_new:
        try:
            stage.rename(folder)
            return
        except OSError:
            if not folder.exists():
                raise
            # Another writer was faster: now it is a folder with a model like any other.
    with locked(folder / LOCK, str(folder), wait=60.0):
        check_target(folder, overwrite=overwrite)
        recover(folder)
        _replace(folder, stage)
        stage.rename(done := stage.with_suffix(DONE))  # from now on, the old files are not put back
        remove_legacy_model(folder)
    shutil.rmtree(done, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put back the files of a model that a writer had set aside when it was killed; they fit together."""
    for stage in folder.glob(f".*{PART}{STAGE}"):
        owner = owner_in(stage, STAGE)
        if owner is not None and is_left_behind(stage, owner):
            for name in FILES:
                if (stage / f"{name}.old").is_file():
                    (stage / f"{name}.old").replace(folder / name)
            shutil.rmtree(stage, ignore_errors=True)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise ``FileExistsError`` where a model cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder, which is made if needed.")
    for name in FILES:
        if (folder / name).is_dir():
            raise FileExistsError(f"{folder / name} is a folder, where a file is to be written; name another folder.")
    if holds_model(folder) and not overwrite:
        raise FileExistsError(f"{folder} holds a model; pass overwrite=True to replace it, or another folder.")


def _replace(folder: Path, stage: Path) -> None:
    """Move the files from ``stage`` to ``folder``; where one cannot be moved, put all back as they were."""
    set_aside, placed = [], []
    try:
        for name in FILES:
            if os.path.lexists(folder / name):
                (folder / name).replace(stage / f"{name}.old")
                set_aside.append(name)
            (stage / name).replace(folder / name)
            placed.append(name)
    except BaseException:
        for name in placed:
            (folder / name).unlink()
        for name in set_aside:
            (stage / f"{name}.old").replace(folder / name)
        raise


def read_card(folder: Path) -> tuple[str | None, bool]:
    """Return the model card of a folder, and whether its author changed more of it than the licence."""
    try:
        card = _read(folder / CARD, MAX_OF[CARD]).decode(errors="surrogateescape")  # of any encoding
    except FileNotFoundError:
        return None, False
    return card, digest(card) != _digest_of_own_card(folder)


def write_card(folder: Path, card: str) -> None:
    """Write a model card, the very bytes that :func:`read_card` read."""
    (folder / CARD).write_bytes(card.encode(errors="surrogateescape"))


def _digest_of_own_card(folder: Path) -> str | None:
    try:
        config = _json(_read(folder / CONFIG, MAX_OF[CONFIG]), folder / CONFIG)
    except (FileNotFoundError, ValueError):
        return None
    card = config.get("card") if isinstance(config, dict) else None
    found = card.get("sha256") if isinstance(card, dict) else None
    return found if isinstance(found, str) else None


def _json_bytes(config: dict[str, Any]) -> bytes:
    """Write strict JSON in UTF-8, a line for each entry of the top level."""
    entries = [f"  {json.dumps(name)}: {_dumps(value)}" for name, value in config.items()]
    return ("{\n" + ",\n".join(entries) + "\n}\n").encode()


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _safetensors(arrays: dict[str, np.ndarray]) -> list[memoryview | bytes]:
    """Return the parts of a safetensors file; an array is not copied, as the library's writer does."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # as loaders of PyTorch ask for
    end = 0
    for name in order:
        array, start = arrays[name], end
        end = start + array.nbytes
        header[name] = {"dtype": codes[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = [arrays[name].reshape(-1).view(np.uint8).data for name in order]
    return [len(text).to_bytes(8, "little"), text, *data]


def _write(path: Path, parts: Sequence[memoryview | bytes]) -> dict[str, Any]:
    """Write a file and return its size and SHA-256."""
    with path.open("xb") as file:
        file.writelines(parts)
        size = file.tell()
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": sha256_of(parts)}


# ---- reading ----
def read_folder(folder: Path) -> dict[str, Any]:
    """Return the contents of a folder that :func:`write_folder` wrote.

    Raises ``FileNotFoundError`` where there is no model, and ``ValueError`` for files that are damaged, of another
    program, or of a later version, or hold what no model can. No array is made before sizes, names and types fit.
    """
    try:
        return _read_folder(folder)
    except (FileNotFoundError, ValueError):
        if not any(folder.glob(f".*{PART}{STAGE}")):
            raise
        with suppress(OSError):
            recover(folder)
        return _read_folder(folder)


def _read_folder(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    config = _json(_read(path, MAX_OF[CONFIG]), path)
    digest_found = config.pop("digest", None) if isinstance(config, dict) else None
    sizes = check_config(config, path)
    if digest_found is not None and digest_found != digest_of(config):
        raise ValueError(f"{path} has other contents than Celler wrote: it was damaged, or edited by hand. {AGAIN}")
    try:
        expected = layout(config, sizes)
    except ValueError as error:
        raise ValueError(f"{path} contradicts itself: {error} {AGAIN}") from None
    tensors = config["tensors"]
    if tensors["file"] != WEIGHTS:
        raise ValueError(f"{path}: tensors.file is {shown(tensors['file'])}; {WEIGHTS!r} is needed. {AGAIN}")
    return joined(config, _read_arrays(folder / WEIGHTS, expected, tensors))


def _read(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file of at most ``most`` bytes."""
    with _Opened(path, most) as file:
        return file.handle.read(file.size)


class _Opened:
    """A regular file open for reading, of at most ``most`` bytes; a link may lead into a hub's cache alone."""

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.most = path, most

    def __enter__(self) -> _Opened:
        path = self.path
        if not os.path.lexists(path):
            raise FileNotFoundError(
                f"{path} does not exist; pass the folder that model.save() wrote, or hf://owner/name."
            )
        if path.is_symlink() and not _is_of_hub_cache(path):
            raise ValueError(f"{path} is a link to {os.readlink(path)}, outside the folder; copy the file itself.")
        if not path.exists() or not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path} is not a file but a folder, a device or a link to nothing. {AGAIN}")
        self.handle = path.open("rb")
        self.size = os.fstat(self.handle.fileno()).st_size
        if self.size > self.most:
            self.handle.close()
            raise ValueError(f"{path} has {self.size:,} bytes; at most {self.most:,} are read. {AGAIN}")
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.close()


def _is_of_hub_cache(path: Path) -> bool:
    """Return whether a link leads into its own folder, or from ``snapshots/<commit>`` of a hub's cache to ``blobs``."""
    target, folder = path.resolve(), path.parent.resolve()
    is_snapshot = folder.parent.name == "snapshots"
    return target.parent == folder or (is_snapshot and target.parent == folder.parent.parent / "blobs")


def _json(data: bytes, path: Path) -> Any:
    """Return the value of strict JSON: in UTF-8, no key twice, no NaN or Infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} stands twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        text = data.decode()
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        if "\\u" in text:
            _dumps(value).encode()  # half of a surrogate pair is no character
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply for a Celler model. {AGAIN}") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}). {AGAIN}") from None
    return value


@dataclass(frozen=True)
class _Entry:
    """Where an array stands in the data of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int

    def of(self, data: bytearray) -> np.ndarray:
        """Return the array, without a copy."""
        return np.frombuffer(data, self.dtype, math.prod(self.shape), self.start).reshape(self.shape)


def _read_arrays(path: Path, expected: dict[str, Array], tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file, which are exactly the ``expected``; it is read once."""
    with _Opened(path, MAX_OF[WEIGHTS]) as file:
        if file.size != tensors["size"]:
            raise ValueError(
                f"{path} has {file.size:,} bytes; {CONFIG} says {tensors['size']:,}: one of them was cut short or is "
                f"of another model. {AGAIN}"
            )
        start = file.handle.read(8)
        n_header = int.from_bytes(start, "little")
        if n_header > min(MAX_HEADER, file.size - 8):
            raise ValueError(f"{path} is no safetensors file: its header would have {n_header:,} bytes. {AGAIN}")
        header = file.handle.read(n_header)
        n_data = file.size - 8 - n_header
        entries = _entries(_json(header, path), path, n_data)
        check_shapes({name: (entry.dtype.name, entry.shape) for name, entry in entries.items()}, expected, str(path))
        data = bytearray(n_data)
        n_read = file.handle.readinto(data)
    if n_read != n_data or sha256_of([start, header, data]) != tensors["sha256"]:
        raise ValueError(
            f"{path} has another SHA-256 than {CONFIG} says: it was damaged, or is of another model. {AGAIN}"
        )
    found = {name: entry.of(data) for name, entry in entries.items()}
    check_values(found, expected, str(path))
    # Weights are copied into the network; a view of another array would keep all of them in memory.
    return {name: array if name.startswith(COPIED) else array.copy() for name, array in found.items()}


def _entries(header: Any, path: Path, n_data: int) -> dict[str, _Entry]:
    """Return the entries of a header whose arrays fill the data one after the other."""
    if not isinstance(header, dict):
        raise ValueError(f"{path} is no safetensors file: its header is {shown(header)}. {AGAIN}")
    found = {name: _entry(name, header[name], path) for name in header if name != "__metadata__"}
    end = 0
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end or entry.start % entry.dtype.itemsize:
            raise ValueError(f"{path}: {shown(name)} starts at byte {entry.start:,}; {end:,} is needed. {AGAIN}")
        end = entry.end
    if end != n_data:
        raise ValueError(f"{path}: its arrays end at byte {end:,} of {n_data:,}. {AGAIN}")
    return found


def _entry(name: str, entry: Any, path: Path) -> _Entry:
    is_entry = isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}
    if not is_entry or not all(map(_are_sizes, (entry["shape"], entry["data_offsets"]))):
        raise ValueError(f"{path}: {shown(name)} has the header {shown(entry)}, which safetensors do not have. {AGAIN}")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"{path}: {shown(name)} is of type {shown(entry['dtype'])}; {list(DTYPES)} are read. {AGAIN}")
    n_bytes = dtype.itemsize
    for size in entry["shape"]:
        n_bytes *= size
    start, end = entry["data_offsets"] if len(entry["data_offsets"]) == 2 else (0, -1)
    if end - start != n_bytes:
        raise ValueError(
            f"{path}: {shown(name)} of shape {shown(entry['shape'])} has data_offsets {shown(entry['data_offsets'])}; "
            f"{n_bytes:,} bytes are needed. {AGAIN}"
        )
    return _Entry(dtype, tuple(entry["shape"]), start, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= 8 and all(type(value) is int and value >= 0 for value in values)


def joined(plain: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what :func:`celler.model._arrays.plain_and_arrays` split."""
    contents: dict[str, Any] = {
        name: dict(value) if isinstance(value, dict) else value for name, value in plain.items()
    }
    for name, array in arrays.items():
        *_, (group, rest) = _groups(name, contents)
        group[rest] = array
    return contents


def _groups(name: str, group: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the dicts that ``name`` leads into, with what is left of it."""
    yield group, name
    first, _, rest = name.partition(".")
    if rest and isinstance(group.get(first), dict):
        yield from _groups(rest, group[first])
