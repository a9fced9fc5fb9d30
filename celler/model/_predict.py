"""Predict: labels, probabilities, embedding and novelty of any cells, in memory or in a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from celler._utils._distributed import gather_objects
from celler._utils._messages import collected, warn
from celler._utils._workers import are_worth, in_order
from celler.atlas._annotations import write_annotation as write_table
from celler.atlas._datamodule import DataModule
from celler.atlas._store import CellBlocks, Store
from celler.data._query import Query, align_query
from celler.inference._adaptation import Adaptation
from celler.inference._labels import Question, annotation_columns, annotation_record, label, probabilities_of
from celler.inference._outputs import Outputs
from celler.model import _check_labels
from celler.model._annotate import (
    check_record,
    check_target,
    gene_record,
    majority_columns,
    model_record,
    today,
    write_annotation,
)
from celler.model._forward import (
    SHIFT_CELLS,
    Job,
    Reading,
    adaptation_to,
    drawn,
    fitted_novelty,
    forward,
    novelty_threshold,
    received,
    report_alarms,
    report_empty,
    sampled,
    with_novelty,
)
from celler.model._propagate import Reference, with_propagation
from celler.model._state import ModelState
from celler.tl._columns import label_column
from celler.tl._label_check import LabelCheck


@dataclass(frozen=True)
class Cells:
    """The cells that a method was called on: rows ``index (N,)`` of ``adata``, and the model's own AnnData."""

    adata: AnnData
    index: np.ndarray
    reference: Reference
    layer: str | None = None  # of the values; None is that of the setup, or what the cells have instead

    def align(self, state: ModelState) -> Query:
        """Return the cells in the model's genes."""
        return align_query(state.genes, self.adata, state.setup.layer, self.reference.reported, self.layer)


Answer = Callable[[Query, np.ndarray, Outputs], "np.ndarray | pd.DataFrame"]


def answer_of(state: ModelState, question: Question, *, soft: bool) -> Answer:
    """Return the function that labels some cells; raise for options that contradict each other."""
    question.check(state.tree, soft=soft)
    limit = novelty_threshold(state, question.false_alarm_rate)

    def answer(query: Query, index: np.ndarray, outputs: Outputs) -> np.ndarray | pd.DataFrame:
        if limit is not None:
            outputs = with_novelty(outputs, limit)
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
    reading = replace(reading, needs_novelty=question.false_alarm_rate is not None)
    outputs = forward(state, query, cells.index, reading)
    if propagate:
        candidates = question.candidates
        outputs = with_propagation(state, query, cells.index, outputs, cells.reference, candidates)
    found = answer(query, cells.index, outputs)
    if question.false_alarm_rate is not None:
        limited = with_novelty(outputs, novelty_threshold(state, question.false_alarm_rate))
        report_alarms(limited, question.false_alarm_rate, cells.reference.reported)
    return found


def predict_store(
    state: ModelState, blocks: CellBlocks, question: Question, reading: Reading, *, soft: bool, reported: set[str]
) -> np.ndarray | pd.DataFrame:
    """Label cells of a store in its order, with torch.distributed those of all ranks."""
    answer = answer_of(state, question, soft=soft)
    reading = replace(reading, needs_novelty=question.false_alarm_rate is not None)
    found = [
        (index, answer(query, np.arange(len(index)), outputs))
        for index, query, outputs in block_outputs(state, blocks, reading, reported, question.false_alarm_rate)
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
    with collected() as warnings:
        query, index = cells.align(state), cells.index
        reading = replace(reading, needs_novelty=True, needs_members=True)
        outputs = forward(state, query, index, reading)
        if propagate:
            outputs = with_propagation(state, query, index, outputs, cells.reference)
        columns, outputs = _columns(state, query, index, outputs, key, question, limit)
        report_alarms(outputs, question.false_alarm_rate, cells.reference.reported)
    if clusters is not None:
        columns |= majority_columns(columns[key], clusters, key)
    record = annotation_record(outputs, state.decision, state.tree, question)
    record |= {"cluster_key": cluster_key or "none", "correct_shift": reading.correct_shift}
    record |= {"n_members": state.n_members}
    record |= {"genes": gene_record(query.alignment, query.expression_share), "model": model_record(state)}
    check = _checked_labels(state, query, index, columns[key], question.unknown_label)
    found = [] if check is None else check.sentences
    record |= {"date": today(), "warnings": warnings, "label_check": found}
    record |= check_record(check, state.genes.names, query, question.unknown_label)
    write_annotation(cells.adata, key, columns, record)
    if found:
        warn(f"{' '.join(found)} Look at model.check_labels(adata, {key!r}).")


def _checked_labels(
    state: ModelState, query: Query, index: np.ndarray, labels: pd.Categorical, unknown_label: str
) -> LabelCheck | None:
    """Check the labels of all cells by markers; ``None`` for a part of them or a model that keeps no profiles.

    Cells that were rejected are no evidence: no type was claimed for them.
    """
    if not _check_labels.has_profile(state) or len(index) < query.adata.n_obs:
        return None
    claimed = labels.remove_categories([name for name in labels.categories if name == unknown_label])
    return _check_labels.check_labels(state, query, claimed, counts_unlabelled=False)


def check_labels(state: ModelState, cells: Cells, key: str, cluster_key: str | None, min_cells: int) -> LabelCheck:
    """Compare labels with markers; see :meth:`celler.model.Celler.check_labels`."""
    _check_labels.check_profile(state)
    labels = _check_labels.check_names(label_column(cells.adata, key, "key"), key, state.tree)
    clusters = None if cluster_key is None else label_column(cells.adata, cluster_key, "cluster_key")
    return _check_labels.check_labels(state, cells.align(state), labels, clusters, min_cells)


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

    reading = replace(reading, needs_novelty=True, needs_members=True)

    def tables() -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
        blocks = datamodule.inference_dataloader()
        found = block_outputs(state, blocks, reading, reported, question.false_alarm_rate)
        for index, query, outputs in found:
            columns, _ = _columns(state, query, np.arange(len(index)), outputs, key, question, limit)
            yield index, pd.DataFrame(columns, index=query.adata.obs_names)

    return write_table(datamodule.store.folder, key, tables(), overwrite=overwrite)


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
        outputs = with_novelty(outputs, limit)
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
    reading = replace(reading, needs_novelty=True)
    outputs = with_novelty(forward(state, query, cells.index, reading), None)
    assert outputs.novelty is not None
    return outputs.novelty


def check_store_call(adata: Any, indices: Any, layer: str | None, *, propagate: bool) -> None:
    """Raise for options that a store cannot have."""
    if adata is not None or indices is not None:
        raise ValueError(
            "dataloader was given together with adata or indices; pass one of them. Part of a store: "
            "dm.inference_dataloader(split='test')."
        )
    if layer is not None:
        raise ValueError(f"layer={layer!r} was given with dataloader; a store has one matrix. Leave layer out.")
    if propagate:
        raise ValueError(
            "propagate=True compares all cells with each other and needs them in memory; leave dataloader or it out."
        )


def first_of(cells: AnnData | Sequence[AnnData] | CellBlocks) -> AnnData:
    """Return cells that have the genes of all."""
    if isinstance(cells, CellBlocks):
        return cells.sample(1)
    return cells if isinstance(cells, AnnData) else cells[0]


def adapt(
    state: ModelState,
    cells: AnnData | Sequence[AnnData] | CellBlocks,
    reported: set[str],
    layer: str | None = None,
) -> Adaptation:
    """Estimate what a query's cells say together; see :meth:`celler.model.Celler.adapt`."""
    state.trained()
    if isinstance(cells, CellBlocks):
        query = sample_of(state, cells, reported)
    elif isinstance(cells, AnnData):
        query = align_query(state.genes, cells, state.setup.layer, reported, layer)
    else:
        query = sample_of_parts(state, cells, reported, layer)
    return adaptation_to(state, query, sampled(query), Reading(needs_novelty=True))[1]


def sample_of_parts(state: ModelState, parts: Sequence[AnnData], reported: set[str], layer: str | None = None) -> Query:
    """Return the cells of several AnnData, with the same genes, that :func:`sampled` would take of all together."""
    genes = pd.Index(parts[0].var_names)
    if any(not genes.equals(part.var_names) for part in parts):
        raise ValueError("the parts differ in their genes; pass parts of one AnnData, with the same var_names.")
    queries = [align_query(state.genes, part, state.setup.layer, reported, layer) for part in parts]
    part_of = np.repeat(np.arange(len(parts)), [part.n_obs for part in parts])
    rows = np.concatenate([np.arange(part.n_obs) for part in parts])
    content = np.concatenate([query.content for query in queries])
    kept = np.sort(drawn(content))
    X = [query.reader.rows(rows[kept[part_of[kept] == i]]) for i, query in enumerate(queries)]
    adata = AnnData(sparse.vstack(X, format="csr"), var=queries[0].adata.var)
    return align_query(state.genes, adata, None, reported)


def sample_of(
    state: ModelState, blocks: CellBlocks, reported: set[str], devices: tuple[torch.device, ...] = ()
) -> Query:
    """Return the cells of a store that :func:`sampled` would take of them in memory; all are read once."""
    like = align_query(state.genes, blocks.sample(SHIFT_CELLS), state.setup.layer, reported)
    if len(blocks) <= SHIFT_CELLS:
        return like
    job = StoreJob.of(blocks, _content, Job.of(state, like, Reading(), Adaptation()))
    found = [(index, content) for index, _, content in _by_block(blocks, job, devices, reported)]
    index, content = (np.concatenate(part) for part in zip(*sum(gather_objects(found), []), strict=True))
    order = np.lexsort((index, content))[:SHIFT_CELLS]
    return like.block(blocks.at(np.sort(index[order])))


def block_outputs(
    state: ModelState, blocks: CellBlocks, reading: Reading, reported: set[str], rate: float | None = None
) -> Iterator[tuple[np.ndarray, Query, Outputs]]:
    """Rows of the store, their cells and outputs, block by block.

    The adaptation is estimated once, from a sample of all cells, of which it is said where far more are unknown than
    the ``rate`` asked for.
    """
    how = reading.adaptation
    if how is None and reading.correct_shift:
        like = sample_of(state, blocks, reported, reading.devices)
        sample, how = adaptation_to(state, like, sampled(like), reading)
        if sample is not None and rate is not None:
            report_alarms(with_novelty(sample, novelty_threshold(state, rate)), rate, reported)
    else:
        like = align_query(state.genes, blocks.sample(SHIFT_CELLS), state.setup.layer, reported)
    how = Adaptation() if how is None else how
    job = StoreJob.of(blocks, _scores, Job.of(state, like, reading, how))
    for index, adata, outputs in _by_block(blocks, job, reading.devices, reported):
        query = like.block(adata)
        report_empty(outputs.has_counts, np.arange(len(index)), query)
        yield index, query, replace(outputs, adaptation=how)


@dataclass(frozen=True)
class StoreJob:
    """What is computed of blocks of the store at an ``address``, by this process or by workers that open it."""

    address: str
    compute: Callable[[Job, AnnData], Any]
    job: Job

    @classmethod
    def of(cls, blocks: CellBlocks, compute: Callable[[Job, AnnData], Any], job: Job) -> StoreJob:
        """Leave out the cells that the query of ``job`` has."""
        query = job.query.block(job.query.adata[:0].copy())
        return cls(blocks.store.address, compute, replace(job, query=query))

    @cached_property
    def store(self) -> Store:
        """The store, which a worker opens once."""
        return Store(self.address)


def _by_block(
    blocks: CellBlocks, job: StoreJob, devices: tuple[torch.device, ...], reported: set[str]
) -> Iterator[tuple[np.ndarray, AnnData, Any]]:
    """Rows, cells and result of each block in order; how long the first takes says whether workers are worth it.

    Cells of workers, which read their own blocks, come without values.
    """

    def here(pieces: list[np.ndarray]) -> Iterator[tuple[np.ndarray, AnnData, Any]]:
        return ((index, adata, job.compute(job.job, adata)) for index, adata in blocks.read(pieces))

    pieces, start = blocks.pieces, time.perf_counter()
    if not devices or len(pieces) < 2:
        yield from here(pieces)
        return
    first, others = next(here(pieces[:1])), pieces[1:]
    seconds = (time.perf_counter() - start) * len(others)
    yield first
    if not are_worth(seconds, len(devices)):
        yield from here(others)
        return
    with closing(in_order(_of_block, job, others, devices[: len(others)])) as results:
        for index, done in zip(others, results, strict=True):
            found = received(done, reported)
            # What a worker cannot read or compute raises the same error here.
            yield next(here([index])) if found is None else (index, blocks.names_at(index), found)


def _of_block(job: StoreJob, index: np.ndarray) -> Any:
    """Compute in a worker what is asked of the rows ``index (n,)`` of a store."""
    return job.compute(job.job, CellBlocks(job.store, index).at(index))


def _scores(job: Job, adata: AnnData) -> Outputs:
    return job.score(job.query.block(adata), np.arange(adata.n_obs))


def _content(job: Job, adata: AnnData) -> np.ndarray:
    return job.query.block(adata).content
