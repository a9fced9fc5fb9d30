"""Scanning: what a source holds, in the words of the store, and which of its cells are taken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from celler.atlas.counts import find_counts
from celler.atlas.settings import COLUMNS, PRIMARY, Settings, of_source
from celler.atlas.sources import Contents, Source
from celler.ontology import Ontology, read_obo

#: Why a cell is not taken, by its code; 0 is taken.
REASONS = ("kept", "not primary", "dropped class", "duplicate")
KEPT, NOT_PRIMARY, DROPPED, DUPLICATE = range(4)
#: Names read at once.
N_NAMES = 200_000
N_LISTED = 8


@dataclass(frozen=True)
class Cells:
    """The cells of a source: ``codes (n,)`` and categories of each column, and why one is left out.

    hashes: ``(n,)`` uint64 of dataset and barcode, by which duplicates are found.
    is_numbered: obs_names are plain numbers, which say nothing of a cell's identity.
    """

    codes: dict[str, np.ndarray]
    categories: dict[str, list[str]]
    reason: np.ndarray
    hashes: np.ndarray
    is_numbered: bool

    def save(self, path: Path) -> None:
        """Write to an .npz, at once or not at all."""
        head = json.dumps({"categories": self.categories, "is_numbered": self.is_numbered})
        arrays: dict[str, Any] = {f"codes_{name}": codes for name, codes in self.codes.items()}
        part = path.with_suffix(".part.npz")
        np.savez(part, head=np.array(head), reason=self.reason, hashes=self.hashes, **arrays)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Cells:
        """Read what :meth:`save` wrote."""
        with np.load(path) as arrays:
            head = json.loads(str(arrays["head"]))
            codes = {name: arrays[f"codes_{name}"] for name in head["categories"]}
            return cls(codes, reason=arrays["reason"], hashes=arrays["hashes"], **head)

    def names(self, contents: Contents, start: int, stop: int) -> list[str]:
        """``dataset:barcode`` of these rows; ``source:number`` where cells only have numbers."""
        names = contents.names(start, stop)
        if self.is_numbered:
            return [f"{contents.source.name}:{name}" for name in names]
        datasets = np.array(self.categories["dataset"], object)
        of_cell = datasets[self.codes["dataset"][start:stop]]
        return [f"{dataset}:{name}" for dataset, name in zip(of_cell, names, strict=True)]


def scan(source: Source, settings: Settings) -> tuple[Cells, dict[str, Any]]:
    """The cells of a source, and a record of it for the plan."""
    with source.open() as contents:
        place = find_counts(contents, of_source(settings.layer, source.name))
        matrix = contents.matrix(place)
        columns = _columns(contents, settings)
        seen = set(columns["cell_type"].categories) if "cell_type" in columns else set()
        if "cell_type" in columns:
            columns["cell_type"] = _mapped(columns["cell_type"], settings.labels, source)
        reason = _reasons(contents, columns, seen, settings)
        cells = Cells(
            codes={name: np.asarray(part.codes) for name, part in columns.items()},
            categories={name: list(part.categories) for name, part in columns.items()},
            reason=reason,
            hashes=np.empty(contents.n_obs, np.uint64),
            is_numbered=all(name.isdecimal() for name in contents.names(0, 100)),
        )
        for start in range(0, contents.n_obs, N_NAMES):
            stop = min(start + N_NAMES, contents.n_obs)
            names = np.array(cells.names(contents, start, stop), object)
            cells.hashes[start:stop] = pd.util.hash_array(names)
    record = {
        "name": source.name,
        "path": str(source.path),
        "sha256": source.checksum(),
        "n_cells": contents.n_obs,
        "n_values": matrix.nnz,
        "counts": place,
        "labels": sorted(seen | set(cells.categories.get("cell_type", []))),
    }
    return cells, record


def _columns(contents: Contents, settings: Settings) -> dict[str, pd.Categorical]:
    """The canonical columns that the source has, as text."""
    source, found = contents.source, {}
    for name, defaults in COLUMNS.items():
        if name == "cell_type":
            key, argument = of_source(settings.labels_key, source.name), "labels_key"
        elif name in settings.columns:
            key, argument = of_source(settings.columns[name], source.name), f"columns[{name!r}]"
        else:
            key, argument = next((k for k in defaults if k in contents.columns), None), ""
        if key is not None:
            found[name] = _as_text(contents.column(key, argument), key, source)
    dataset = found.get("dataset")
    if dataset is None:
        zeros = np.zeros(contents.n_obs, np.int32)
        found["dataset"] = pd.Categorical.from_codes(zeros, [source.name])
    elif (dataset.codes < 0).any():
        if source.name not in dataset.categories:
            dataset = dataset.add_categories([source.name])
        found["dataset"] = dataset.fillna(source.name)
    return found


def _as_text(values: pd.Series, key: str, source: Source) -> pd.Categorical:
    """Categories as text; empty text and "unknown" are no value. Numbers with a point are refused."""
    column = pd.Categorical(values)
    floats = [c for c in column.categories if isinstance(c, float) and c != int(c)]
    if floats:
        raise ValueError(
            f"obs[{key!r}] of {source} holds numbers such as {floats[0]:g}; text or categories are needed."
        )
    whole = [int(c) if isinstance(c, float) else c for c in column.categories]
    names = [str(c).strip() for c in whole]
    return _renamed(
        column, {i: n for i, n in enumerate(names) if n.casefold() not in ("", "unknown")}
    )


def _mapped(
    labels: pd.Categorical, mapping: Mapping[str, str | None] | Path | None, source: Source
) -> pd.Categorical:
    """Labels under the names of the mapping, or of the ontology; those it does not name stay."""
    if mapping is None:
        return labels
    names = list(labels.categories)
    if isinstance(mapping, Path):
        new: dict[int, str | None] = dict(enumerate(_terms(names, read_obo(mapping), source)))
    else:
        new = {i: mapping.get(name, name) for i, name in enumerate(names)}
    return _renamed(labels, {i: name for i, name in new.items() if name is not None})


def _terms(names: list[str], ontology: Ontology, source: Source) -> list[str]:
    found, problems = [], []
    for name in names:
        try:
            found.append(ontology.find(name).name)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = f" And {len(problems) - N_LISTED} more." * (len(problems) > N_LISTED)
        raise ValueError(
            f"{len(problems)} labels of {source} are no terms of the ontology. "
            f"{' '.join(problems[:N_LISTED])}{more} Rename them with a dict or table as mapping instead."
        )
    return found


def _renamed(column: pd.Categorical, names: Mapping[int, str]) -> pd.Categorical:
    """Categories by the name of their code; codes without one have no value."""
    categories = sorted(set(names.values()))
    place = {name: i for i, name in enumerate(categories)}
    table = np.full(len(column.categories) + 1, -1, np.int32)
    for code, name in names.items():
        table[code] = place[name]
    return pd.Categorical.from_codes(table[column.codes], categories)


def _reasons(
    contents: Contents, columns: Mapping[str, pd.Categorical], seen: set[str], settings: Settings
) -> np.ndarray:
    """Why each cell is left out, as far as the source itself tells."""
    reason = np.full(contents.n_obs, KEPT, np.uint8)
    key = PRIMARY if PRIMARY in contents.columns else None
    if PRIMARY in settings.columns:
        key = of_source(settings.columns[PRIMARY], contents.source.name)
    if key is not None:
        values = contents.column(key, f"columns[{PRIMARY!r}]")
        is_primary = values.astype(str).str.casefold()
        if not set(is_primary.unique()) <= {"true", "false", "1", "0"}:
            raise ValueError(
                f"obs[{key!r}] of {contents.source} holds {is_primary.unique()[:3].tolist()}; true or false is "
                f"needed for every cell, or columns={{{PRIMARY!r}: None}} to leave the column alone."
            )
        reason[is_primary.isin(["false", "0"]).to_numpy()] = NOT_PRIMARY
    labels = columns.get("cell_type")
    if labels is not None and settings.drop:
        dropped = labels.categories.isin(settings.drop)
        reason[np.append(dropped, False)[labels.codes] & (reason == KEPT)] = DROPPED
    return reason
