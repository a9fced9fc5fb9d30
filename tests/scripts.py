"""The scripts of docs/benchmarks as modules."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"


def load(name: str) -> ModuleType:
    """Import a script; scripts import each other from their folder."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


def run(script: ModuleType, monkeypatch, *arguments: object) -> None:
    """Call ``main`` with the arguments of a command line."""
    monkeypatch.setattr(sys, "argv", [str(script.__file__), *map(str, arguments)])
    script.main()
