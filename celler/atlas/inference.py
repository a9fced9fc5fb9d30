"""Blocks of a store's cells as AnnData, one after the other, for labelling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from anndata import AnnData

from celler.atlas.reading import BLOCK_ROWS, Rows, Store, as_float, pieces
from celler.mining import rank_and_size
from celler.prefetch import prefetch


class CellBlocks:
    """Cells of a store in blocks: iterating gives ``index (n,)``, their rows, and an AnnData of counts.

    With torch.distributed each rank is given its part of the blocks.

    index: rows of the store, ascending ``(N,)``.
    """

    def __init__(self, store: Store, index: np.ndarray) -> None:
        self.store, self.index = store, index

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[tuple[np.ndarray, AnnData]]:
        rank, n_ranks = rank_and_size()
        blocks = list(pieces(self.index, BLOCK_ROWS))[rank::n_ranks]
        return prefetch(map(self._anndata, self.store.stream(blocks)))

    def sample(self, n_cells: int) -> AnnData:
        """At most so many of the cells, drawn at random, the same at each call."""
        rows = np.random.default_rng(0).permutation(len(self.index))[:n_cells]
        index = self.index[np.sort(rows)]
        return self._anndata(Rows(index, self.store.rows(index)))[1]

    def _anndata(self, rows: Rows) -> tuple[np.ndarray, AnnData]:
        obs = pd.DataFrame(index=pd.Index(self.store.names(rows.index).astype(str)))
        var = pd.DataFrame(index=pd.Index(self.store.genes))
        return rows.index, AnnData(as_float(rows.X), obs=obs, var=var)
