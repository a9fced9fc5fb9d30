"""Token loops: the values of a cell become genes, rank bins and expression, in compiled code.

A cell is read once: its distinct values are counted, described, and written for the tokens that are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from celler._utils._compile import compiled
from celler._utils._random import STEP, uniform

_INFINITE, _MINUS_ZERO = np.int32(0x7F800000), np.int32(-(2**31))
N_SMALL = 1024  #: counts below it find their place in a table without a search
_LARGE = np.float32(N_SMALL).view(np.int32)


class Cells(NamedTuple):
    """Entries ``spans (B, 2)`` of cells in a matrix."""

    spans: np.ndarray
    columns: np.ndarray
    bits: np.ndarray  # of the float32 values
    gene_map: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Entries of each cell ``(B,)``."""
        return self.spans[:, 1] - self.spans[:, 0]


def cells_of(X: sparse.csr_matrix, gene_map: np.ndarray, rows: np.ndarray | None) -> Cells:
    """Return the ``rows (B,)`` of ``X``, or all."""
    data = np.ascontiguousarray(X.data, dtype=np.float32)
    rows = np.arange(X.shape[0]) if rows is None else rows
    spans = np.stack([X.indptr[rows], X.indptr[rows + 1]], axis=1).astype(np.int64)
    return Cells(spans, X.indices, data.view(np.int32), gene_map)


@compiled
def _look_at(bits, columns, gene_map, maps_all):  # type: ignore[no-untyped-def]
    """Return how many values of a cell are tokens, whether all are small counts, and whether one is bad."""
    # Bits of a float32, as integers, are 1 to _INFINITE − 1 for positive finite values, and 0 or −0 for zero.
    n = n_bad = n_small = 0
    values = bits.view(np.float32)
    for i in range(len(bits)):
        key = bits[i]
        n_bad += (key >= _INFINITE) | ((key < 0) & (key != _MINUS_ZERO))
        n_small += (key < _LARGE) & (np.float32(np.int32(values[i])) == values[i])
        n += key > 0
    if not maps_all:  # a loop of its own: without it, the CPU takes several values at once
        n = 0
        for i in range(len(bits)):
            # Unsigned: numba's check for negative indices costs as much as the rest.
            n += (bits[i] > 0) & (gene_map[np.uint32(columns[i])] >= 0)
    return n, n_small == len(bits), n_bad > 0


class _Distinct(NamedTuple):
    """Table of one cell's distinct values: a hash table, or by the value where all are small counts."""

    value: np.ndarray  # 0 where a slot is free
    # (slots, 4): tokens are counted in four columns in turn, as additions to one place wait for each other.
    n_equal: np.ndarray
    order: np.ndarray  # slots by value
    bin: np.ndarray
    rank: np.ndarray
    log: np.ndarray


class _Mapped(NamedTuple):
    """One cell's tokens: column, bits of the value, slot of the value, and at how many to go the token is kept."""

    column: np.ndarray
    bits: np.ndarray
    slot: np.ndarray
    limit: np.ndarray  # a token is kept if more than this are still to be chosen


def workspace(longest: int, of_columns: np.dtype) -> tuple[_Distinct, _Mapped]:
    """Return work arrays for rows of at most ``longest`` values, shared by all rows; columns are of a type."""
    size = max(N_SMALL, 2 << max(0, longest - 1).bit_length())
    distinct = _Distinct(
        np.zeros(size, np.float32), np.zeros((size, 4), np.int32), np.empty(max(N_SMALL, longest), np.int32),
        np.empty(size, np.uint8), np.empty(size, np.int64), np.empty(size, np.float32),
    )  # fmt: skip
    column, (bits, slot) = np.empty(longest, of_columns), np.empty((2, longest), np.int32)
    return distinct, _Mapped(column, bits, slot, np.empty(longest, np.int64))


@compiled
def _without_others(bits, columns, gene_map, mapped):  # type: ignore[no-untyped-def]
    """Return bits and columns of a cell without zeros and columns that are no gene of the model."""
    n = np.uint64(0)
    for i in range(len(bits)):  # without a branch: the CPU cannot predict which are mapped
        mapped.bits[n], mapped.column[n] = bits[i], columns[i]
        n += np.uint64((bits[i] > 0) & (gene_map[np.uint32(columns[i])] >= 0))
    return mapped.bits[:n], mapped.column[:n]


@compiled
def _count_small(values, distinct, slots):  # type: ignore[no-untyped-def]
    """Fill ``slots`` and ``distinct`` for ``values`` that are small counts; return how many are distinct."""
    value, n_equal, order, n_distinct, largest = distinct.value, distinct.n_equal, distinct.order, 0, 0
    for i in range(len(values)):
        slots[i] = np.int32(values[i])
        largest = max(largest, slots[i])
    for i in range(len(values)):
        n_equal[np.uint32(slots[i]), i & 3] += 1
    for slot in range(1, largest + 1):
        if n_equal[slot, 0] | n_equal[slot, 1] | n_equal[slot, 2] | n_equal[slot, 3]:
            value[slot], order[n_distinct] = slot, slot
            n_distinct += 1
    return n_distinct


@compiled
def _tabulate(bits, distinct, slots):  # type: ignore[no-untyped-def]
    """Fill ``slots`` and ``distinct`` for values with these ``bits``; return how many are distinct."""
    # Positive floats sort as their bits, and a cell has few distinct values: sorting the row would cost far more.
    keys = distinct.value.view(np.int32)
    size_mask, n_distinct = np.uint64(len(keys) - 1), 0
    for i in range(len(bits)):
        key = bits[i]
        slot = ((np.uint64(np.uint32(key)) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)) & size_mask
        while keys[slot] != key:
            if keys[slot] == 0:
                keys[slot], distinct.order[n_distinct] = key, slot
                n_distinct += 1
                break
            slot = (slot + np.uint64(1)) & size_mask
        distinct.n_equal[slot, i & 3] += 1
        slots[i] = slot
    _sort(distinct.order[:n_distinct], keys)
    return n_distinct


@compiled
def _sort(order, keys):  # type: ignore[no-untyped-def]
    """Sort the positions ``order`` by their ``keys``, in place."""
    # Shell's sort: numba takes a second to compile it, and three for NumPy's.
    gap = len(order) if len(order) > 64 else 2
    while gap > 1:
        gap = max(1, int(gap / 2.5))
        for i in range(gap, len(order)):
            position = order[i]
            j = i
            while j >= gap and keys[order[j - gap]] > keys[position]:
                order[j] = order[j - gap]
                j -= gap
            order[j] = position


@compiled
def _describe(distinct, n_distinct, n, n_bins, is_log, target_sum):  # type: ignore[no-untyped-def]
    """Compute bin, rank and expression of each distinct value of a cell with ``n`` tokens."""
    # Quantile edge j is at position j (n − 1) / (n_bins − 2) of the sorted row, so the number of edges <= a value
    # follows, in integers, from the last position of the value.
    values, order = distinct.value, distinct.order[:n_distinct]
    total = 0.0
    for slot in order:
        for column in range(1, 4):
            distinct.n_equal[slot, 0] += distinct.n_equal[slot, column]
        total += distinct.n_equal[slot, 0] * (np.expm1(values[slot]) if is_log else values[slot])
    last = -1
    for rank, slot in enumerate(order):
        last += distinct.n_equal[slot, 0]
        distinct.bin[slot] = n_bins - 1 if n == 1 else last * (n_bins - 2) // (n - 1) + 1
        value = np.expm1(values[slot]) if is_log else values[slot]
        distinct.log[slot] = np.log1p(value * (target_sum / total))
        distinct.rank[slot] = rank


@compiled
def _draw(n, seed, limit):  # type: ignore[no-untyped-def]
    """Set the ``limit`` of n tokens so that every subset of them is equally likely (Knuth's algorithm S)."""
    for k in range(n):
        # Each number by its place, not from the one before: so the CPU makes several at once.
        limit[k] = np.int64(uniform(seed + np.uint64(k) * STEP) * (n - k))


@compiled
def _keep_highest(n, n_kept, distinct, n_distinct, genes, mapped):  # type: ignore[no-untyped-def]
    """Keep the ``n_kept`` tokens of highest value; ties by vocabulary order, not column order."""
    lowest, n_left = n_distinct, n_kept
    while lowest and n_left >= distinct.n_equal[distinct.order[lowest - 1], 0]:
        lowest -= 1
        n_left -= distinct.n_equal[distinct.order[lowest], 0]
    ties, n_ties = np.empty(n, np.int32), 0
    for k in range(n):
        rank = distinct.rank[mapped.slot[k]]
        mapped.limit[k] = -1 if rank >= lowest else n
        if rank == lowest - 1:
            ties[n_ties] = k
            n_ties += 1
    if n_left:
        _sort(ties[:n_ties], genes)
        for k in ties[:n_left]:
            mapped.limit[k] = -1


@compiled
def _write_kept(columns, gene_map, left, mapped, distinct, place):  # type: ignore[no-untyped-def]
    """Write the genes, bins and expression of the ``left`` kept tokens to ``place``."""
    # Arrays by names of their own: each look at a field of a tuple counts references.
    slots, limits, bins, logs = mapped.slot, mapped.limit, distinct.bin, distinct.log
    to_gene, to_bin, to_log = place
    t = k = np.uint64(0)
    while left > 0:  # without a branch: the CPU cannot predict which tokens are kept
        slot = np.uint32(slots[k])
        to_gene[t], to_bin[t], to_log[t] = gene_map[np.uint32(columns[k])], bins[slot], logs[slot]
        is_kept = limits[k] < left
        left -= is_kept
        t += np.uint64(is_kept)
        k += np.uint64(1)


@compiled
def _clear(distinct, n_distinct):  # type: ignore[no-untyped-def]
    """Free the slots of the distinct values."""
    value, n_equal = distinct.value, distinct.n_equal
    for slot in distinct.order[:n_distinct]:
        value[slot] = 0
        for column in range(4):
            n_equal[slot, column] = 0


@compiled
def fill_tokens(cells, how, target_sums, seeds, places, into, work):  # type: ignore[no-untyped-def]
    """Write genes, bins and expression of each cell to three arrays, and how many of them to ``n_kept (B,)``.

    Cell b has the places from ``starts[b]`` to ``ends[b]``, 0 where it has no token, or those after the one before.
    Return the first cell with a bad value, or −1.
    """
    (n_bins, is_log, share, most), (distinct, mapped), (starts, ends), end = how, work, places, 0
    flat, n_kept = into
    maps_all = (cells.gene_map >= 0).all()
    for b in range(len(n_kept)):
        of_cell = slice(cells.spans[b, 0], cells.spans[b, 1])
        bits, columns = cells.bits[of_cell], cells.columns[of_cell]
        n, is_small, is_bad = _look_at(bits, columns, cells.gene_map, maps_all)
        if is_bad:
            return b
        if n < len(bits):
            bits, columns = _without_others(bits, columns, cells.gene_map, mapped)
        if is_small:
            n_distinct = _count_small(bits.view(np.float32), distinct, mapped.slot)
        else:
            n_distinct = _tabulate(bits, distinct, mapped.slot)
        _describe(distinct, n_distinct, n, n_bins, is_log, target_sums[b])
        left = min(np.int64(np.ceil(n * share)), most)
        if left == n:
            mapped.limit[:n] = -1
        elif len(seeds):
            _draw(n, seeds[b], mapped.limit)
        else:
            _keep_highest(n, left, distinct, n_distinct, cells.gene_map[columns], mapped)
        start = starts[b] if len(starts) else end
        n_kept[b], end = left, start + left
        place = slice(start, end)
        _write_kept(columns, cells.gene_map, left, mapped, distinct, (flat[0][place], flat[1][place], flat[2][place]))
        if len(ends):
            flat[0][end : ends[b]] = 0
            flat[1][end : ends[b]] = 0
            flat[2][end : ends[b]] = 0
        _clear(distinct, n_distinct)
    return -1
