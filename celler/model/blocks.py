"""Blocks: the cells of a store are labelled block by block, and what each rank found is put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from torch import distributed

from celler.atlas.annotations import write_annotation
from celler.mining import rank_and_size
from celler.model.forward import SHIFT_CELLS, Forward, Outputs, report_empty
from celler.model.labelling import BACKOFF_THRESHOLD, annotation_columns, check_question
from celler.model.query import Query, align_query
from celler.model.unknown import novelty_threshold, with_novelty

if TYPE_CHECKING:
    from celler.atlas.datamodule import DataModule
    from celler.atlas.inference import CellBlocks
    from celler.model.celler import Celler

Answer = TypeVar("Answer")


def check_blocks(self: Celler, adata: AnnData | None, indices: Any, *, propagate: bool) -> None:
    """Raise where what a store is asked for cannot be done."""
    self._require_trained()
    if adata is not None or indices is not None:
        raise ValueError(
            "dataloader was given together with adata or indices; pass one of them. Part of a store: "
            "dm.inference_dataloader(split='test')."
        )
    if propagate:
        raise ValueError(
            "propagate=True compares all cells with each other and needs them in memory; leave dataloader or it out."
        )


def answer_blocks(
    self: Celler,
    blocks: CellBlocks,
    batch_size: int | None,
    correct_shift: bool,
    answer: Callable[[Query, np.ndarray, Outputs], Any],
) -> Any:
    """What ``answer`` says of each block, in the order of the store; with torch.distributed, of all ranks."""
    found = [
        (index, answer(query, np.arange(len(index)), outputs))
        for index, query, outputs in block_outputs(self, blocks, batch_size, correct_shift)
    ]
    found = sorted(gathered(found), key=lambda part: int(part[0][0]))
    parts = [part for _, part in found]
    if not parts:
        raise ValueError("the dataloader has no cells.")
    return pd.concat(parts) if isinstance(parts[0], pd.DataFrame) else np.concatenate(parts)


def block_outputs(
    self: Celler, blocks: CellBlocks, batch_size: int | None, correct_shift: bool
) -> Iterator[tuple[np.ndarray, Query, Outputs]]:
    """Rows of the store, their cells and outputs, block by block.

    What differs from the reference in all classes alike is judged once, by a sample of all cells.
    """
    sample = align_query(self, blocks.sample(SHIFT_CELLS))
    way, factors = Forward.of(self), None
    if correct_shift:
        factors = way.shift(sample, np.arange(sample.adata.n_obs), batch_size)[1]
    for index, adata in blocks:
        query, rows = sample.block(adata), np.arange(adata.n_obs)
        outputs = way.outputs(query, rows, batch_size, factors)
        report_empty(outputs.has_counts, rows, adata)
        yield index, query, outputs


def gathered(part: list[Answer]) -> list[Answer]:
    """The parts of all ranks; ``part`` itself where there is one process."""
    n_ranks = rank_and_size()[1]
    if n_ranks == 1:
        return part
    parts: list[Any] = [None] * n_ranks
    distributed.all_gather_object(parts, part)
    return [each for one in parts for each in one]


def annotate_store(
    self: Celler,
    datamodule: DataModule,
    key_added: str = "celler",
    *,
    threshold: float | None = None,
    unknown_label: str = "Unknown",
    false_alarm_rate: float | None = None,
    backoff: bool = False,
    correct_shift: bool = True,
    overwrite: bool = False,
) -> Path:
    """Label every cell of a store, and write the table beside its cells; returns the path of the table.

    ``<store>/annotations/<key_added>.zarr`` appears whole or not at all, the cells are not touched, and memory holds
    one block. :meth:`celler.atlas.DataModule.annotation` reads it: the columns of :meth:`annotate`, by obs_name.

    overwrite: replace a table of that name. Other arguments as in :meth:`annotate`.

    Raises ``FileExistsError`` where the table is already, and what :meth:`predict` raises.
    """
    check_blocks(self, None, None, propagate=False)
    check_question(self._tree, "class", threshold, None, backoff=backoff)
    limit = novelty_threshold(self, false_alarm_rate)
    if backoff and threshold is None:
        threshold = BACKOFF_THRESHOLD
    how = (threshold, unknown_label)

    def tables() -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
        blocks = datamodule.inference_dataloader()
        for index, query, outputs in block_outputs(self, blocks, None, correct_shift):
            if self._fitted.novelty is not None:
                outputs = with_novelty(self, query, np.arange(len(index)), outputs, limit)
            columns = annotation_columns(
                outputs, self._decision, self._tree, key_added, *how, backoff=backoff
            )
            yield index, pd.DataFrame(columns, index=query.adata.obs_names)

    return write_annotation(datamodule.store.path, key_added, tables(), overwrite=overwrite)
