"""The sampler that tells annbatch's loader which rows to read and in which parts to hand them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from annbatch.abc import Sampler


class BlockSampler(Sampler):
    """Reads each of the ``blocks`` at once, with gaps up to ``gap`` rows, and hands out its parts."""

    def __init__(self, gap: int) -> None:
        self.gap = gap
        self.blocks: Iterable[list[np.ndarray]] = ()

    @property
    def batch_size(self) -> None:
        return None

    @property
    def shuffle(self) -> bool:
        return False

    def n_batches(self, n_obs: int) -> int:
        raise TypeError("the blocks come from an iterator of unknown length")

    def validate(self, n_obs: int) -> None:
        pass

    def _sample(self, n_obs: int) -> Iterator[Any]:
        for parts in self.blocks:
            rows = np.unique(np.concatenate(parts))
            runs = np.split(rows, np.flatnonzero(np.diff(rows) > self.gap) + 1)
            rows = np.concatenate([np.arange(run[0], run[-1] + 1) for run in runs])
            yield {"requests": rows, "splits": [np.searchsorted(rows, part) for part in parts]}
