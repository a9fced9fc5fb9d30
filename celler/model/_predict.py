"""Methods of :class:`celler.model.Celler` that take any AnnData and label or embed its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from torch import distributed

from celler._utils._distributed import rank_and_size
from celler.atlas._annotations import write_annotation as write_table
from celler.data._query import Query, rows_of
from celler.inference._labels import (
    BACKOFF_THRESHOLD,
    annotation_columns,
    annotation_record,
    check_question,
    label_cells,
    label_levels,
    level_probabilities,
)
from celler.inference._outputs import Outputs
from celler.model._annotate import check_target, gene_record, majority_columns, write_annotation
from celler.model._forward import (
    SHIFT_CELLS,
    Forward,
    align_query,
    fitted_novelty,
    novelty_threshold,
    report_empty,
    with_novelty,
    with_propagation,
)

if TYPE_CHECKING:
    from celler.atlas._datamodule import DataModule
    from celler.atlas._store import CellBlocks
    from celler.model._celler import Celler


def predict(
    self: Celler,
    adata: AnnData | None = None,
    indices: np.ndarray | list[int] | None = None,
    soft: bool = False,
    batch_size: int | None = None,
    *,
    level: str | None = None,
    threshold: float | None = None,
    unknown_label: str = "Unknown",
    candidates: list[str] | None = None,
    false_alarm_rate: float | None = None,
    backoff: bool = False,
    correct_shift: bool = True,
    propagate: bool = False,
    dataloader: CellBlocks | None = None,
) -> np.ndarray | pd.DataFrame:
    """Label the cells of any AnnData, matched by gene name; ``adata`` is not changed.

    adata: ``None`` is the AnnData of the model. Other genes, orders, batches, matrix formats,
        views and files in backed mode are welcome; no label column is needed.
    indices: rows to label, positions or a boolean mask; ``None`` is all.
    soft: give probabilities instead of labels.
    batch_size: cells per forward pass; ``None`` fills a fixed number of tokens.
    level: ``"class"`` or ``"parent"``, whose probability is the sum of its classes'.
    threshold: give ``unknown_label`` where the best probability is below it.
    candidates: the only classes that are possible; the others get probability 0.
    false_alarm_rate: give ``unknown_label`` to cells more novel than all but this share of the
        reference's known cells, see :meth:`get_novelty`; ``None`` labels them all.
    backoff: where the class is below the threshold and the parent is not, give the parent's name. The
        threshold is then 0.7 unless given, the same for both levels.
    correct_shift: undo what differs from the reference in all classes alike, as after another
        chemistry, judged by up to 5,000 cells of ``adata``; without it a label depends on the cell alone.
    propagate: spread the probabilities over the nearest of the cells asked for and of the model's labelled cells,
        whose labels are given; where labels are few and the query has thousands of cells. A label then depends on
        the other cells. A model that was loaded has labelled cells where ``load`` was given its reference.
    dataloader: in place of ``adata``, the cells of a store, of :meth:`celler.atlas.DataModule.inference_dataloader`,
        which are read block by block.

    Returns an array of str ``(N,)``, or with ``soft`` a DataFrame (obs_names x classes, columns
    sorted, rows sum to 1). A cell without counts is ``unknown_label``, with equal probabilities.

    Raises ``RuntimeError`` before training and ``ValueError`` when under 20 % of the model's
    genes are there.
    """
    level = "class" if level is None else level
    if dataloader is None:
        adata, index = query_cells(self, adata, indices)
    else:
        check_blocks(self, adata, indices, propagate=propagate)
    check_question(self._tree, level, threshold, candidates, backoff=backoff)
    if soft and backoff:
        raise ValueError("soft=True gives the probabilities of one level; leave backoff out.")
    limit = novelty_threshold(self, false_alarm_rate)

    def answer(query: Query, index: np.ndarray, outputs: Outputs) -> np.ndarray | pd.DataFrame:
        if limit is not None and not soft:
            outputs = with_novelty(self, query, index, outputs, limit)
        probabilities = level_probabilities(outputs, self._decision, self._tree, level, candidates)
        names = self._tree.levels[level]
        if soft:
            return pd.DataFrame(
                probabilities, index=query.adata.obs_names[index], columns=list(names)
            )
        if backoff:
            how = (BACKOFF_THRESHOLD if threshold is None else threshold, unknown_label)
            return label_levels(outputs, probabilities, self._tree, *how, backoff=True)[0]
        return label_cells(outputs, probabilities, names, threshold, unknown_label)

    if dataloader is not None:
        return answer_blocks(self, dataloader, batch_size, correct_shift, answer)
    query = align_query(self, adata)
    outputs = Forward.of(self)(query, index, batch_size=batch_size, correct_shift=correct_shift)
    if propagate:
        outputs = with_propagation(self, query, index, outputs, candidates)
    return answer(query, index, outputs)


def annotate(
    self: Celler,
    adata: AnnData | None = None,
    key_added: str = "celler",
    *,
    cluster_key: str | None = None,
    threshold: float | None = None,
    unknown_label: str = "Unknown",
    false_alarm_rate: float | None = None,
    backoff: bool = False,
    correct_shift: bool = True,
    propagate: bool = False,
) -> None:
    """Write labels to ``adata.obs``, and what was done to ``adata.uns[key_added]``.

    Columns: ``<key>`` (categorical, all classes), ``<key>_confidence`` (probability of the best class),
    ``<key>_margin`` (that less the second best), ``<key>_second`` (the second-best class) and
    ``<key>_novelty`` (see :meth:`get_novelty`); with parents ``<key>_parent``, which never contradicts
    the class, and ``<key>_parent_confidence``; with ``backoff`` ``<key>_level``, which says whether the
    label is a "class", a "parent" or "unknown". Colours go to ``uns["<key>_colors"]`` where there are
    none that fit.

    cluster_key: clusters in ``adata.obs``, which are read and never computed: ``<key>_majority`` is the
        most frequent label of each cell's cluster and ``<key>_majority_share`` its share; a cell
        without a cluster keeps its label.

    Other arguments as in :meth:`predict`. Calling it again overwrites, and removes columns of the last
    call that this one does not write. A view becomes a copy of its own, as with every write to one;
    the AnnData behind it stays as it is. Of a file in backed mode only what is in memory is written.
    """
    adata, index = query_cells(self, adata, None)
    check_question(self._tree, "class", threshold, None, backoff=backoff)
    clusters = check_target(adata, key_added, cluster_key)
    limit = novelty_threshold(self, false_alarm_rate)
    query = align_query(self, adata)
    outputs = Forward.of(self)(query, index, batch_size=None, correct_shift=correct_shift)
    if propagate:
        outputs = with_propagation(self, query, index, outputs)
    if self._fitted.novelty is not None:  # a model saved by an earlier version has none
        outputs = with_novelty(self, query, index, outputs, limit)
    if backoff and threshold is None:
        threshold = BACKOFF_THRESHOLD
    how = (threshold, unknown_label)
    columns = annotation_columns(
        outputs, self._decision, self._tree, key_added, *how, backoff=backoff
    )
    if clusters is not None:
        columns |= majority_columns(columns[key_added], clusters, key_added)
    record = annotation_record(outputs, self._decision, self._tree, *how, backoff=backoff)
    record |= {"cluster_key": cluster_key or "none", "correct_shift": correct_shift}
    record |= {"false_alarm_rate": "none" if false_alarm_rate is None else false_alarm_rate}
    record |= {"genes": gene_record(query.alignment, query.expression_share)}
    write_annotation(adata, key_added, columns, record)


def get_latent_representation(
    self: Celler,
    adata: AnnData | None = None,
    indices: np.ndarray | list[int] | None = None,
    batch_size: int | None = None,
    *,
    normalize: bool = False,
    correct_shift: bool = True,
) -> np.ndarray:
    """Cell embedding ``(N, d_model)`` of the encoder, also after :meth:`pretrain`; arguments as in :meth:`predict`.

    normalize: divide each row by its L2 norm, as scGPT does, so that products are cosines.
    """
    adata, index = query_cells(self, adata, indices, needs_classes=not self.is_pretrained)
    way, query = Forward.of(self), align_query(self, adata)
    embedding = way(query, index, batch_size=batch_size, correct_shift=correct_shift).embedding
    if normalize:
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True).clip(min=1e-12)
    return embedding


def get_novelty(
    self: Celler,
    adata: AnnData | None = None,
    indices: np.ndarray | list[int] | None = None,
    batch_size: int | None = None,
    *,
    correct_shift: bool = True,
) -> np.ndarray:
    """How little each cell is like any type of the reference ``(N,)``; arguments as in :meth:`predict`.

    The unit is the standard deviation of the reference's own cells, scored by a fit without them: their
    mean is 0, and a cell of 3 is far outside. ``predict(false_alarm_rate=0.05)`` gives no label to cells above the
    95 % quantile of those scores. NaN for a cell without counts.

    Raises ``RuntimeError`` for a model of fewer than 20 labelled cells or saved by an earlier version.
    """
    adata, index = query_cells(self, adata, indices)
    fitted_novelty(self)
    query = align_query(self, adata)
    outputs = Forward.of(self)(query, index, batch_size=batch_size, correct_shift=correct_shift)
    scored = with_novelty(self, query, index, outputs, None)
    assert scored.novelty is not None
    return scored.novelty


def query_cells(
    self: Celler,
    adata: AnnData | None,
    indices: np.ndarray | list[int] | None,
    needs_classes: bool = True,
) -> tuple[AnnData, np.ndarray]:
    """The AnnData to label and the positions ``(N,)`` of its rows."""
    if needs_classes:
        self._require_trained()
    adata = self.adata if adata is None else adata
    if adata is None:
        raise ValueError("this model was loaded without an AnnData; pass the one to label.")
    return adata, rows_of(adata, indices)


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

    return write_table(datamodule.store.path, key_added, tables(), overwrite=overwrite)
