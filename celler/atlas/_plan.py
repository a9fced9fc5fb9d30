"""Plan a build: genes, categories, duplicates and split, settled before the first cell is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from celler._utils._messages import agreed, closest, warn
from celler._utils._text import warn_of_alike
from celler._utils._version import __version__
from celler.atlas._curate import DUPLICATE, REASONS, Cells, curate, gene_space, read_genes, renamed
from celler.atlas._files import AtlasFile
from celler.atlas._options import COLUMNS, Settings, of_source
from celler.atlas._store import FORMAT, FORMAT_VERSION
from celler.data._genes import IN_ANOTHER_CASE
from celler.data._read import reading
from celler.labels._tree import LabelTree

#: Penalty of a class that a part lacks although two donors have it; a share that is off by 1 counts 1.
MISSING_IN_TEST, MISSING_IN_TRAIN = 1.0, 10.0
MAX_STEPS = 2000
#: Bytes of memory that the libraries take, and that writing takes for each stored value of a dataset.
BASE_BYTES, BYTES_PER_VALUE = 0.8e9, 24
#: Share of a source's cells from which removed duplicates raise a warning.
MANY_DUPLICATES = 0.1
SPLITS = ("test", "train")
#: Steps of a build that draw random numbers.
SPLIT, SPLIT_CELLS, BUCKETS, ORDER = range(4)


@dataclass(frozen=True)
class Plan:
    """What a build will write; the cells and genes of each source lie in ``folder``."""

    folder: Path
    settings: dict[str, Any]
    genes: list[str]
    categories: dict[str, list[str]]  # by column, sorted
    parents: dict[str, str]  # by class
    n_buckets: int  # datasets of the collection
    n_kept: int
    sources: list[dict[str, Any]]  # a record of each

    def cells(self, number: int) -> Cells:
        """Return the cells of a source, in the codes of the store."""
        path = self.folder / f"cells_{number}.npz"
        with reading(path, "Delete the folder to begin anew."):
            return Cells.load(path)

    @classmethod
    def load(cls, folder: Path) -> Plan | None:
        """Return the plan of an unfinished build, ``None`` before there is one."""
        path = folder / "plan.json"
        if not path.exists():
            return None
        with reading(path, "Delete the folder to begin anew."):
            return cls(folder, **json.loads(path.read_text(encoding="utf-8")))


def write_json(path: Path, record: Any) -> None:
    """Write a file, whole or not at all."""
    part = path.with_suffix(".part")
    # Half of a surrogate pair, which a label may hold, is no UTF-8.
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    part.replace(path)


def make_plan(folder: Path, sources: Sequence[AtlasFile], settings: Settings, bar: Any) -> Plan:
    """Curate all sources and settle what the build will write; all of it is kept in ``folder``."""
    curated, records = [], []
    for number, source in enumerate(sources):
        bar.set_description(f"Scan {source.name}")
        cells, record = _curated(folder / f"curated_{number}", source, settings)
        bar.update(record["n_cells"])
        curated.append(cells)
        records.append(record)
    seen = sorted({label for record in records for label in record["labels"]})
    for name in settings.drop:
        if name not in seen:
            raise ValueError(
                f"drop names {name!r}, which is no label of the sources.{closest(name, seen)} Labels: {seen}."
            )
    _mark_duplicates(curated, records)
    if not any(cells.is_kept.any() for cells in curated):
        n_cells = sum(record["n_cells"] for record in records)
        raise ValueError(f"none of the {n_cells:,} cells is left after dropping.")
    genes = {
        source.name: read_genes(source, record["counts"], of_source(settings.gene_key, source.name))
        for source, record in zip(sources, records, strict=True)
    }
    space, maps, reports = gene_space(genes, settings.genes)
    for number, report in enumerate(reports):
        np.save(folder / f"genes_{number}.npy", maps[number])
        records[number]["genes"] = report
        _check_species(records[number]["name"], report)
    parents = _parents(curated, settings)
    categories = _categories(curated, parents)
    _check_labels(categories.get("cell_type", []), settings)
    n_kept = n_values = 0
    for number, (cells, is_test) in enumerate(zip(curated, _split(curated, settings), strict=True)):
        _in_codes(cells, categories, parents, is_test).save(folder / f"cells_{number}.npz")
        kept = int(cells.is_kept.sum())
        n_kept += kept
        n_values += kept * records[number]["n_values"] // max(1, len(cells.reason))
    per_bucket = (settings.storage.memory_gb * 1e9 - BASE_BYTES) / BYTES_PER_VALUE
    n_buckets = max(1, min(n_kept // 64, int(np.ceil(n_values / per_bucket))))
    plan = Plan(folder, settings.as_record(), list(map(str, space)), categories, parents, n_buckets, n_kept, records)
    write_json(folder / "plan.json", {name: value for name, value in vars(plan).items() if name != "folder"})
    return plan


def _curated(stem: Path, source: AtlasFile, settings: Settings) -> tuple[Cells, dict[str, Any]]:
    """Curate a source, or load it where an interrupted build has done so."""
    arrays, record_file = stem.with_suffix(".npz"), stem.with_suffix(".json")
    stamp = source.stamp() if source.path.exists() else None
    if record_file.exists() and (record := json.loads(record_file.read_text()))["stamp"] == stamp:
        return Cells.load(arrays), record
    cells, record = curate(source, settings)
    record["stamp"] = stamp
    cells.save(arrays)
    write_json(record_file, record)
    return cells, record


def _check_species(name: str, report: dict[str, Any]) -> None:
    n_case = report["inexact"].get(IN_ANOTHER_CASE, 0)
    if 2 * n_case > report["n_matched"]:
        warn(
            f"{n_case:,} of {report['n_matched']:,} genes of source {name!r} {agreed(n_case, 'match')} those before "
            "it in another case only, as mouse and human symbols do: check that all sources are of one species."
        )


def _check_labels(classes: Sequence[str], settings: Settings) -> None:
    if settings.labels_key is not None and not classes:
        warn(f"no cell has a label in labels_key={settings.labels_key!r}: the store has no cell_type.")
    warn_of_alike(classes, "the store")


def _mark_duplicates(curated: Sequence[Cells], records: Sequence[dict[str, Any]]) -> None:
    """Keep the first of the cells with the same dataset and barcode."""
    hashes = [cells.hashes[cells.is_kept] for cells in curated]
    ends = np.cumsum(list(map(len, hashes)))[:-1]
    is_repeated = np.split(pd.Series(np.concatenate(hashes)).duplicated().to_numpy(), ends)
    for cells, own, repeated, record in zip(curated, hashes, is_repeated, records, strict=True):
        cells.reason[np.flatnonzero(cells.is_kept)[repeated]] = DUPLICATE
        if len(own) and repeated.all():
            warn(f"All {len(own):,} cells of source {record['name']!r} are in sources before it.")
        within = int(pd.Series(own).duplicated().sum())
        if within > MANY_DUPLICATES * len(own):
            warn(
                f"{within:,} of {len(own):,} cells of source {record['name']!r} {agreed(within, 'repeat')} the "
                f"obs_name of another in the same dataset and {agreed(within, 'are')} left out as duplicates. If they "
                "are different cells, make adata.obs_names unique, or name the column that tells them apart with "
                "columns={'dataset': ...}, and build anew."
            )


def _parents(curated: Sequence[Cells], settings: Settings) -> dict[str, str]:
    """Parent by class: the given ones, else those of the columns, where each class needs one."""
    classes = _used(curated, "cell_type")
    tree = LabelTree(tuple(classes))
    if settings.parents is not None:
        return tree.with_parents(settings.parents).parent_of
    pairs: dict[str, set[str]] = {}
    for cells in curated:
        if {"cell_type", "parent_type"} <= set(cells.columns):
            table = pd.DataFrame({name: cells.columns[name] for name in ("cell_type", "parent_type")})
            for child, parent in table[cells.is_kept].dropna().drop_duplicates().to_numpy():
                pairs.setdefault(child, set()).add(parent)
    if not pairs:
        return {}
    if missing := [name for name in classes if name not in pairs]:
        warn(f"No parent is known of {missing[:8]}: the store has no parents. parents= gives them.")
        return {}
    return tree.with_parents({name: sorted(found) for name, found in pairs.items()}).parent_of


def _used(curated: Sequence[Cells], column: str) -> list[str]:
    """Sorted categories that a kept cell has."""
    used: set[str] = set()
    for cells in curated:
        if column in cells.columns:
            used.update(cells.columns[column][cells.is_kept].unique().dropna())
    return sorted(used)


def _categories(curated: Sequence[Cells], parents: dict[str, str]) -> dict[str, list[str]]:
    """Categories of each column of the store; a column without values is left out."""
    found = {name: _used(curated, name) for name in COLUMNS}
    found["parent_type"] = sorted(set(parents.values()))
    return {name: names for name, names in found.items() if names} | {"split": list(SPLITS)}


def _in_codes(cells: Cells, categories: dict[str, list[str]], parents: dict[str, str], is_test: np.ndarray) -> Cells:
    """Return the cells in the codes of the store."""
    labels = cells.columns.get("cell_type", pd.Categorical([None] * len(is_test)))
    derived = {
        "parent_type": renamed(labels, [parents.get(name) for name in labels.categories]),
        "split": pd.Categorical.from_codes(np.where(is_test, 0, 1), SPLITS),
    }
    cells = replace(cells, columns=cells.columns | derived)
    columns = {name: pd.Categorical.from_codes(cells.codes(name, own), own) for name, own in categories.items()}
    return replace(cells, columns=columns)


def _split(curated: Sequence[Cells], settings: Settings) -> list[np.ndarray]:
    """Whether each cell of each source is for testing: by donor, or by dataset where none is known."""
    classes = _used(curated, "cell_type")
    groups = pd.api.types.union_categoricals([_groups(cells) for cells in curated], sort_categories=True)
    labels = np.concatenate([cells.codes("cell_type", classes) for cells in curated])
    is_kept = np.concatenate([cells.is_kept for cells in curated])
    counts = np.zeros((len(groups.categories), len(classes) + 1), np.int64)
    np.add.at(counts, (groups.codes[is_kept], labels[is_kept]), 1)  # −1 is the last column
    if settings.test_size and (counts.sum(axis=1) > 0).sum() < 2:
        warn("The cells are of one donor, or of one dataset without donors: they are split at random.")
        return [
            np.random.default_rng([settings.seed, SPLIT_CELLS, i]).random(len(cells.reason)) < settings.test_size
            for i, cells in enumerate(curated)
        ]
    is_test = split_groups(counts, settings.test_size, np.random.default_rng([settings.seed, SPLIT]))
    if settings.test_size and not is_test.any():
        warn("No donor can be for testing without taking all cells of a class from training: the test part is empty.")
    return np.split(is_test[groups.codes], np.cumsum([len(cells.reason) for cells in curated])[:-1])


def _groups(cells: Cells) -> pd.Categorical:
    """Return the donor of each cell, or its dataset where no donor is known."""
    dataset = cells.columns["dataset"].rename_categories("dataset {}".format)
    if "donor" not in cells.columns:
        return dataset
    donor = cells.columns["donor"].rename_categories("donor {}".format)
    names = [*donor.categories, *dataset.categories]
    return donor.set_categories(names).fillna(dataset.set_categories(names))


def split_groups(counts: np.ndarray, test_size: float, rng: np.random.Generator) -> np.ndarray:
    """Whether each group, such as a donor, is for testing ``(G,)``, from its cells ``counts (G, C + 1)`` by class.

    Moves one group at a time while that helps: the test part should hold ``test_size`` of all cells and of each class,
    and each class of several groups should be in both parts. No class is lost from training for it.
    """
    is_test = np.zeros(len(counts), bool)
    if test_size == 0 or len(counts) < 2:
        return is_test
    order = rng.permutation(len(counts))  # the seed decides among equally good moves
    table = np.column_stack([counts[:, :-1], counts.sum(axis=1)])[order].astype(float)
    table = table[:, table.sum(axis=0) > 0]
    total, is_shared = table.sum(axis=0), (table > 0).sum(axis=0) > 1

    def badness(held: np.ndarray) -> np.ndarray:
        """How far each candidate test part ``held (n, columns)`` is from the wanted one."""
        off = np.abs(held / total - test_size)
        off += MISSING_IN_TEST * ((held <= 0) & is_shared) + MISSING_IN_TRAIN * (held >= total)
        # All cells count as much as all classes together.
        return off[:, :-1].sum(axis=1) / max(1, off.shape[1] - 1) + off[:, -1]

    chosen, held = np.zeros(len(table), bool), np.zeros(table.shape[1])
    best = badness(held[None])[0]
    for _ in range(MAX_STEPS):
        moved = held + np.where(chosen[:, None], -table, table)
        now = badness(moved)
        row = int(now.argmin())
        if now[row] >= best - 1e-12:
            break
        best, held = now[row], moved[row]
        chosen[row] = ~chosen[row]
    is_test[order[chosen]] = True
    return is_test


def make_manifest(plan: Plan, counts: np.ndarray, datasets: dict[str, int]) -> dict[str, Any]:
    """Return the record of a build from ``counts (2, C + 1)`` by split and class, unlabelled last."""
    sources = []
    for number, source in enumerate(plan.sources):
        n_by_reason = np.bincount(plan.cells(number).reason, minlength=len(REASONS)).tolist()
        left_out = {reason: n for reason, n in zip(REASONS, n_by_reason, strict=True) if n and reason != "kept"}
        record = {name: value for name, value in source.items() if name not in ("stamp", "labels")}
        sources.append(record | {"dropped": left_out})
    dropped = {reason: sum(source["dropped"].get(reason, 0) for source in sources) for reason in REASONS[1:]}
    n_kept = sum(datasets.values())
    dropped["empty"] = sum(s["n_cells"] for s in sources) - sum(dropped.values()) - n_kept
    libraries = [name for name in ("anndata", "annbatch", "numpy", "zarr") if find_spec(name)]
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "n_cells": n_kept,
        "n_cells_by_split": dict(zip(SPLITS, counts.sum(axis=1).tolist(), strict=True)),
        "classes": plan.categories.get("cell_type", []),
        "parents": plan.parents,
        "class_counts": dict(zip(SPLITS, counts[:, :-1].tolist(), strict=True)),
        "unlabeled": dict(zip(SPLITS, counts[:, -1].tolist(), strict=True)),
        "columns": list(plan.categories),
        "dtype": plan.settings["dtype"],
        "seed": plan.settings["seed"],
        "datasets": datasets,
        "sources": sources,
        "dropped": dropped,
        "settings": plan.settings,
        "versions": {"celler": __version__} | {name: version(name) for name in libraries},
        "genes": plan.genes,
    }
