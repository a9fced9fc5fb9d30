"""Checksums: which files a store or table of ours is made of, so that one that is missing or damaged is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from celler._utils._compile import compiled
from celler._utils._digest import sha256_of
from celler.atlas._place import ANEW, Folder, Place

BLOCK = 1 << 22
#: Files that are read at once: an object store answers each after a while.
FILES_AT_ONCE = 16
#: The column of obs with a checksum of each cell: the codec's is not looked at where part of a chunk is read.
OF_CELL = "_celler_checksum"


def files_of(folder: Path) -> dict[str, list[Any]]:
    """Return size and SHA-256 of each file by name; counts, the most by far, are checked by their codec instead."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            found[name] = [path.stat().st_size, None if _is_of_counts(name) else _sha256(Folder(folder), name)]
    return found


def check_files(place: Place, files: dict[str, list[Any]]) -> None:
    """Raise ``ValueError`` for the first file that is missing, of another size or of other contents."""
    sizes = place.sizes() if files else {}
    for name, (size, _) in files.items():
        if name not in sizes:
            raise ValueError(f"{place}/{name} is missing: {place} is damaged. {ANEW}")
        if sizes[name] != size:
            raise ValueError(f"{place}/{name} has {sizes[name]:,} bytes and not {size:,}: {place} is damaged. {ANEW}")
    digests = {name: digest for name, (_, digest) in files.items() if digest is not None}
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for name, found in zip(digests, pool.map(partial(_sha256, place), digests), strict=True):
            if found != digests[name]:
                raise ValueError(f"{place}/{name} has other contents than were written: {place} is damaged. {ANEW}")


def of_cells(X: sparse.csr_matrix) -> np.ndarray:
    """Return a number of each cell ``(n,)``, uint32, that follows from its genes and counts in any order."""
    return _of_cells(X.indptr, X.indices, X.data)


@compiled
def _of_cells(ends, genes, counts):  # type: ignore[no-untyped-def]
    found = np.empty(len(ends) - 1, np.uint32)
    for b in range(len(found)):
        # Slices: an index that may be negative keeps the CPU from taking several at once.
        of_cell, each = genes[ends[b] : ends[b + 1]], counts[ends[b] : ends[b + 1]]
        total = np.uint64(len(of_cell))
        for i in range(len(of_cell)):
            mixed = (np.uint64(of_cell[i]) << np.uint64(32)) ^ np.uint64(each[i])
            mixed = (mixed + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            total += mixed ^ (mixed >> np.uint64(32))
        found[b] = np.uint32((total ^ (total >> np.uint64(32))) & np.uint64(0xFFFFFFFF))
    return found


def _is_of_counts(name: str) -> bool:
    parts = name.split("/")
    return "X" in parts and parts[-1] != "zarr.json"


def _sha256(place: Place, name: str) -> str:
    with place.open(name) as stream:
        return sha256_of(iter(lambda: stream.read(BLOCK), b""))
