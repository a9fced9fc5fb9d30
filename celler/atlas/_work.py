"""Work: the folder of an unfinished build, told from a user's by its mark, and emptied of nothing but our files."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from celler._utils._owner import is_left_behind
from celler._utils._write import owner_in, part_of, remove
from celler.atlas._store import FILE_NAME, FORMAT, WORK_NAME

#: Key of ``settings.json`` that no other program writes, the name of the lock, and the suffix of finished work.
MARK, LOCK, DONE = "celler-atlas-build", "lock", ".done"
SETTINGS, PLAN = "settings.json", "plan.json"
OURS = re.compile(
    r"(settings|plan)\.(json|part)|(curated|cells)_\d+\.(npz|json|part)|genes_\d+\.npy|block_\d{5}_\d{12}(\.part)?"
    r"|source_\d{5}\.(h5ad|json|part|part\.h5ad)|dataset\.part|cells\.zarr"
)


def check_out(out: Path) -> None:
    """Raise ``FileExistsError`` unless ``out`` is new, empty or holds an unfinished build."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder, which is made if needed.")
    names = {path.name for path in out.iterdir()} - {path.name for path in _finished(out)}
    work = out / WORK_NAME
    if FILE_NAME in names and _is_manifest(out / FILE_NAME) and not _has_mark(work):
        raise FileExistsError(f"{out} is a finished store; name another folder, or delete it first.")
    if FILE_NAME in names and not _is_manifest(out / FILE_NAME):
        raise FileExistsError(f"{out} holds other files, such as {FILE_NAME}; name a new or empty folder.")
    others = names if WORK_NAME not in names else set() if _is_work(work) else {WORK_NAME}
    if others:
        raise FileExistsError(f"{out} holds other files, such as {min(others)}; name a new or empty folder.")


def _is_work(folder: Path) -> bool:
    """Return whether a folder is of a build, which may have been killed before it wrote its mark."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return _has_mark(folder) or not [path for path in folder.iterdir() if not path.name.startswith(LOCK)]


def _has_mark(folder: Path) -> bool:
    return isinstance(_json(folder / SETTINGS), dict) and MARK in _json(folder / SETTINGS)


def _is_manifest(path: Path) -> bool:
    found = _json(path)
    return isinstance(found, dict) and found.get("format") == FORMAT


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the options that an unfinished build was begun with, none before it was."""
    return {name: value for name, value in (_json(folder / SETTINGS) or {}).items() if name != MARK}


def clear(folder: Path) -> None:
    """Remove the files of a build from its folder; what else lies there is left."""
    for path in folder.iterdir():
        if OURS.fullmatch(path.name):
            remove(path)


def remove_work(out: Path) -> None:
    """Remove the folder of a finished build, by its name at once: another build may begin there."""
    for path in _finished(out):
        if (owner := owner_in(path, DONE)) is not None and is_left_behind(path, owner):
            _remove_work(path)
    work = out / WORK_NAME
    if work.is_dir():
        done = part_of(out / f"{WORK_NAME}{DONE}")
        work.rename(done)
        _remove_work(done)


def _remove_work(folder: Path) -> None:
    clear(folder)
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _finished(out: Path) -> list[Path]:
    return [path for path in out.glob(f".{WORK_NAME}-*{DONE}") if owner_in(path, DONE) is not None]
