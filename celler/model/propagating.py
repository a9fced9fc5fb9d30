"""Propagating: probabilities of a query spread over its cells and the model's labelled ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from celler.door import warn
from celler.labels import as_strings, indices_of
from celler.model.forward import CHUNK_SIZE, Outputs, Propagation
from celler.model.query import Query, align_query
from celler.model.setup import LABELS_COLUMN
from celler.propagation import neighbor_graph, neighbor_weight, principal_components, propagate
from celler.shift import linear

if TYPE_CHECKING:
    from celler.model.celler import Celler


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
