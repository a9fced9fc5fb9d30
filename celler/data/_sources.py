"""Cells for training: an in-memory source of CSR rows, the stratified split and minibatches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy import sparse
from torch.utils.data import Dataset

from celler._utils._distributed import rank_and_size
from celler.data._samplers import OrderedSampler, ShuffledSampler
from celler.data._tokenizer import TARGET_SUM
from celler.mining import HardCells


@dataclass(frozen=True)
class CellBlock:
    """Some cells: rows of the CSR matrix ``X``, ``labels (B,)`` codes and ``index (B,)``, their row in the source.

    target_sums: ``(B,)``, what the tokenizer scales each cell to.
    rows: ``(B,)``, which rows of ``X`` they are.
    """

    X: sparse.csr_matrix
    labels: np.ndarray
    index: np.ndarray
    target_sums: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Views:
    """Other rows that training sees in place of some cells, anew in each epoch.

    X: ``(M, n_genes)``. of_cell: ``(n_cells, K)``, the rows for each cell, one of which is drawn; −1 for none.
    share: how often one is shown.
    """

    X: sparse.csr_matrix
    of_cell: np.ndarray
    share: float

    def shown(self, block: CellBlock, rng: np.random.Generator) -> CellBlock:
        """The block with some of its cells as their other row."""
        n_own, n_rows = len(block.index), self.of_cell.shape[1]
        other = self.of_cell[block.index, rng.integers(n_rows, size=n_own)]
        is_other = (rng.random(n_own) < self.share) & (other >= 0)
        X = sparse.vstack([block.X[block.index], self.X[other[is_other]]], format="csr")
        rows = np.arange(n_own)
        rows[is_other] = n_own + np.arange(is_other.sum())
        return replace(block, X=X, rows=rows)


class Blocks(Sized, Iterable[CellBlock], Protocol):
    """Minibatches of cells; iterating gives an epoch of them, and the next one the next time."""

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""


class CellSource(Protocol):
    """Cells with ``labels (n_cells,)`` that training draws minibatches, validation cells and profiles from.

    max_validation: most cells that can be held out, about.
    """

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
        """Those of the cells ``index (n,)`` that show what their classes look like."""

    def shuffled(
        self, index: np.ndarray, batch_size: int, seed: int, hard_cells: HardCells | None
    ) -> Blocks:
        """For training: the cells ``index``, shuffled anew in each epoch, and the hard cells once more."""

    def ordered(self, index: np.ndarray, batch_size: int, *, is_shared: bool = True) -> Blocks:
        """For validation: the cells ``index``, always alike; ranks share them, or each has all."""


class InMemoryCells(Dataset[CellBlock]):
    """Labelled cells in memory. ``source[index]`` with an integer array is a :class:`CellBlock`."""

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

    @property
    def n_labelled(self) -> int:
        """Number of cells with a label."""
        return int((self.labels >= 0).sum())

    def __getitem__(self, index: np.ndarray) -> CellBlock:
        return CellBlock(self.X, self.labels[index], index, self.target_sums[index], rows=index)

    @property
    def n_genes(self) -> int:
        """Number of columns."""
        return int(self.X.shape[1])

    def rows(self, index: np.ndarray) -> sparse.csr_matrix:
        return self.X[index]

    def typical(self, index: np.ndarray) -> np.ndarray:
        return index

    def shuffled(
        self, index: np.ndarray, batch_size: int, seed: int, hard_cells: HardCells | None
    ) -> Blocks:
        return BlocksInMemory(self, ShuffledSampler(index, batch_size, seed, hard_cells))

    def ordered(self, index: np.ndarray, batch_size: int, *, is_shared: bool = True) -> Blocks:
        return BlocksInMemory(self, OrderedSampler(index, batch_size, is_shared=is_shared))


@dataclass(frozen=True)
class BlocksInMemory:
    """The minibatches that ``sampler`` deals, as cells of ``source``."""

    source: InMemoryCells
    sampler: ShuffledSampler | OrderedSampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[CellBlock]:
        views, sampler = self.source.views, self.sampler
        if views is None or not isinstance(sampler, ShuffledSampler):
            for index in sampler:
                yield self.source[index]
            return
        rng = np.random.default_rng((sampler.seed, sampler.epoch, rank_and_size()[0]))
        for index in sampler:
            yield views.shown(self.source[index], rng)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)
