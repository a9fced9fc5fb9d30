"""Cells for training: an in-memory source of CSR rows, the stratified split and minibatches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy import sparse
from torch.utils.data import Dataset, Sampler

from celler.mining import HardCells, rank_and_size
from celler.tokenizer import TARGET_SUM


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


class Source(Protocol):
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


class InMemorySource(Dataset[CellBlock]):
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
        return BlocksInMemory(self, ShuffledMinibatches(index, batch_size, seed, hard_cells))

    def ordered(self, index: np.ndarray, batch_size: int, *, is_shared: bool = True) -> Blocks:
        return BlocksInMemory(self, OrderedMinibatches(index, batch_size, is_shared=is_shared))


@dataclass(frozen=True)
class BlocksInMemory:
    """The minibatches that ``sampler`` deals, as cells of ``source``."""

    source: InMemorySource
    sampler: ShuffledMinibatches | OrderedMinibatches

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[CellBlock]:
        views, sampler = self.source.views, self.sampler
        if views is None or not isinstance(sampler, ShuffledMinibatches):
            for index in sampler:
                yield self.source[index]
            return
        rng = np.random.default_rng((sampler.seed, sampler.epoch, rank_and_size()[0]))
        for index in sampler:
            yield views.shown(self.source[index], rng)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)


#: Where validation cells are capped, a class may give this many whatever its share.
N_VALIDATED = 50


def split(
    labels: np.ndarray,
    *,
    train_size: float,
    validation_size: float | None,
    seed: int,
    max_validation: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Stratified split of the cells with ``labels (n,)`` into sorted row indices (train, validation).

    Each class gives its share of cells, rounded to the nearest; a class of three or more always
    gives one to validation, a smaller class none, and every class keeps one for training.
    ``validation_size=None`` takes all that ``train_size`` leaves.

    max_validation: most validation cells, about: beyond it a class gives its share of so many, but a small one
        up to 50; training gets the others.
    """
    share = 1.0 - train_size if validation_size is None else validation_size
    if not 0 < train_size <= 1 or not 0 <= share < 1 or train_size + share > 1 + 1e-9:
        raise ValueError(
            f"train_size={train_size} and validation_size={validation_size} were given; "
            "0 < train_size <= 1 and a sum of at most 1 are needed."
        )
    rng = np.random.default_rng(seed)
    most = 1.0 if max_validation is None else min(1.0, max_validation / max(1, share * len(labels)))
    train, validation = [], []
    for label in np.unique(labels):
        cells = rng.permutation(np.flatnonzero(labels == label))
        n = len(cells)
        n_validation = min(max(1, round(share * n)), n - 1) if n >= 3 and share > 0 else 0
        if most < 1:
            n_validation = min(n_validation, max(N_VALIDATED, round(most * n_validation)))
        n_train = max(1, min(round(train_size * n), n - n_validation))
        if train_size + share > 1 - 1e-9:
            n_train = n - n_validation  # all cells are used, whatever the rounding
        validation.append(cells[:n_validation])
        train.append(cells[n_validation : n_validation + n_train])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


class ShuffledMinibatches(Sampler[np.ndarray]):
    """Row indices in minibatches, shuffled anew each epoch from ``seed`` and the epoch's number.

    The cells that ``hard_cells`` chose are in the epoch twice, which makes its minibatches larger and
    not more: the learning rate's schedule counts on their number. With torch.distributed all ranks
    draw the same epoch and each takes its part of the minibatches.
    """

    def __init__(
        self, index: np.ndarray, batch_size: int, seed: int, hard_cells: HardCells | None = None
    ) -> None:
        self.index, self.batch_size, self.seed, self.epoch = index, batch_size, seed, 0
        self.hard_cells = hard_cells

    def __len__(self) -> int:
        return -(-len(self.index) // (self.batch_size * rank_and_size()[1]))

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next: not the first where training is resumed."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        replayed = self.index[:0] if self.hard_cells is None else self.hard_cells.replayed
        cells = rng.permutation(np.concatenate([self.index, replayed]))
        rank, n_ranks = rank_and_size()
        # With fewer cells than ranks some come twice: a minibatch of none has no gradient.
        cells = np.resize(cells, max(len(cells), len(self) * n_ranks))
        # Equal parts rather than a last minibatch of a few cells, whose gradient is mostly noise.
        yield from np.array_split(cells, len(self) * n_ranks)[rank::n_ranks]


class OrderedMinibatches(Sampler[np.ndarray]):
    """Row indices in minibatches, in the order given.

    is_shared: with torch.distributed each rank takes its part of the cells; one minibatch at least, be it empty.
    """

    def __init__(self, index: np.ndarray, batch_size: int, *, is_shared: bool = False) -> None:
        self.index, self.batch_size, self.is_shared = index, batch_size, is_shared

    def __len__(self) -> int:
        return max(1, -(-len(self._part) // self.batch_size))

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is alike."""

    def __iter__(self) -> Iterator[np.ndarray]:
        part = self._part
        for k in range(len(self)):
            yield part[k * self.batch_size : (k + 1) * self.batch_size]

    @property
    def _part(self) -> np.ndarray:
        rank, n_ranks = rank_and_size() if self.is_shared else (0, 1)
        return self.index[rank::n_ranks]
