"""Tokenizer: CSR rows to gene ids, rank bins and log1p expression, in compiled code and never dense."""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from celler.data._token_loops import Cells, cells_of, fill_tokens, workspace

__all__ = ["BadValueError", "FlatTokens", "TokenBatch", "TokenBatches", "Tokenizer"]
TARGET_SUM = 1e4  #: library size to which every cell is scaled before ``log1p``
N_REUSED = 8  #: pieces of memory of each size that are kept for the next tokens


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
        Tokens of all minibatches, each part flat ``(N,)``, and (B, places for tokens) of each minibatch.
    widths
        Places of each minibatch that its longest cell needs.
    """

    flat: TokenBatch
    shapes: list[tuple[int, int]]
    widths: list[int]

    def __iter__(self) -> Iterator[TokenBatch]:
        areas = [n_cells * n_places for n_cells, n_places in self.shapes]
        parts = zip(*(part.split(areas) for part in self.flat), strict=True)
        for each, shape, width in zip(parts, self.shapes, self.widths, strict=True):
            yield TokenBatch(*(part.view(shape)[:, :width] for part in each))


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
        cells, ends = cells_of(X, gene_map, rows), np.cumsum(sizes)[:-1]
        # Every value may be a token: how many are is known when the cell is read, once.
        n_places = _widths(self._kept_of(cells.lengths, token_dropout), ends)
        of_cell = np.repeat(n_places, sizes)
        starts, size = np.cumsum(of_cell) - of_cell, int(of_cell.sum())
        (genes, values, expression), n_kept = self._filled(
            cells, starts, size, is_log, target_sum, token_dropout, seeds
        )
        shapes = list(zip(sizes, n_places, strict=True))
        return TokenBatches(TokenBatch(genes, values, expression, values == 0), shapes, _widths(n_kept, ends))

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
        cells = cells_of(X, gene_map, rows)
        size = int(self._kept_of(cells.lengths).sum())
        (genes, _, expression), n_kept = self._filled(cells, None, size, is_log, target_sum)
        ends = np.cumsum(n_kept)
        starts, n_tokens = torch.from_numpy((ends - n_kept).astype(np.int32)), int(n_kept.sum())
        return FlatTokens(genes[:n_tokens], expression[:n_tokens], starts)

    def _kept_of(self, n_tokens: np.ndarray, token_dropout: float = 0.0) -> np.ndarray:
        """Return how many of ``n_tokens (B,)`` of each cell are kept."""
        return np.minimum(np.ceil(n_tokens * (1.0 - token_dropout)).astype(np.int64), self._most)

    @property
    def _most(self) -> int:
        return np.iinfo(np.int64).max if self.max_genes is None else self.max_genes

    def _filled(
        self,
        cells: Cells,
        starts: np.ndarray | None,
        size: int,
        is_log: bool,
        target_sum: float | np.ndarray,
        token_dropout: float = 0.0,
        seeds: np.ndarray | None = None,
    ) -> tuple[tuple[Tensor, ...], np.ndarray]:
        """Return genes, bins and expression ``(size,)``, 0 where there is no token, and the tokens of each cell.

        A cell begins at ``starts (B,)``, or ``None`` where the one before ends.
        """
        n_cells = len(cells.spans)
        taken = [_reused.take(size, dtype) for dtype in (np.int32, np.uint8, np.float32)]
        flat, tensors = (tuple(each) for each in zip(*taken, strict=True))
        none = np.empty(0, np.int64)
        places = (none, none) if starts is None else (starts, np.append(starts[1:], size))
        seeds = np.empty(0, np.uint64) if seeds is None else seeds
        target_sums = np.broadcast_to(np.float64(target_sum), n_cells).copy()
        how = self.n_bins, is_log, 1.0 - token_dropout, self._most
        n_kept = np.empty(n_cells, np.int64)
        work = workspace(int(cells.lengths.max(initial=0)), cells.columns.dtype)
        bad_row = fill_tokens(cells, how, target_sums, seeds, places, (flat, n_kept), work)
        if bad_row >= 0:
            row = cells.bits[slice(*cells.spans[bad_row])].view(np.float32)
            raise BadValueError(bad_row, float(row[~((row >= 0) & np.isfinite(row))][0]))
        return tensors, n_kept


def _widths(n_tokens: np.ndarray, ends: np.ndarray) -> list[int]:
    """Return the most tokens of a cell, at least 1, for each minibatch; these end at ``ends``."""
    return [max(1, int(part.max(initial=0))) for part in np.split(n_tokens, ends)]


class _Reused:
    """Memory of tensors that nobody holds any more, for the next ones.

    Tokens are freed by another thread than the one that makes them: the system's memory then gets full of holes, and an
    epoch over a million cells took up to 1.5 GB more than it holds.
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[np.ndarray]] = defaultdict(lambda: deque(maxlen=N_REUSED))

    def take(self, size: int, dtype: type[np.generic]) -> tuple[np.ndarray, Tensor]:
        """Return an array ``(size,)`` of any contents to write to, and its tensor, which alone may be kept."""
        n_bytes = size * np.dtype(dtype).itemsize
        free = self._free[n_bytes.bit_length()]
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(1 << n_bytes.bit_length(), np.uint8)
        array = memory[:n_bytes].view(dtype)
        weakref.finalize(array, free.append, memory).atexit = False
        return array, torch.from_numpy(array)


_reused = _Reused()
