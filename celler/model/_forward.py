"""Forward passes over any AnnData: read in chunks, tokenized, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse

from celler._utils._devices import autocast, cpu_threads
from celler._utils._messages import warn
from celler.data._expression import is_log, query_reader, warn_of_binned
from celler.data._profile import Profile, linear, profile
from celler.data._query import CHUNK_SIZE, Query, token_passes
from celler.data._tokenizer import Tokenizer
from celler.inference._calibration import Decision
from celler.inference._novelty import MIN_CELLS, Novelty
from celler.inference._outputs import Outputs, Propagation
from celler.inference._propagation import (
    neighbor_graph,
    neighbor_weight,
    principal_components,
    propagate,
)
from celler.inference._shift import shift_factors
from celler.labels import as_strings, indices_of
from celler.model._setup import LABELS_COLUMN
from celler.network._network import GeneTransformer

if TYPE_CHECKING:
    from celler.model._celler import Celler

#: Cells from which a query's shift is estimated.
SHIFT_CELLS = 5000
#: A cell that is of a class with less probability than this is left out of its profile.
NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Forward:
    """A model's way from the cells of a query to :class:`Outputs`, on the device the network is on."""

    network: GeneTransformer
    tokenizer: Tokenizer
    decision: Decision
    profile: Profile | None
    precision: str

    @classmethod
    def of(cls, model: Celler) -> Forward:
        """The way of ``model``; one that is not trained corrects no shift."""
        profile = model._fitted.profile if model.is_trained else None
        return cls(model.module, model._tokenizer, model._decision, profile, model._precision)

    def __call__(
        self, query: Query, index: np.ndarray, *, batch_size: int | None, correct_shift: bool
    ) -> Outputs:
        """Outputs for the rows ``index (N,)``, multiplied by factors of a sample of all rows."""
        warn_of_binned(query.reader)
        outputs, factors, n_cells = None, None, query.adata.n_obs
        if correct_shift and len(index):
            rows = np.arange(n_cells)
            if n_cells > SHIFT_CELLS:
                rows = np.sort(np.random.default_rng(0).choice(rows, SHIFT_CELLS, replace=False))
            plain, factors = self.shift(query, rows, batch_size)
            if plain is not None and factors is None and len(rows) == n_cells:
                parts = (plain.logits, plain.embedding, plain.has_counts)  # the outputs already
                outputs = Outputs(*(part[index] for part in parts))
        if outputs is None:
            outputs = self.outputs(query, index, batch_size, factors)
        report_empty(outputs.has_counts, index, query.adata)
        return outputs

    def shift(
        self, query: Query, rows: np.ndarray, batch_size: int | None
    ) -> tuple[Outputs | None, np.ndarray | None]:
        """Plain outputs of ``rows`` and, by them, the factors of the model's genes, ``None`` where there is no shift.

        No outputs either where nothing that is corrected is looked at.
        """
        if self.profile is None or not self.network.config.reads_expression:
            return None, None
        plain = self.outputs(query, rows, batch_size)
        weights = self.decision.probabilities(plain.logits) * plain.has_counts[:, None]
        weights[weights < NEGLIGIBLE] = 0
        found = profile(
            lambda block: query.values(rows[block], query.is_shared),
            lambda block: weights[block],
            len(rows),
            is_log=query.is_log,
            block_size=CHUNK_SIZE,
        )
        factors = np.ones(query.n_genes)
        reference = self.profile.restricted(query.is_shared)
        factors[query.is_shared] = shift_factors(reference, found)
        return plain, None if (factors == 1).all() else factors

    @torch.inference_mode()
    def outputs(
        self,
        query: Query,
        index: np.ndarray,
        batch_size: int | None,
        factors: np.ndarray | None = None,
    ) -> Outputs:
        """Outputs of the network for the rows ``index (N,)``.

        batch_size: cells per pass, ``None`` for what a fixed number of tokens allows.
        factors: ``(n_genes,)``, by which the expression of each gene is multiplied.
        """
        config, device = self.network.config, self.network.device
        logits = np.zeros((len(index), config.n_classes), np.float32)
        embedding = np.zeros((len(index), config.d_model), np.float32)
        has_counts = np.zeros(len(index), bool)
        self.network.eval()
        passes = token_passes(self.tokenizer, query, index, batch_size=batch_size, factors=factors)
        with cpu_threads():
            for rows, tokens in passes:
                with autocast(device, self.precision):
                    output = self.network(*(part.to(device) for part in tokens))
                logits[rows] = output.logits.cpu().numpy()
                embedding[rows] = output.embedding.cpu().numpy()
                has_counts[rows] = ~tokens.padding_mask.all(1).numpy()
        return Outputs(logits, embedding, has_counts, factors)


def align_query(self: Celler, adata: AnnData) -> Query:
    """Match a query's genes with the model's; what there is to tell of them is said once."""
    alignment, share = self._genes.align(adata)
    reader = query_reader(adata, self._setup_args["layer"])
    # Raises for scaled values: the report is said once, and would go down with the error.
    is_log(reader)
    report = self._genes.report(alignment, share, reader)
    if report is not None and report not in self._reported:
        self._reported.add(report)
        warn(report)
    return Query(reader, alignment, share, len(self._genes.names))


def report_empty(has_counts: np.ndarray, index: np.ndarray, adata: AnnData) -> None:
    """Warn of cells that hold none of the model's genes."""
    empty = index[~has_counts]
    if len(empty):
        warn(
            f"{len(empty):,} cells have no counts in the model's genes (first: {str(adata.obs_names[empty[0]])!r}); "
            "nothing can be said of them: they are labelled as unknown, with equal probabilities."
        )


def fitted_novelty(self: Celler) -> Novelty:
    """The model's novelty score; raises ``RuntimeError`` where it has none."""
    if self._fitted.novelty is None:
        raise RuntimeError(
            f"this model has no novelty score: it was trained on fewer than {MIN_CELLS} labelled cells, extended by "
            "load_query_data, or saved by an earlier version of Celler. Train it again on the reference, or use "
            "threshold= on probabilities."
        )
    return self._fitted.novelty


def novelty_threshold(self: Celler, false_alarm_rate: float | None) -> float | None:
    """The novelty above which a cell is unknown, ``None`` for none."""
    return None if false_alarm_rate is None else fitted_novelty(self).threshold(false_alarm_rate)


def with_novelty(
    self: Celler, query: Query, index: np.ndarray, outputs: Outputs, threshold: float | None
) -> Outputs:
    """``outputs`` of the rows ``index (N,)`` with their novelty; NaN for a cell without counts."""
    novelty, reference = fitted_novelty(self), self._fitted.profile
    assert reference is not None
    factors = np.ones(query.n_genes) if outputs.factors is None else outputs.factors
    scores = np.full(len(index), np.nan, np.float32)
    for start in range(0, len(index), CHUNK_SIZE):
        rows = slice(start, start + CHUNK_SIZE)
        X = linear(query.values(index[rows]), is_log=query.is_log)
        X = sparse.csr_matrix(X @ sparse.diags_array(factors))
        scores[rows] = novelty.score(X, reference, query.is_shared, is_log=False)
    scores[~outputs.has_counts] = np.nan
    return replace(outputs, novelty=scores, novelty_threshold=threshold)


def with_propagation(
    self: Celler,
    query: Query,
    index: np.ndarray,
    outputs: Outputs,
    candidates: list[str] | None = None,
) -> Outputs:
    """``outputs`` of the rows ``index (N,)`` with their probabilities spread over them and the labelled cells.

    Labelled cells of classes that are no candidates take no part. Rows that are labelled cells themselves, and
    those without counts, keep the probabilities they have.
    """
    classes = self._tree.classes
    possible = np.arange(len(classes)) if candidates is None else indices_of(candidates, classes)
    probabilities = self._decision.probabilities(outputs.logits, possible)
    labelled, codes = labelled_cells(self)
    is_free = outputs.has_counts.copy()
    if query.adata is self.adata:
        is_free &= ~np.isin(index, labelled)
        if len(index) and not is_free.any():
            warn(
                "propagate=True changes nothing here: it is for unlabelled cells, and every cell that was asked for "
                "has a label or no counts."
            )
    is_possible = np.isin(codes, possible)
    labelled, codes = labelled[is_possible], codes[is_possible]
    held, free = graph_cells(self, query, labelled, index[is_free], outputs.factors)
    is_held, is_kept = held.has_values(), free.has_values()
    is_free[is_free] = is_kept
    nodes = [replace(held, index=labelled[is_held]), replace(free, index=free.index[is_kept])]
    n_held, n_free = (len(part.index) for part in nodes)
    # Without labelled cells to hold, those that the network learned from say how far to trust it.
    weight = neighbor_weight(n_free, n_held or int(self.class_counts_.sum()))
    if n_free and n_held + n_free > 1:
        prior = np.concatenate([np.eye(len(classes))[codes[is_held]], probabilities[is_free]])
        points = principal_components(partial(logs_of, nodes), len(prior))
        spread = propagate(neighbor_graph(points), prior, np.arange(len(prior)) < n_held, weight)
        probabilities[is_free] = spread[n_held:]
    return replace(outputs, propagation=Propagation(probabilities, n_held, n_free, weight))


def labelled_cells(self: Celler) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the model's AnnData with a label among its classes, and their codes; where none are, says why once."""
    adata, key = self.adata, self._setup_args["labels_key"]
    rows = codes = np.empty(0, np.int64)
    if adata is None:
        why = "the model was loaded without its reference, which Celler.load(dir, adata=reference) would bring"
    elif self.adata_manager is None and key not in adata.obs:
        why = f"the AnnData given to load has no column {key!r}"
    else:
        is_registered = self.adata_manager is not None
        labels = (
            adata.obs[LABELS_COLUMN].to_numpy().astype(str)
            if is_registered
            else as_strings(adata.obs[key], key, self._setup_args["unlabeled_category"])
        )
        codes = self._tree.encode(labels)
        rows, why = (
            np.flatnonzero(codes >= 0),
            "none of the model's cells has a label of its classes",
        )
    message = (
        f"no labelled cells take part in propagate=True: {why}. Only the query's own cells do."
    )
    if not len(rows) and message not in self._reported:
        self._reported.add(message)
        warn(message)
    return rows, codes[rows]


@dataclass(frozen=True)
class Part:
    """Rows ``index (n,)`` of a query, and which of the model's genes are compared, ``is_shared (n_genes,)``.

    factors: ``(G,)``, by which the expression of those is multiplied.
    """

    query: Query
    index: np.ndarray
    is_shared: np.ndarray
    factors: np.ndarray

    def logs(self, positions: np.ndarray) -> sparse.csr_matrix:
        """log1p of counts per 10,000 ``(n, G)`` of ``positions (n,)`` in ``index``."""
        X = self.query.values(self.index[positions], self.is_shared)
        X = linear(X, is_log=self.query.is_log) @ sparse.diags_array(self.factors)
        return sparse.csr_matrix(linear(X, is_log=False).log1p(), dtype=np.float32)

    def has_values(self) -> np.ndarray:
        """Which rows ``(n,)`` have counts in these genes."""
        found = np.zeros(len(self.index), bool)
        for start in range(0, len(found), CHUNK_SIZE):
            rows = slice(start, start + CHUNK_SIZE)
            X = self.query.values(self.index[rows], self.is_shared)
            found[rows] = np.asarray(X.sum(axis=1)).ravel() > 0
        return found


def graph_cells(
    self: Celler,
    query: Query,
    labelled: np.ndarray,
    free: np.ndarray,
    factors: np.ndarray | None,
) -> list[Part]:
    """The rows ``labelled`` of the model's AnnData and ``free`` of ``query``, with the genes that both have.

    factors: ``(n_genes,)``, of the shift of ``query``; they hold for all of its rows.
    """
    is_own = query.adata is self.adata or not len(labelled)
    reference = query if is_own else align_query(self, self.adata)
    is_shared = reference.is_shared & query.is_shared
    by_gene = np.ones(is_shared.sum()) if factors is None else factors[is_shared]
    of_labelled = by_gene if is_own else np.ones(is_shared.sum())
    return [
        Part(reference, labelled, is_shared, of_labelled),
        Part(query, free, is_shared, by_gene),
    ]


def logs_of(parts: list[Part], positions: np.ndarray) -> sparse.csr_matrix:
    """:meth:`Part.logs` of ascending ``positions (n,)`` in the rows of all ``parts``, one after the other."""
    blocks, start = [], 0
    for part in parts:
        inside = positions[(positions >= start) & (positions < start + len(part.index))]
        blocks.append(part.logs(inside - start))
        start += len(part.index)
    return sparse.vstack(blocks, format="csr")
