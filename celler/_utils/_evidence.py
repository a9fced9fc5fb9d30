"""Evidence: the trace of counts that each cell's values keep, whatever was done to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from scipy import sparse

Unit = Literal["linear", "log1p", "log2", "log10", "sqrt"]
UNITS: tuple[Unit, ...] = ("linear", "log1p", "log2", "log10", "sqrt")
#: From values back to multiples of counts.
UNDO: dict[Unit, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda values: values,
    "log1p": np.expm1,
    "log2": lambda values: np.exp2(values) - 1,
    "log10": lambda values: np.power(10.0, values) - 1,
    "sqrt": np.square,
}
#: No value of that unit is larger, in any cell: a billion reads of one gene.
LARGEST = {"linear": np.inf, "log1p": 20.8, "log2": 30.0, "log10": 9.1, "sqrt": np.inf}
WHOLE, UNKNOWN, EMPTY = len(UNITS), -1, -2  #: codes beside positions in UNITS
N_SAMPLED = 96  #: values of a cell that are compared with its smallest
FURTHEST = 20.0  #: multiples beyond this are not resolved
FEWEST = 12  #: values that a cell needs to show its unit alone
NEAR, FAR = 1e-3, 0.1  #: mean distance from whole multiples: a trace in single precision, and none; 0.25 by chance
NEAR_ROUNDED = 0.03  #: a trace in values that were rounded


class Evidence(NamedTuple):
    """What each cell shows alone ``(n,)``, and what the cells show together."""

    unit: np.ndarray  # position in UNITS, WHOLE for counts, UNKNOWN or EMPTY
    n_values: np.ndarray  # positive values (n,)
    n_compared: np.ndarray  # values compared with the smallest (n, units)
    distance: np.ndarray  # sum of their distances from whole multiples (n, units)
    n_sampled: np.ndarray  # values looked at (n,); 0 for whole numbers
    n_whole: np.ndarray  # those of which the undone value is a whole number (n, units)

    def multiples(self, rows: np.ndarray) -> Unit | None:
        """Return the unit in which the values of the cells ``rows`` are whole multiples of the smallest, if any."""
        n, total = self.n_compared[rows].sum(0), self.distance[rows].sum(0)
        mean = np.divide(total, n, out=np.full(len(UNITS), np.inf), where=n >= 5)
        if mean.min() >= 0.05:
            return None
        return UNITS[0] if mean[0] < 0.05 else UNITS[int(mean.argmin())]

    def whole(self, rows: np.ndarray) -> Unit | None:
        """Return the unit in which more than a tenth of the values of ``rows`` are whole numbers, if any."""
        share = self.n_whole[rows].sum(0) / max(1, self.n_sampled[rows].sum())
        if share.max() <= 0.1:
            return None
        return UNITS[0] if share[0] > 0.9 * share.max() else UNITS[int(share.argmax())]


def evidence(X: sparse.csr_matrix, n_sampled: int = N_SAMPLED) -> Evidence:
    """Look at ``n_sampled`` values of every cell of ``X``; zeros, negative and infinite values are passed over."""
    n_obs, lengths = X.shape[0], np.diff(X.indptr)
    unit = np.full(n_obs, EMPTY, np.int8)
    n_values, n_looked = np.zeros((2, n_obs), np.int64)
    n_compared, distance, n_whole = np.zeros((3, n_obs, len(UNITS)))
    found = Evidence(unit, n_values, n_compared, distance, n_looked, n_whole)
    rows = np.flatnonzero(lengths)
    if not len(rows):
        return found
    starts, values = X.indptr[rows], X.data
    is_there = values > 0
    n_values[rows] = np.add.reduceat(is_there, starts, dtype=np.int64)
    largest = np.maximum.reduceat(values, starts)
    is_fraction = values != np.rint(values)
    # Ones and twos are square roots and logarithms to base 2 as well.
    is_count = np.logical_not(np.logical_or.reduceat(is_fraction, starts))
    unit[rows] = np.where(is_count & (largest >= 3) & (n_values[rows] >= FEWEST), WHOLE, UNKNOWN)
    unit[n_values == 0] = EMPTY
    kept = np.flatnonzero(~is_count & (n_values[rows] > 0))
    if not len(kept):
        return found
    smallest = np.minimum.reduceat(np.where(is_there, values, np.inf), starts)[kept]
    sample = _sample(values, starts[kept], lengths[rows[kept]], n_sampled)
    off = rounding(sample)
    n_looked[rows[kept]] = np.isfinite(sample).sum(1)
    with np.errstate(all="ignore"):  # what is no logarithm overflows, and is no multiple then
        for u, name in enumerate(UNITS):
            parts = _multiples(sample, smallest.astype(np.float64)[:, None], off, UNDO[name])
            n_compared[rows[kept], u], distance[rows[kept], u], n_whole[rows[kept], u] = parts
            n_compared[rows[kept[largest[kept] > LARGEST[name]]], u] = 0
    unit[rows[kept]] = _alone(n_compared[rows[kept]], distance[rows[kept]], NEAR_ROUNDED if off.any() else NEAR)
    return found


def shows(X: sparse.csr_matrix, unit: Unit) -> np.ndarray:
    """Whether a few values of each cell are whole multiples of the smallest of them in ``unit`` ``(n,)``."""
    lengths, is_shown = np.diff(X.indptr), np.ones(X.shape[0], bool)
    rows = np.flatnonzero(lengths)
    sample = _sample(X.data, X.indptr[rows], lengths[rows], 32)
    with np.errstate(all="ignore"):
        linear = UNDO[unit](sample)
        ratio = linear / np.fmin.reduce(linear, axis=1, keepdims=True)
        is_compared = ratio <= FURTHEST
        distance = np.where(is_compared, np.abs(ratio - np.rint(ratio)), 0).sum(1)
    n_other = (is_compared & (ratio > 1.01)).sum(1)
    is_shown[rows] = (distance < NEAR_ROUNDED * n_other) & (n_other >= 3)
    if unit == "linear":
        is_shown[rows] |= ~(sample != np.rint(sample)).any(1, where=np.isfinite(sample))
    return is_shown


def _sample(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, n_sampled: int) -> np.ndarray:
    """Evenly spaced values of each cell ``(n, n_sampled)``, NaN where there are fewer or none."""
    steps = np.maximum(lengths, n_sampled)[:, None]
    offset = np.arange(n_sampled)[None, :] * steps // n_sampled
    is_in = offset < lengths[:, None]
    sample = values[starts[:, None] + np.where(is_in, offset, 0)].astype(np.float64)
    return np.where(is_in & (sample > 0) & np.isfinite(sample), sample, np.nan)


def _multiples(
    sample: np.ndarray, smallest: np.ndarray, off: np.ndarray, undo: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, by cell, values compared with the smallest, their distance from its multiples, and whole numbers."""
    linear, least = undo(sample), undo(smallest)
    ratio = linear / least
    is_near = (ratio > 1.01) & (ratio <= FURTHEST)
    distance = np.abs(ratio - np.rint(ratio))
    if off.any() and is_near.any() and distance[is_near].mean() > 10 * NEAR:
        # Rounded values are compared as far as their error lets them.
        error = (undo(sample + off) - linear + ratio * (undo(smallest + off.max(initial=0)) - least)) / least
        is_near &= error < 0.08
    distance = np.where(is_near, distance, 0.0)
    # Beyond 2,000 single precision does not resolve whole numbers after an exponential.
    is_whole = (np.abs(linear - np.rint(linear)) < 1e-5 * linear + 1e-6) & (linear > 0.5) & (linear < 2000)
    return is_near.sum(1), distance.sum(1), is_whole.sum(1)


def rounding(sample: np.ndarray) -> np.ndarray:
    """Largest error of each value by rounding to one to four decimals or to half precision; 0 for neither."""
    values = sample[np.isfinite(sample)][:20_000]
    for n_decimals in range(1, 5):
        scaled = values * 10.0**n_decimals
        if (np.abs(scaled - np.rint(scaled)) < 0.02).all():
            return np.full(sample.shape, 0.5 * 10.0**-n_decimals)
    with np.errstate(over="ignore"):
        is_half = (values.astype(np.float16) == values).all()
    return np.abs(np.nan_to_num(sample)) * (2.0**-11 if is_half else 0.0)


def _alone(n_compared: np.ndarray, distance: np.ndarray, near: float) -> np.ndarray:
    """Return the unit that each cell shows alone: multiples in it, and clearly none in the others ``(n,)``."""
    mean = np.divide(distance, n_compared, out=np.full(distance.shape, np.inf), where=n_compared >= FEWEST)
    best, rows = mean.argmin(1), np.arange(len(mean))
    # Multiples of counts are multiples when squared.
    best = np.where(mean[:, 0] < near, 0, best)
    others = mean.copy()
    others[rows, best] = np.inf
    others[best == 0, UNITS.index("sqrt")] = np.inf
    is_clear = (mean[rows, best] < near) & (others.min(1) > FAR)
    return np.where(is_clear, best, UNKNOWN).astype(np.int8)
