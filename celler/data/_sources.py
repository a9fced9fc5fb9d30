"""Sources: cells with labels that training draws minibatches from, in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy import sparse
from torch.utils.data import Dataset

from celler._utils._distributed import rank_and_size
from celler.data._samplers import OrderedSampler, RowSampler
from celler.data._tokenizer import TARGET_SUM


@dataclass(frozen=True)
class CellBlock:
    """B cells: the ``rows (B,)`` of the counts or ``log1p`` values ``X (n, n_genes)``, which blocks may share."""

    X: sparse.csr_matrix
    labels: np.ndarray  # codes (B,), −1 for an unlabelled cell
    index: np.ndarray  # rows of the source (B,)
    target_sums: np.ndarray  # sum that the tokenizer scales each cell to (B,)
    rows: np.ndarray


@dataclass(frozen=True)
class Views:
    """Other rows ``X (M, n_genes)`` that stand in for some cells in training, drawn anew in each epoch."""

    X: sparse.csr_matrix
    of_cell: np.ndarray  # rows of X for each cell (n_cells, K), of which one is drawn; −1 for none
    share: float  # probability that a cell is replaced

    def shown(self, block: CellBlock, rng: np.random.Generator) -> CellBlock:
        """Replace some cells of the block by one of their views."""
        n_own, n_rows = len(block.index), self.of_cell.shape[1]
        other = self.of_cell[block.index, rng.integers(n_rows, size=n_own)]
        is_other = (rng.random(n_own) < self.share) & (other >= 0)
        X = sparse.vstack([block.X[block.index], self.X[other[is_other]]], format="csr")
        rows = np.arange(n_own)
        rows[is_other] = n_own + np.arange(is_other.sum())
        return replace(block, X=X, rows=rows)


class CellSource(Protocol):
    """Cells with ``labels (n_cells,)``; ``max_validation`` bounds how many are held out, ``None`` for no bound."""

    @property
    def labels(self) -> np.ndarray: ...
    @property
    def max_validation(self) -> int | None: ...
    def __len__(self) -> int: ...
    @property
    def n_labelled(self) -> int: ...
    @property
    def n_genes(self) -> int: ...
    def rows(self, index: np.ndarray) -> sparse.csr_matrix:
        """Values ``(n, n_genes)`` of the cells ``index (n,)``."""

    def typical(self, index: np.ndarray) -> np.ndarray:
        """Return the part of the cells ``index (n,)`` that class profiles are made from."""

    def blocks(self, sampler: RowSampler) -> Iterator[CellBlock]:
        """Return the minibatches of the sampler's next epoch."""


class InMemoryCells(Dataset[CellBlock]):
    """Cells in memory. ``cells[index]`` with an integer array is a :class:`CellBlock`."""

    max_validation = None

    def __init__(
        self,
        X: sparse.csr_matrix,
        labels: np.ndarray,
        target_sums: np.ndarray | None = None,
        views: Views | None = None,
    ) -> None:
        self.X, self.labels, self.views = X, labels, views
        self.target_sums = np.full(len(labels), TARGET_SUM) if target_sums is None else target_sums

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: np.ndarray) -> CellBlock:
        return CellBlock(self.X, self.labels[index], index, self.target_sums[index], rows=index)

    @property
    def n_labelled(self) -> int:
        """Number of cells with a label."""
        return int((self.labels >= 0).sum())

    @property
    def n_genes(self) -> int:
        """Number of columns."""
        return int(self.X.shape[1])

    def rows(self, index: np.ndarray) -> sparse.csr_matrix:
        return self.X[index]

    def typical(self, index: np.ndarray) -> np.ndarray:
        return index

    def blocks(self, sampler: RowSampler) -> Iterator[CellBlock]:
        if self.views is None or isinstance(sampler, OrderedSampler):
            yield from map(self.__getitem__, sampler)
            return
        rng = np.random.default_rng((sampler.seed, sampler.epoch, rank_and_size()[0]))
        for index in sampler:
            yield self.views.shown(self[index], rng)
