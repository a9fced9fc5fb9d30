"""Curate the files of a build: one gene space, one set of columns, and which cells are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from celler._utils._messages import agreed, counted, warn
from celler._utils._text import as_categories, as_names, means_no_label, text_of
from celler.atlas._files import AtlasFile, Contents, Matrix, find_counts
from celler.atlas._options import COLUMNS, PRIMARY, Settings, of_source
from celler.data._gene_names import (
    are_row_numbers,
    check_unique,
    gene_names,
    left_out,
    name_columns,
    text_columns,
)
from celler.data._genes import align_genes, without_version
from celler.data._mismatch import MIN_OVERLAP, kinds_of
from celler.labels._ontology import read_obo

#: Why a cell is left out, by code; 0 is kept.
REASONS = ("kept", "not primary", "dropped class", "duplicate")
KEPT, NOT_PRIMARY, DROPPED, DUPLICATE = range(4)
#: Names of cells that are read at once, and labels that an error lists.
N_NAMES, N_LISTED = 200_000, 8


def read_genes(source: AtlasFile, place: str, gene_key: str | None) -> pd.DataFrame:
    """Return ``var`` of the matrix at ``place``, or the names in its column ``gene_key`` without other columns."""
    with source.open() as contents:
        var = contents.var(place)
    try:
        names = gene_names(var, gene_key)
    except (KeyError, TypeError) as error:
        raise type(error)(f"source {source.name!r}: {error.args[0]}") from error
    if (names == "").all():
        raise ValueError(f"source {source.name!r} has no name for any gene. {name_columns(var)}")
    if are_row_numbers(names) and (gene_key is not None or not len(text_columns(var))):
        what = "var_names" if gene_key is None else f"var[{gene_key!r}]"
        raise ValueError(
            f"{what} of source {source.name!r} holds row numbers such as {list(names[:3])}, which name no gene. "
            f"{name_columns(var)}"
        )
    if not_read := left_out(var, gene_key):
        warn(f"source {source.name!r}: {not_read}")
    return (var if gene_key is None else var[[]]).set_axis(names)


def gene_space(
    sources: Mapping[str, pd.DataFrame], genes: str | Sequence[str]
) -> tuple[pd.Index, list[np.ndarray], list[dict[str, Any]]]:
    """Align all sources to the union or the intersection of their genes, or to a list of names.

    Returns the genes and, for each source, the gene of each column, −1 for none, and a report. A union has the kind
    of names of the first source.
    """
    is_open = isinstance(genes, str)
    if is_open:
        name, var = next(iter(sources.items()))
        if are_row_numbers(var.index):
            raise ValueError(
                f"var_names of source {name!r}, the first, hold row numbers such as {list(var.index[:3])}, which "
                f"name no gene. {name_columns(var)}"
            )
        first = without_version(var.index)
        space = first[first != ""].unique()
    else:
        space = as_names(genes)
        space = space[space != ""]
        check_unique(space, "the names in genes")
    maps, reports = [], []
    for source, var in sources.items():
        found, names, report = _align(source, var, space)
        if is_open:
            extra = (found < 0) & np.asarray(names != "")
            fresh = without_version(names[extra])
            space = space.append(fresh.unique())
            found[extra] = space.get_indexer(fresh)
        maps.append(found)
        reports.append(report)
    if genes == "intersection":
        is_shared = np.all([np.isin(np.arange(len(space)), found) for found in maps], axis=0)
        if not is_shared.any():
            raise ValueError(
                f"no gene is in all {len(maps)} sources; pass genes='union' or a list of names, or leave out the "
                "source that shares least."
            )
        place = np.append(space[is_shared].get_indexer(space), -1)
        space, maps = space[is_shared], [place[found] for found in maps]
    for found, report in zip(maps, reports, strict=True):
        columns = found[found >= 0]
        report["n_in_store"] = len(np.unique(columns))
        report["n_added_up"] = len(columns) - report["n_in_store"]
    return space, maps, reports


def _align(source: str, var: pd.DataFrame, space: pd.Index) -> tuple[np.ndarray, pd.Index, dict[str, Any]]:
    """Gene of each column, −1 for none; the names that matched, and a report."""
    names = var.index
    try:
        match = align_genes(names, space, var, is_vocabulary=len(names) < len(space), ignore_case=True)
    except ValueError as error:
        own, wanted = (str(kinds_of(index).index[0]) for index in (names, space))
        raise ValueError(
            f"source {source!r} shares under {MIN_OVERLAP:.0%} of its genes with the store: it has {len(names):,} "
            f"{own} such as {list(names[:3])}, the store {len(space):,} {wanted} such as {list(space[:3])}; columns of "
            f"its var: {list(map(str, var.columns))}. Name the column that holds the store's kind with "
            f"gene_key={{{source!r}: ...}}, rename its genes first with cl.pp.align_genes(adata, names, mapping=...), "
            "or leave it out."
        ) from error
    if match.column is not None:
        names = gene_names(var, match.column)
    report = {
        "n_genes": len(names),
        "names": "var_names" if match.column is None else f"var[{match.column!r}]",
        "n_matched": match.n_matched,
        "inexact": match.n_inexact,
    }
    return np.maximum(match.gene_map, match.repeated).astype(np.int64), names, report


@dataclass(frozen=True)
class Cells:
    """The cells of a source: columns of obs, and the reason why each is left out."""

    columns: dict[str, pd.Categorical]
    reason: np.ndarray  # (n,) codes of REASONS
    hashes: np.ndarray  # (n,) uint64 of dataset and barcode, which find duplicates
    is_numbered: bool  # obs_names are plain numbers, which do not identify a cell

    @property
    def is_kept(self) -> np.ndarray:
        """Whether each cell is in the store, unless it has no counts."""
        return self.reason == KEPT

    def codes(self, column: str, names: Sequence[str]) -> np.ndarray:
        """Place of each cell's category in ``names``, −1 for none."""
        if column not in self.columns:
            return np.full(len(self.reason), -1, np.int8)
        return np.asarray(self.columns[column].set_categories(names).codes)

    def save(self, path: Path) -> None:
        """Write to an .npz, whole or not at all."""
        categories = {name: list(column.categories) for name, column in self.columns.items()}
        head = json.dumps({"categories": categories, "is_numbered": self.is_numbered})
        codes: dict[str, Any] = {f"codes_{name}": column.codes for name, column in self.columns.items()}
        part = path.with_suffix(".part.npz")
        np.savez(part, head=np.array(head), reason=self.reason, hashes=self.hashes, **codes)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Cells:
        """Read what :meth:`save` wrote."""
        with np.load(path) as arrays:
            head = json.loads(str(arrays["head"]))
            columns = {
                name: pd.Categorical.from_codes(arrays[f"codes_{name}"], categories)
                for name, categories in head["categories"].items()
            }
            return cls(columns, arrays["reason"], arrays["hashes"], head["is_numbered"])

    def names(self, contents: Contents, start: int, stop: int) -> list[str]:
        """``dataset:barcode`` of these rows, or ``source:number`` where cells are numbered."""
        names = contents.names(start, stop)
        if self.is_numbered:
            return [f"{contents.source.name}:{name}" for name in names]
        datasets = self.columns["dataset"][start:stop]
        return [f"{dataset}:{name}" for dataset, name in zip(datasets, names, strict=True)]


def curate(source: AtlasFile, settings: Settings) -> tuple[Cells, dict[str, Any]]:
    """Return the cells of a source, and its record in the plan."""
    with source.open() as contents:
        place = find_counts(contents, of_source(settings.layer, source.name))
        n_values = Matrix(contents, place).nnz
        columns = _columns(contents, settings)
        seen: set[str] = set()
        if "cell_type" in columns:
            given = columns["cell_type"].categories
            columns["cell_type"] = renamed(columns["cell_type"], _new_names(given, settings.mapping, source))
            seen = {*given, *columns["cell_type"].categories}
        cells = Cells(
            columns,
            _reasons(contents, columns.get("cell_type"), settings),
            hashes=np.empty(contents.n_obs, np.uint64),
            is_numbered=all(name.isdecimal() for name in contents.names(0, 100)),
        )
        for start in range(0, contents.n_obs, N_NAMES):
            names = cells.names(contents, start, start + N_NAMES)
            cells.hashes[start : start + N_NAMES] = pd.util.hash_array(np.array(names, object))
    record = {
        "name": source.name,
        "path": str(source.path),
        "sha256": source.checksum(),
        "n_cells": contents.n_obs,
        "n_values": n_values,
        "counts": place,
        "labels": sorted(seen),
    }
    return cells, record


def _columns(contents: Contents, settings: Settings) -> dict[str, pd.Categorical]:
    """Return the columns of a store that the source has, as text."""
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
        found["dataset"] = pd.Categorical.from_codes(np.zeros(contents.n_obs, int), [source.name])
    elif (dataset.codes < 0).any():
        names = dataset.categories.union([source.name], sort=False)
        found["dataset"] = dataset.set_categories(names).fillna(source.name)
    return found


def _as_text(values: pd.Series, key: str, source: AtlasFile) -> pd.Categorical:
    """Categories as text without outer blanks; those that mean "no label" are missing, fractions are refused."""
    column = as_categories(values, f"obs[{key!r}] of {source}")
    for value in pd.Categorical(values).categories:
        if isinstance(value, float | np.floating) and value != int(value):
            problem = f"holds numbers such as {value:g}; text or categories are needed."
            raise ValueError(f"obs[{key!r}] of {source} {problem}")
    return renamed(column, [None if means_no_label(name) else name.strip() for name in column.categories])


def _new_names(
    names: pd.Index, mapping: Mapping[str, str | None] | Path | None, source: AtlasFile
) -> Sequence[str | None]:
    """Labels renamed by the mapping, which keeps those it lacks, or by the ontology, which may lack none."""
    if not isinstance(mapping, Path):
        return [(mapping or {}).get(name, name) for name in names]
    ontology = read_obo(mapping)
    found, problems = [], []
    for name in names:
        try:
            found.append(ontology.find(name).name)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = f" And {len(problems) - N_LISTED} more." * (len(problems) > N_LISTED)
        raise ValueError(
            f"{counted(len(problems), 'labels')} of {source} {agreed(len(problems), 'are no terms')} of the ontology. "
            f"{' '.join(problems[:N_LISTED])}{more} Rename them with a dict or table as mapping instead."
        )
    return found


def cell_names(names: pd.Index, source: str) -> pd.Index:
    """Return obs_names as text; raise ``ValueError`` where cells have none, as these could not be told apart."""
    found = pd.Index([text_of(name) for name in names], dtype=object)
    if n_missing := int(found.isna().sum()):
        raise ValueError(
            f"{counted(n_missing, 'cells')} of source {source!r} {agreed(n_missing, 'have')} no name in obs_names; "
            "name each cell, for example with "
            "adata.obs_names = adata.obs_names.fillna('no name'), then adata.obs_names_make_unique()."
        )
    return found


_NUMBERS = ("integer", "floating", "mixed-integer-float")
#: Kinds of values that AnnData does not write as they are, beside text with halves of surrogate pairs.
_WRITTEN_AS_TEXT = ("bytes", "mixed", "mixed-integer", "datetime64", "datetime", "date", "timedelta64", "interval")


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return a copy in which columns that AnnData cannot write are text, such as bytes among names, or dates."""
    table = table.copy()
    for key in table:
        values = table[key].cat.categories if isinstance(table[key].dtype, pd.CategoricalDtype) else table[key]
        kind = pd.api.types.infer_dtype(values)
        is_object = table[key].dtype == object
        is_odd = kind == "string" and any(text_of(value) != value for value in values.dropna().unique())
        if kind in _WRITTEN_AS_TEXT or is_odd or (kind == "boolean" and is_object):
            table[key] = as_categories(table[key], f"column {key!r}")
        elif kind in _NUMBERS and is_object:
            table[key] = pd.to_numeric(table[key])
    return table


def renamed(column: pd.Categorical, names: Sequence[str | None]) -> pd.Categorical:
    """Return the column with sorted new names by code, ``None`` for a missing value."""
    categories = sorted({name for name in names if name is not None})
    table = np.array([*pd.Index(categories, dtype=object).get_indexer(list(names)), -1], np.int32)
    return pd.Categorical.from_codes(table[column.codes], categories)


def _reasons(contents: Contents, labels: pd.Categorical | None, settings: Settings) -> np.ndarray:
    """Why each cell is left out; duplicates are found later."""
    reason = np.full(contents.n_obs, KEPT, np.uint8)
    default = PRIMARY if PRIMARY in contents.columns else None
    key = of_source(settings.columns.get(PRIMARY, default), contents.source.name)
    if key is not None:
        values = contents.column(key, f"columns[{PRIMARY!r}]")
        is_primary = values.astype(str).str.casefold()
        if not set(is_primary.unique()) <= {"true", "false", "1", "0"}:
            raise ValueError(
                f"obs[{key!r}] of {contents.source} holds {is_primary.unique()[:3].tolist()}; true or false is "
                f"needed for every cell, or columns={{{PRIMARY!r}: None}} to leave the column alone."
            )
        reason[is_primary.isin(["false", "0"]).to_numpy()] = NOT_PRIMARY
    if labels is not None and settings.drop:
        is_dropped = np.append(labels.categories.isin(settings.drop), False)[labels.codes]
        reason[is_dropped & (reason == KEPT)] = DROPPED
    return reason
