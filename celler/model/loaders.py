"""Loaders: blocks of cells become minibatches of tokens, made by a thread while the network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from celler.loading import Blocks, CellBlock, Source
from celler.mining import HardCells, rank_and_size
from celler.prefetch import prefetch
from celler.tokenizer import TokenBatch, Tokenizer
from celler.training import Minibatch, Minibatches, TrainingConfig


@dataclass(frozen=True)
class Loaders:
    """Makes minibatches of tokens from rows of the source.

    embedding: ``(n_cells, D)`` of a frozen encoder, which then has nothing left to do in training.
    """

    source: Source
    tokenizer: Tokenizer
    is_log: bool
    config: TrainingConfig
    embedding: Tensor | None = None

    def shuffled(self, rows: np.ndarray, hard_cells: HardCells | None) -> Minibatches:
        """For training: shuffled, with token dropout and the gene subset drawn anew each time."""
        config = self.config
        blocks = self.source.shuffled(rows, config.batch_size, config.seed, hard_cells)
        return TokenMinibatches(blocks, self._training_minibatch, self._is_pinned)

    def ordered(self, rows: np.ndarray) -> Minibatches:
        """For validation: in order, whole cells."""
        blocks = self.source.ordered(rows, 4 * self.config.batch_size)
        return TokenMinibatches(blocks, self._validation_minibatch, self._is_pinned)

    def class_counts(self, rows: np.ndarray) -> np.ndarray:
        """Cells of each class among ``rows``, ``(C,)``."""
        return np.bincount(self.source.labels[rows], minlength=self.source.labels.max() + 1)

    def _training_minibatch(self, block: CellBlock, number: int) -> Minibatch:
        rng = np.random.default_rng((self.config.seed, number, rank_and_size()[0]))
        seeds = rng.integers(2**63, size=len(block.index)).astype(np.uint64)
        return self._minibatch(block, self.config.token_dropout, seeds)

    def _validation_minibatch(self, block: CellBlock, number: int) -> Minibatch:
        return self._minibatch(block)

    def _minibatch(
        self, block: CellBlock, token_dropout: float = 0.0, seeds: np.ndarray | None = None
    ) -> Minibatch:
        tokens = self.tokenizer(
            block.X,
            self._gene_map,
            rows=block.rows,
            is_log=self.is_log,
            target_sum=block.target_sums,
            token_dropout=token_dropout,
            seeds=seeds,
        )
        return as_minibatch(tokens, block, self.embedding)

    @property
    def _is_pinned(self) -> bool:
        return self.config.device.type == "cuda"

    @cached_property
    def _gene_map(self) -> np.ndarray:
        """The identity: the reference's columns are the model's genes."""
        return np.arange(self.source.n_genes, dtype=np.int32)


class TokenMinibatches:
    """Minibatches that ``make`` makes of ``blocks`` in a thread, while the network computes.

    make: is also given the minibatch's number since the first epoch. What is drawn at random depends on that
        alone, so that a training which is resumed draws what it would have drawn.
    is_pinned: in memory from which a GPU copies by itself.
    """

    # An attribute named `sampler` would make it a DataLoader to Lightning.
    def __init__(
        self, blocks: Blocks, make: Callable[[CellBlock, int], Minibatch], is_pinned: bool
    ) -> None:
        self.blocks, self.make, self.is_pinned, self.epoch = blocks, make, is_pinned, 0

    def __len__(self) -> int:
        return len(self.blocks)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self.epoch = epoch
        self.blocks.set_epoch(epoch)

    def __iter__(self) -> Iterator[Minibatch]:
        yield from prefetch(self._made())

    def _made(self) -> Iterator[Minibatch]:
        first = self.epoch * len(self)
        self.epoch += 1
        for i, block in enumerate(self.blocks):
            minibatch = self.make(block, first + i)
            yield minibatch.pinned() if self.is_pinned else minibatch


def as_minibatch(
    tokens: TokenBatch, block: CellBlock, embedding: Tensor | None = None
) -> Minibatch:
    """The tokens of a block with its labels and index, and its part of ``embedding (n_cells, D)``."""
    index = torch.from_numpy(block.index)
    known = None if embedding is None else embedding[index]
    return Minibatch(tokens, torch.from_numpy(block.labels), index, known)
