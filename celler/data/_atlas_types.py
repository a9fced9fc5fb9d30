"""Atlas types: names, Cell Ontology ids, tissues and mean expression of the cell types that the base learned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from celler._utils._messages import closest, listed
from celler.data._pseudo_cells import CellProfiles

FILE = Path(__file__).with_name("atlas_types.npz")  #: made by docs/benchmarks/base_types.py
ORGANISMS = ("human", "mouse")
#: What people call a tissue that the atlases name otherwise.
ALSO_CALLED = {
    "airway": "lung",
    "breast": "mammary gland",
    "colon": "large intestine",
    "cortex": "brain",
    "gut": "intestine",
    "islet": "pancreas",
    "islets": "pancreas",
    "pbmc": "blood",
    "pbmcs": "blood",
    "peripheral blood": "blood",
    "rectum": "large intestine",
}


@dataclass(frozen=True)
class AtlasTypes:
    """Cell types of public atlases.

    Attributes
    ----------
    table
        A row per type: ``name``, ``cl_id`` (empty where there is none), ``original``, the atlas's own name, ``row``
        among the types of the base, and ``dataset``, its code.
    datasets
        A row per data set, by code: ``name``, ``tissues``, separated by ";", ``organism``, ``stage`` and ``citation``.
    genes
        Human symbols ``(G,)``.
    levels
        Expression of each gene in each type ``(G, K)``: log1p of counts per 10,000 in units of ``step``.
    step
        Unit of the levels.
    is_measured
        Whether a data set measured a gene ``(datasets, G)``.
    """

    table: pd.DataFrame
    datasets: pd.DataFrame
    genes: pd.Index
    levels: np.ndarray
    step: float
    is_measured: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    @property
    def keys(self) -> np.ndarray:
        """Id of each type, or its name where it has none ``(K,)``: one for all atlases' clusters of a type."""
        return self.table["cl_id"].where(self.table["cl_id"] != "", self.table["name"]).to_numpy(object)

    @property
    def tissues(self) -> dict[str, np.ndarray]:
        """Codes of the data sets of each tissue, by name."""
        names = self.datasets["tissues"].str.split(";")
        return {
            tissue: np.flatnonzero([tissue in of_set for of_set in names])
            for tissue in sorted({name for of_set in names for name in of_set})
        }

    def of(self, tissue: str | Sequence[str] | None = None, organism: str | None = None) -> AtlasTypes:
        """Return the types of one or several tissues and of an organism; ``None`` for all."""
        if organism is not None and organism not in ORGANISMS:
            raise ValueError(f"organism={organism!r} was given; 'human', 'mouse' or None, for both, is needed.")
        wanted = np.arange(len(self.datasets))
        if tissue is not None:
            wanted = np.unique(np.concatenate([self.tissues[name] for name in self.named(tissue)]))
        if organism is not None:
            wanted = wanted[self.datasets["organism"].to_numpy()[wanted] == organism]
        kept = np.flatnonzero(np.isin(self.table["dataset"], wanted))
        if not len(kept):
            where = " or ".join(self.named(tissue or ()))
            raise ValueError(f"no atlas of {organism} {where} is in the base; leave organism out for the other's.")
        return replace(self, table=self.table.iloc[kept], levels=self.levels[:, kept])

    def named(self, tissue: str | Sequence[str]) -> list[str]:
        """Names of tissues in the atlases' words; a ``ValueError`` names the closest."""
        if not isinstance(tissue, str | Iterable):
            raise TypeError(f"tissue={tissue!r} was given; a name, several names, or None for all, is needed.")
        given = [tissue] if isinstance(tissue, str) else list(tissue)
        if not given:
            raise ValueError("tissue is empty; name at least one, or pass None for all.")
        names = [ALSO_CALLED.get(str(name).strip().lower(), str(name).strip().lower()) for name in given]
        for name, written in zip(names, given, strict=True):
            if name not in self.tissues:
                raise ValueError(
                    f"tissue={written!r} was given, which no atlas of the base has.{closest(name, self.tissues)} "
                    f"Tissues: {listed(list(self.tissues), len(self.tissues))}."
                )
        return list(dict.fromkeys(names))

    def most_variable(self, rows: np.ndarray, n_most: int) -> np.ndarray:
        """Return the ``n_most`` of the genes ``rows (n,)`` whose levels vary most between the types, ascending."""
        if len(rows) <= n_most:
            return rows
        variance = self.levels[rows].var(axis=1)
        return np.sort(rows[np.argsort(-variance, kind="stable")[:n_most]])

    def profiles(self, rows: np.ndarray) -> CellProfiles:
        """Mean expression in the genes ``rows (n,)``, to draw pseudo-cells from."""
        share = np.expm1(self.levels[rows].T * np.float32(self.step)) / 1e4
        codes, datasets = np.unique(self.table["dataset"], return_inverse=True)
        share[~self.is_measured[codes][datasets][:, rows]] = np.nan
        return CellProfiles(share, self.genes[rows], self.table["original"].to_numpy(object), datasets)


@cache
def read_atlas_types(path: Path = FILE) -> AtlasTypes:
    """Read the file that :func:`write_atlas_types` wrote."""
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    text = {name: array.tobytes().decode().split("\n") for name, array in stored.items() if array.dtype == np.uint8
            and array.ndim == 1}  # fmt: skip
    table, datasets = (
        pd.DataFrame({name.partition("/")[2]: text[name] for name in text if name.startswith(part)})
        for part in ("type/", "dataset/")
    )
    table["row"], table["dataset"] = stored["row"].astype(np.int64), stored["dataset"].astype(np.int64)
    genes = pd.Index(text["genes"])
    is_measured = np.unpackbits(stored["measured"], axis=1, count=len(genes)).astype(bool)
    return AtlasTypes(table, datasets, genes, stored["levels"], float(stored["step"]), is_measured)


def write_atlas_types(path: Path, types: AtlasTypes) -> None:
    """Write types as arrays, without pickles."""
    lines = {f"type/{name}": types.table[name] for name in ("name", "cl_id", "original")}
    lines |= {f"dataset/{name}": types.datasets[name] for name in types.datasets}
    lines["genes"] = types.genes
    text: dict[str, Any] = {
        name: np.frombuffer("\n".join(map(str, values)).encode(), np.uint8) for name, values in lines.items()
    }
    np.savez_compressed(
        path,
        **text,
        row=types.table["row"].to_numpy(np.int16),
        dataset=types.table["dataset"].to_numpy(np.int16),
        levels=types.levels,
        step=np.float32(types.step),
        measured=np.packbits(types.is_measured, axis=1),
    )
