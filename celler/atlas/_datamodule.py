"""Data module: what a model needs to know of a store in order to learn from it or label it."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scvi

from celler.atlas._annotations import read_annotation
from celler.atlas._source import check_balance
from celler.atlas._store import CellBlocks, Store

#: The obs column that keeps cells apart for tests, and its value for the others.
SPLIT, TRAIN = "split", "train"


class DataModule:
    """An on-disk store as the data of :meth:`celler.model.Celler.train` and its other methods.

    The cells stay on disk; what is in memory is a few bytes for each, one block of rows and the next.

    path: the folder that :func:`celler.atlas.build` wrote.
    labels_key: column of the cell types; cells without one are unlabelled. ``None`` is for pretraining alone.
    batch_key: column of the donor/assay batch, for the decoder of pretraining.
    parent_labels_key: column of the coarser types.
    unlabeled_category: the value of ``labels_key`` that means "no label"; missing values mean the same.
    class_balance: b from 0 to 1. In training a class of n cells comes in proportion to n^(1 − b): 0 is each cell once
        an epoch, 1 each class equally often. No cell comes more than 16 times, and an epoch stays as long. The loss
        goes by the numbers of cells that there are, so rare types gain recall.

    Cells whose ``split`` is "test" are kept out of all training. ``classes`` are the types that the others
    have, ``labels (n_cells,)`` their codes, −1 for unlabelled and test cells.

    Raises ``KeyError`` for a column that is not there, ``ValueError`` for labels that cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        labels_key: str | None = None,
        *,
        batch_key: str | None = None,
        parent_labels_key: str | None = None,
        unlabeled_category: str = "Unknown",
        class_balance: float = 0.0,
    ) -> None:
        check_balance(class_balance)
        self.class_balance = class_balance
        self.store = Store(path)
        self.labels_key, self.batch_key = labels_key, batch_key
        self.parent_labels_key, self.unlabeled_category = parent_labels_key, unlabeled_category
        self.is_train = np.ones(len(self.store), bool)
        if SPLIT in self.store.columns:
            parts, names = self.store.codes(SPLIT)
            self.is_train = parts == (names.index(TRAIN) if TRAIN in names else -2)
        self.classes: list[str] = []
        self.labels = np.full(len(self.store), -1, np.int32)
        if labels_key is not None:
            self._read_labels(labels_key)
        self.parents = [] if parent_labels_key is None else self._read_parents(parent_labels_key)

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        n_labelled = int((self.labels >= 0).sum())
        return (
            f"DataModule of {len(self):,} cells x {len(self.store.genes):,} genes: {int(self.is_train.sum()):,} for "
            f"training, {n_labelled:,} of them labelled with {len(self.classes)} classes"
        )

    @property
    def registry(self) -> dict[str, Any]:
        """What a model of this store is made from: ``Celler(registry=dm.registry)``."""
        return {
            "model_name": "Celler",
            "setup_method_name": "setup_anndata",
            "scvi_version": scvi.__version__,
            "setup_args": {
                "labels_key": self.labels_key,
                "unlabeled_category": self.unlabeled_category,
                "layer": None,
                "batch_key": self.batch_key,
                "parent_labels_key": self.parent_labels_key,
                "parents": None,
                "gene_key": None,
            },
            "field_registries": {},
            "celler": {
                "gene_names": self.store.genes,
                "classes": self.classes,
                "parents": self.parents,
            },
        }

    def column(self, key: str) -> pd.Categorical:
        """A column of the cells' obs ``(n_cells,)``, for all cells in the order of the store."""
        codes, names = self.store.codes(key)
        return pd.Categorical.from_codes(codes, names)

    @cached_property
    def batches(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """Batch codes ``(n_cells,)``, −1 for none, and the names of the batches."""
        if self.batch_key is None:
            return np.full(len(self), -1, np.int32), ()
        codes, names = self.store.codes(self.batch_key, "batch_key")
        return codes, tuple(names)

    def inference_dataloader(self, split: str | None = None) -> CellBlocks:
        """The cells, block by block, for :meth:`celler.model.Celler.predict`.

        split: "train" or "test"; ``None`` is all cells.
        """
        index = np.arange(len(self))
        if split is not None:
            codes, names = self.store.codes(SPLIT, "split")
            if split not in names:
                raise ValueError(f"split={split!r} was given; the store has {names}.")
            index = np.flatnonzero(codes == names.index(split))
        return CellBlocks(self.store, index)

    def annotation(self, key: str) -> pd.DataFrame:
        """The table that :meth:`celler.model.Celler.annotate_store` wrote, a row per cell in the order of the store."""
        return read_annotation(self.store.path, key)

    def _read_labels(self, key: str) -> None:
        codes, names = self.store.codes(key, "labels_key")
        is_labelled = self.is_train & (codes >= 0)
        if self.unlabeled_category in names:
            is_labelled &= codes != names.index(self.unlabeled_category)
        if not is_labelled.any():
            raise ValueError(
                f"none of the {int(self.is_train.sum()):,} training cells has a label in {key!r}; name the column "
                f"of cell types with labels_key. Columns: {self.store.columns}."
            )
        counts = np.bincount(codes[is_labelled], minlength=len(names))
        used = sorted(np.flatnonzero(counts).tolist(), key=lambda code: names[code])
        code_of = np.full(len(names), -1, np.int32)
        code_of[used] = np.arange(len(used))
        self.classes = [names[code] for code in used]
        self.labels[is_labelled] = code_of[codes[is_labelled]]
        empty = np.flatnonzero(is_labelled & self.store.is_empty())
        if len(empty):
            first = self.store.names(empty[:1])[0]
            raise ValueError(
                f"{len(empty):,} labelled cells have no counts (first: {str(first)!r}); build the store without them."
            )

    def _read_parents(self, key: str) -> list[str]:
        codes, names = self.store.codes(key, "parent_labels_key")
        is_known = (self.labels >= 0) & (codes >= 0)
        pairs = np.unique(np.stack([self.labels[is_known], codes[is_known]]), axis=1)
        parents = []
        for code, name in enumerate(self.classes):
            found = [names[parent] for parent in pairs[1, pairs[0] == code]]
            if len(found) != 1:
                what = f"the parents {found}" if found else "no parent"
                raise ValueError(
                    f"parent_labels_key={key!r} gives class {name!r} {what}; each class needs exactly one."
                )
            parents.append(found[0])
        return parents
