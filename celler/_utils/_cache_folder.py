"""Cache folder: a place for numba's compiled code where neither the installation nor the home can be written.

Celler's own functions compile without one (``_compile.compiled``); scanpy and pynndescent cannot even be imported.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path


def provide_cache_folder() -> None:
    """Give numba a folder of this process, which is removed at its end, where it would find none."""
    if "NUMBA_CACHE_DIR" in os.environ or sys.platform == "win32" or any(map(_can_write, _places())):
        return
    with suppress(OSError):
        folder = tempfile.mkdtemp(prefix="celler-numba-")  # of this user alone: what lies in it is run
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["NUMBA_CACHE_DIR"] = folder
        if "numba" in sys.modules:
            sys.modules["numba"].config.CACHE_DIR = folder


def _places() -> list[Path]:
    """Return where numba keeps its cache: for all packages in the home, or next to each of them."""
    home = Path(os.path.expanduser("~"))
    default = home / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    numba = find_spec("numba")
    of_packages = [Path(numba.origin).parent] if numba is not None and numba.origin else []
    return [Path(os.environ.get("XDG_CACHE_HOME") or default) / "numba", *of_packages]


def _can_write(folder: Path) -> bool:
    """Return whether ``folder`` can be written, or made where it is missing."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
