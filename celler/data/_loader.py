"""Loader: cells of a source become minibatches of tokens, made in a thread while the network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from celler._utils._distributed import rank_and_size
from celler._utils._prefetch import prefetch
from celler.data._samplers import RowSampler, ShuffledSampler
from celler.data._sources import CellBlock, CellSource
from celler.data._tokenizer import TokenBatch, TokenBatches, Tokenizer

CELLS_AT_ONCE = 1024  #: cells that are tokenized in one call: at each handover the two threads wait for each other


class Minibatch(NamedTuple):
    """B cells to train on or validate."""

    tokens: TokenBatch
    labels: Tensor  # codes (B,)
    source_index: Tensor  # rows of the source (B,)
    embedding: Tensor | None = None  # (B, D), of a frozen encoder, which then does not run

    def to(self, device: torch.device) -> Minibatch:
        """Copy to ``device``; from pinned memory the copy does not block the caller."""
        copy: Callable[[Tensor], Tensor] = lambda part: part.to(device, non_blocking=True)
        embedding = None if self.embedding is None else copy(self.embedding)
        return Minibatch(TokenBatch(*map(copy, self.tokens)), copy(self.labels), copy(self.source_index), embedding)


@dataclass(frozen=True)
class TokenLoader:
    """Minibatches of tokens of a source's cells, one epoch each time it is iterated.

    With a shuffled sampler, for training, genes are dropped and, beyond ``max_genes``, drawn at random. The draws
    depend on the seed, the epoch and the minibatch's number alone, so that a resumed training repeats them.
    """

    source: CellSource
    tokenizer: Tokenizer
    # An attribute named `sampler` would make it a DataLoader to Lightning.
    row_sampler: RowSampler
    is_log: bool
    seed: int = 0
    token_dropout: float = 0.0  # share of a cell's genes left out in training
    device: torch.device = torch.device("cpu")  # minibatches for a GPU are pinned
    embedding: Tensor | None = None  # of all cells by a frozen encoder (n_cells, D)

    def __len__(self) -> int:
        return len(self.row_sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the next epoch, where a training is resumed."""
        self.row_sampler.epoch = epoch

    def __iter__(self) -> Iterator[Minibatch]:
        for tokens, labels, index in prefetch(self._groups()):
            # Cut here: in the thread every minibatch would have to wait for the GIL.
            sizes = [n_cells for n_cells, _ in tokens.shapes]
            for parts in zip(tokens, labels.split(sizes), index.split(sizes), strict=True):
                yield Minibatch(*parts, None if self.embedding is None else self.embedding[parts[2]])

    def _groups(self) -> Iterator[tuple[TokenBatches, Tensor, Tensor]]:
        number = self.row_sampler.epoch * len(self)
        for blocks in grouped(self.source.blocks(self.row_sampler)):
            yield self._tokenized(blocks, number)
            number += len(blocks)

    def _tokenized(self, blocks: list[CellBlock], number: int) -> tuple[TokenBatches, Tensor, Tensor]:
        """Tokens, label codes and source rows of successive minibatches, the first of which is ``number``."""
        is_training = isinstance(self.row_sampler, ShuffledSampler)
        tokens = self.tokenizer.minibatches(
            blocks[0].X,
            np.arange(self.source.n_genes, dtype=np.int32),
            [len(block.index) for block in blocks],
            rows=np.concatenate([block.rows for block in blocks]),
            is_log=self.is_log,
            target_sum=np.concatenate([block.target_sums for block in blocks]),
            token_dropout=self.token_dropout if is_training else 0.0,
            seeds=self._cell_seeds(blocks, number) if is_training else None,
        )
        labels = torch.from_numpy(np.concatenate([block.labels for block in blocks]))
        index = torch.from_numpy(np.concatenate([block.index for block in blocks]))
        if self.device.type != "cuda":
            return tokens, labels, index
        flat = TokenBatch(*(part.pin_memory() for part in tokens.flat))
        return replace(tokens, flat=flat), labels.pin_memory(), index.pin_memory()

    def _cell_seeds(self, blocks: list[CellBlock], number: int) -> np.ndarray:
        rngs = (np.random.default_rng((self.seed, number + i, rank_and_size()[0])) for i in range(len(blocks)))
        seeds = [rng.integers(2**63, size=len(block.index)) for rng, block in zip(rngs, blocks, strict=True)]
        return np.concatenate(seeds).astype(np.uint64)


@dataclass(frozen=True)
class Groups:
    """Minibatches of a loader in lists of ``size``, the last of an epoch perhaps shorter."""

    loader: TokenLoader
    size: int

    def __len__(self) -> int:
        return -(-len(self.loader) // self.size)

    def __iter__(self) -> Iterator[list[Minibatch]]:
        minibatches = iter(self.loader)
        while group := list(islice(minibatches, self.size)):
            yield group


def grouped(blocks: Iterable[CellBlock], n_cells: int = CELLS_AT_ONCE) -> Iterator[list[CellBlock]]:
    """Successive blocks that share a matrix, up to ``n_cells``; the first groups are small, to start sooner."""
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
