"""Forward: the network's outputs for any cells, with shift, novelty and propagation, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from celler._utils._counts import cp10k
from celler._utils._devices import autocast, cpu_threads
from celler._utils._messages import agreed, counted, listed
from celler._utils._workers import Done, are_worth, in_order
from celler.data._expression import warn_of_doubts
from celler.data._profile import profile
from celler.data._query import CHUNK_SIZE, Query, flat_passes, token_passes, warn_once
from celler.data._tokenizer import TokenBatch
from celler.inference._adaptation import Adaptation, QueryNovelty, query_novelty
from celler.inference._members import MemberOutputs, member_codes
from celler.inference._neighborhood import N_CELLS, neighborhood
from celler.inference._novelty import MIN_CELLS, Novelty
from celler.inference._open_set import OpenSet
from celler.inference._outputs import Outputs
from celler.inference._propagation import principal_components
from celler.inference._share import MIN_CELLS as MIN_COMPARED
from celler.inference._share import share_of_query
from celler.inference._shift import shift_factors, shift_size
from celler.model._propagate import Part
from celler.model._state import ModelState
from celler.network._folded import FoldedBase, can_fold
from celler.network._network import GeneTransformer, NetworkOutput

#: Cells from which a query's shift is estimated.
SHIFT_CELLS = 5000
#: Cells of these whose neighbours are compared, to find the base's share.
COMPARED_CELLS = 1000
#: A cell more novel than all but this share of known ones is of another tissue; the share of such cells that is said.
FOREIGN_RATE, MOST_FOREIGN = 0.01, 0.5
#: The false-alarm rate at which novel cells are counted, and the share of them that is said.
NOVEL_RATE, NOVEL_SHARE = 0.05, 0.15
#: Shift of a query above which it is said: within types, genes differ two-fold.
FAR = 1.0
#: Fewest rows of a pass: products with up to three rows sum in another order on some processors.
FEW_ROWS = 8
#: Cells that a process scores at once: whole chunks, so that sums run in the order of those of one process.
PART_SIZE = 2 * CHUNK_SIZE
#: Class probabilities below this leave a cell out of the class's profile.
NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Reading:
    """How cells are read: cells per pass (``None`` fills a number of tokens), and whether their shift is undone.

    An ``adaptation`` to another query takes the place of that to the cells themselves. Each of the ``devices`` has a
    process of its own; without them there is this process alone.

    The embedding is kept on demand only: it is wider than all else that is computed for a cell. Novelty and the classes
    of each member are computed on demand too.
    """

    batch_size: int | None = None
    correct_shift: bool = True
    keep_embedding: bool = False
    needs_novelty: bool = False
    needs_members: bool = False
    adaptation: Adaptation | None = None
    devices: tuple[torch.device, ...] = ()
    folded: FoldedBase | None = field(default=None, repr=False)  # the network, where it was made ready before


@dataclass(frozen=True)
class Job:
    """What a worker needs to score cells: those of a query that has none, or those of the file at ``path``."""

    state: ModelState
    query: Query
    reading: Reading
    how: Adaptation
    path: Path | None = None

    @classmethod
    def of(cls, state: ModelState, query: Query, reading: Reading, how: Adaptation) -> Job:
        """Leave out what is not needed."""
        path = query.reader.file
        if path is not None:
            query = replace(query, reader=query.reader.without_cells())
        return cls(replace(state, old=None, pretrained=None), query, replace(reading, devices=()), how, path)

    @cached_property
    def cells(self) -> Query:
        """The cells of the file, which a worker opens once."""
        assert self.path is not None
        return replace(self.query, reader=self.query.reader.of_file(self.path))

    @cached_property
    @torch.inference_mode()
    def ready(self) -> Reading:
        """How cells are read, with a network that is made ready once for all blocks."""
        network = self.state.network
        return replace(self.reading, folded=FoldedBase(network)) if is_folded(network, self.reading) else self.reading

    def score(self, query: Query, index: np.ndarray) -> Outputs:
        """Compute the outputs of the rows ``index (n,)``, without those that only a sample needs."""
        outputs = scored(self.state, query, index, self.ready, self.how)
        return replace(outputs, adaptation=Adaptation(), encoder_logits=None, own_logits=None, member_logits=None)


def forward(state: ModelState, query: Query, index: np.ndarray, reading: Reading) -> Outputs:
    """Compute outputs for the rows ``index (N,)``, adapted to a sample of all rows of the query, or as given."""
    warn_of_doubts(query.reader)
    how = reading.adaptation
    rows, sample = np.empty(0, np.int64), None
    if how is None and reading.correct_shift and len(index):
        rows = sampled(query)
        sample, how = adaptation_to(state, query, rows, reading)
    how = Adaptation() if how is None else how
    if sample is None:
        outputs = joined(scored_parts(state, query, index, reading, how), how)
    else:
        # Rows of the sample have their outputs; place (n_obs,) is where the outputs of each row are.
        others = np.setdiff1d(index, rows)
        found = [sample, *(scored_parts(state, query, others, reading, how) if len(others) else [])]
        place = np.zeros(query.adata.n_obs, np.int64)
        place[np.concatenate([rows, others])] = np.arange(len(rows) + len(others))
        outputs = joined(found, how, place[index])
    report_empty(outputs.has_counts, index, query)
    return outputs


def joined(parts: Sequence[Outputs], how: Adaptation, order: np.ndarray | slice = slice(None)) -> Outputs:
    """Return the outputs of the cells of all ``parts`` in the ``order (N,)``."""
    kept = ["logits", "embedding", "has_counts"]
    kept += [name for name in ("novelty", "member_codes") if getattr(parts[0], name) is not None]
    if len(parts) == 1:
        found = {name: getattr(parts[0], name)[order] for name in kept}
    else:
        found = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in kept}
    return Outputs(**found, adaptation=how)


def sampled(query: Query) -> np.ndarray:
    """Rows from which a query's adaptation is estimated; the order of rows has no effect."""
    return drawn(query.content)


def drawn(content: np.ndarray) -> np.ndarray:
    """Positions of the cells that are sampled by their ``content (n,)``, at most ``SHIFT_CELLS``."""
    return np.argsort(content, kind="stable")[:SHIFT_CELLS]


def adaptation_to(
    state: ModelState, query: Query, rows: np.ndarray, reading: Reading
) -> tuple[Outputs | None, Adaptation]:
    """Compute the outputs of ``rows``, adapted to themselves; no outputs where the model adapts to nothing."""
    if state.names_atlases:  # no reference whose shift could be undone
        return _novelty_shift(state, query, rows, reading)
    plain, how = shift_of(state, query, rows, reading)
    if plain is None:
        return None, how
    sample = plain if how.factors is None else network_outputs(state, query, rows, reading, how)
    sample, how = _with_experts(state, query, rows, sample, how)
    confidence = state.decision.probabilities(sample.logits[sample.has_counts]).max(axis=1)
    if len(confidence):
        how = replace(how, expected_accuracy=float(confidence.mean()), n_cells=len(rows))
    if reading.needs_novelty and isinstance(state.trained().novelty, Novelty):
        sample, how = _with_query_novelty(state, query, rows, sample, how)
    if how.shift > FAR:
        warn_once(
            f"the query is far from the reference: within types, genes differ {2**how.shift:.1f}-fold (shift "
            f"{how.shift:.1f}) from it. {how.expected_accuracy or 0:.0%} of the labels are expected to be right; check "
            "them by markers.",
            query.reported,
        )
    return replace(sample, adaptation=how), how


def _with_experts(
    state: ModelState, query: Query, rows: np.ndarray, sample: Outputs, how: Adaptation
) -> tuple[Outputs, Adaptation]:
    """Weigh the experts by how their labels agree among nearest cells; not for few cells."""
    is_compared = np.flatnonzero(sample.has_counts)
    if state.base is None or sample.encoder_logits is None or sample.own_logits is None:
        return sample, how
    if len(is_compared) < MIN_COMPARED:
        return sample, how
    is_compared = is_compared[:COMPARED_CELLS]
    part = Part(query, rows[is_compared], query.is_shared, np.ones(int(query.is_shared.sum())))
    points = principal_components(part.logs, len(is_compared))
    encoder, own = (logits[is_compared].argmax(1) for logits in (sample.encoder_logits, sample.own_logits))
    share = share_of_query(encoder, own, points)
    logits, codes = share * sample.encoder_logits + (1 - share) * sample.own_logits, sample.member_codes
    if codes is not None and sample.member_logits is not None:
        codes = member_codes(logits, sample.member_logits, (1 - share) * state.network.sum_share)
    return replace(sample, logits=logits, member_codes=codes), replace(how, encoder_share=share)


def _with_query_novelty(
    state: ModelState, query: Query, rows: np.ndarray, sample: Outputs, how: Adaptation
) -> tuple[Outputs, Adaptation]:
    """Score the sample and standardise its scores by those of its known cells."""
    novelty = state.trained().novelty
    assert isinstance(novelty, Novelty)
    scores, points = own_novelty(state, query, rows, how)
    seen, content = np.flatnonzero(sample.has_counts), query.content[rows]
    found = query_novelty(novelty.known, scores[seen], sample.logits[seen].argmax(axis=1))
    scores = found.standardise(scores)
    near, others = seen[:N_CELLS], seen[N_CELLS:]  # the rows are in the order of their content
    around = neighborhood(points[near], content[near], scores[near])
    if around is not None:
        found = replace(found, around=around)
        beside = around.score(points[others], content[others], scores[others])
        scores[near], scores[others] = around.own_scores(), beside
    return replace(sample, novelty=scores), replace(how, novelty=found)


def _novelty_shift(
    state: ModelState, query: Query, rows: np.ndarray, reading: Reading
) -> tuple[Outputs | None, Adaptation]:
    """Compute the outputs of ``rows`` and by how much they seem too novel; say once where many are."""
    open_set = None if state.fitted is None else state.fitted.novelty
    if not isinstance(open_set, OpenSet):
        return None, Adaptation()
    sample = network_outputs(state, query, rows, replace(reading, keep_embedding=True), Adaptation())
    assert sample.novelty is not None
    scores = sample.novelty[sample.has_counts]
    how = Adaptation(novelty=QueryNovelty(location=open_set.shift(scores)), n_cells=len(rows))
    report = _novelty_report(open_set, scores, how.novelty.location, sample.embedding[sample.has_counts])
    if report is not None:
        warn_once(report, query.reported)
    embedding = sample.embedding if reading.keep_embedding else sample.embedding[:, :0]
    novelty = how.novelty.standardise(sample.novelty)
    return replace(sample, embedding=embedding, novelty=novelty, adaptation=how), how


def _novelty_report(open_set: OpenSet, scores: np.ndarray, shift: float, embedding: np.ndarray) -> str | None:
    """Say that many of some cells are of other tissues or of types that the atlases lack; ``None`` where few are."""
    if not len(scores):
        return None
    is_foreign = scores > open_set.threshold(FOREIGN_RATE)
    if is_foreign.mean() > MOST_FOREIGN:
        others = open_set.resembled(embedding[is_foreign])
        if not others:
            return (
                f"{is_foreign.mean():.0%} of the cells resemble no type of the atlases; look at <key>_novelty and at "
                "markers before you trust a label."
            )
        return (
            f"{is_foreign.mean():.0%} of the cells resemble types that the atlases of this tissue lack, most of all "
            f"{listed(others, 3)}. Is the tissue right? `celler tissues` lists what each tissue holds."
        )
    is_novel = scores - shift > open_set.threshold(NOVEL_RATE)
    if is_novel.mean() > NOVEL_SHARE:
        return (
            f"{is_novel.mean():.0%} of the cells are more novel than {1 - NOVEL_RATE:.0%} of the atlases' own and may "
            f"be of types that these lack; false_alarm_rate={NOVEL_RATE} gives them no label."
        )
    return None


def shift_of(state: ModelState, query: Query, rows: np.ndarray, reading: Reading) -> tuple[Outputs | None, Adaptation]:
    """Compute outputs of ``rows`` without correction, and their shift with the factors that undo it.

    No factors where there is no shift. No outputs either where the model has no class profiles, or reads
    ranks of genes alone.
    """
    if state.profile is None or not state.network.config.reads_expression:
        return None, Adaptation()
    plain = network_outputs(state, query, rows, reading, Adaptation())
    weights = state.decision.probabilities(plain.logits) * plain.has_counts[:, None]
    weights[weights < NEGLIGIBLE] = 0
    found = profile(
        lambda block: query.values(rows[block], query.is_shared),
        lambda block: weights[block],
        len(rows),
        is_log=query.is_log,
        block_size=CHUNK_SIZE,
    )
    reference, factors = state.profile.restricted(query.is_shared), np.ones(query.n_genes)
    factors[query.is_shared] = shift_factors(reference, found)
    return plain, Adaptation(None if (factors == 1).all() else factors, shift=shift_size(reference, found))


def scored_parts(
    state: ModelState, query: Query, index: np.ndarray, reading: Reading, how: Adaptation
) -> list[Outputs]:
    """Compute :func:`scored` of the rows ``index (N,)``, of many by the processes of ``reading``.

    How long the first take says whether processes are worth their start.
    """
    parts, start = [index[i : i + PART_SIZE] for i in range(0, len(index), PART_SIZE)], time.perf_counter()
    if not reading.devices or len(parts) < 2:
        return [scored(state, query, index, reading, how)]
    found = [scored(state, query, parts.pop(0), reading, how)]
    if not are_worth((time.perf_counter() - start) * len(parts), len(reading.devices)):
        return [*found, scored(state, query, index[PART_SIZE:], reading, how)]
    devices = reading.devices[: len(parts)]
    if query.reader.file is None:
        job = Job.of(state, query.of_stored(query.reader.stored(index[:0])), reading, how)
        results = in_order(_score_stored, job, map(query.reader.stored, parts), devices)
    else:
        results = in_order(_score_in_file, Job.of(state, query, reading, how), parts, devices)
    with closing(results):
        for rows, done in zip(parts, results, strict=True):
            outputs = received(done, query.reported)
            # What a worker cannot score raises the same error here, where cells have names.
            found.append(scored(state, query, rows, reading, how) if outputs is None else outputs)
    return found


def _score_stored(job: Job, X: sparse.csr_matrix) -> Outputs:
    """Score cells of these stored values in a worker."""
    return job.score(job.query.of_stored(X), np.arange(X.shape[0]))


def _score_in_file(job: Job, index: np.ndarray) -> Outputs | None:
    """Score the rows ``index (n,)`` of a file in a worker; ``None`` where another process alone may read it."""
    try:
        return job.score(job.cells, index)
    except OSError:
        return None


def received(done: Done, reported: set[str]) -> Any:
    """Return what a worker computed, ``None`` where it could not; say what it said."""
    for message in done.messages:
        warn_once(message, reported)
    return done.result


def scored(state: ModelState, query: Query, index: np.ndarray, reading: Reading, how: Adaptation) -> Outputs:
    """Compute outputs for the rows ``index (N,)``, with novelty where ``reading`` needs it."""
    outputs = network_outputs(state, query, index, reading, how)
    if not reading.needs_novelty or outputs.novelty is not None or state.trained().novelty is None:
        return outputs
    return replace(outputs, novelty=novelty_scores(state, query, index, how))


@torch.inference_mode()
def network_outputs(state: ModelState, query: Query, index: np.ndarray, reading: Reading, how: Adaptation) -> Outputs:
    """Compute outputs for the rows ``index (N,)``, read as ``how`` says."""
    config = state.network.config
    # A share that is known needs no experts apart.
    keeps_experts = state.network.sum is not None and how.encoder_share is None and len(index) <= SHIFT_CELLS
    logits = np.zeros((3 if keeps_experts else 1, len(index), config.n_classes), np.float32)
    embedding = np.zeros((len(index), config.d_model if reading.keep_embedding else 0), np.float32)
    has_counts = np.zeros(len(index), bool)
    fitted = None if state.fitted is None else state.fitted.novelty
    open_set = fitted if isinstance(fitted, OpenSet) else None
    novelty = None if open_set is None else np.zeros(len(index), np.float32)
    members = None
    if reading.needs_members and state.n_members > 1:
        members = MemberOutputs.of(state.n_members, len(index), config.n_classes if keeps_experts else 0)
    state.network.eval()
    folds = is_folded(state.network, reading)
    read, fixed = (_folded, nullcontext()) if folds else (_whole, state.network.fixed())
    with cpu_threads(), fixed:
        for rows, has_tokens, output in read(state, query, index, reading, how):
            if how.encoder_share is not None:
                output = output._replace(encoder_share=how.encoder_share)
            logits[0, rows] = output.logits.cpu().numpy()
            if keeps_experts:
                logits[1, rows] = output.encoder_logits.cpu().numpy()
                logits[2, rows] = output.own_logits.cpu().numpy()
            if members is not None:
                members.fill(rows, logits[0, rows], output.member_logits.cpu().numpy(), output.member_share)
            if reading.keep_embedding:
                embedding[rows] = output.embedding.cpu().numpy()
            if open_set is not None and novelty is not None:
                novelty[rows] = how.novelty.standardise(open_set.score(output.embedding.cpu().numpy()))
            has_counts[rows] = has_tokens
    if not np.isfinite(logits).all() or not np.isfinite(embedding).all():
        raise ValueError(
            "the outputs of the network are not finite, and NaN has no best class: its weights are NaN, infinite or "
            "too large. Train the model again with a lower learning_rate, or load one that was saved when it was whole."
        )
    experts = dict(zip(("encoder_logits", "own_logits"), logits[1:], strict=False))
    outputs = Outputs(logits[0], embedding, has_counts, how, novelty, **experts)
    return outputs if members is None else members.added_to(outputs)


def is_folded(network: GeneTransformer, reading: Reading) -> bool:
    """Whether the network is made ready for prediction alone, which gives no embedding."""
    return can_fold(network) and not reading.keep_embedding


Pass = tuple[np.ndarray, np.ndarray, NetworkOutput]


def _whole(state: ModelState, query: Query, index: np.ndarray, reading: Reading, how: Adaptation) -> Iterator[Pass]:
    """Positions in ``index (N,)``, whether these cells have counts, and their output, pass by pass."""
    device = state.network.device
    passes = token_passes(state.tokenizer, query, index, batch_size=reading.batch_size, factors=how.factors)
    for rows, tokens in passes:
        n_cells = len(rows)
        if n_cells < FEW_ROWS:
            repeated = np.arange(FEW_ROWS).clip(max=n_cells - 1)
            tokens = TokenBatch(*(part[repeated] for part in tokens))
        with autocast(device, state.precision):
            output = state.network(*(part.to(device) for part in tokens))
        output = output._replace(expert_logits=output.expert_logits[:, :n_cells], embedding=output.embedding[:n_cells])
        yield rows, ~tokens.padding_mask[:n_cells, 0].numpy(), output


def _folded(state: ModelState, query: Query, index: np.ndarray, reading: Reading, how: Adaptation) -> Iterator[Pass]:
    """As :func:`_whole`, without embedding."""
    network, device = reading.folded or FoldedBase(state.network), state.network.device
    passes = flat_passes(state.tokenizer, query, index, batch_size=reading.batch_size, factors=how.factors)
    for rows, tokens in passes:
        yield rows, tokens.lengths.numpy() > 0, network(*(part.to(device) for part in tokens))


def report_empty(has_counts: np.ndarray, index: np.ndarray, query: Query) -> None:
    """Warn of cells without counts in the model's genes, once."""
    empty = index[~has_counts]
    if len(empty):
        first = str(query.adata.obs_names[empty[0]])
        warn_once(
            f"{counted(len(empty), 'cells have')} no counts in the model's genes (first: {first!r}); "
            f"{agreed(len(empty), 'they are')} labelled as unknown, with equal probabilities.",
            query.reported,
        )


def fitted_novelty(state: ModelState) -> Novelty | OpenSet:
    """Return the model's novelty score; raise ``RuntimeError`` where it has none."""
    novelty = state.trained().novelty
    if novelty is None:
        raise RuntimeError(
            f"this model has no novelty score: it was trained on fewer than {MIN_CELLS} labelled cells, extended by "
            "load_query_data, or saved by an earlier version of Celler. Train it again on the reference, or use "
            "threshold= on probabilities."
        )
    return novelty


def novelty_threshold(state: ModelState, false_alarm_rate: float | None) -> float | None:
    """Novelty above which a cell is unknown; ``None`` for no bound."""
    return None if false_alarm_rate is None else fitted_novelty(state).threshold(false_alarm_rate)


def with_novelty(outputs: Outputs, threshold: float | None) -> Outputs:
    """Set the bound above which cells are unknown; the novelty of a cell without counts is NaN."""
    assert outputs.novelty is not None
    scores = np.where(outputs.has_counts, outputs.novelty, np.nan)
    return replace(outputs, novelty=scores, novelty_threshold=threshold)


def novelty_scores(state: ModelState, query: Query, index: np.ndarray, how: Adaptation) -> np.ndarray:
    """Return the novelty of the rows ``index (N,)`` beside the known cells of the query, chunk by chunk."""
    scores = np.zeros(len(index), np.float32)
    for start in range(0, len(index), CHUNK_SIZE):
        rows = slice(start, start + CHUNK_SIZE)
        own, points = own_novelty(state, query, index[rows], how)
        own = how.novelty.standardise(own)
        if how.novelty.around is not None:
            own = how.novelty.around.score(points, query.content_at(index[rows]), own)
        scores[rows] = own
    return scores


def own_novelty(state: ModelState, query: Query, rows: np.ndarray, how: Adaptation) -> tuple[np.ndarray, np.ndarray]:
    """Return the novelty of ``rows (n,)`` beside the reference's own cells, and their coordinates ``(n, k)``."""
    novelty = fitted_novelty(state)
    assert isinstance(novelty, Novelty)
    assert state.profile is not None
    factors = np.ones(query.n_genes) if how.factors is None else how.factors
    X = cp10k(query.values(rows), is_log=query.is_log)
    X = sparse.csr_matrix(X @ sparse.diags_array(factors))
    scores, points = novelty.score(X, state.profile, query.is_shared, is_log=False)
    return scores.astype(np.float32), points


def report_alarms(outputs: Outputs, false_alarm_rate: float | None, reported: set[str]) -> None:
    """Say once what share of the cells is unknown, where that is far above the ``false_alarm_rate``."""
    if false_alarm_rate is None or not outputs.has_counts.any():
        return
    share = float(outputs.is_unknown[outputs.has_counts].mean())
    if share > max(2 * false_alarm_rate, false_alarm_rate + NOVEL_SHARE):
        warn_once(
            f"{share:.0%} of the cells are unknown, far above false_alarm_rate={false_alarm_rate}. Either the query "
            "has types that the reference lacks, or its known types differ from the reference by more than could be "
            "estimated; then the rate does not hold. Look at novelty by cluster, and at markers.",
            reported,
        )
