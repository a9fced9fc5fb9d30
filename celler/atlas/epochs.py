"""Epochs: which rows of a store make the minibatches of an epoch, in blocks that are read at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from celler.atlas.reading import BLOCK_ROWS
from celler.mining import rank_and_size

#: Rows that lie together in the store and stay together until a block of them is shuffled.
CHUNK_ROWS = 512
#: Rows whose counts are handed out at once. In larger arrays, new ones each time, half the time goes to the system.
PART_ROWS = 1024


@dataclass(frozen=True)
class Block:
    """Rows ``index (n,)`` that are read at once, and ``ends (m,)``, where each of their minibatches ends."""

    index: np.ndarray
    ends: np.ndarray

    @property
    def minibatches(self) -> Iterator[slice]:
        """The place of each minibatch among the rows."""
        start = 0
        for end in self.ends.tolist():
            yield slice(start, end)
            start = end

    @property
    def parts(self) -> Iterator[Block]:
        """Minibatches of about ``PART_ROWS`` rows together."""
        start, n_parts = 0, min(len(self.ends), -(-len(self.index) // PART_ROWS))
        for ends in np.array_split(self.ends, n_parts):
            yield Block(self.index[start : ends[-1]], ends - start)
            start = int(ends[-1])


def n_minibatches(n_cells: int, batch_size: int) -> int:
    """Minibatches of a rank in an epoch."""
    return max(1, -(-n_cells // (batch_size * rank_and_size()[1])))


def epoch(
    index: np.ndarray, batch_size: int, rng: np.random.Generator, again: np.ndarray
) -> Iterator[Block]:
    """The blocks of this rank in an epoch over the sorted rows ``index (n,)``, each as often as it stands there.

    Runs of neighbouring rows are shuffled, and a block mixes the rows of eight of them: in a store that was
    shuffled when it was built, as good as a shuffle of all rows. All ranks draw the same epoch from ``rng``; each
    takes its stretch of it, as many minibatches as every other, whose sizes differ by one at most.

    again: rows that come once more, dealt evenly to the minibatches, which makes these larger and not more.
    """
    rank, n_ranks = rank_and_size()
    n_steps = n_minibatches(len(index), batch_size)
    runs = np.split(index, np.flatnonzero(np.diff(index // CHUNK_ROWS)) + 1)
    cells = np.concatenate([runs[k] for k in rng.permutation(len(runs))])
    # With fewer cells than ranks some come twice: a minibatch of none has no gradient.
    cells = np.resize(cells, max(len(cells), n_steps * n_ranks))
    of_minibatch = np.linspace(0, len(cells), n_steps * n_ranks + 1).round().astype(np.int64)
    more = np.array_split(rng.permutation(again), n_steps * n_ranks)
    rng = np.random.default_rng((int(rng.integers(2**62)), rank))
    per_block = max(1, BLOCK_ROWS // batch_size)
    stop = (rank + 1) * n_steps
    for first in range(rank * n_steps, stop, per_block):
        last = min(first + per_block, stop)
        rows = np.concatenate([cells[of_minibatch[first] : of_minibatch[last]], *more[first:last]])
        sizes = np.diff(of_minibatch[first : last + 1]) + [len(part) for part in more[first:last]]
        yield Block(rng.permutation(rows), np.cumsum(sizes))
