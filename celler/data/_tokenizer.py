"""Tokenizer: CSR rows to gene ids, rank bins and log1p expression, in compiled code and never dense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from celler._utils._compile import compiled

__all__ = ["BadValueError", "FlatTokens", "TokenBatch", "TokenBatches", "Tokenizer"]
_INFINITE, _MINUS_ZERO = np.int32(0x7F800000), np.int32(-(2**31))
TARGET_SUM = 1e4  #: library size to which every cell is scaled before ``log1p``


class TokenBatch(NamedTuple):
    """Minibatch of B cells as sets of at most T expressed genes, padded on the right.

    Attributes
    ----------
    gene_ids
        Row of each gene in the model's vocabulary ``(B, T)``, int32; 0 where padded.
    values
        Rank bin of its value within the cell ``(B, T)``, uint8, 1…n_bins − 1; 0 where padded.
    expression
        ``log1p`` of counts per 10,000 ``(B, T)``, float32; 0 where padded.
    padding_mask
        True where padded ``(B, T)``.
    """

    gene_ids: Tensor
    values: Tensor
    expression: Tensor
    padding_mask: Tensor


class FlatTokens(NamedTuple):
    """Expressed genes of B cells, one cell after the other without padding.

    Attributes
    ----------
    gene_ids, expression
        As those of a :class:`TokenBatch`, ``(N,)``.
    starts
        Where the tokens of each cell begin ``(B,)``, int32.
    """

    gene_ids: Tensor
    expression: Tensor
    starts: Tensor

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each cell ``(B,)``."""
        return self.starts.diff(append=self.starts.new_tensor([len(self.gene_ids)]))

    def cells(self, first: int, end: int) -> FlatTokens:
        """Return the tokens of the cells from ``first`` up to ``end``."""
        start = int(self.starts[first])
        stop = int(self.starts[end]) if end < len(self.starts) else len(self.gene_ids)
        return FlatTokens(self.gene_ids[start:stop], self.expression[start:stop], self.starts[first:end] - start)


@dataclass(frozen=True)
class TokenBatches:
    """Consecutive minibatches in shared memory; iterate for a :class:`TokenBatch` each.

    Parameters
    ----------
    flat, shapes
        Tokens of all minibatches, each part flat ``(N,)``, and (B, T) of each minibatch.
    """

    flat: TokenBatch
    shapes: list[tuple[int, int]]

    def __iter__(self) -> Iterator[TokenBatch]:
        areas = [n_cells * width for n_cells, width in self.shapes]
        parts = zip(*(part.split(areas) for part in self.flat), strict=True)
        for each, shape in zip(parts, self.shapes, strict=True):
            yield TokenBatch(*(part.view(shape) for part in each))


class BadValueError(ValueError):
    """A negative, NaN or infinite ``value`` in row ``row`` of the block."""

    def __init__(self, row: int, value: float) -> None:
        super().__init__(
            f"row {row} holds the value {value}; finite values >= 0 are needed (counts, or log1p-normalised counts)."
        )
        self.row, self.value = row, value


@dataclass(frozen=True)
class Tokenizer:
    """Turn rows of expression values into tokens.

    Parameters
    ----------
    n_bins, max_genes
        Bins, with the zero bin, 3 to 256, and most tokens of a cell, ``None`` for no limit.

    Notes
    -----
    Bins are those of scGPT :cite:p:`Cui24`: the edges are the quantiles of the cell's non-zero values at
    ``linspace(0, 1, n_bins - 1)``, and the bin is the number of edges <= the value. They depend on ranks alone, so
    counts and their logarithms have the same bins; equal values share a bin.

    Examples
    --------
    >>> X = sparse.csr_matrix([[0, 1, 5, 2]])
    >>> Tokenizer(n_bins=5)(X, np.arange(4, dtype=np.int32)).values.tolist()
    [[1, 4, 2]]
    """

    n_bins: int = 51
    max_genes: int | None = None

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
        """Return the rows of ``X`` as one minibatch; see :meth:`minibatches`."""
        sizes = [X.shape[0] if rows is None else len(rows)]
        (tokens,) = self.minibatches(
            X, gene_map, sizes,
            rows=rows, is_log=is_log, target_sum=target_sum, token_dropout=token_dropout, seeds=seeds,
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
        """Return the rows of ``X`` as several minibatches.

        They are made in one call: a thread that takes the GIL often makes the network's thread wait each time, longer
        than the tokens take.

        Parameters
        ----------
        X, is_log
            Counts, or with ``is_log`` their natural ``log1p`` values, ``(n_obs, n_vars)``.
        gene_map
            Vocabulary row of each column ``(n_vars,)``, int32; −1 skips the column.
        sizes
            Cells of each minibatch, in order; a minibatch is as wide as its longest cell.
        rows
            Rows of ``X`` to read, without a copy of them ``(B,)``; ``None`` is all.
        target_sum
            Sum of a cell's linear values in mapped genes before ``log1p``, one for all cells or ``(B,)``.
        token_dropout
            Share of a cell's tokens left out at random; needs ``seeds``.
        seeds
            Seed of each cell ``(B,)``, uint64, for training: ``max_genes`` then keeps a random subset. Without seeds
            it keeps the genes with the highest values, ties in vocabulary order.

        Raises
        ------
        BadValueError
            If a value is negative, NaN or infinite; its row is a position in ``rows``.
        """
        if token_dropout and seeds is None:
            raise ValueError("token_dropout was given without seeds; pass one seed per cell.")
        cells = _cells(X, gene_map, rows)
        n_kept = self._limited(np.ceil(cells.n_tokens * (1.0 - token_dropout)).astype(np.int64))
        shapes = [(len(part), max(1, int(part.max(initial=0)))) for part in np.split(n_kept, np.cumsum(sizes)[:-1])]
        ends = np.cumsum(np.repeat([width for _, width in shapes], sizes), dtype=np.int64)
        gene_ids, values, expression = self._filled(cells, n_kept, ends, is_log, target_sum, seeds)
        whole = map(torch.from_numpy, (gene_ids, values, expression, values == 0))
        return TokenBatches(TokenBatch(*whole), shapes)

    def flat(
        self,
        X: sparse.csr_matrix,
        gene_map: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        is_log: bool = False,
        target_sum: float = TARGET_SUM,
    ) -> FlatTokens:
        """Return the rows of ``X`` without padding, for prediction; see :meth:`minibatches`."""
        cells = _cells(X, gene_map, rows)
        n_kept = self._limited(cells.n_tokens)
        ends = np.cumsum(n_kept, dtype=np.int64)
        gene_ids, _, expression = self._filled(cells, n_kept, ends, is_log, target_sum, None)
        return FlatTokens(*map(torch.from_numpy, (gene_ids, expression, (ends - n_kept).astype(np.int32))))

    def _limited(self, n_tokens: np.ndarray) -> np.ndarray:
        return n_tokens if self.max_genes is None else np.minimum(n_tokens, self.max_genes)

    def _filled(
        self,
        cells: _Cells,
        n_kept: np.ndarray,
        ends: np.ndarray,
        is_log: bool,
        target_sum: float | np.ndarray,
        seeds: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return genes, bins and expression, 0 where there is no token; row b ends at ``ends[b]``."""
        size = int(ends[-1]) if len(ends) else 0
        flat = np.zeros(size, np.int32), np.zeros(size, np.uint8), np.zeros(size, np.float32)
        target_sums = np.broadcast_to(np.float64(target_sum), len(n_kept)).copy()
        seeds = np.empty(0, np.uint64) if seeds is None else seeds
        work = _workspace(int(cells.n_tokens.max(initial=0)))
        _fill_tokens(*cells, n_kept, self.n_bins, is_log, target_sums, seeds, ends, flat, work)
        return flat


class _Cells(NamedTuple):
    """Entries ``spans (B, 2)`` of cells in a matrix, and how many become tokens."""

    spans: np.ndarray
    indices: np.ndarray
    bits: np.ndarray
    gene_map: np.ndarray
    n_tokens: np.ndarray


def _cells(X: sparse.csr_matrix, gene_map: np.ndarray, rows: np.ndarray | None) -> _Cells:
    """Return the ``rows (B,)`` of ``X``, or all; raise :class:`BadValueError` for a value that is none."""
    data = np.ascontiguousarray(X.data, dtype=np.float32)
    bits = data.view(np.int32)
    rows = np.arange(X.shape[0]) if rows is None else rows
    spans = np.stack([X.indptr[rows], X.indptr[rows + 1]], axis=1)
    n_tokens, bad_row = _count_tokens(spans, X.indices, bits, gene_map)
    if bad_row >= 0:
        row = data[slice(*spans[bad_row])]
        raise BadValueError(bad_row, float(row[~((row >= 0) & np.isfinite(row))][0]))
    return _Cells(spans, X.indices, bits, gene_map, n_tokens)


@compiled
def _count_tokens(spans, indices, bits, gene_map):  # type: ignore[no-untyped-def]
    """Return mapped non-zeros of each cell ``(B,)`` with entries ``spans (B, 2)``, and the first bad cell or −1."""
    # Bits of a float32, as integers, are 1 to _INFINITE − 1 for positive finite values, and 0 or −0 for zero.
    n_tokens = np.empty(len(spans), np.int64)
    for b in range(len(spans)):
        n = n_bad = 0
        # Slices and unsigned indices: numba's check for negative indices costs as much as the rest.
        of_cell, columns = bits[spans[b, 0] : spans[b, 1]], indices[spans[b, 0] : spans[b, 1]]
        for i in range(len(of_cell)):
            key = of_cell[i]
            n_bad += (key >= _INFINITE) | ((key < 0) & (key != _MINUS_ZERO))
            n += (key > 0) & (gene_map[np.uint32(columns[i])] >= 0)
        if n_bad:
            return n_tokens, b
        n_tokens[b] = n
    return n_tokens, -1


@compiled
def _next_random(state):  # type: ignore[no-untyped-def]
    """Return the next state of splitmix64 and a number in [0, 1)."""
    state += np.uint64(0x9E3779B97F4A7C15)
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state, ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


class _Distinct(NamedTuple):
    """Hash table of one cell's distinct values; a slot is used if the upper half of ``tag`` is the cell's row."""

    tag: np.ndarray  # its lower half is bits
    bits: np.ndarray  # of the float32 value
    # (slots, 4): tokens are counted in four columns in turn, as additions to one place wait for each other.
    n_equal: np.ndarray
    order: np.ndarray  # slots by value
    bin: np.ndarray
    rank: np.ndarray
    log: np.ndarray


class _Mapped(NamedTuple):
    """One cell's tokens: gene, slot of the value, and whether it is kept."""

    gene: np.ndarray
    slot: np.ndarray
    is_kept: np.ndarray


def _workspace(longest: int) -> tuple[_Distinct, _Mapped]:
    """Return work arrays for rows of at most ``longest`` tokens, shared by all rows."""
    size = 2 << max(0, longest - 1).bit_length()
    distinct = _Distinct(
        np.full(size, -1, np.int64), np.empty(size, np.int32), np.empty((size, 4), np.int32),
        np.empty(longest, np.int32), np.empty(size, np.uint8), np.empty(size, np.int64), np.empty(size, np.float32),
    )  # fmt: skip
    mapped = _Mapped(np.empty(longest, np.int32), np.empty(longest, np.int32), np.empty(longest, np.bool_))
    return distinct, mapped


@compiled
def _tabulate(bits, indices, gene_map, row, distinct, mapped):  # type: ignore[no-untyped-def]
    """Fill ``mapped`` and ``distinct``; return the number of distinct values."""
    # Positive floats sort as their bits, and a cell has few distinct values: sorting the row would cost far more.
    size_mask, row_tag = np.uint64(len(distinct.bits) - 1), np.int64(row) << 32
    n_distinct, n = 0, np.uint64(0)
    for i in range(len(bits)):
        key, gene = bits[i], gene_map[np.uint32(indices[i])]
        if key <= 0 or gene < 0:  # 0 and -0 are explicit zeros
            continue
        tag = row_tag | key
        slot = ((np.uint64(np.uint32(key)) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)) & size_mask
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
    values, order = distinct.bits.view(np.float32), distinct.order[:n_distinct]
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
def _keep_random(n, n_kept, seed, is_kept):  # type: ignore[no-untyped-def]
    """Keep exactly ``n_kept`` of n tokens, every subset equally likely (Knuth's algorithm S)."""
    state = seed
    for k in range(n):
        state, u = _next_random(state)
        # The comparison in integers is equivalent and does not delay the next draw by a conversion.
        is_this_kept = np.int64(u * (n - k)) < n_kept
        is_kept[k] = is_this_kept
        n_kept -= is_this_kept


@compiled
def _keep_highest(n, n_kept, distinct, n_distinct, mapped):  # type: ignore[no-untyped-def]
    """Keep the ``n_kept`` tokens of highest value; ties by vocabulary order, not column order."""
    lowest, n_left = n_distinct, n_kept
    while lowest and n_left >= distinct.n_equal[distinct.order[lowest - 1], 0]:
        lowest -= 1
        n_left -= distinct.n_equal[distinct.order[lowest], 0]
    ties, n_ties = np.empty(n, np.int32), 0
    for k in range(n):
        rank = distinct.rank[mapped.slot[k]]
        mapped.is_kept[k] = rank >= lowest
        if rank == lowest - 1:
            ties[n_ties] = k
            n_ties += 1
    if n_left:
        _sort(ties[:n_ties], mapped.gene)
        for k in ties[:n_left]:
            mapped.is_kept[k] = True


@compiled
def _fill_tokens(  # type: ignore[no-untyped-def]
    spans, indices, bits, gene_map, n_tokens, n_kept, n_bins, is_log, target_sums, seeds, ends, flat, work
):
    """Write genes, bins and expression of each row to the arrays ``flat``, where row b ends at ``ends[b]``."""
    distinct, mapped = work
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
            _keep_highest(n, n_kept[b], distinct, n_distinct, mapped)
        place = slice(ends[b - 1] if b else 0, ends[b])
        ids, bins, levels = flat[0][place], flat[1][place], flat[2][place]
        t = k = np.uint64(0)
        while t < n_kept[b]:  # without a branch: the CPU cannot predict which tokens are kept
            slot = np.uint32(mapped.slot[k])
            ids[t], bins[t], levels[t] = mapped.gene[k], distinct.bin[slot], distinct.log[slot]
            t += np.uint64(mapped.is_kept[k])
            k += np.uint64(1)
