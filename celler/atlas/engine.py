"""The engine of the on-disk stores, annbatch, and what to do where it is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec

#: What annbatch needs.
PYTHON = (3, 12)


def require_engine() -> None:
    """Raise ``ImportError`` where stores can neither be written nor streamed."""
    found = ".".join(map(str, sys.version_info[:2]))
    way = 'pip install "celler[atlas]"'
    if tuple(sys.version_info[:2]) < PYTHON:
        raise ImportError(
            f"Python {found} was found; cl.atlas needs Python 3.12 or newer, as annbatch does. In an "
            f"environment of it: {way}. Everything else works here."
        )
    if find_spec("annbatch") is None:
        raise ImportError(f"Python {found} was found, which will do, but not annbatch: {way}.")
