"""Samplers: the stratified split, and the rows of each minibatch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from torch.utils.data import Sampler

from celler._utils._distributed import rank_and_size
from celler.data._balance import ClassBalance
from celler.mining import HardCells

N_VALIDATED = 50  #: validation cells that a class may give where their number is bounded


def split(
    labels: np.ndarray,
    *,
    train_size: float,
    validation_size: float | None,
    seed: int,
    max_validation: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split the cells with ``labels (n,)`` by class into sorted row indices (train, validation).

    Each class gives its share of cells, rounded to the nearest; a class of three or more always gives one to
    validation, a smaller class none, and every class keeps one for training. ``validation_size=None`` takes all that
    ``train_size`` leaves. Where there would be more than about ``max_validation`` validation cells, large classes give
    fewer and training keeps the rest; a class may still give 50.
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


class ShuffledSampler(Sampler[np.ndarray]):
    """Rows of each minibatch out of ``index (n,)``, shuffled anew in each epoch; for training.

    ``balance`` draws as many rows by class, of which some repeat. Cells chosen by ``hard_cells`` come once more. This
    makes the minibatches larger and not more, since the learning-rate schedule counts on their number. With
    torch.distributed all ranks draw the same epoch and each takes its part.
    """

    def __init__(
        self,
        index: np.ndarray,
        batch_size: int,
        seed: int,
        hard_cells: HardCells | None = None,
        balance: ClassBalance | None = None,
    ) -> None:
        self.index, self.batch_size, self.seed, self.epoch = index, batch_size, seed, 0
        self.hard_cells, self.balance = hard_cells, balance

    def __len__(self) -> int:
        return -(-len(self.index) // (self.batch_size * rank_and_size()[1]))

    @property
    def replayed(self) -> np.ndarray:
        """Rows that come once more in the next epoch."""
        return self.index[:0] if self.hard_cells is None else self.hard_cells.replayed

    def next_epoch(self) -> tuple[np.ndarray, np.random.Generator]:
        """Rows of the next epoch, which becomes the present one, without the replayed, and its random generator."""
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        return self.index if self.balance is None else self.balance.drawn(self.index, rng), rng

    def __iter__(self) -> Iterator[np.ndarray]:
        rows, rng = self.next_epoch()
        cells = rng.permutation(np.concatenate([rows, self.replayed]))
        rank, n_ranks = rank_and_size()
        # With fewer cells than ranks some come twice: an empty minibatch has no gradient.
        cells = np.resize(cells, max(len(cells), len(self) * n_ranks))
        # Equal parts rather than a small last minibatch, whose gradient is mostly noise.
        yield from np.array_split(cells, len(self) * n_ranks)[rank::n_ranks]


class OrderedSampler(Sampler[np.ndarray]):
    """Rows of each minibatch, in the order of ``index (n,)``; for validation.

    With ``is_shared`` each rank of torch.distributed gets its part of them, at least one minibatch, be it empty.
    """

    epoch = 0

    def __init__(self, index: np.ndarray, batch_size: int, *, is_shared: bool = False) -> None:
        self.index, self.batch_size, self.is_shared = index, batch_size, is_shared

    def __len__(self) -> int:
        return max(1, -(-len(self._part) // self.batch_size))

    def __iter__(self) -> Iterator[np.ndarray]:
        part = self._part
        for k in range(len(self)):
            yield part[k * self.batch_size : (k + 1) * self.batch_size]

    @property
    def _part(self) -> np.ndarray:
        rank, n_ranks = rank_and_size() if self.is_shared else (0, 1)
        return self.index[rank::n_ranks]


RowSampler: TypeAlias = ShuffledSampler | OrderedSampler
