"""Evidence: the trace of counts that each cell's values keep, whatever was done to them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import sparse

from celler._utils._compile import compiled

Unit = Literal["linear", "log1p", "log2", "log10", "sqrt"]
UNITS: tuple[Unit, ...] = ("linear", "log1p", "log2", "log10", "sqrt")
#: No value of that unit is larger, in any cell: a billion reads of one gene.
LARGEST = {"linear": np.inf, "log1p": 20.8, "log2": 30.0, "log10": 9.1, "sqrt": np.inf}
WHOLE, UNKNOWN, EMPTY = len(UNITS), -1, -2  #: codes beside positions in UNITS
N_SAMPLED = 96  #: values of a cell that are compared with its smallest
N_QUICK = 32  #: values in which most cells show the unit that is known
FURTHEST = 20.0  #: multiples beyond this are not resolved
FEWEST = 12  #: values that a cell needs to show its unit alone
NEAR, FAR = 1e-3, 0.1  #: mean distance from whole multiples: a trace in single precision, and none; 0.25 by chance
NEAR_ROUNDED = 0.03  #: a trace in values that were rounded


def undone(values: Any, unit: int) -> Any:
    """Return multiples of counts of ``values``, an array or one number, which are in ``UNITS[unit]``."""
    if unit == 1:
        return np.expm1(values)
    if unit == 2:
        return np.exp2(values) - 1
    if unit == 3:
        return 10.0**values - 1
    return values * values if unit == 4 else values


_undone = compiled(undone)  # of one number, in a loop


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
            parts = _multiples(sample, smallest.astype(np.float64)[:, None], off, u)
            n_compared[rows[kept], u], distance[rows[kept], u], n_whole[rows[kept], u] = parts
            n_compared[rows[kept[largest[kept] > LARGEST[name]]], u] = 0
    unit[rows[kept]] = _alone(n_compared[rows[kept]], distance[rows[kept]], NEAR_ROUNDED if off.any() else NEAR)
    return found


def shows(X: sparse.csr_matrix, unit: Unit) -> np.ndarray:
    """Whether a few values of each cell are whole multiples of the smallest of them in ``unit`` ``(n,)``."""
    return _shows(*_values(X), UNITS.index(unit))


def may_show_another(X: sparse.csr_matrix, unit: Unit) -> np.ndarray:
    """Whether :func:`evidence` of 48 values can find another unit than ``unit`` in each cell ``(n,)``."""
    return _may_show_another(*_values(X), UNITS.index(unit), np.array([LARGEST[name] for name in UNITS]))


def _values(X: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return values, in one of the two types that code is compiled for, and where rows begin and end."""
    values = X.data if X.data.dtype in (np.float32, np.float64) else X.data.astype(np.float64)
    return values, X.indptr.astype(np.int64)


@compiled
def _shows(values, ends, unit):  # type: ignore[no-untyped-def]
    is_shown = np.ones(len(ends) - 1, np.bool_)
    for b in range(len(is_shown)):
        first, length = ends[b], ends[b + 1] - ends[b]
        least, is_whole = np.inf, True
        for k in range(min(length, N_QUICK)):
            value = values[first + k * max(length, N_QUICK) // N_QUICK]
            if 0 < value < np.inf:
                is_whole &= value == np.rint(value)
                least = min(least, np.float64(value))
        if length == 0 or (unit == 0 and is_whole):
            continue
        one, n, distance = _undone(least, unit), 0, 0.0
        for k in range(min(length, N_QUICK)):
            value = np.float64(values[first + k * max(length, N_QUICK) // N_QUICK])
            if not least < value < np.inf or not one > 0:
                continue
            ratio = _undone(value, unit) / one
            if ratio <= FURTHEST:
                distance += abs(ratio - np.rint(ratio))
                n += ratio > 1.01
            if n == 8:
                break
        is_shown[b] = n >= 3 and distance < NEAR_ROUNDED * n
    return is_shown


@compiled
def _may_show_another(values, ends, unit, limits):  # type: ignore[no-untyped-def]
    is_possible = np.zeros(len(ends) - 1, np.bool_)
    for b in range(len(is_possible)):
        least, largest, is_whole = np.inf, 0.0, True
        for value in values[ends[b] : ends[b + 1]]:
            if value > 0:
                least, largest = min(least, np.float64(value)), max(largest, np.float64(value))
                is_whole &= value == np.rint(value)
        is_possible[b] = is_whole and unit > 0
        for other in range(len(limits)):
            if other != unit and largest <= limits[other] and not is_possible[b]:
                is_possible[b] = _may_be(values[ends[b] : ends[b + 1]], least, other)
    return is_possible


@compiled
def _may_be(cell, least, unit):  # type: ignore[no-untyped-def]
    """Whether values are near multiples of the smallest; by chance their mean distance is 0.25, if rounded 0.03."""
    one, n, distance = _undone(least, unit), 0, 0.0
    for k in range(min(len(cell), 48)):
        value = np.float64(cell[k * max(len(cell), 48) // 48])
        if not least < value < np.inf or not one > 0:
            continue
        ratio = _undone(value, unit) / one
        if 1.01 < ratio <= FURTHEST:
            distance += abs(ratio - np.rint(ratio))
            n += 1
        if n >= 6 and distance > 0.15 * n:
            return False
    return n >= FEWEST


def _sample(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, n_sampled: int) -> np.ndarray:
    """Evenly spaced values of each cell ``(n, n_sampled)``, NaN where there are fewer or none."""
    steps = np.maximum(lengths, n_sampled)[:, None]
    offset = np.arange(n_sampled)[None, :] * steps // n_sampled
    is_in = offset < lengths[:, None]
    sample = values[starts[:, None] + np.where(is_in, offset, 0)].astype(np.float64)
    return np.where(is_in & (sample > 0) & np.isfinite(sample), sample, np.nan)


def _multiples(
    sample: np.ndarray, smallest: np.ndarray, off: np.ndarray, unit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, by cell, values compared with the smallest, their distance from its multiples, and whole numbers."""
    linear, least = undone(sample, unit), undone(smallest, unit)
    ratio = linear / least
    is_near = (ratio > 1.01) & (ratio <= FURTHEST)
    distance = np.abs(ratio - np.rint(ratio))
    if off.any() and is_near.any() and distance[is_near].mean() > 10 * NEAR:
        # Rounded values are compared as far as their error lets them.
        rounded, least_rounded = undone(sample + off, unit), undone(smallest + off.max(initial=0), unit)
        error = (rounded - linear + ratio * (least_rounded - least)) / least
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
