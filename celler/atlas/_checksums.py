"""Checksums: which files a store or table of ours is made of, so that one that is missing or damaged is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celler._utils._digest import sha256_of

BLOCK = 1 << 22


def files_of(folder: Path) -> dict[str, list[Any]]:
    """Return size and SHA-256 of each file by name; counts, the most by far, are checked by their codec instead."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            found[name] = [path.stat().st_size, None if _is_of_counts(name) else _sha256(path)]
    return found


def check_files(folder: Path, files: dict[str, list[Any]], cure: str) -> None:
    """Raise ``ValueError`` for the first file that is missing, of another size or of other contents."""
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: {folder} is damaged. {cure}")
        if path.stat().st_size != size:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes and not {size:,}: {folder} is damaged. {cure}")
        if digest is not None and _sha256(path) != digest:
            raise ValueError(f"{path} has other contents than were written: {folder} is damaged. {cure}")


def _is_of_counts(name: str) -> bool:
    parts = name.split("/")
    return "X" in parts and parts[-1] != "zarr.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return sha256_of(iter(lambda: stream.read(BLOCK), b""))
