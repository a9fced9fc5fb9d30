"""The version, read from the installed package; pyproject.toml holds it."""

from __future__ import annotations

from importlib.metadata import version

__version__: str = version("celler")
