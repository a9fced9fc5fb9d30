"""Counts of a source in the genes and types of the store, made in one pass of compiled code."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from celler._utils._compile import compiled

#: One bit of a word times this number has the place of the bit in its upper six bits.
_DE_BRUIJN = 0x03F79D71B4CB0A89
_PLACES = np.zeros(64, np.uint64)
_PLACES[[((_DE_BRUIJN << place) % 2**64) >> 58 for place in range(64)]] = np.arange(64)


class Counts(NamedTuple):
    """Counts of n cells as CSR, sorted and without zeros, in the types of the store."""

    indptr: np.ndarray
    genes: np.ndarray
    values: np.ndarray
    misfit: tuple[int, float] | None  # the first row with a count that its type cannot hold, and the count


def in_genes(
    X: sparse.csr_matrix,
    rows: np.ndarray,
    gene_map: np.ndarray,
    n_genes: int,
    types: tuple[np.dtype[Any], np.dtype[Any]],
) -> Counts:
    """Return the ``rows (n,)`` of ``X``, which holds whole numbers, in the genes of the store.

    ``gene_map (n_vars,)`` is the gene of each column, −1 for none; columns of the same gene are summed. ``types`` are
    those of genes and counts.
    """
    # Few types to compile for; a float64 holds every count that fits.
    values = X.data if X.data.dtype == np.float32 else X.data.astype(np.float64)
    spans = np.stack([X.indptr[rows], X.indptr[rows + 1]], axis=1).astype(np.int64)
    n_most = int((spans[:, 1] - spans[:, 0]).sum())
    indptr, genes, counts = np.zeros(len(rows) + 1, np.int64), np.empty(n_most, types[0]), np.empty(n_most, types[1])
    work = np.zeros(n_genes), np.zeros(-(-n_genes // 64), np.uint64), _PLACES
    row, count = _gather(spans, X.indices, values, gene_map, np.iinfo(types[1]).max, (indptr, genes, counts), work)
    n = indptr[-1]
    return Counts(indptr, genes[:n], counts[:n], None if row < 0 else (row, count))


@compiled
def _gather(spans, columns, values, gene_map, most, found, work):  # type: ignore[no-untyped-def]
    """Fill the arrays ``found``; return the first row with a count above ``most``, −1 for none, and the count."""
    indptr, genes, counts = found
    total, words, places = work
    misfit, misfit_count, n = -1, 0.0, 0
    for b in range(len(spans)):
        # The genes of a cell are bits of words: read in order, they are sorted at a tenth of the time of a sort.
        for i in range(spans[b, 0], spans[b, 1]):
            gene = gene_map[columns[i]]
            if gene >= 0 and values[i] > 0:
                total[gene] += values[i]
                words[gene >> 6] |= np.uint64(1) << np.uint64(gene & 63)
        for k in range(len(words)):
            word = words[k]
            words[k] = 0
            while word:
                lowest = word & (~word + np.uint64(1))
                gene = (k << 6) + np.int64(places[(lowest * np.uint64(_DE_BRUIJN)) >> np.uint64(58)])
                if total[gene] > most and misfit < 0:
                    misfit, misfit_count = b, total[gene]
                genes[n], counts[n] = gene, min(total[gene], most)
                total[gene] = 0.0
                word ^= lowest
                n += 1
        indptr[b + 1] = n
    return misfit, misfit_count
