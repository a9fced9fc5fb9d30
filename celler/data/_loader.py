"""TokenLoader: blocks of cells become minibatches of tokens, made by a thread while the network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from celler._utils._distributed import rank_and_size
from celler._utils._prefetch import prefetch
from celler.data._sources import Blocks, CellBlock, CellSource
from celler.data._tokenizer import TokenBatch, TokenBatches, Tokenizer
from celler.mining import HardCells


class Minibatch(NamedTuple):
    """Cells to train on or validate; ``labels (B,)``, and ``source_index (B,)``, their row in the source.

    embedding: ``(B, D)`` where it is known beforehand.
    """

    tokens: TokenBatch
    labels: Tensor
    source_index: Tensor
    embedding: Tensor | None = None

    def to(self, device: torch.device) -> Minibatch:
        """On ``device``; from pinned memory the copy goes on while the caller does."""

        def change(part: Tensor) -> Tensor:
            return part.to(device, non_blocking=True)

        embedding = None if self.embedding is None else change(self.embedding)
        tokens = TokenBatch(*map(change, self.tokens))
        return Minibatch(tokens, change(self.labels), change(self.source_index), embedding)


Minibatches = Iterable[Minibatch]
#: Cells that are tokenized at once: at each handover the two threads wait for each other.
CELLS_AT_ONCE = 1024


@dataclass(frozen=True)
class TokenLoader:
    """Makes minibatches of tokens from rows of the source.

    embedding: ``(n_cells, D)`` of a frozen encoder, which then has nothing left to do in training.
    """

    source: CellSource
    tokenizer: Tokenizer
    is_log: bool
    batch_size: int
    seed: int
    token_dropout: float = 0.0
    device: torch.device = torch.device("cpu")
    embedding: Tensor | None = None

    def shuffled(self, rows: np.ndarray, hard_cells: HardCells | None) -> Minibatches:
        """For training: shuffled, with token dropout and the gene subset drawn anew each time."""
        blocks = self.source.shuffled(rows, self.batch_size, self.seed, hard_cells)
        return TokenMinibatches(blocks, self._for_training)

    def ordered(self, rows: np.ndarray) -> Minibatches:
        """For validation: in order, whole cells."""
        blocks = self.source.ordered(rows, 4 * self.batch_size)
        return TokenMinibatches(blocks, self._for_validation)

    def class_counts(self, rows: np.ndarray) -> np.ndarray:
        """Cells of each class among ``rows``, ``(C,)``."""
        return np.bincount(self.source.labels[rows], minlength=self.source.labels.max() + 1)

    def _for_training(self, blocks: list[CellBlock], number: int) -> Joined:
        rank = rank_and_size()[0]
        seeds = [
            np.random.default_rng((self.seed, number + i, rank)).integers(
                2**63, size=len(block.index)
            )
            for i, block in enumerate(blocks)
        ]
        dropout, of_cell = self.token_dropout, np.concatenate(seeds).astype(np.uint64)
        return self._joined(blocks, dropout, of_cell)

    def _for_validation(self, blocks: list[CellBlock], number: int) -> Joined:
        return self._joined(blocks)

    def _joined(
        self, blocks: list[CellBlock], token_dropout: float = 0.0, seeds: np.ndarray | None = None
    ) -> Joined:
        tokens = self.tokenizer.minibatches(
            blocks[0].X,
            self._gene_map,
            [len(block.index) for block in blocks],
            rows=np.concatenate([block.rows for block in blocks]),
            is_log=self.is_log,
            target_sum=np.concatenate([block.target_sums for block in blocks]),
            token_dropout=token_dropout,
            seeds=seeds,
        )
        labels = torch.from_numpy(np.concatenate([block.labels for block in blocks]))
        index = torch.from_numpy(np.concatenate([block.index for block in blocks]))
        joined = Joined(tokens, labels, index, self.embedding)
        return joined.pinned() if self.device.type == "cuda" else joined

    @cached_property
    def _gene_map(self) -> np.ndarray:
        """The identity: the reference's columns are the model's genes."""
        return np.arange(self.source.n_genes, dtype=np.int32)


@dataclass(frozen=True)
class Joined:
    """Successive minibatches in one piece, with ``labels (N,)`` and ``index (N,)``; iterating gives each.

    embedding: ``(n_cells, D)`` of all cells of the source, where it is known.
    """

    tokens: TokenBatches
    labels: Tensor
    index: Tensor
    embedding: Tensor | None = None

    def __iter__(self) -> Iterator[Minibatch]:
        sizes = [n_cells for n_cells, _ in self.tokens.shapes]
        parts = zip(self.tokens, self.labels.split(sizes), self.index.split(sizes), strict=True)
        for tokens, labels, index in parts:
            known = None if self.embedding is None else self.embedding[index]
            yield Minibatch(tokens, labels, index, known)

    def pinned(self) -> Joined:
        """In memory from which a GPU copies by itself."""
        tokens = replace(
            self.tokens, flat=TokenBatch(*(part.pin_memory() for part in self.tokens.flat))
        )
        return Joined(tokens, self.labels.pin_memory(), self.index.pin_memory(), self.embedding)


class TokenMinibatches:
    """Minibatches that ``join`` makes of ``blocks`` in a thread, while the network computes.

    join: makes those of some blocks that are rows of the same matrix. It is also given the number of the first
        since the first epoch. What is drawn at random depends on that alone, so that a training which is
        resumed draws what it would have drawn.
    """

    # An attribute named `sampler` would make it a DataLoader to Lightning.
    def __init__(self, blocks: Blocks, join: Callable[[list[CellBlock], int], Joined]) -> None:
        self.blocks, self.join, self.epoch = blocks, join, 0

    def __len__(self) -> int:
        return len(self.blocks)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self.epoch = epoch
        self.blocks.set_epoch(epoch)

    def __iter__(self) -> Iterator[Minibatch]:
        for joined in prefetch(self._joined()):
            yield from joined  # cut here: the thread would ask for Python's lock for each

    def _joined(self) -> Iterator[Joined]:
        number = self.epoch * len(self)
        self.epoch += 1
        for blocks in together(self.blocks):
            yield self.join(blocks, number)
            number += len(blocks)


def together(
    blocks: Iterable[CellBlock], n_cells: int = CELLS_AT_ONCE
) -> Iterator[list[CellBlock]]:
    """Successive blocks of the same matrix, up to ``n_cells``; few at first, which are waited for."""
    waiting: list[CellBlock] = []
    n_most, n_waiting = 1, 0
    for block in blocks:
        n_waiting += len(block.index)
        is_full = len(waiting) == n_most or n_waiting > n_cells
        if waiting and (is_full or block.X is not waiting[0].X):
            yield waiting
            waiting, n_most, n_waiting = [], 2 * n_most, len(block.index)
        waiting.append(block)
    if waiting:
        yield waiting
