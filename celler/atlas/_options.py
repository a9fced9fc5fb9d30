"""What a build was asked for, checked and in a form that can be compared with that of a resumed build."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from celler._utils._messages import closest
from celler.labels import LabelTree, parent_mapping, read_obo

#: Columns of obs that a store may have besides ``split``, and where a source has them by default.
COLUMNS = {
    "cell_type": (),
    "parent_type": ("parent_type",),
    "tissue": ("tissue",),
    "disease": ("disease",),
    "donor": ("donor", "donor_id"),
    "assay": ("assay",),
    "dataset": ("dataset", "dataset_id"),
}
#: Column of true and false: whether a cell is counted here, or in another dataset that holds it too.
PRIMARY = "is_primary_data"
DTYPES = ("uint16", "uint32")
LEAST_GB = 1.0
PerSource = str | None | Mapping[str, str | None]


@dataclass(frozen=True)
class Storage:
    """How a store is written.

    dtype: of the counts, ``"uint16"`` up to 65,535 or ``"uint32"``, which takes more disk. A count
        that does not fit is refused.
    memory_gb: the process's memory stays below it, GB, at least 1. More makes fewer, larger datasets
        of the collection and changes the order of the cells, not how well they are mixed.
    """

    dtype: str = "uint16"
    memory_gb: float = 4.0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} was given; 'uint16' or 'uint32' is needed.")
        if not self.memory_gb >= LEAST_GB:
            raise ValueError(
                f"memory_gb={self.memory_gb} was given; at least {LEAST_GB:g} is needed, of which the "
                "libraries take 0.7."
            )


@dataclass(frozen=True)
class Settings:
    """Every option of a build. ``labels`` maps a source's own labels, ``None`` to unlabelled."""

    labels_key: PerSource
    genes: str | tuple[str, ...] = "union"
    gene_key: PerSource = None
    layer: PerSource = None
    columns: Mapping[str, PerSource] = field(default_factory=dict)
    labels: Mapping[str, str | None] | Path | None = None
    parents: Mapping[str, str] | None = None
    drop: tuple[str, ...] = ()
    test_size: float = 0.1
    seed: int = 0
    storage: Storage = field(default_factory=Storage)

    def __post_init__(self) -> None:
        if isinstance(self.genes, str) and self.genes not in ("union", "intersection"):
            raise ValueError(
                f"genes={self.genes!r} was given; 'union', 'intersection' or a list of names is needed."
            )
        if not 0 <= self.test_size < 1:
            raise ValueError(
                f"test_size={self.test_size} was given; a share of the cells is needed, 0 to below 1."
            )
        known = (*list(COLUMNS)[1:], PRIMARY)
        for name in self.columns:
            if name not in known:
                hint = " cell_type is named by labels_key." * (name == "cell_type")
                raise ValueError(
                    f"columns names {name!r}, which a store does not have.{closest(name, known)}{hint} "
                    f"Columns: {list(known)}."
                )

    def as_record(self) -> dict[str, Any]:
        """JSON of the options; two builds with equal records write equal stores of equal sources."""
        record = {
            "labels_key": _plain(self.labels_key),
            "genes": self.genes if isinstance(self.genes, str) else _digest(self.genes),
            "gene_key": _plain(self.gene_key),
            "layer": _plain(self.layer),
            "columns": {name: _plain(where) for name, where in self.columns.items()},
            "mapping": _digest_mapping(self.labels),
            "parents": None if self.parents is None else _digest(self.parents),
            "drop": list(self.drop),
            "test_size": self.test_size,
            "seed": self.seed,
            "dtype": self.storage.dtype,
            "memory_gb": self.storage.memory_gb,
        }
        # as it comes back from the file: tuples are lists there
        return json.loads(json.dumps(record))


def of_source(option: PerSource, name: str) -> str | None:
    """What an option says of one source."""
    return option.get(name) if isinstance(option, Mapping) else option


def check_sources_named(settings: Settings, names: Iterable[str]) -> None:
    """Raise ``ValueError`` where an option names a source that is not there, or leaves one's labels open."""
    names = list(names)
    options = {"labels_key": settings.labels_key, "gene_key": settings.gene_key}
    options |= {"layer": settings.layer}
    options |= {f"columns[{name!r}]": where for name, where in settings.columns.items()}
    for option, value in options.items():
        for given in value if isinstance(value, Mapping) else ():
            if given not in names:
                raise ValueError(
                    f"{option} names the source {given!r}, which is not there.{closest(given, names)} "
                    f"Sources: {names}."
                )
    if isinstance(settings.labels_key, Mapping):
        for name in names:
            if name not in settings.labels_key:
                raise ValueError(
                    f"labels_key says nothing of the source {name!r}; name its column, or None where "
                    "its cells have no labels."
                )


def read_mapping(mapping: Any) -> Mapping[str, str | None] | Path | None:
    """A mapping of labels as a dict, or the path of an ontology, whose names are then taken."""
    if mapping is None or isinstance(mapping, Mapping):
        return None if mapping is None else _cleaned(mapping.items())
    if isinstance(mapping, pd.Series):
        return _cleaned(mapping.items())
    if isinstance(mapping, str | Path):
        path = Path(mapping)
        if path.suffix == ".obo":
            read_obo(path)  # a file that is none is refused now, not after the scan
            return path
        if not path.is_file():
            raise FileNotFoundError(
                f"mapping={str(path)!r} is not a file; a .csv or .tsv with two columns or an .obo is needed."
            )
        mapping = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str)
    if not isinstance(mapping, pd.DataFrame):
        raise TypeError(
            f"mapping is a {type(mapping).__name__}; a dict from label to label, a table of two "
            "columns, or the path of such a table or of an .obo is needed."
        )
    if mapping.shape[1] != 2:
        raise ValueError(
            f"mapping has the columns {list(mapping.columns)}; two are needed, the labels of the sources "
            "and what they become."
        )
    return _cleaned(zip(mapping.iloc[:, 0], mapping.iloc[:, 1], strict=True))


def read_parents(parents: Any) -> dict[str, str] | None:
    """Parents as a plain dict."""
    if parents is None or isinstance(parents, Mapping | pd.Series | LabelTree):
        return None if parents is None else parent_mapping(parents)
    raise TypeError(
        f"parents is a {type(parents).__name__}; a dict from class to parent or a celler.labels.LabelTree, "
        "such as LabelTree.from_obo gives, is needed. A column is named by columns={'parent_type': ...}."
    )


def _cleaned(pairs: Iterable[tuple[Any, Any]]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for old, new in pairs:
        new = None if pd.isna(new) or str(new) == "" else str(new)
        if found.setdefault(str(old), new) != new:
            raise ValueError(f"mapping gives {str(old)!r} twice, {found[str(old)]!r} and {new!r}.")
    return found


def _plain(option: PerSource) -> Any:
    return dict(option) if isinstance(option, Mapping) else option


def _digest(values: Any) -> str:
    text = json.dumps(sorted(values.items()) if isinstance(values, Mapping) else list(values))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_mapping(mapping: Mapping[str, str | None] | Path | None) -> str | None:
    if isinstance(mapping, Path):
        return hashlib.sha256(mapping.read_bytes()).hexdigest()
    return None if mapping is None else _digest(mapping)


def generator(seed: int, *stream: int) -> np.random.Generator:
    """Random numbers of one step of a build: the same for the same seed and step, whatever came before."""
    return np.random.default_rng([seed, *stream])
