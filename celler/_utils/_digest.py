"""Digest: the SHA-256 by which a file or a record is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def sha256_of(parts: Iterable[memoryview | bytes | bytearray]) -> str:
    """Return the SHA-256 of bytes that follow each other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def digest_of(record: Any) -> str:
    """Return the SHA-256 of a record of plain values, however it is written."""
    return sha256_of([json.dumps(record, sort_keys=True).encode()])
