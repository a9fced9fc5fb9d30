"""Command line: ``celler demo``, ``train``, ``annotate``, ``atlas`` and ``benchmark``."""

from celler.cli._main import main

__all__ = ["main"]
