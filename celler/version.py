"""The version, read from the installed package; pyproject.toml holds it."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__: str = version("celler")
