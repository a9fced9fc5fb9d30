"""Heaps: texts of an HDF5 file whose damage would keep the library in a loop for ever."""

from __future__ import annotations

import mmap
from functools import lru_cache
from pathlib import Path

SIGN = b"GCOL\x01\x00\x00\x00"  #: of a global heap collection, version 1
HEAD = 16  #: bytes before a collection's objects, and before the content of each
MOST_SEARCHED = 2**31  #: bytes of a file up to which it is searched: it is read twice then, the second time from memory


def has_endless_heap(path: Path) -> bool:
    """Whether a global heap, which holds texts of any length, has free space of size 0.

    The HDF5 library walks a heap by the sizes of its objects and never gets past this one. Files beyond 2 GiB, and
    those whose sizes are not of 8 bytes, are not searched.
    """
    found = path.stat()
    return found.st_size <= MOST_SEARCHED and _searched(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1)
def _searched(path: Path, _size: int, _changed: int) -> bool:
    """Search a file once: its format is asked for before a model is loaded, and again when it is read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if len(data) < HEAD or data[14 if data[8] < 2 else 10] != 8:
            return False
        start = data.find(SIGN)
        while start >= 0:
            if _is_endless(data, start):
                return True
            start = data.find(SIGN, start + 8)
    return False


def _is_endless(data: mmap.mmap, start: int) -> bool:
    """Walk the objects of the collection at ``start`` as the library does."""
    end = start + _number(data, start + 8, 8)
    place = start + HEAD
    while place + HEAD <= min(end, len(data)):
        size = _number(data, place + 8, 8)
        is_free = _number(data, place, 2) == 0
        if is_free and not size:
            return True
        place += size if is_free else HEAD + (size + 7) // 8 * 8
    return False


def _number(data: mmap.mmap, place: int, n_bytes: int) -> int:
    return int.from_bytes(data[place : place + n_bytes], "little")
