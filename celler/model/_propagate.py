"""Propagation in a model: a query's cells and the labelled ones, compared in the genes that both have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from anndata import AnnData
from scipy import sparse

from celler._utils._counts import cp10k
from celler._utils._messages import warn
from celler.data._query import CHUNK_SIZE, Query, align_query, warn_once
from celler.inference._outputs import Outputs, Propagation
from celler.inference._propagation import neighbor_graph, neighbor_weight, principal_components, propagate
from celler.labels._tree import as_strings, indices_of
from celler.model._registered import Registered
from celler.model._state import ModelState


@dataclass(frozen=True)
class Reference:
    """The model's own AnnData, whose labelled cells take part in propagation; ``None`` after a plain ``load``."""

    adata: AnnData | None
    own: Registered | None  # what the model was made of
    reported: set[str]

    def labelled(self, state: ModelState) -> tuple[np.ndarray, np.ndarray]:
        """Rows with a label among the model's classes, and their codes; warn once where there are none."""
        adata, key = self.adata, state.setup.labels_key
        rows = codes = np.empty(0, np.int64)
        if state.names_atlases:  # there is no reference whose cells could take part
            return rows, codes
        why = "none of the model's cells has a label of its classes"
        if adata is None:
            why = "the model was loaded without its reference, which Celler.load(dir, adata=reference) would bring"
        elif self.own is None and key not in adata.obs:
            why = f"the AnnData given to load has no column {key!r}"
        else:
            labels = (
                self.own.labels_of(adata).to_numpy().astype(object)
                if self.own is not None
                else as_strings(adata.obs[key], str(key), state.setup.unlabeled_category)
            )
            codes = state.tree.encode(labels)
            rows = np.flatnonzero(codes >= 0)
        if not len(rows):
            warn_once(
                f"no labelled cells take part in propagate=True: {why}. Only the query's own cells do.", self.reported
            )
        return rows, codes[rows]


def with_propagation(
    state: ModelState,
    query: Query,
    index: np.ndarray,
    outputs: Outputs,
    reference: Reference,
    candidates: list[str] | None = None,
) -> Outputs:
    """Spread the probabilities of the rows ``index (N,)`` over these cells and the labelled ones.

    Labelled cells of classes that are no candidates take no part. Rows that are labelled cells of the reference,
    and those without counts, keep the probabilities they have.
    """
    classes = state.tree.classes
    possible = np.arange(len(classes)) if candidates is None else indices_of(candidates, classes)
    probabilities = state.decision.probabilities(outputs.logits, possible)
    labelled, codes = reference.labelled(state)
    held = _labelled_part(state, query, labelled, reference)
    is_in_query, is_labelled = _overlap(held, query)
    is_free = outputs.has_counts & ~is_labelled[index]
    if len(index) and len(labelled) and not is_free.any():
        warn(
            "propagate=True changes nothing here: it is for unlabelled cells, and every cell of the query "
            "has a label or no counts."
        )
    factors = np.ones(query.n_genes) if outputs.factors is None else outputs.factors
    is_possible = np.isin(codes, possible)
    cells = np.flatnonzero(is_free)
    cells = cells[np.argsort(query.content[index[cells]], kind="stable")]
    free = Part(query, index[cells], held.is_shared, factors[held.is_shared])
    parts, of_held = [], []
    # The shift was estimated from the query's cells, of which some labelled ones may be part.
    for rows, by_gene in ((is_in_query, free.factors), (~is_in_query, held.factors)):
        part = replace(held, index=labelled[is_possible & rows], factors=by_gene)
        is_kept = part.has_values()
        parts.append(replace(part, index=part.index[is_kept]))
        of_held.append(codes[is_possible & rows][is_kept])
    is_kept = free.has_values()
    cells = cells[is_kept]
    parts.append(replace(free, index=index[cells]))
    held_codes, n_free = np.concatenate(of_held), len(cells)
    n_held = len(held_codes)
    # Without labelled cells to hold, their number in training says how far to trust the network.
    n_learned = n_held or int(state.trained().class_counts.sum())
    weight = neighbor_weight(n_free, n_learned)
    if n_free and n_held + n_free > 1:
        prior = np.concatenate([np.eye(len(classes))[held_codes], probabilities[cells]])
        points = principal_components(partial(log_rows, parts), len(prior))
        spread = propagate(neighbor_graph(points), prior, np.arange(len(prior)) < n_held, weight)
        probabilities[cells] = spread[n_held:]
    return replace(outputs, propagation=Propagation(probabilities, n_held, n_free, weight))


@dataclass(frozen=True)
class Part:
    """Rows ``index (n,)`` of a query, compared in the genes ``is_shared (n_genes,)``, each times ``factors (G,)``."""

    query: Query
    index: np.ndarray
    is_shared: np.ndarray
    factors: np.ndarray

    def logs(self, positions: np.ndarray) -> sparse.csr_matrix:
        """log1p of counts per 10,000 ``(n, G)`` of ``positions (n,)`` in ``index``."""
        X = self.query.values(self.index[positions], self.is_shared)
        X = cp10k(X, is_log=self.query.is_log) @ sparse.diags_array(self.factors)
        return sparse.csr_matrix(cp10k(X, is_log=False).log1p(), dtype=np.float32)

    def has_values(self) -> np.ndarray:
        """Rows ``(n,)`` with counts in these genes."""
        found = np.zeros(len(self.index), bool)
        for start in range(0, len(found), CHUNK_SIZE):
            rows = slice(start, start + CHUNK_SIZE)
            X = self.query.values(self.index[rows], self.is_shared)
            found[rows] = np.asarray(X.sum(axis=1)).ravel() > 0
        return found


def _labelled_part(state: ModelState, query: Query, labelled: np.ndarray, reference: Reference) -> Part:
    """Return the ``labelled`` rows of the reference, in the genes that it and the query have."""
    cells = query
    if len(labelled) and query.adata is not reference.adata:
        assert reference.adata is not None
        layer = state.setup.layer
        cells = align_query(state.genes, reference.adata, layer, reference.reported)
    is_shared = cells.is_shared & query.is_shared
    return Part(cells, labelled, is_shared, np.ones(is_shared.sum()))


def _overlap(labelled: Part, query: Query) -> tuple[np.ndarray, np.ndarray]:
    """Find labelled cells ``(n,)`` that are in the query, as in a copy of the reference, and its rows ``(n_obs,)``."""
    rows, is_labelled = labelled.index, np.zeros(query.adata.n_obs, bool)
    is_in_query = np.ones(len(rows), bool)
    if labelled.query is not query:
        names, others = labelled.query.adata.obs_names[rows], query.adata.obs_names
        rows = others.get_indexer(names) if others.is_unique else np.full(len(names), -1)
        is_in_query = rows >= 0
        found = np.flatnonzero(is_in_query)
        for start in range(0, len(found), CHUNK_SIZE):
            # A name alone is not enough: barcodes repeat from sample to sample.
            same = found[start : start + CHUNK_SIZE]
            own = labelled.query.values(labelled.index[same], labelled.is_shared)
            is_in_query[same] = (own != query.values(rows[same], labelled.is_shared)).getnnz(axis=1) == 0
    is_labelled[rows[is_in_query]] = True
    return is_in_query, is_labelled


def log_rows(parts: list[Part], positions: np.ndarray) -> sparse.csr_matrix:
    """:meth:`Part.logs` of ascending ``positions (n,)`` in the rows of all ``parts``, one after the other."""
    blocks, start = [], 0
    for part in parts:
        inside = positions[(positions >= start) & (positions < start + len(part.index))]
        blocks.append(part.logs(inside - start))
        start += len(part.index)
    return sparse.vstack(blocks, format="csr")
