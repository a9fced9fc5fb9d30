"""Predict: labels, probabilities, embedding and novelty of any cells, in memory or in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._distributed import gather_objects
from celler.atlas._annotations import write_annotation as write_table
from celler.atlas._datamodule import DataModule
from celler.atlas._store import CellBlocks
from celler.data._query import Query, align_query
from celler.inference._labels import Question, annotation_columns, annotation_record, label, probabilities_of
from celler.inference._outputs import Outputs
from celler.model._annotate import check_target, gene_record, majority_columns, write_annotation
from celler.model._forward import (
    SHIFT_CELLS,
    Adaptation,
    Reading,
    adaptation_to,
    fitted_novelty,
    forward,
    network_outputs,
    novelty_threshold,
    report_empty,
    with_novelty,
)
from celler.model._propagate import Reference, with_propagation
from celler.model._state import ModelState


@dataclass(frozen=True)
class Cells:
    """The cells that a method was called on: rows ``index (N,)`` of ``adata``, and the model's own AnnData."""

    adata: AnnData
    index: np.ndarray
    reference: Reference

    def align(self, state: ModelState) -> Query:
        """Return the cells in the model's genes."""
        return align_query(state.genes, self.adata, state.setup.layer, self.reference.reported)


Answer = Callable[[Query, np.ndarray, Outputs], "np.ndarray | pd.DataFrame"]


def answer_of(state: ModelState, question: Question, *, soft: bool) -> Answer:
    """Return the function that labels some cells; raise for options that contradict each other."""
    question.check(state.tree, soft=soft)
    limit = novelty_threshold(state, question.false_alarm_rate)

    def answer(query: Query, index: np.ndarray, outputs: Outputs) -> np.ndarray | pd.DataFrame:
        if limit is not None:
            outputs = with_novelty(state, query, index, outputs, limit)
        if not soft:
            return label(outputs, state.decision, state.tree, question).names
        of_class = probabilities_of(outputs, state.decision, state.tree, question.candidates)
        names, columns = query.adata.obs_names[index], list(state.tree.levels[question.level])
        return pd.DataFrame(state.tree.roll_up(of_class, question.level), index=names, columns=columns)

    return answer


def predict(
    state: ModelState, cells: Cells, question: Question, reading: Reading, *, soft: bool, propagate: bool
) -> np.ndarray | pd.DataFrame:
    """Label cells of an AnnData; see :meth:`celler.model.Celler.predict`."""
    answer = answer_of(state, question, soft=soft)
    query = cells.align(state)
    outputs = forward(state, query, cells.index, reading)
    if propagate:
        candidates = question.candidates
        outputs = with_propagation(state, query, cells.index, outputs, cells.reference, candidates)
    return answer(query, cells.index, outputs)


def predict_store(
    state: ModelState, blocks: CellBlocks, question: Question, reading: Reading, *, soft: bool, reported: set[str]
) -> np.ndarray | pd.DataFrame:
    """Label cells of a store in its order, with torch.distributed those of all ranks."""
    answer = answer_of(state, question, soft=soft)
    found = [
        (index, answer(query, np.arange(len(index)), outputs))
        for index, query, outputs in block_outputs(state, blocks, reading, reported)
    ]
    blocks_of_all = [part for of_rank in gather_objects(found) for part in of_rank]
    parts = [part for _, part in sorted(blocks_of_all, key=lambda part: int(part[0][0]))]
    if not parts:
        raise ValueError("the dataloader has no cells.")
    return pd.concat(parts) if isinstance(parts[0], pd.DataFrame) else np.concatenate(parts)


def annotate(
    state: ModelState,
    cells: Cells,
    key: str,
    question: Question,
    reading: Reading,
    *,
    cluster_key: str | None,
    propagate: bool,
) -> None:
    """Write labels to obs; see :meth:`celler.model.Celler.annotate`."""
    question.check(state.tree)
    clusters = check_target(cells.adata, key, cluster_key)
    limit = novelty_threshold(state, question.false_alarm_rate)
    query, index = cells.align(state), cells.index
    outputs = forward(state, query, index, reading)
    if propagate:
        outputs = with_propagation(state, query, index, outputs, cells.reference)
    columns, outputs = _columns(state, query, index, outputs, key, question, limit)
    if clusters is not None:
        columns |= majority_columns(columns[key], clusters, key)
    record = annotation_record(outputs, state.decision, state.tree, question)
    record |= {"cluster_key": cluster_key or "none", "correct_shift": reading.correct_shift}
    record |= {"genes": gene_record(query.alignment, query.expression_share)}
    write_annotation(cells.adata, key, columns, record)


def annotate_store(
    state: ModelState,
    datamodule: DataModule,
    key: str,
    question: Question,
    reading: Reading,
    *,
    overwrite: bool,
    reported: set[str],
) -> Path:
    """Write the table of labels of a store; see :meth:`celler.model.Celler.annotate_store`."""
    question.check(state.tree)
    limit = novelty_threshold(state, question.false_alarm_rate)

    def tables() -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
        blocks = datamodule.inference_dataloader()
        for index, query, outputs in block_outputs(state, blocks, reading, reported):
            columns, _ = _columns(state, query, np.arange(len(index)), outputs, key, question, limit)
            yield index, pd.DataFrame(columns, index=query.adata.obs_names)

    return write_table(datamodule.store.path, key, tables(), overwrite=overwrite)


def _columns(
    state: ModelState,
    query: Query,
    index: np.ndarray,
    outputs: Outputs,
    key: str,
    question: Question,
    limit: float | None,
) -> tuple[dict[str, Any], Outputs]:
    """Columns of an annotation of some cells, and their outputs with novelty."""
    if state.trained().novelty is not None:  # a model saved by an earlier version has none
        outputs = with_novelty(state, query, index, outputs, limit)
    labels = label(outputs, state.decision, state.tree, question)
    columns = annotation_columns(outputs, labels, state.tree, key, question)
    if state.ids:
        # The values are few: an id for each name, and none for unknown cells.
        columns[f"{key}_cl_id"] = pd.Categorical(pd.Series(labels.names).map(dict(state.ids)))
    return columns, outputs


def embedding(state: ModelState, cells: Cells, reading: Reading, *, normalize: bool) -> np.ndarray:
    """Cell embedding; see :meth:`celler.model.Celler.get_latent_representation`."""
    reading = replace(reading, keep_embedding=True)
    found = forward(state, cells.align(state), cells.index, reading).embedding
    if normalize:
        found /= np.linalg.norm(found, axis=1, keepdims=True).clip(min=1e-12)
    return found


def novelty(state: ModelState, cells: Cells, reading: Reading) -> np.ndarray:
    """Novelty of cells; see :meth:`celler.model.Celler.get_novelty`."""
    fitted_novelty(state)
    query = cells.align(state)
    outputs = forward(state, query, cells.index, reading)
    scored = with_novelty(state, query, cells.index, outputs, None)
    assert scored.novelty is not None
    return scored.novelty


def check_store_call(adata: AnnData | None, indices: Any, *, propagate: bool) -> None:
    """Raise for options that a store cannot have."""
    if adata is not None or indices is not None:
        raise ValueError(
            "dataloader was given together with adata or indices; pass one of them. Part of a store: "
            "dm.inference_dataloader(split='test')."
        )
    if propagate:
        raise ValueError(
            "propagate=True compares all cells with each other and needs them in memory; leave dataloader or it out."
        )


def block_outputs(
    state: ModelState, blocks: CellBlocks, reading: Reading, reported: set[str]
) -> Iterator[tuple[np.ndarray, Query, Outputs]]:
    """Rows of the store, their cells and outputs, block by block.

    The adaptation is estimated once, from a sample of all cells.
    """
    sample = align_query(state.genes, blocks.sample(SHIFT_CELLS), state.setup.layer, reported)
    how = Adaptation()
    if reading.correct_shift:
        rows = np.arange(sample.adata.n_obs)
        how = adaptation_to(state, sample, rows, reading)[1]
    for index, adata in blocks:
        query, rows = sample.block(adata), np.arange(adata.n_obs)
        outputs = network_outputs(state, query, rows, reading, how)
        report_empty(outputs.has_counts, rows, adata)
        yield index, query, outputs
