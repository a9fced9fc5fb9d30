"""Store source: training cells of a store on disk, read in blocks in bounded memory.

An epoch shuffles runs of neighbouring rows, and a block of four runs is shuffled again when it is read. Hard cells
are read along with the block of the minibatches they come again in. Validation cells are read once and kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from scipy import sparse

from celler._utils._distributed import rank_and_size
from celler._utils._prefetch import prefetch
from celler.atlas._store import BLOCK_ROWS, Store, as_float
from celler.data._samplers import OrderedSampler, RowSampler, ShuffledSampler
from celler.data._sources import CellBlock
from celler.data._tokenizer import TARGET_SUM

#: Neighbouring rows of the store that stay together until their block is shuffled.
CHUNK_ROWS = 512
#: Rows whose counts are handed out at once: allocating larger arrays takes half of the time.
PART_ROWS = 1024


@dataclass(frozen=True)
class Block:
    """Rows ``index (n,)`` that are read at once, and the end of each of their minibatches, ``ends (m,)``."""

    index: np.ndarray
    ends: np.ndarray

    @property
    def minibatches(self) -> Iterator[slice]:
        """The place of each minibatch among the rows."""
        return map(slice, [0, *self.ends[:-1]], self.ends)

    @property
    def parts(self) -> Iterator[Block]:
        """Minibatches of about ``PART_ROWS`` rows together."""
        start, n_parts = 0, max(1, min(len(self.ends), -(-len(self.index) // PART_ROWS)))
        for ends in np.array_split(self.ends, n_parts):
            yield Block(self.index[start : ends[-1]], ends - start)
            start = int(ends[-1])


def n_minibatches(n_cells: int, batch_size: int) -> int:
    """Minibatches of a rank in an epoch."""
    return max(1, -(-n_cells // (batch_size * rank_and_size()[1])))


def epoch(index: np.ndarray, batch_size: int, rng: np.random.Generator, again: np.ndarray) -> Iterator[Block]:
    """Blocks of this rank in an epoch over the sorted rows ``index (n,)``, which may repeat.

    Runs of neighbouring rows are shuffled, and a block mixes four: as good as a shuffle of all rows, as the store was
    shuffled when it was built. All ranks draw the same epoch, and each takes equally many minibatches, of equal size or
    one less. The rows ``again`` come once more; they make the minibatches larger, not more.
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


#: Cells held out for validation and kept in memory, at most.
MAX_VALIDATION = 10_000
#: Cells of a class that its profile is made from, at most.
PROFILE_CELLS = 2000


class StoreCells:
    """The :class:`CellSource` of a store; ``labels (n_cells,)`` are −1 for cells that are not trained on."""

    max_validation = MAX_VALIDATION

    def __init__(self, store: Store, labels: np.ndarray) -> None:
        self.store, self.labels = store, labels
        # Rows and counts of validation cells, by the sampler of their rows.
        self._kept: WeakKeyDictionary[OrderedSampler, tuple[np.ndarray, list[sparse.csr_matrix]]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_labelled(self) -> int:
        return int((self.labels >= 0).sum())

    @property
    def n_genes(self) -> int:
        return len(self.store.genes)

    def rows(self, index: np.ndarray) -> sparse.csr_matrix:
        return self.store.rows(index)

    def typical(self, index: np.ndarray) -> np.ndarray:
        # A store is shuffled when it is built: its first cells are as good as any, and lie together.
        labels = self.labels[index]
        first = [index[labels == code][:PROFILE_CELLS] for code in np.unique(labels)]
        return np.sort(np.concatenate(first))

    def blocks(self, sampler: RowSampler) -> Iterator[CellBlock]:
        if isinstance(sampler, OrderedSampler):
            return self._validation(sampler)
        return self._training(sampler)

    def _training(self, sampler: ShuffledSampler) -> Iterator[CellBlock]:
        again = sampler.replayed
        index, rng = sampler.next_epoch()
        plan = epoch(index, sampler.batch_size, rng, again)
        # While the parts of a block are used, the next block is read.
        for read in prefetch(self._read(plan), max(1, BLOCK_ROWS // PART_ROWS)):
            yield from self._minibatches(*read)

    def _validation(self, sampler: OrderedSampler) -> Iterator[CellBlock]:
        minibatches = list(sampler)
        index = np.concatenate(minibatches)
        found = self._kept.get(sampler)
        if found is None or not np.array_equal(found[0], index):  # other ranks have other cells
            self._kept[sampler] = found = index, []
        kept = found[1]
        parts = Block(index, np.cumsum([len(minibatch) for minibatch in minibatches])).parts
        for number, part in enumerate(parts):
            if number == len(kept):
                kept.append(self.store.counts(part.index))
            yield from self._minibatches(part, np.arange(len(part.index)), as_float(kept[number]))

    def _minibatches(self, block: Block, rows: np.ndarray, X: sparse.csr_matrix) -> Iterator[CellBlock]:
        """Return the minibatches of a block, whose cells are the ``rows (n,)`` of the counts ``X``."""
        for minibatch in block.minibatches:
            index = block.index[minibatch]
            labels = self.labels[index].astype(np.int64)
            yield CellBlock(X, labels, index, np.full(len(index), TARGET_SUM), rows[minibatch])

    def _read(self, plan: Iterable[Block]) -> Iterator[tuple[Block, np.ndarray, sparse.csr_matrix]]:
        """Return the parts of each block: rows, the place of each among the counts, and these as they lie on disk."""
        waiting: deque[Block] = deque()

        def wanted() -> Iterator[list[np.ndarray]]:
            for block in plan:
                parts = list(block.parts)
                waiting.extend(parts)
                yield [np.unique(part.index) for part in parts]

        for read in self.store.parts(wanted()):
            part = waiting.popleft()
            yield part, np.searchsorted(read.index, part.index), as_float(read.X)
