"""Tokens: CSR rows become gene ids, rank bins and log1p expression, compiled and never densified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

__all__ = ["BadValueError", "TokenBatch", "TokenBatches", "Tokenizer"]
_INFINITE, _MINUS_ZERO = np.int32(0x7F800000), np.int32(-(2**31))
#: Library size to which every cell is scaled before ``log1p``.
TARGET_SUM = 1e4


class TokenBatch(NamedTuple):
    """One minibatch of B cells as sets of at most T expressed genes, padded on the right.

    gene_ids: ``(B, T)`` int32, row of the gene in the model's vocabulary; 0 where padded.
    values: ``(B, T)`` uint8, rank bin of the value within its cell, 1…n_bins − 1; 0 where padded.
    expression: ``(B, T)`` float32, ``log1p`` of counts per 10,000; 0 where padded.
    padding_mask: ``(B, T)`` bool, True where there is no gene; the genes of a cell come first.
    """

    gene_ids: Tensor
    values: Tensor
    expression: Tensor
    padding_mask: Tensor


@dataclass(frozen=True)
class TokenBatches:
    """Minibatches one after another; iterating gives each.

    flat: what all of them hold, each part ``(N,)``. shapes: (B, T) of each minibatch.
    """

    flat: TokenBatch
    shapes: list[tuple[int, int]]

    def __iter__(self) -> Iterator[TokenBatch]:
        areas = [n_cells * width for n_cells, width in self.shapes]
        parts = zip(*(part.split(areas) for part in self.flat), strict=True)
        for each, shape in zip(parts, self.shapes, strict=True):
            yield TokenBatch(*(part.view(shape) for part in each))


class BadValueError(ValueError):
    """A negative, NaN or infinite value: ``row`` in the block that was read and the ``value``."""

    def __init__(self, row: int, value: float) -> None:
        super().__init__(
            f"row {row} holds the value {value}; finite values >= 0 are needed "
            "(counts, or log1p-normalised counts)."
        )
        self.row, self.value = row, value


@dataclass(frozen=True)
class Tokenizer:
    """How a row of expression values becomes tokens.

    Bins are those of scGPT: the edges are the quantiles of the cell's non-zero values at
    ``linspace(0, 1, n_bins - 1)`` and the bin is the number of edges <= the value. They depend on
    ranks alone, so counts and their logarithm give the same bins; equal values share a bin.

    n_bins: number of bins with the zero bin, 3 to 256.
    max_genes: most tokens a cell may have, ``None`` for no limit.
    """

    n_bins: int = 51
    max_genes: int | None = None

    def __post_init__(self) -> None:
        if not 3 <= self.n_bins <= 256:
            raise ValueError(f"n_bins={self.n_bins} was given; 3 to 256 are possible.")
        if self.max_genes is not None and self.max_genes < 1:
            raise ValueError(
                f"max_genes={self.max_genes} was given; at least 1 is needed, or None."
            )

    def __call__(
        self,
        X: sparse.csr_matrix,
        gene_map: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        is_log: bool = False,
        target_sum: float | np.ndarray = TARGET_SUM,
        token_dropout: float = 0.0,
        seeds: np.ndarray | None = None,
    ) -> TokenBatch:
        """Rows of ``X`` as one minibatch; arguments and errors as in :meth:`minibatches`."""
        sizes = [X.shape[0] if rows is None else len(rows)]
        (tokens,) = self.minibatches(
            X, gene_map, sizes, rows=rows, is_log=is_log, target_sum=target_sum,
            token_dropout=token_dropout, seeds=seeds,
        )  # fmt: skip
        return tokens

    def minibatches(
        self,
        X: sparse.csr_matrix,
        gene_map: np.ndarray,
        sizes: list[int],
        *,
        rows: np.ndarray | None = None,
        is_log: bool = False,
        target_sum: float | np.ndarray = TARGET_SUM,
        token_dropout: float = 0.0,
        seeds: np.ndarray | None = None,
    ) -> TokenBatches:
        """Rows of ``X`` in several minibatches.

        Made at once: a thread that asks for Python's lock again and again makes the one with the network wait each
        time, for longer than the tokens take.

        gene_map: ``(n_vars,)`` int32, vocabulary row of each column, −1 to skip the column.
        sizes: cells of each minibatch, in order; each is as wide as its longest cell.
        rows: ``(B,)``, which rows of ``X`` to take, without a copy of them; ``None`` is all.
        is_log: the values are natural ``log1p`` values and not proportional to counts.
        target_sum: what the linear values of a cell's mapped genes are scaled to before ``log1p``, for all
            cells or each ``(B,)``.
        token_dropout: share of a cell's tokens left out at random, needs ``seeds``.
        seeds: ``(B,)`` uint64, one per cell; given in training, where ``max_genes`` keeps a random
            subset. Without them the genes of highest value are kept, ties by vocabulary order.

        Raises :class:`BadValueError` for a negative, NaN or infinite value; its row is a position in ``rows``.
        """
        if token_dropout and seeds is None:
            raise ValueError("token_dropout needs seeds, one per cell.")
        data = np.ascontiguousarray(X.data, dtype=np.float32)
        bits = data.view(np.int32)
        rows = np.arange(X.shape[0]) if rows is None else rows
        spans = np.stack([X.indptr[rows], X.indptr[rows + 1]], axis=1)
        n_tokens, bad_row = _count_tokens(spans, X.indices, bits, gene_map)
        if bad_row >= 0:
            row = data[slice(*spans[bad_row])]
            raise BadValueError(bad_row, float(row[~((row >= 0) & np.isfinite(row))][0]))
        n_kept = np.ceil(n_tokens * (1.0 - token_dropout)).astype(np.int64)
        if self.max_genes is not None:
            n_kept = np.minimum(n_kept, self.max_genes)
        shapes = shapes_of(n_kept, sizes)
        ends = np.cumsum(np.repeat([width for _, width in shapes], sizes), dtype=np.int64)
        size = int(ends[-1]) if len(ends) else 0
        gene_ids, values = np.zeros(size, np.int32), np.zeros(size, np.uint8)
        expression = np.zeros(size, np.float32)
        _fill_tokens(
            spans, X.indices, bits, gene_map, n_tokens, n_kept,
            self.n_bins, is_log, np.broadcast_to(np.float64(target_sum), len(n_kept)).copy(),
            np.empty(0, np.uint64) if seeds is None else seeds,
            ends, (gene_ids, values, expression),
        )  # fmt: skip
        whole = map(torch.from_numpy, (gene_ids, values, expression, values == 0))
        return TokenBatches(TokenBatch(*whole), shapes)


def shapes_of(n_tokens: np.ndarray, sizes: list[int]) -> list[tuple[int, int]]:
    """(B, T) of minibatches of ``sizes`` cells, each as wide as the most of its cells' ``n_tokens (N,)``."""
    parts = np.split(n_tokens, np.cumsum(sizes)[:-1])
    return [(len(part), max(1, int(part.max(initial=0)))) for part in parts]


@numba.njit(cache=True, nogil=True)
def _count_tokens(spans, indices, bits, gene_map):  # type: ignore[no-untyped-def]
    """Mapped non-zeros per cell ``(B,)``, and the first cell with a value that is not allowed or −1.

    spans: ``(B, 2)``, where the entries of each cell begin and end.

    The bits of a float32 tell: positive and finite is 1 to ``_INFINITE`` − 1, and zero is 0 or −0.
    """
    n_tokens = np.empty(len(spans), np.int64)
    for b in range(len(spans)):
        n = n_bad = 0
        # Slices and unsigned indices: numba then looks out for no negative index, which costs as much as the rest.
        of_cell, columns = bits[spans[b, 0] : spans[b, 1]], indices[spans[b, 0] : spans[b, 1]]
        for i in range(len(of_cell)):
            key = of_cell[i]
            n_bad += (key >= _INFINITE) | ((key < 0) & (key != _MINUS_ZERO))
            n += (key > 0) & (gene_map[np.uint32(columns[i])] >= 0)
        if n_bad:
            return n_tokens, b
        n_tokens[b] = n
    return n_tokens, -1


@numba.njit(cache=True, nogil=True)
def _next_random(state):  # type: ignore[no-untyped-def]
    """One step of splitmix64: the new state and a number in [0, 1)."""
    state += np.uint64(0x9E3779B97F4A7C15)
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state, ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


class _Distinct(NamedTuple):
    """Hash table of one cell's distinct values; a slot is in use where the upper half of ``tag`` is the cell's row.

    The lower half of ``tag`` and ``bits`` are those of the float32 value. ``n_equal (slots, 4)`` tokens have it,
    counted in four turns: most counts are 1, and an addition to the same place has to wait for the last one.
    ``order`` lists the slots by rising value.
    """

    tag: np.ndarray
    bits: np.ndarray
    n_equal: np.ndarray
    order: np.ndarray
    bin: np.ndarray
    rank: np.ndarray
    log: np.ndarray


class _Mapped(NamedTuple):
    """One cell's tokens: their gene, the slot of their value, and whether they are kept."""

    gene: np.ndarray
    slot: np.ndarray
    is_kept: np.ndarray


@numba.njit(cache=True, nogil=True)
def _workspace(longest):  # type: ignore[no-untyped-def]
    """Arrays for the work on one row of at most ``longest`` tokens, made once for all rows."""
    size = 2
    while size < 2 * longest:
        size *= 2
    distinct = _Distinct(
        np.full(size, -1, np.int64), np.empty(size, np.int32), np.empty((size, 4), np.int32),
        np.empty(longest, np.int32),
        np.empty(size, np.uint8), np.empty(size, np.int64), np.empty(size, np.float32),
    )  # fmt: skip
    mapped = _Mapped(
        np.empty(longest, np.int32), np.empty(longest, np.int32), np.empty(longest, np.bool_)
    )
    return distinct, mapped


@numba.njit(cache=True, nogil=True)
def _tabulate(bits, indices, gene_map, row, distinct, mapped):  # type: ignore[no-untyped-def]
    """Fill ``mapped`` and the ``distinct`` values with their counts; returns how many there are.

    A positive float32 orders as its bits do, and a cell holds few distinct values, so bins and
    logarithms are computed once per distinct value: sorting the row would cost several times more.
    """
    size_mask, row_tag = np.uint64(len(distinct.bits) - 1), np.int64(row) << 32
    n_distinct, n = 0, np.uint64(0)
    for i in range(len(bits)):
        key, gene = bits[i], gene_map[np.uint32(indices[i])]
        if key <= 0 or gene < 0:  # 0 and -0 are explicit zeros
            continue
        tag = row_tag | key
        slot = (
            (np.uint64(np.uint32(key)) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        ) & size_mask
        while distinct.tag[slot] != tag:
            if distinct.tag[slot] >> 32 != row:
                distinct.tag[slot], distinct.bits[slot], distinct.n_equal[slot] = tag, key, 0
                distinct.order[n_distinct] = slot
                n_distinct += 1
                break
            slot = (slot + np.uint64(1)) & size_mask
        distinct.n_equal[slot, n & np.uint64(3)] += 1
        mapped.gene[n], mapped.slot[n] = gene, slot
        n += np.uint64(1)
    _sort(distinct.order[:n_distinct], distinct.bits)
    return n_distinct


@numba.njit(cache=True, nogil=True)
def _sort(order, keys):  # type: ignore[no-untyped-def]
    """Sort the slots ``order`` by their ``keys``, in place."""
    if len(order) > 64:
        order[:] = order[np.argsort(keys[order])]
        return
    for i in range(1, len(order)):  # insertion sort: the usual cell has a few dozen
        slot = order[i]
        j = i
        while j > 0 and keys[order[j - 1]] > keys[slot]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = slot


@numba.njit(cache=True, nogil=True)
def _describe(distinct, n_distinct, n, n_bins, is_log, target_sum):  # type: ignore[no-untyped-def]
    """Bin, rank and expression of each distinct value of a cell with ``n`` tokens.

    Edge j of the quantiles lies at position j (n − 1) / (n_bins − 2) of the sorted row, so the
    number of edges <= a value follows from the last position the value holds, in integers.
    """
    values, order = distinct.bits.view(np.float32), distinct.order[:n_distinct]
    total = 0.0
    for slot in order:
        distinct.n_equal[slot, 0] = distinct.n_equal[slot].sum()
        total += distinct.n_equal[slot, 0] * (np.expm1(values[slot]) if is_log else values[slot])
    last = -1
    for rank, slot in enumerate(order):
        last += distinct.n_equal[slot, 0]
        distinct.bin[slot] = n_bins - 1 if n == 1 else last * (n_bins - 2) // (n - 1) + 1
        value = np.expm1(values[slot]) if is_log else values[slot]
        distinct.log[slot] = np.log1p(value * (target_sum / total))
        distinct.rank[slot] = rank


@numba.njit(cache=True, nogil=True)
def _keep_random(n, n_kept, seed, is_kept):  # type: ignore[no-untyped-def]
    """Keep exactly ``n_kept`` of n tokens, every subset equally likely (Knuth's algorithm S)."""
    state = seed
    for k in range(n):
        state, u = _next_random(state)
        # In whole numbers, which is the same and does not make the next draw wait for a conversion.
        is_this_kept = np.int64(u * (n - k)) < n_kept
        is_kept[k] = is_this_kept
        n_kept -= is_this_kept


@numba.njit(cache=True, nogil=True)
def _keep_highest(n, n_kept, rank, mapped):  # type: ignore[no-untyped-def]
    """Keep the ``n_kept`` tokens of highest value; ties by vocabulary order, not column order."""
    keys = np.empty(n, np.int64)
    for k in range(n):
        keys[k] = -rank[mapped.slot[k]] * np.int64(2**32) + mapped.gene[k]
    mapped.is_kept[:n] = keys <= np.partition(keys, n_kept - 1)[n_kept - 1]


@numba.njit(cache=True, nogil=True)
def _fill_tokens(  # type: ignore[no-untyped-def]
    spans, indices, bits, gene_map, n_tokens, n_kept, n_bins, is_log, target_sums, seeds,
    ends, flat,
):  # fmt: skip
    """Write every row's genes, bins and expression to the arrays ``flat``; its place there ends at ``ends (B,)``."""
    distinct, mapped = _workspace(n_tokens.max() if len(n_tokens) else 0)
    for b in range(len(n_tokens)):
        n = n_tokens[b]
        cell = slice(spans[b, 0], spans[b, 1])
        n_distinct = _tabulate(bits[cell], indices[cell], gene_map, b, distinct, mapped)
        _describe(distinct, n_distinct, n, n_bins, is_log, target_sums[b])
        if n_kept[b] == n:
            mapped.is_kept[:n] = True
        elif len(seeds):
            _keep_random(n, n_kept[b], seeds[b], mapped.is_kept)
        else:
            _keep_highest(n, n_kept[b], distinct.rank, mapped)
        place = slice(ends[b - 1] if b else 0, ends[b])
        ids, bins, levels = flat[0][place], flat[1][place], flat[2][place]
        t = k = np.uint64(0)
        while t < n_kept[b]:  # without a branch: which tokens are kept cannot be foreseen
            slot = np.uint32(mapped.slot[k])
            ids[t], bins[t], levels[t] = mapped.gene[k], distinct.bin[slot], distinct.log[slot]
            t += np.uint64(mapped.is_kept[k])
            k += np.uint64(1)
