"""Planning: what a build will write, settled before the first cell is, and found again after a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from celler._utils._messages import closest, warn
from celler._utils._version import __version__
from celler.atlas._curate import DUPLICATE, KEPT, REASONS, Cells, SourceGenes, gene_space, scan
from celler.atlas._files import AtlasFile
from celler.atlas._options import COLUMNS, Settings, generator, of_source
from celler.atlas._store import FORMAT, FORMAT_VERSION
from celler.data._genes import IN_ANOTHER_CASE
from celler.labels import LabelTree

#: Weight of a class that one part lacks although two donors have it, against a share that is off by 1.
MISSING_IN_TEST, MISSING_IN_TRAIN = 1.0, 10.0
MAX_STEPS = 2000


def split_groups(counts: np.ndarray, test_size: float, rng: np.random.Generator) -> np.ndarray:
    """Groups of cells, such as donors, that go to the test part ``(G,)`` bool.

    Moves one group at a time, to and fro, as long as it helps: the test part should hold ``test_size``
    of all cells and of each class, every class that several groups have should be in both parts, and
    none should be in the test part alone. Where that cannot be, the test part is empty.

    counts: ``(G, C + 1)`` cells of each class and group; the last column is cells without a label.
    """
    n_groups = len(counts)
    is_test = np.zeros(n_groups, bool)
    if test_size == 0 or n_groups < 2:
        return is_test
    order = rng.permutation(n_groups)  # among equally good moves, the seed decides
    table = np.column_stack([counts[:, :-1], counts.sum(axis=1)])[order].astype(float)
    table = table[:, table.sum(axis=0) > 0]
    chosen = _climb(table, test_size)
    is_test[order[chosen]] = True
    return is_test


def _climb(table: np.ndarray, test_size: float) -> np.ndarray:
    """The chosen rows of ``table (G, columns)``, the last column of which is all cells."""
    total = table.sum(axis=0)
    is_shared = (table > 0).sum(axis=0) > 1
    chosen = np.zeros(len(table), bool)
    held = np.zeros(table.shape[1])
    best = _badness(held[None], total, is_shared, test_size)[0]
    for _ in range(MAX_STEPS):
        moved = held + np.where(chosen[:, None], -table, table)
        badness = _badness(moved, total, is_shared, test_size)
        row = int(badness.argmin())
        if badness[row] >= best - 1e-12:
            break
        best, held = badness[row], moved[row]
        chosen[row] = ~chosen[row]
    return chosen


def _badness(
    held: np.ndarray, total: np.ndarray, is_shared: np.ndarray, test_size: float
) -> np.ndarray:
    """How far each candidate ``held (n, columns)`` in the test part is from what is wanted."""
    share = held / total
    off = np.abs(share - test_size)
    off += MISSING_IN_TEST * ((held <= 0) & is_shared) + MISSING_IN_TRAIN * (held >= total)
    # all cells count as much as all classes together
    return off[:, :-1].sum(axis=1) / max(1, off.shape[1] - 1) + off[:, -1]


#: Bytes of memory that the libraries take, and that writing takes for each stored value of a dataset.
BASE_BYTES, BYTES_PER_VALUE = 0.8e9, 24
#: Share of a source's cells from which removed duplicates are pointed out.
MANY_DUPLICATES = 0.1
SPLITS = ("test", "train")
#: Steps of a build that draw random numbers.
SPLIT, SPLIT_CELLS, BUCKETS, ORDER = range(4)


@dataclass(frozen=True)
class Plan:
    """What a build will write; arrays of a source lie in ``folder`` by its number.

    categories: of each column of obs, sorted. n_buckets: datasets of the collection.
    sources: a record of each source. parents: by class, empty without.
    """

    folder: Path
    settings: dict[str, Any]
    genes: list[str]
    categories: dict[str, list[str]]
    parents: dict[str, str]
    n_buckets: int
    n_kept: int
    sources: list[dict[str, Any]]

    def cells(self, number: int) -> Cells:
        """The cells of a source, in the store's codes."""
        return Cells.load(self.folder / f"cells_{number}.npz")

    def gene_map(self, number: int) -> np.ndarray:
        """The store's gene of each column of a source, −1 for none."""
        return np.load(self.folder / f"genes_{number}.npy")

    def save(self) -> None:
        """Write ``plan.json``, at once or not at all."""
        record = {name: value for name, value in vars(self).items() if name != "folder"}
        write_json(self.folder / "plan.json", record)

    @classmethod
    def load(cls, folder: Path) -> Plan | None:
        """The plan of an unfinished build, ``None`` where there is none yet."""
        path = folder / "plan.json"
        return cls(folder, **json.loads(path.read_text())) if path.exists() else None


def write_json(path: Path, record: Any) -> None:
    """Write a file at once or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False))
    part.replace(path)


def make_plan(folder: Path, sources: Sequence[AtlasFile], settings: Settings, bar: Any) -> Plan:
    """Scan all sources and settle genes, categories, duplicates and the split. Writes into ``folder``."""
    scans, records = [], []
    for number, source in enumerate(sources):
        bar.set_description(f"Scan {source.name}")
        cells, record = _scanned(folder / f"scan_{number}", source, settings)
        bar.update(record["n_cells"])
        scans.append(cells)
        records.append(record)
    _check_drop(settings, records)
    _mark_duplicates(scans, records)
    if not any((cells.reason == KEPT).any() for cells in scans):
        n_cells = sum(record["n_cells"] for record in records)
        raise ValueError(f"none of the {n_cells:,} cells is left after dropping.")
    space = gene_space(_genes(sources, records, settings), settings.genes)
    for number, (gene_map, report) in enumerate(zip(space.maps, space.reports, strict=True)):
        np.save(folder / f"genes_{number}.npy", gene_map)
        records[number]["genes"] = report
        n_case = report["inexact"].get(IN_ANOTHER_CASE, 0)
        if 2 * n_case > report["n_matched"]:
            warn(
                f"{n_case:,} of {report['n_matched']:,} genes of source {records[number]['name']!r} match those "
                "before it in another case only, as mouse and human symbols do: check that all sources are of "
                "one species."
            )
    parents = _parents(scans, settings)
    categories = _categories(scans, parents)
    is_test = _split(scans, settings)
    n_kept = n_values = 0
    for number, cells in enumerate(scans):
        _in_codes(cells, categories, parents, is_test[number]).save(folder / f"cells_{number}.npz")
        kept = int((cells.reason == KEPT).sum())
        n_kept += kept
        n_values += kept * records[number]["n_values"] // max(1, len(cells.reason))
    per_bucket = (settings.storage.memory_gb * 1e9 - BASE_BYTES) / BYTES_PER_VALUE
    n_buckets = max(1, min(n_kept // 64, int(np.ceil(n_values / per_bucket))))
    genes = list(map(str, space.names))
    record = settings.as_record()
    plan = Plan(folder, record, genes, categories, parents, n_buckets, n_kept, records)
    plan.save()
    return plan


def _scanned(stem: Path, source: AtlasFile, settings: Settings) -> tuple[Cells, dict[str, Any]]:
    """The scan of a source, from the files of one that was done already."""
    arrays, record_file = stem.with_suffix(".npz"), stem.with_suffix(".json")
    stamp = source.stamp() if source.path.exists() else None
    if record_file.exists():
        record = json.loads(record_file.read_text())
        if record["stamp"] == stamp:
            return Cells.load(arrays), record
    cells, record = scan(source, settings)
    record["stamp"] = stamp
    cells.save(arrays)
    write_json(record_file, record)
    return cells, record


def _check_drop(settings: Settings, records: Sequence[dict[str, Any]]) -> None:
    seen = sorted({label for record in records for label in record["labels"]})
    for name in settings.drop:
        if name not in seen:
            raise ValueError(
                f"drop names {name!r}, which is no label of the sources.{closest(name, seen)} Labels: {seen}."
            )


def _mark_duplicates(scans: Sequence[Cells], records: Sequence[dict[str, Any]]) -> None:
    """Of cells with the same dataset and barcode, keep the first."""
    kept = [np.flatnonzero(cells.reason == KEPT) for cells in scans]
    hashes = np.concatenate([cells.hashes[rows] for cells, rows in zip(scans, kept, strict=True)])
    is_repeated = pd.Series(hashes).duplicated().to_numpy()
    start = 0
    for cells, rows, record in zip(scans, kept, records, strict=True):
        repeated = rows[is_repeated[start : start + len(rows)]]
        start += len(rows)
        cells.reason[repeated] = DUPLICATE
        if len(rows) and len(repeated) == len(rows):
            warn(f"All {len(rows):,} cells of source {record['name']!r} are in sources before it.")
        within = int(pd.Series(cells.hashes[rows]).duplicated().sum())
        if within > MANY_DUPLICATES * len(rows):
            warn(
                f"{within:,} of {len(rows):,} cells of source {record['name']!r} repeat the obs_name of another in "
                "the same dataset and are left out as duplicates. If they are different cells, make "
                "adata.obs_names unique, or name the column that tells them apart with "
                "columns={'dataset': ...}, and build anew."
            )


def _genes(
    sources: Sequence[AtlasFile], records: Sequence[dict[str, Any]], settings: Settings
) -> list[SourceGenes]:
    found = []
    for source, record in zip(sources, records, strict=True):
        with source.open() as contents:
            var = contents.var(record["counts"])
        found.append(SourceGenes.of(source.name, var, of_source(settings.gene_key, source.name)))
    return found


def _parents(scans: Sequence[Cells], settings: Settings) -> dict[str, str]:
    """Parent by class: as given, else from the columns, in which each class must have one."""
    classes = _used(scans, "cell_type")
    if settings.parents is not None:
        return LabelTree(tuple(classes)).with_parents(settings.parents).parent_of
    pairs: dict[str, set[str]] = {}
    for cells in scans:
        if {"cell_type", "parent_type"} <= set(cells.codes):
            own, above = cells.categories["cell_type"], cells.categories["parent_type"]
            codes = np.stack([cells.codes["cell_type"], cells.codes["parent_type"]])
            for child, parent in np.unique(codes[:, cells.reason == KEPT], axis=1).T:
                if child >= 0 and parent >= 0:
                    pairs.setdefault(own[child], set()).add(above[parent])
    if not pairs:
        return {}
    if missing := [name for name in classes if name not in pairs]:
        warn(f"No parent is known of {missing[:8]}: the store has no parents. parents= gives them.")
        return {}
    return (
        LabelTree(tuple(classes))
        .with_parents({name: sorted(found) for name, found in pairs.items()})
        .parent_of
    )


def _used(scans: Sequence[Cells], column: str) -> list[str]:
    """Categories that a kept cell has, sorted."""
    used: set[str] = set()
    for cells in scans:
        if column in cells.codes:
            codes = np.unique(cells.codes[column][cells.reason == KEPT])
            used |= {cells.categories[column][code] for code in codes if code >= 0}
    return sorted(used)


def _categories(scans: Sequence[Cells], parents: dict[str, str]) -> dict[str, list[str]]:
    """Categories of each column of the store; a column that no cell has is left out."""
    found = {name: _used(scans, name) for name in COLUMNS}
    found["parent_type"] = sorted(set(parents.values()))
    return {name: names for name, names in found.items() if names} | {"split": list(SPLITS)}


def _split(scans: Sequence[Cells], settings: Settings) -> list[np.ndarray]:
    """Whether each cell of each source is for testing: by donor, and by dataset where none is known."""
    rng = generator(settings.seed, SPLIT)
    classes = _used(scans, "cell_type")
    groups = [_groups(cells) for cells in scans]
    names = sorted({name for _, own in groups for name in own})
    counts = np.zeros((len(names), len(classes) + 1), np.int64)
    numbers = []
    for cells, (codes, own) in zip(scans, groups, strict=True):
        number = pd.Index(names).get_indexer(own)[codes]
        numbers.append(number)
        label = np.full(len(codes), len(classes))
        if "cell_type" in cells.codes:
            place = pd.Index(classes).get_indexer(cells.categories["cell_type"])
            place = np.append(place, -1)[cells.codes["cell_type"]]
            label = np.where(place >= 0, place, len(classes))
        is_kept = cells.reason == KEPT
        np.add.at(counts, (number[is_kept], label[is_kept]), 1)
    if settings.test_size and (counts.sum(axis=1) > 0).sum() < 2:
        warn(
            "The cells are of one donor, or of one dataset without donors: they are split at random."
        )
        return [
            generator(settings.seed, SPLIT_CELLS, i).random(len(cells.reason)) < settings.test_size
            for i, cells in enumerate(scans)
        ]
    is_test = split_groups(counts, settings.test_size, rng)
    if settings.test_size and not is_test.any():
        warn(
            "No donor can be kept for testing without taking all cells of a class from training: the test "
            "part is empty."
        )
    return [is_test[number] for number in numbers]


def _groups(cells: Cells) -> tuple[np.ndarray, list[str]]:
    """The donor of each cell as a code, or its dataset where no donor is known, and their names."""
    datasets = [f"dataset {name}" for name in cells.categories["dataset"]]
    if "donor" not in cells.codes:
        return cells.codes["dataset"], datasets
    donors = cells.codes["donor"].astype(np.int64)  # they are as narrow as the names are few
    names = [f"donor {name}" for name in cells.categories["donor"]]
    codes = np.where(donors >= 0, donors, len(names) + cells.codes["dataset"])
    return codes, names + datasets


def _in_codes(
    cells: Cells, categories: dict[str, list[str]], parents: dict[str, str], is_test: np.ndarray
) -> Cells:
    """The cells in the codes of the store."""
    codes = {}
    for name, names in categories.items():
        if name == "split":
            codes[name] = np.where(is_test, 0, 1).astype(np.int32)
        elif name == "parent_type":
            own = [parents.get(c, "") for c in cells.categories.get("cell_type", [])]
            codes[name] = _translated(cells.codes.get("cell_type"), own, names, len(is_test))
        else:
            own = cells.categories.get(name, [])
            codes[name] = _translated(cells.codes.get(name), own, names, len(is_test))
    return Cells(codes, categories, cells.reason, cells.hashes, cells.is_numbered)


def _translated(codes: np.ndarray | None, own: list[str], names: list[str], n: int) -> np.ndarray:
    if codes is None:
        return np.full(n, -1, np.int32)
    table = np.append(pd.Index(names, dtype=object).get_indexer(pd.Index(own, dtype=object)), -1)
    return table.astype(np.int32)[codes]


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
