"""Streaming: the cells of an on-disk store take the place of a registered AnnData in training.

Training asks of a source, beside minibatches, for single rows, for validation cells and for cells that show what
the classes look like. In memory all of that is indexing. A store answers each in bounded memory:

- blocks of neighbouring runs are read, one ahead of the one that minibatches are made of;
- hard cells are read along with the block in whose minibatches they come again, by their row;
- validation cells, at most ``MAX_VALIDATION``, are read once and kept;
- profiles of the classes are made from the first ``PROFILE_CELLS`` cells of each. A store is shuffled when it is
  built, so the first are as good as any, and of the frequent types they lie together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from celler.atlas import epochs
from celler.atlas.balance import drawn_rows, n_drawn
from celler.atlas.datamodule import DataModule
from celler.atlas.epochs import PART_ROWS, Block
from celler.atlas.reading import BLOCK_ROWS, as_float
from celler.loading import CellBlock, InMemorySource, OrderedMinibatches
from celler.mining import HardCells, rank_and_size
from celler.model.fitting import TrainingCells, check_classes, warn_of_small_classes
from celler.prefetch import prefetch
from celler.tokenizer import TARGET_SUM

if TYPE_CHECKING:
    from celler.atlas.reading import Store
    from celler.model.celler import Celler

#: Most cells that are held out for validation, and kept in memory.
MAX_VALIDATION = 10_000
#: Cells of a class that its profile is made from.
PROFILE_CELLS = 2000


class StoreSource:
    """The cells of a store, as :class:`celler.loading.Source`."""

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
        return KeptBlocks(self, OrderedMinibatches(index, batch_size, is_shared=is_shared))

    def block(self, X: sparse.csr_matrix, index: np.ndarray, rows: np.ndarray) -> CellBlock:
        """The cells ``index (B,)``, which are ``rows (B,)`` of the counts ``X``."""
        labels = self.labels[index].astype(np.int64)
        return CellBlock(X, labels, index, np.full(len(index), TARGET_SUM), rows)


class StreamedBlocks:
    """Epochs of training minibatches, read one block ahead; see :func:`celler.atlas.epochs.epoch`."""

    def __init__(
        self,
        source: StoreSource,
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
        for part, places, X in prefetch(self._read(plan), BLOCK_ROWS // PART_ROWS):
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

    def __init__(self, source: StoreSource, minibatches: OrderedMinibatches) -> None:
        self.source, self.minibatches = source, minibatches
        self.kept: dict[tuple[int, int], InMemorySource] = {}

    def __len__(self) -> int:
        return len(self.minibatches)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is alike."""

    def __iter__(self) -> Iterator[CellBlock]:
        parts = list(self.minibatches)
        if rank_and_size() not in self.kept:
            index = np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)
            kept = InMemorySource(self.source.store.counts(index), self.source.labels[index])
            self.kept = {rank_and_size(): kept}
        kept, start = self.kept[rank_and_size()], 0
        for part in parts:
            stop = start + len(part)
            yield self.source.block(kept.X, part, np.arange(start, stop))
            start = stop


def streamed_cells(self: Celler, datamodule: DataModule) -> TrainingCells:
    """The labelled training cells of a store; raises ``ValueError`` where the model was not made for it."""
    check_fits(self, datamodule)
    if datamodule.labels_key is None:
        raise ValueError(
            "this data module has no labels_key, which is enough for pretrain alone; name the column of cell types: "
            f"DataModule(path, labels_key=...). Columns: {datamodule.store.columns}."
        )
    check_classes(tuple(datamodule.classes))
    warn_of_small_classes(datamodule.labels, tuple(datamodule.classes), ())
    source = StoreSource(datamodule.store, datamodule.labels, datamodule.class_balance)
    return TrainingCells(source, datamodule.store.names, False)


def check_fits(
    self: Celler, datamodule: DataModule, keys: Iterable[str] = ("gene_names", "classes", "parents")
) -> None:
    """Raise ``ValueError`` unless genes and classes of the model are those of the store."""
    if not isinstance(datamodule, DataModule):
        raise TypeError(
            f"datamodule is a {type(datamodule).__name__}; a celler.atlas.DataModule is needed: "
            "dm = cl.atlas.DataModule(path, labels_key=...)."
        )
    described = datamodule.registry["celler"]
    differing = [key for key in keys if list(described[key]) != list(self._described.get(key, []))]
    if differing:
        raise ValueError(
            f"the model and the store differ in {', '.join(differing)}; make the model of the same data module: "
            "model = Celler(registry=dm.registry)."
        )
    if self._scgpt or self._knowledge is not None:
        raise ValueError(
            "models of from_pretrained and load_query_data train on an AnnData alone; leave datamodule out."
        )
