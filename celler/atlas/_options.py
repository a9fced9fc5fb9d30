"""Options of a build: checked, and comparable with those of the build that it resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from celler._utils._check import check_fields
from celler._utils._messages import closest
from celler.labels._ontology import read_obo
from celler.labels._tree import LabelTree, parent_mapping

#: Columns of obs of a store other than ``split``, and the columns of a source that hold them by default.
COLUMNS = {
    "cell_type": (),
    "parent_type": ("parent_type",),
    "tissue": ("tissue",),
    "disease": ("disease",),
    "donor": ("donor", "donor_id"),
    "assay": ("assay",),
    "dataset": ("dataset", "dataset_id"),
}
#: Column of true and false: false for a cell that another dataset holds too and counts.
PRIMARY = "is_primary_data"
PerSource = str | None | Mapping[str, str | None]


@dataclass(frozen=True)
class Storage:
    """Choose how :func:`celler.atlas.build` writes a store.

    Parameters
    ----------
    dtype
        Type of the counts: ``"uint16"`` holds up to 65,535, ``"uint32"`` more and takes more disk.
        A count that does not fit raises an error.
    memory_gb
        Most memory of the process in GB, at least 1. More memory makes fewer, larger datasets and
        another order of the cells, which is as well mixed.
    """

    dtype: str = "uint16"
    memory_gb: float = 4.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Settings:
    """All options of a build."""

    labels_key: PerSource
    genes: str | tuple[str, ...]
    gene_key: PerSource
    layer: PerSource
    columns: Mapping[str, PerSource]
    mapping: Mapping[str, str | None] | Path | None
    parents: Mapping[str, str] | None
    drop: tuple[str, ...]
    test_size: float
    seed: int
    storage: Storage

    def __post_init__(self) -> None:
        if isinstance(self.genes, str) and self.genes not in ("union", "intersection"):
            raise ValueError(f"genes={self.genes!r} was given; 'union', 'intersection' or a list of names is needed.")
        known = (*list(COLUMNS)[1:], PRIMARY)
        for name in self.columns:
            if name not in known:
                hint = " cell_type is named by labels_key." * (name == "cell_type")
                raise ValueError(
                    f"columns names {name!r}, which a store does not have.{closest(name, known)}{hint} "
                    f"Columns: {list(known)}."
                )

    def as_record(self) -> dict[str, Any]:
        """Return the options as JSON: equal records and equal sources make equal stores."""
        record = vars(self) | vars(self.storage)
        del record["storage"]
        for name in ("genes", "mapping", "parents"):
            if not isinstance(record[name], str | None):
                record[name] = _digest(record[name])
        # As the file gives it back: tuples are lists there.
        return json.loads(json.dumps(record, default=dict))

    def check_sources(self, names: list[str]) -> None:
        """Raise ``ValueError`` where an option names an unknown source, or ``labels_key`` lacks one."""
        options = {name: getattr(self, name) for name in ("labels_key", "gene_key", "layer")}
        options |= {f"columns[{name!r}]": where for name, where in self.columns.items()}
        for option, value in options.items():
            for given in value if isinstance(value, Mapping) else ():
                if given not in names:
                    raise ValueError(
                        f"{option} names the source {given!r}, which does not exist.{closest(given, names)} "
                        f"Sources: {names}."
                    )
        of_labels = self.labels_key if isinstance(self.labels_key, Mapping) else dict.fromkeys(names)
        for name in names:
            if name not in of_labels:
                raise ValueError(
                    f"labels_key lacks the source {name!r}; name its column, or None where its cells have no labels."
                )


def of_source(option: PerSource, name: str) -> str | None:
    """Return the value of an option for a source."""
    return option.get(name) if isinstance(option, Mapping) else option


def read_mapping(mapping: Any) -> Mapping[str, str | None] | Path | None:
    """Return the mapping of labels as a dict, or the path of an ontology."""
    if mapping is None:
        return None
    if isinstance(mapping, Mapping | pd.Series):
        return _unique(mapping.items())
    if isinstance(mapping, str | Path):
        path = Path(mapping)
        if path.suffix == ".obo":
            read_obo(path)  # a damaged file is refused now, not after all sources are read
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
            "and the new labels."
        )
    return _unique(zip(mapping.iloc[:, 0], mapping.iloc[:, 1], strict=True))


def read_parents(parents: Any) -> dict[str, str] | None:
    """Parents as a plain dict."""
    if parents is None:
        return None
    if isinstance(parents, Mapping | pd.Series | LabelTree):
        return parent_mapping(parents)
    raise TypeError(
        f"parents is a {type(parents).__name__}; a dict from class to parent or a celler.labels.LabelTree, "
        "such as LabelTree.from_obo gives, is needed. A column is named by columns={'parent_type': ...}."
    )


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for old, new in pairs:
        new = None if pd.isna(new) or str(new) == "" else str(new)
        if found.setdefault(str(old), new) != new:
            raise ValueError(f"mapping gives {str(old)!r} twice, {found[str(old)]!r} and {new!r}.")
    return found


def _digest(values: Any) -> str:
    if isinstance(values, Path):
        return hashlib.sha256(values.read_bytes()).hexdigest()
    text = json.dumps(sorted(values.items()) if isinstance(values, Mapping) else list(values))
    return hashlib.sha256(text.encode()).hexdigest()
