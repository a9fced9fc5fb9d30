"""What several commands share: the words for files of cells, the error of wrong usage, and the summary for programs."""

from __future__ import annotations

import json
from typing import Any

from celler._utils._version import __version__

#: What a command reads, for its help.
CELLS = ".h5ad, .zarr, .h5mu, .loom, Cell Ranger's .h5 or folder of matrix.mtx"
JSON = "print a summary for programs, and nothing else"
ORGANISMS = ["human", "mouse"]


class UsageError(ValueError):
    """Options that are wrong or do not go together: exit status 2."""


def print_json(**summary: Any) -> None:
    """Print one line of JSON with the version of Celler."""
    plain = lambda value: getattr(value, "item", lambda: str(value))()
    print(json.dumps({"celler": __version__, **summary}, default=plain))
