"""Modalities: which part of a container of several AnnData holds gene expression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: Names of the modality of gene expression in a MuData.
EXPRESSION = ("rna", "gex", "gene expression", "expression", "counts", "scrna")


def of_expression(names: Iterable[str]) -> str | None:
    """Return the name of the modality of gene expression, or the only name; ``None`` where it cannot be told."""
    names = list(names)
    found = [name for name in names if name.lower() in EXPRESSION] or (names if len(names) == 1 else [])
    return found[0] if found else None


def part_to_pass(value: Any) -> str:
    """Say which part of a MuData or SpatialData to pass instead; ``""`` for anything else."""
    for kind, field, variable in (("MuData", "mod", "mdata"), ("SpatialData", "tables", "sdata")):
        parts = getattr(value, field, None)
        if type(value).__name__ == kind and isinstance(parts, Mapping) and len(parts):
            names = list(map(str, parts))
            chosen = of_expression(names)
            whole = f" Pass one of its AnnData: {' or '.join(f'{variable}[{name!r}]' for name in names[:4])}."
            return whole if chosen is None else f" Pass its gene expression: {variable}[{chosen!r}]."
    return ""
