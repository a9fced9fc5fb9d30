"""Cells for training: an in-memory source of CSR rows, the stratified split and minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from torch.utils.data import Dataset, Sampler

from celler.mining import HardCells, rank_and_size
from celler.tokenizer import TARGET_SUM


@dataclass(frozen=True)
class CellBlock:
    """Some cells: rows of the CSR matrix ``X``, ``labels (B,)`` codes and ``index (B,)``, their row in the source.

    target_sums: ``(B,)``, what the tokenizer scales each cell to.
    rows: ``(B,)``, which rows of ``X`` they are, ``None`` for all in order.
    """

    X: sparse.csr_matrix
    labels: np.ndarray
    index: np.ndarray
    target_sums: np.ndarray
    rows: np.ndarray | None = None


class InMemorySource(Dataset[CellBlock]):
    """Labelled cells in memory. ``source[index]`` with an integer array is a :class:`CellBlock`."""

    def __init__(
        self, X: sparse.csr_matrix, labels: np.ndarray, target_sums: np.ndarray | None = None
    ) -> None:
        self.X, self.labels = X, labels
        self.target_sums = np.full(len(labels), TARGET_SUM) if target_sums is None else target_sums

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_labelled(self) -> int:
        """Number of cells with a label."""
        return int((self.labels >= 0).sum())

    def __getitem__(self, index: np.ndarray) -> CellBlock:
        return CellBlock(self.X, self.labels[index], index, self.target_sums[index], rows=index)


def split(
    labels: np.ndarray, *, train_size: float, validation_size: float | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stratified split of the cells with ``labels (n,)`` into sorted row indices (train, validation).

    Each class gives its share of cells, rounded to the nearest; a class of three or more always
    gives one to validation, a smaller class none, and every class keeps one for training.
    ``validation_size=None`` takes all that ``train_size`` leaves.
    """
    share = 1.0 - train_size if validation_size is None else validation_size
    if not 0 < train_size <= 1 or not 0 <= share < 1 or train_size + share > 1 + 1e-9:
        raise ValueError(
            f"train_size={train_size} and validation_size={validation_size} were given; "
            "0 < train_size <= 1 and a sum of at most 1 are needed."
        )
    rng = np.random.default_rng(seed)
    train, validation = [], []
    for label in np.unique(labels):
        cells = rng.permutation(np.flatnonzero(labels == label))
        n = len(cells)
        n_validation = min(max(1, round(share * n)), n - 1) if n >= 3 and share > 0 else 0
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

    def __iter__(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        replayed = self.index[:0] if self.hard_cells is None else self.hard_cells.replayed
        cells = rng.permutation(np.concatenate([self.index, replayed]))
        rank, n_ranks = rank_and_size()
        # Equal parts rather than a last minibatch of a few cells, whose gradient is mostly noise.
        yield from np.array_split(cells, len(self) * n_ranks)[rank::n_ranks]


class OrderedMinibatches(Sampler[np.ndarray]):
    """Row indices in minibatches, in the order given."""

    def __init__(self, index: np.ndarray, batch_size: int) -> None:
        self.index, self.batch_size = index, batch_size

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.index), self.batch_size):
            yield self.index[start : start + self.batch_size]
