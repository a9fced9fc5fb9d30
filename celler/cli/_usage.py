"""What several commands share: the words for files of cells, and the error of wrong usage."""

from __future__ import annotations

#: What a command reads, for its help.
CELLS = ".h5ad, .zarr, .h5mu, .loom, Cell Ranger's .h5 or folder of matrix.mtx"


class UsageError(ValueError):
    """Options that are wrong or do not go together: exit status 2."""
