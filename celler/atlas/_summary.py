"""Numbers of cells of a store, by tissue, disease, type and split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd

from celler._utils._check import checked
from celler._utils._messages import closest, counted
from celler.atlas._place import Folder, Place, place_of
from celler.atlas._store import STORE_NAME, check_store, read_manifest, require_engine

#: Columns of the table of all combinations, where the store has them.
BY = ("cell_type", "parent_type", "tissue", "disease", "dataset", "split")


@dataclass(frozen=True)
class Summary:
    """Hold the numbers of cells of a store; ``str()`` gives them in words.

    Parameters
    ----------
    counts
        A row for each combination of type, parent, tissue, disease, dataset and split that has cells, and their
        number in ``cells``.
    manifest
        The manifest of the store: genes, classes, sources, cells left out, versions.
    """

    counts: pd.DataFrame
    manifest: dict[str, Any]

    def by(self, column: str) -> pd.DataFrame:
        """Count the cells of each value of a column.

        Parameters
        ----------
        column
            A column of ``counts``, such as ``"tissue"``.

        Returns
        -------
        A row for each value, most cells first: ``cells``, ``train``, ``test`` and the number of cell ``types``, if any.

        Raises
        ------
        KeyError
            If the store lacks the column.
        """
        columns = [name for name in self.counts if name != "cells"]
        if column not in columns:
            raise KeyError(f"column={column!r} is not in the store.{closest(column, columns)} Columns: {columns}.")
        cells = self.counts.assign(split=self.counts["split"].astype(str))
        table = cells.groupby([column, "split"], observed=True)["cells"].sum().unstack(fill_value=0)
        table = table.reindex(columns=["train", "test"], fill_value=0).rename_axis(columns=None)
        table.insert(0, "cells", table.sum(axis=1))
        if column != "cell_type" and "cell_type" in columns:
            table["types"] = cells.groupby(column, observed=True)["cell_type"].nunique()
        return table.sort_values("cells", ascending=False, kind="stable")

    def __str__(self) -> str:
        held = self.manifest
        split = held["n_cells_by_split"]
        left = ", ".join(f"{n:,} {reason}" for reason, n in held["dropped"].items() if n)
        several = [
            counted(self.counts[name].nunique(), f"{name}s") for name in ("tissue", "disease") if name in self.counts
        ]
        return (
            f"Store of {held['n_cells']:,} cells ({split['train']:,} train, {split['test']:,} test) and "
            f"{len(held['genes']):,} genes from {counted(len(held['sources']), 'sources')}: "
            + ", ".join([counted(len(held["classes"]), "cell types"), *several])
            + f", {counted(sum(held['unlabeled'].values()), 'cells')} unlabelled. Left out: {left or 'none'}."
        )

    __repr__ = __str__


@checked
def summary(out: str | os.PathLike[str]) -> Summary:
    """Count the cells of a store by type, parent, tissue, disease, dataset and split.

    Reads columns of obs, one dataset of the collection at a time. :func:`celler.pl.composition` and
    :func:`celler.pl.class_counts` plot the tables.

    Parameters
    ----------
    out
        Folder that :func:`celler.atlas.build` wrote, or the address of a copy, as in :class:`DataModule`.

    Returns
    -------
    The numbers of cells, and the manifest.

    Raises
    ------
    ImportError
        Without annbatch.
    FileNotFoundError
        If ``out`` is no finished store.
    ValueError
        If a file of the store is missing or damaged.

    Examples
    --------
    >>> import celler as cl
    >>> cl.atlas.summary("my_atlas").by("tissue")  # doctest: +SKIP
    """
    require_engine()
    manifest = read_manifest(out)
    place = place_of(out)
    check_store(place, manifest)
    columns = [name for name in BY if name in manifest["columns"]]
    how: dict[str, Any] = {"dropna": False, "observed": True}
    tables = [
        obs.groupby(columns, **how).size().rename("cells").reset_index()
        for obs in read_obs(place.of(STORE_NAME), columns)
    ]
    counts = pd.concat(tables, ignore_index=True)
    return Summary(counts.groupby(columns, **how)["cells"].sum().reset_index(), manifest)


def read_obs(store: Place, columns: list[str]) -> Iterator[pd.DataFrame]:
    """Return these columns of obs of each dataset, in order; categories are equal in all."""
    cells = store.group()
    for name in dataset_names(cells):
        obs = cells[name]["obs"]
        yield pd.DataFrame({column: anndata.io.read_elem(obs[column]) for column in columns})


def dataset_names(cells: Any) -> list[str]:
    """Names of the datasets of a collection, in order."""
    names = [name for name in cells.group_keys() if name.startswith("dataset_")]
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def count_cells(store: Folder, classes: list[str]) -> tuple[np.ndarray, dict[str, int]]:
    """Cells by split and class ``(2, C + 1)``, unlabelled last, and cells of each dataset."""
    counts = np.zeros((2, len(classes) + 1), np.int64)
    datasets = {}
    columns = ["split", *(["cell_type"] if classes else [])]
    for name, obs in zip(dataset_names(store.group()), read_obs(store, columns), strict=True):
        datasets[name] = len(obs)
        labels = obs["cell_type"].cat.codes.to_numpy() if classes else np.full(len(obs), -1)
        np.add.at(counts, (obs["split"].cat.codes.to_numpy(), labels), 1)
    return counts, datasets
