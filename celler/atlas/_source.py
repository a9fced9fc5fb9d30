"""Epochs: which rows of a store make the minibatches of an epoch, in blocks that are read at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from celler._utils._distributed import rank_and_size
from celler._utils._prefetch import prefetch
from celler.atlas import _source as epochs
from celler.atlas._store import BLOCK_ROWS, as_float
from celler.data._samplers import OrderedSampler
from celler.data._sources import CellBlock, InMemoryCells
from celler.data._tokenizer import TARGET_SUM
from celler.mining import HardCells

if TYPE_CHECKING:
    from celler.atlas._store import Store

#: Most times that one cell comes in an epoch.
MAX_COPIES = 16


def check_balance(class_balance: float) -> None:
    """Raise ``ValueError`` unless 0 <= ``class_balance`` <= 1."""
    if not 0 <= class_balance <= 1:
        raise ValueError(
            f"class_balance={class_balance} was given; 0 (cells as often as they are) to 1 (classes equally often) "
            "is needed."
        )


def n_drawn(class_counts: np.ndarray, class_balance: float) -> np.ndarray:
    r"""How many cells of each class an epoch has ``(C,)``, as many together as ``class_counts (C,)`` has.

    Class c with n_c cells has a share proportional to :math:`n_c^{1 - b}` with b = ``class_balance``, but no more than
    16 times its cells.
    """
    share, most = class_counts ** (1.0 - class_balance), MAX_COPIES * class_counts.astype(float)
    share[class_counts == 0] = 0
    total, is_full = class_counts.sum(), np.zeros(len(share), bool)
    drawn = share * total / share.sum()
    while (drawn > most).any():  # what full classes cannot take goes to the others
        is_full |= drawn > most
        free = total - most[is_full].sum()
        drawn = np.where(is_full, most, share * free / share[~is_full].sum())
    return np.diff(np.cumsum(drawn).round().astype(np.int64), prepend=0)


def drawn_rows(
    index: np.ndarray, labels: np.ndarray, wanted: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Rows of an epoch, ascending ``(n,)``: ``wanted (C,)`` of each class, a row as often as its others or once more.

    index: the rows that there are, ascending ``(n,)``. labels: their classes' codes ``(n,)``.
    """
    of_class = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=len(wanted)))
    parts = []
    for rows, n in zip(np.split(index[of_class], ends[:-1]), wanted.tolist(), strict=True):
        n_whole, n_rest = divmod(n, max(1, len(rows)))
        parts += [np.repeat(rows, n_whole), rng.choice(rows, n_rest, replace=False)]
    return np.sort(np.concatenate(parts))


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


#: Most cells that are held out for validation, and kept in memory.
MAX_VALIDATION = 10_000
#: Cells of a class that its profile is made from.
PROFILE_CELLS = 2000


class StoreCells:
    """The cells of a store, as :class:`celler.data._sources.CellSource`."""

    max_validation = MAX_VALIDATION

    def __init__(self, store: Store, labels: np.ndarray, class_balance: float = 0.0) -> None:
        self.store, self.labels, self.class_balance = store, labels, class_balance

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_labelled(self) -> int:
        """Number of training cells with a label."""
        return int((self.labels >= 0).sum())

    @property
    def n_genes(self) -> int:
        """Number of genes of the store."""
        return len(self.store.genes)

    def rows(self, index: np.ndarray) -> sparse.csr_matrix:
        return self.store.rows(index)

    def typical(self, index: np.ndarray) -> np.ndarray:
        labels = self.labels[index]
        first = [index[labels == code][:PROFILE_CELLS] for code in np.unique(labels)]
        return np.sort(np.concatenate(first))

    def shuffled(
        self, index: np.ndarray, batch_size: int, seed: int, hard_cells: HardCells | None
    ) -> StreamedBlocks:
        return StreamedBlocks(self, index, batch_size, seed, hard_cells)

    def ordered(self, index: np.ndarray, batch_size: int, *, is_shared: bool = True) -> KeptBlocks:
        return KeptBlocks(self, OrderedSampler(index, batch_size, is_shared=is_shared))

    def block(self, X: sparse.csr_matrix, index: np.ndarray, rows: np.ndarray) -> CellBlock:
        """The cells ``index (B,)``, which are ``rows (B,)`` of the counts ``X``."""
        labels = self.labels[index].astype(np.int64)
        return CellBlock(X, labels, index, np.full(len(index), TARGET_SUM), rows)


class StreamedBlocks:
    """Epochs of training minibatches, read one block ahead; see :func:`celler.atlas._source.epoch`."""

    def __init__(
        self,
        source: StoreCells,
        index: np.ndarray,
        batch_size: int,
        seed: int,
        hard_cells: HardCells | None,
    ) -> None:
        self.source, self.index, self.batch_size = source, index, batch_size
        self.seed, self.hard_cells, self.epoch = seed, hard_cells, 0

    def __len__(self) -> int:
        return epochs.n_minibatches(len(self.index), self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[CellBlock]:
        again = self.index[:0] if self.hard_cells is None else self.hard_cells.replayed
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        plan = epochs.epoch(self._drawn(rng), self.batch_size, rng, again)
        # As many parts ahead as a block has: while they are used, the next block is read.
        for part, places, X in prefetch(self._read(plan), max(1, BLOCK_ROWS // PART_ROWS)):
            for minibatch in part.minibatches:
                yield self.source.block(X, part.index[minibatch], places[minibatch])

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """The rows of an epoch, ascending."""
        if self.source.class_balance == 0:
            return self.index
        labels = self.source.labels[self.index]
        wanted = n_drawn(np.bincount(labels), self.source.class_balance)
        return drawn_rows(self.index, labels, wanted, rng)

    def _read(self, plan: Iterable[Block]) -> Iterator[tuple[Block, np.ndarray, sparse.csr_matrix]]:
        """The parts of each block: rows, each one's place among the counts, and these, in their order on disk."""
        waiting: deque[Block] = deque()

        def wanted() -> Iterator[list[np.ndarray]]:
            for block in plan:
                parts = list(block.parts)
                waiting.extend(parts)
                yield [np.unique(part.index) for part in parts]

        for read in self.source.store.parts(wanted()):
            part = waiting.popleft()
            yield part, np.searchsorted(read.index, part.index), as_float(read.X)


class KeptBlocks:
    """Validation minibatches of this rank, read from the store once."""

    def __init__(self, source: StoreCells, minibatches: OrderedSampler) -> None:
        self.source, self.minibatches = source, minibatches
        self.kept: dict[tuple[int, int], InMemoryCells] = {}

    def __len__(self) -> int:
        return len(self.minibatches)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is alike."""

    def __iter__(self) -> Iterator[CellBlock]:
        parts = list(self.minibatches)
        if rank_and_size() not in self.kept:
            index = np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)
            kept = InMemoryCells(self.source.store.counts(index), self.source.labels[index])
            self.kept = {rank_and_size(): kept}
        kept, start = self.kept[rank_and_size()], 0
        for part in parts:
            stop = start + len(part)
            yield self.source.block(kept.X, part, np.arange(start, stop))
            start = stop
