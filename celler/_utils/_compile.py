"""Compile: machine code for loops over arrays, kept on disk where a place for it can be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """Compile ``function`` at its first call, for good where numba may keep a cache, else for this process."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except (OSError, RuntimeError):
        # No place in a read-only installation with a read-only home, as in containers, nor without the source file.
        return numba.njit(nogil=True)(function)
