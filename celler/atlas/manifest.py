"""The manifest of a store: what is in it, where it came from, and what was left out and why."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from celler.atlas.plan import SPLITS, Plan
from celler.atlas.scanning import REASONS
from celler.version import __version__

FILE_NAME, STORE_NAME = "manifest.json", "cells.zarr"
FORMAT, FORMAT_VERSION = "celler-atlas", 1


def read_manifest(out: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of the store ``out``; raises ``FileNotFoundError`` where there is none.

    Keys: ``format``, ``version``, ``n_cells``, ``genes``, ``classes``, ``parents`` (by class), ``class_counts``
    (by split, in the order of the classes), ``columns``, ``dtype``, ``seed``, ``datasets`` (cells by name),
    ``sources``, ``dropped``, ``settings`` and ``versions``.
    """
    path = Path(out) / FILE_NAME
    if not path.is_file():
        is_begun = (Path(out) / "unfinished").is_dir()
        hint = (
            " A build was begun there: call cl.atlas.build again with the same arguments to finish it."
            if is_begun
            else " cl.atlas.build writes one."
        )
        raise FileNotFoundError(f"{out} is no store: it has no {FILE_NAME}.{hint}")
    manifest = json.loads(path.read_text())
    if manifest.get("format") != FORMAT or manifest.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} is of {manifest.get('format')!r}, version {manifest.get('version')!r}; this celler "
            f"({__version__}) reads {FORMAT!r}, version {FORMAT_VERSION}. Install the celler that wrote it."
        )
    return manifest


def make_manifest(plan: Plan, counts: np.ndarray, datasets: dict[str, int]) -> dict[str, Any]:
    """The record of a finished build.

    counts: ``(2, C + 1)`` cells of each split and class, the last column unlabelled ones.
    """
    n_kept = sum(datasets.values())
    sources = [_source_record(plan, number) for number in range(len(plan.sources))]
    dropped = {
        reason: sum(source["dropped"].get(reason, 0) for source in sources)
        for reason in REASONS[1:]
    }
    dropped["empty"] = sum(s["n_cells"] for s in sources) - sum(dropped.values()) - n_kept
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "n_cells": n_kept,
        "n_cells_by_split": dict(zip(SPLITS, map(int, counts.sum(axis=1)), strict=True)),
        "classes": plan.categories.get("cell_type", []),
        "parents": plan.parents,
        "class_counts": {
            split: row[:-1].tolist() for split, row in zip(SPLITS, counts, strict=True)
        },
        "unlabeled": dict(zip(SPLITS, counts[:, -1].tolist(), strict=True)),
        "columns": list(plan.categories),
        "dtype": plan.settings["dtype"],
        "seed": plan.settings["seed"],
        "datasets": datasets,
        "sources": sources,
        "dropped": dropped,
        "settings": plan.settings,
        "versions": {"celler": __version__}
        | {
            name: version(name)
            for name in ("anndata", "annbatch", "numpy", "zarr")
            if find_spec(name)
        },
        "genes": plan.genes,
    }


def _source_record(plan: Plan, number: int) -> dict[str, Any]:
    record, cells = dict(plan.sources[number]), plan.cells(number)
    n_by_reason = np.bincount(cells.reason, minlength=len(REASONS))
    record["dropped"] = {
        reason: int(n) for reason, n in zip(REASONS[1:], n_by_reason[1:], strict=True) if n
    }
    for name in ("stamp", "labels"):
        record.pop(name, None)
    return record
