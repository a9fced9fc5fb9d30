"""Requests: what annbatch is asked to read, and in which order it hands it out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from annbatch.abc import Sampler


class Requests(Sampler):
    """A sampler that is told what to read: blocks of rows, and the parts in which each is handed out."""

    def __init__(self, gap: int) -> None:
        self._gap = gap
        self._blocks: Iterable[list[np.ndarray]] = ()
        self._waiting: deque[np.ndarray] = deque()

    def of(self, blocks: Iterable[list[np.ndarray]], waiting: deque[np.ndarray]) -> None:
        """Read ``blocks`` next; the parts of each are appended to ``waiting`` when it is asked for."""
        self._blocks, self._waiting = blocks, waiting

    @property
    def batch_size(self) -> None:
        return None

    @property
    def shuffle(self) -> bool:
        return False

    def n_batches(self, n_obs: int) -> int:
        raise TypeError("the number of blocks is not known beforehand")

    def validate(self, n_obs: int) -> None:
        pass

    def _sample(self, n_obs: int) -> Iterator[Any]:
        blocks, waiting = self._blocks, self._waiting
        return (self._request(block, waiting) for block in blocks)

    def _request(self, parts: list[np.ndarray], waiting: deque[np.ndarray]) -> dict[str, Any]:
        waiting.extend(parts)
        rows = with_gaps(np.unique(np.concatenate(parts)), self._gap)
        return {"requests": rows, "splits": [np.searchsorted(rows, part) for part in parts]}


def with_gaps(rows: np.ndarray, gap: int) -> np.ndarray:
    """Sorted rows with the short gaps between them filled: one chunk is then decompressed once."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > gap) + 1)
    return np.concatenate([np.arange(run[0], run[-1] + 1) for run in runs])
