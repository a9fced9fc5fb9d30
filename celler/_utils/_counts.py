"""Expression values: counts, logarithms or something else, recognised by the values alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse

LARGEST_LOG = 30.0  #: ``log1p`` of a cell's largest value stays below this; counts and counts per 10,000 go far beyond
LARGEST_SUM = 1.05e6  #: no cell of logarithms of counts per million, the largest scale in use, sums to more
Kind = Literal["counts", "expected counts", "normalised", "log1p", "log2", "binned", "scaled", "not finite"]


@dataclass(frozen=True)
class InputState:
    """What expression values are, and the evidence for it in words."""

    # "expected counts" are RSEM's, "normalised" has a common library size and no logarithm, "log2" is of x + 1,
    # "binned" holds ranks, "scaled" negative values.
    kind: Kind
    evidence: str

    @property
    def is_usable(self) -> bool:
        """Whether cells can be labelled from the values."""
        return self.kind not in ("scaled", "not finite")

    @property
    def is_log(self) -> bool:
        """Whether the values are logarithms rather than proportional to counts."""
        return self.kind in ("log1p", "log2")


def check_values(values: np.ndarray, name: str, instead: Callable[[], str]) -> None:
    """Raise ``ValueError`` for a negative, NaN or infinite value; ``instead`` names what to pass."""
    is_bad = ~(np.isfinite(values) & (values >= 0))
    if is_bad.any():
        raise value_error(float(values[is_bad][0]), name, instead())


def value_error(value: float, name: str, instead: str, cell: str | None = None) -> ValueError:
    """Return the error for a value: where it is, why it cannot be used, what to pass."""
    is_scaled = value < 0 and np.isfinite(value)
    what = "negative values mean scaled or centred data" if is_scaled else "NaN and infinite values cannot be ranked"
    where = "" if cell is None else f" (cell {cell!r})"
    return ValueError(
        f"{name} holds the value {value:g}{where}; {what}. Counts or log1p-normalised counts are needed.{instead}"
    )


def cp10k(X: sparse.csr_matrix, *, is_log: bool = False) -> sparse.csr_matrix:
    """Return counts per 10,000, new and in float64, of counts ``X`` or, with ``is_log``, of ``log1p`` values."""
    # sklearn.preprocessing.normalize rounds otherwise, scanpy.pp.normalize_total works in float32: labels would change.
    X = sparse.csr_matrix(X)
    values = np.expm1(X.data.astype(np.float64)) if is_log else X.data.astype(np.float64)
    rows, counts = np.diff(X.indptr), sparse.csr_matrix((values, X.indices, X.indptr), X.shape)
    total = np.asarray(counts.sum(axis=1)).ravel()
    counts.data *= np.repeat(np.divide(1e4, total, out=np.zeros_like(total), where=total > 0), rows)
    return counts


def detect(X: sparse.csr_matrix) -> InputState:
    """Detect what the rows of ``X`` hold, by the values alone."""
    # Whole numbers are counts. Normalised counts keep a trace: without the logarithm, the values of a cell are whole
    # multiples of its smallest, or all cells have the same sum. Without a trace, values up to 30 are logarithms.
    X = X.astype(np.float64, copy=True)  # eliminate_zeros works in place
    if not np.isfinite(X.data).all():
        return InputState("not finite", "NaN or infinite values")
    X.eliminate_zeros()
    values, largest = X.data, float(X.data.max(initial=0))
    if (values < 0).any():
        share = (values < 0).sum() / (X.shape[0] * X.shape[1])
        return InputState("scaled", f"{share:.0%} of the values are below zero")
    if (values == np.round(values)).all():
        return _detect_whole(X, largest)
    traced = _traced(X) if largest <= LARGEST_LOG else None
    if traced is not None:
        return traced
    if (values == np.round(values)).mean() > 0.1:
        return InputState("expected counts", f"part whole numbers, largest {largest:g}")
    if largest > LARGEST_LOG:
        what = "all cells sum to the same" if _spread_of_sums(X) < 1e-3 else "no whole numbers"
        return InputState("normalised", f"{what}, largest {largest:g}")
    natural = np.median(_sums(X, np.expm1)) <= LARGEST_SUM
    base = "a natural logarithm" if natural else "log2, as the natural one would be too large"
    return InputState("log1p" if natural else "log2", f"largest {largest:g}, taken for {base}")


def _detect_whole(X: sparse.csr_matrix, largest: float) -> InputState:
    """Distinguish counts from bins: with bins, every cell has the same largest value."""
    n_rows = int((np.diff(X.indptr) > 0).sum())
    if n_rows >= 10 and 5 <= largest < 256:
        is_largest = X.max(axis=1).toarray().ravel() == largest
        if is_largest.sum() >= 0.99 * n_rows:
            return InputState("binned", f"whole numbers whose largest is {largest:g} in every cell")
    return InputState("counts", f"whole numbers, largest {largest:g}")


_UNDO: dict[Kind, Callable[[np.ndarray], np.ndarray]] = {
    "normalised": lambda values: values,
    "log1p": np.expm1,
    "log2": lambda values: np.exp2(values) - 1,
}


def _traced(X: sparse.csr_matrix) -> InputState | None:
    """Detect the kind by the trace of the counts that the values keep; ``None`` without a trace."""
    X = X[:: max(1, X.shape[0] // 200)]
    distance = {kind: _distance_to_multiples(X, undo) for kind, undo in _UNDO.items()}
    kind = min(distance, key=lambda kind: distance[kind])
    words = {"normalised": "", "log1p": "exp(x) - 1, ", "log2": "2^x - 1, "}
    if distance[kind] < 0.05:
        return InputState(kind, f"{words[kind]}whole multiples of each cell's smallest value")
    spread = {kind: _spread_of_sums(X, undo) for kind, undo in _UNDO.items()}
    kind = min(spread, key=lambda kind: spread[kind])
    if spread[kind] < 1e-3 and sum(value < 1e-3 for value in spread.values()) == 1:
        return InputState(kind, f"{words[kind]}of which all cells have the same sum")
    return None


def _distance_to_multiples(X: sparse.csr_matrix, undo: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean distance of multiples of a cell's smallest value from whole numbers; 0.25 by chance."""
    values, lengths = undo(X.data), np.diff(X.indptr)
    starts = X.indptr[:-1][lengths > 0]
    smallest = np.repeat(np.minimum.reduceat(values, starts), lengths[lengths > 0])
    ratio = values / smallest
    ratio = ratio[(ratio > 1.01) & (ratio <= 20)]
    return float(np.abs(ratio - np.round(ratio)).mean()) if len(ratio) >= 5 else math.inf


def _sums(X: sparse.csr_matrix, undo: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    linear = sparse.csr_matrix((undo(X.data), X.indices, X.indptr), X.shape)
    sums = np.asarray(linear.sum(axis=1)).ravel()
    return sums[sums > 0]


def _spread_of_sums(X: sparse.csr_matrix, undo: Callable[[np.ndarray], np.ndarray] = _UNDO["normalised"]) -> float:
    """Coefficient of variation of the cells' sums; infinite for fewer than three cells."""
    sums = _sums(X, undo)
    return float(sums.std() / sums.mean()) if len(sums) >= 3 else math.inf
