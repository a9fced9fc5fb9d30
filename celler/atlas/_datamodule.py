"""The data of a model from a store: genes, classes, labels and the cells in blocks."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scvi

from celler._utils._check import checked
from celler._utils._messages import agreed, counted
from celler._utils._text import count_texts, means_no_label, warn_of_labels
from celler.atlas._annotations import read_annotation
from celler.atlas._store import CellBlocks, Store
from celler.labels._tree import parent_mapping


class DataModule:
    """Give a store to :meth:`celler.model.Celler.train` and the other methods of a model.

    The counts stay on disk: in memory are a few bytes for each cell and two blocks of rows. Cells whose
    ``split`` is "test" are kept out of all training.

    Parameters
    ----------
    path
        Folder that :func:`celler.atlas.build` wrote, or the address of a copy, such as ``"s3://bucket/my_atlas"``: of a
        file system that fsspec knows, with its package (s3fs, gcsfs, adlfs) and its credentials.
    labels_key
        Column of the cell types; cells without one are unlabelled. ``None`` is enough for pretraining.
    batch_key
        Column of the donor/assay batch, for the decoder of pretraining.
    parent_labels_key
        Column of the coarser types.
    unlabeled_category
        Value of ``labels_key`` for unlabelled cells; missing values are unlabelled too.

    Attributes
    ----------
    classes
        Names of the types of the training cells.
    labels
        Code of each cell's class ``(n_cells,)``, −1 for unlabelled and test cells.

    Raises
    ------
    KeyError
        If the store lacks a column.
    ValueError
        If no training cell has a label, a class has several parents, or a file of the store is missing or damaged.

    Examples
    --------
    >>> import celler as cl
    >>> dm = cl.atlas.DataModule("my_atlas", labels_key="cell_type")  # doctest: +SKIP
    >>> model = cl.model.Celler(registry=dm.registry)  # doctest: +SKIP
    >>> model.train(datamodule=dm)  # doctest: +SKIP
    """

    @checked
    def __init__(
        self,
        path: str | os.PathLike[str],
        labels_key: str | None = None,
        *,
        batch_key: str | None = None,
        parent_labels_key: str | None = None,
        unlabeled_category: str = "Unknown",
    ) -> None:
        self.store = Store(path)
        self.labels_key, self.batch_key = labels_key, batch_key
        self.parent_labels_key, self.unlabeled_category = parent_labels_key, unlabeled_category
        self.is_train = np.ones(len(self.store), bool)
        if "split" in self.store.columns:
            self.is_train = np.asarray(self.column("split") == "train")
        self.classes: list[str] = []
        self.labels = np.full(len(self.store), -1, np.int32)
        if labels_key is not None:
            self._read_labels(labels_key)
        self.parents = [] if parent_labels_key is None else self._read_parents(parent_labels_key)

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return (
            f"DataModule of {len(self):,} cells x {len(self.store.genes):,} genes: {self.is_train.sum():,} for "
            f"training, {(self.labels >= 0).sum():,} of them labelled with {counted(len(self.classes), 'classes')}"
        )

    @property
    def registry(self) -> dict[str, Any]:
        """Describe the store to a new model: ``Celler(registry=dm.registry)``."""
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
            "celler": {"gene_names": self.store.genes, "classes": self.classes, "parents": self.parents},
        }

    @checked
    def column(self, key: str) -> pd.Categorical:
        """Read a column of obs.

        Parameters
        ----------
        key
            Name of the column.

        Returns
        -------
        The values ``(n_cells,)`` in the order of the store.
        """
        return pd.Categorical.from_codes(*self.store.codes(key))

    @cached_property
    def batches(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """Code of each cell's batch ``(n_cells,)``, −1 for none, and the names of the batches."""
        if self.batch_key is None:
            return np.full(len(self), -1, np.int32), ()
        codes, names = self.store.codes(self.batch_key, "batch_key")
        return codes, tuple(names)

    @checked
    def inference_dataloader(self, split: str | None = None) -> CellBlocks:
        """Iterate over cells in blocks, for :meth:`celler.model.Celler.predict`.

        Parameters
        ----------
        split
            ``"train"`` or ``"test"``; ``None`` for all cells.

        Returns
        -------
        The cells, in the order of the store.
        """
        if split is None:
            return CellBlocks(self.store, np.arange(len(self)))
        codes, names = self.store.codes("split", "split")
        if split not in names:
            raise ValueError(f"split={split!r} was given; the store has {names}.")
        return CellBlocks(self.store, np.flatnonzero(codes == names.index(split)))

    @checked
    def annotation(self, key: str) -> pd.DataFrame:
        """Read the table that :meth:`celler.model.Celler.annotate_store` wrote.

        Parameters
        ----------
        key
            The ``key_added`` of the table.

        Returns
        -------
        A row for each cell, in the order of the store.
        """
        return read_annotation(self.store.folder, key)

    def _read_labels(self, key: str) -> None:
        labels = pd.Categorical.from_codes(*self.store.codes(key, "labels_key"))
        is_class = np.array([*(not means_no_label(n, self.unlabeled_category) for n in labels.categories), False])
        is_labelled = self.is_train & is_class[labels.codes]
        if not is_labelled.any():
            raise ValueError(
                f"none of the {self.is_train.sum():,} training cells has a label in {key!r}; name the column "
                f"of cell types with labels_key. Columns: {self.store.columns}."
            )
        self.classes = sorted(labels[is_labelled].unique())
        self.labels[is_labelled] = labels.set_categories(self.classes).codes[is_labelled]
        warn_of_labels(count_texts(labels[self.is_train]), f"the column {key!r} of the store", self.unlabeled_category)
        empty = np.flatnonzero(is_labelled & self.store.is_empty())
        if len(empty):
            first = str(self.store.names(empty[:1])[0])
            raise ValueError(
                f"{counted(len(empty), 'labelled cells have')} no counts (first: {first!r}); build the store without "
                f"{agreed(len(empty), 'them')}."
            )

    def _read_parents(self, key: str) -> list[str]:
        codes, names = self.store.codes(key, "parent_labels_key")
        is_known = (self.labels >= 0) & (codes >= 0)
        pairs = np.unique(np.stack([self.labels[is_known], codes[is_known]]), axis=1)
        found = {name: [names[i] for i in pairs[1, pairs[0] == code]] for code, name in enumerate(self.classes)}
        return list(parent_mapping(found, f"parent_labels_key={key!r}").values())
