"""Annotation: what `annotate` wrote to obs and uns, as plain values, whether from memory or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._messages import listed
from celler._utils._text import text_of
from celler.tl._columns import label_column, share_column

#: Cells of a lower probability of the best class are counted as uncertain.
LOW = 0.5


@dataclass(frozen=True)
class Annotation:
    """Labels of the cells of an AnnData and the record of how they were made."""

    adata: AnnData
    key: str
    record: dict[str, Any]

    @cached_property
    def labels(self) -> pd.Categorical:
        """Label of each cell, of the used ones."""
        return label_column(self.adata, self.key, "key")

    @cached_property
    def names(self) -> np.ndarray:
        """Label of each cell as text ``(N,)``; ``""`` for none."""
        return np.array([*self.labels.categories, ""], dtype=object)[self.labels.codes]

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the best class of each cell ``(N,)``."""
        return share_column(self.adata, f"{self.key}_confidence", "key")

    @cached_property
    def novelty(self) -> np.ndarray | None:
        """Novelty of each cell ``(N,)``, where the model has a score."""
        values = self.column("novelty")
        return None if values is None else values.to_numpy(dtype=float, na_value=np.nan)

    def column(self, ending: str) -> pd.Series | None:
        """Return the column of obs with this ending, where there is one."""
        name = f"{self.key}_{ending}"
        return self.adata.obs.get(name)

    @property
    def unknown(self) -> str:
        """The label of cells without a type."""
        return str(self.record.get("unknown_label", "Unknown"))

    @property
    def is_unknown(self) -> np.ndarray:
        """Which cells have no type ``(N,)``."""
        return np.asarray((self.names == self.unknown) | (self.names == ""))

    @cached_property
    def model(self) -> dict[str, Any]:
        """What is known of the model; empty for an annotation by an early version."""
        return dict(self.record.get("model") or {})

    @cached_property
    def reference_counts(self) -> dict[str, int]:
        """Labelled cells of each class that the model learned from; empty where it learned from atlases."""
        counts = [] if self.model.get("names_atlases") else self.model.get("class_counts", [])
        classes = self.record.get("classes", [])
        return dict(zip(classes, counts, strict=True)) if len(counts) == len(classes) else {}

    @cached_property
    def by_markers(self) -> pd.DataFrame | None:
        """Cells by ``type``, of which they have the markers, and ``label``; ``None`` where none was checked."""
        return self._table("by_markers")

    @cached_property
    def missed(self) -> pd.DataFrame:
        """Types that the labels miss, as :attr:`celler.tl.LabelCheck.table`."""
        table = self._table("missed_types")
        return pd.DataFrame(columns=["type", "n_cells", "n_other", "labels", "markers"]) if table is None else table

    @cached_property
    def markers(self) -> dict[str, list[str]]:
        """The first markers of each type of the reference."""
        table = self._table("markers")
        return {} if table is None else table.groupby("type", sort=False)["gene"].agg(list).to_dict()

    def _table(self, name: str) -> pd.DataFrame | None:
        columns = self.record.get(name)
        return pd.DataFrame(columns) if isinstance(columns, dict) else None


def read_annotation(adata: AnnData, key: str) -> Annotation:
    """Return what ``annotate(adata, key)`` wrote; raise ``KeyError`` where it did not."""
    record = adata.uns.get(key)
    needed = [key, f"{key}_confidence"]
    if not isinstance(record, Mapping) or "celler_version" not in record:
        others = [name for name, value in adata.uns.items() if isinstance(value, Mapping) and "celler_version" in value]
        raise KeyError(
            f"key={key!r} was given, and adata.uns has no record of annotate by that name; it has {listed(others)}. "
            f"Call model.annotate(adata, {key!r}) first."
        )
    if missing := [name for name in needed if name not in adata.obs]:
        raise KeyError(
            f"key={key!r} was given, and adata.obs lacks {listed(missing)}, which annotate wrote. Call "
            f"model.annotate(adata, {key!r}) again."
        )
    return Annotation(adata, key, plain(record))


def plain(value: Any) -> Any:
    """Return values of a file as Python's own; ``"none"`` is ``None``."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray) and value.ndim:
        return [plain(one) for one in value.tolist()]
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic | np.ndarray):
        value = value.item()
    if isinstance(value, bytes | str):
        text = text_of(value)
        return None if text == "none" else text
    return value
