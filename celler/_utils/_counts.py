"""Expression values: counts, logarithms or something else, recognised by the values alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from celler._utils._evidence import (
    EMPTY,
    UNITS,
    UNKNOWN,
    WHOLE,
    Evidence,
    Unit,
    evidence,
    may_show_another,
    shows,
    undone,
)

ROWS_AT_ONCE = 1000  #: cells that are scaled in one operation
LARGEST_SUM = 1.05e6  #: no cell of logarithms of counts per million, the largest scale in use, sums to more
LARGEST_LOG = 23.3  #: log2 of ten times as much: without a trace of counts, no logarithm is larger
Kind = Literal[
    "counts", "expected counts", "normalised", "log1p", "log2", "log10", "sqrt", "binned", "binary", "scaled", "mixed",
    "not finite",
]  # fmt: skip
#: Kinds that are proportional to counts.
LINEAR: tuple[Kind, ...] = ("counts", "expected counts", "normalised", "binned", "binary")


@dataclass(frozen=True)
class InputState:
    """What expression values are, and the evidence for it in words."""

    # "expected counts" are those of RSEM and of ambient correction, "normalised" has a common library size and no
    # logarithm, "log2" and "log10" are of x + 1, "binned" holds ranks, "binary" ones, "scaled" negative values or a
    # unit for each gene, "mixed" cells of different units.
    kind: Kind
    evidence: str
    is_traced: bool = True  # whether the values show their unit; else it is what remains
    odd: int | None = None  # row of a cell whose unit is another

    @property
    def is_usable(self) -> bool:
        """Whether cells can be labelled from the values."""
        return self.kind not in ("scaled", "mixed", "not finite")

    @property
    def is_log(self) -> bool:
        """Whether the values, as they are read, are logarithms rather than proportional to counts."""
        return self.kind in ("log1p", "log2", "log10")

    @property
    def unit(self) -> Unit:
        """The unit of the stored values."""
        return self.kind if self.kind in ("log1p", "log2", "log10", "sqrt") else "linear"


def check_values(values: np.ndarray, name: str, instead: Callable[[], str]) -> None:
    """Raise ``ValueError`` for a negative, NaN or infinite value; ``instead`` names what to pass."""
    is_bad = ~(np.isfinite(values) & (values >= 0))
    if not is_bad.any():
        return
    value = float(values[is_bad][0])
    advice = instead()
    if np.isfinite(values).all():
        if (values == np.rint(values)).all():
            advice = f" Whole numbers below zero are what an integer type that overflowed leaves.{advice}"
        elif values.min() > -0.01 * values.max():
            advice = (
                " So small ones are left by smoothing or by subtraction; they may be set to 0: "
                f"{name}[{name} < 0] = 0.{advice}"
            )
    raise value_error(value, name, advice)


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
    counts = sparse.csr_matrix((values, X.indices, X.indptr), X.shape)
    total = np.asarray(counts.sum(axis=1)).ravel()
    factor = np.divide(1e4, total, out=np.zeros_like(total), where=total > 0)
    for start in range(0, len(total), ROWS_AT_ONCE):  # in steps: a factor for each value takes as much as the values
        rows = slice(start, start + ROWS_AT_ONCE)
        ends = counts.indptr[start : start + ROWS_AT_ONCE + 1]
        counts.data[ends[0] : ends[-1]] *= np.repeat(factor[rows], np.diff(ends))
    return counts


def detect(X: sparse.csr_matrix) -> InputState:
    """Detect what the rows of ``X`` hold, by the values alone."""
    # Whole numbers are counts. What was made of counts keeps a trace: undone, the values of a cell are whole multiples
    # of its smallest, or all cells have the same sum. Each cell is looked at alone, as samples may differ.
    X = X.astype(np.float64, copy=True)  # eliminate_zeros works in place
    if not np.isfinite(X.data).all():
        return InputState("not finite", "NaN or infinite values")
    X.eliminate_zeros()
    if (X.data < 0).any():
        share = (X.data < 0).sum() / (X.shape[0] * X.shape[1])
        return InputState("scaled", f"{share:.0%} of the values are below zero")
    found = evidence(X)
    mixed = find_mixed(found)
    if mixed is not None:
        return mixed
    if (X.data == np.rint(X.data)).all():
        return _detect_whole(X)
    equal = _of_equal_values(X)
    if equal is not None:
        return equal
    state = _of_fractions(X, found)
    # Cells of whole numbers have no trace where their values are few, but no logarithm is whole.
    is_whole = (found.n_sampled == 0) & (found.n_values >= 2)
    if state.unit in ("log1p", "log10") and is_whole.sum() >= max(FEW_CELLS, 0.01 * X.shape[0]):
        words = f"some cells hold {_CALLED['linear']}, others {_CALLED[state.unit]}"
        return InputState("mixed", words, odd=int(np.flatnonzero(is_whole)[0]))
    return state


def _of_fractions(X: sparse.csr_matrix, found: Evidence) -> InputState:
    """Detect what cells hold of which some have fractions."""
    clear, open_rows = _clear_unit(found), np.flatnonzero((found.unit == UNKNOWN) & (found.n_sampled > 0))
    rest = X[open_rows]
    if clear is None:
        return _together(rest, found, open_rows)
    if len(open_rows) < max(FEW_CELLS, 0.01 * X.shape[0]) or found.multiples(open_rows) == clear:
        return _state_of(clear, found)
    return _with_rest(X, found, clear, _together(rest, found, open_rows), open_rows)


FEW_CELLS = 2  #: cells that disagree with the others by more than chance
_WORDS: dict[Unit, str] = {
    "linear": "", "log1p": "exp(x) - 1, ", "log2": "2^x - 1, ", "log10": "10^x - 1, ", "sqrt": "squares, ",
}  # fmt: skip
_CALLED: dict[Unit, str] = {
    "linear": "counts or values proportional to them", "log1p": "natural logarithms", "log2": "logarithms to base 2",
    "log10": "logarithms to base 10", "sqrt": "square roots",
}  # fmt: skip


def find_mixed(found: Evidence, unit: Unit | None = None, n_cells: int | None = None) -> InputState | None:
    """Detect cells whose unit is not that of most cells, or not ``unit``; ``None`` where there are none.

    ``n_cells`` is their number where cells that show no other unit were left out.
    """
    codes = np.where(found.unit == WHOLE, 0, found.unit)
    cells = np.bincount(codes[codes >= 0], minlength=len(UNITS))
    most = int(cells.argmax()) if unit is None else UNITS.index(unit)
    others = cells.copy()
    others[most] = 0
    if not others.any():
        return None
    other = int(others.argmax())
    # Counts of 1, 4 and 9 alone have whole square roots, those of 1, 3 and 7 logarithms.
    share = 0.1 if {UNITS[most], UNITS[other]} & {"sqrt", "log2"} and 0 in (most, other) else 0.001
    n_cells = len(codes) if n_cells is None else n_cells
    if others.sum() < (max(FEW_CELLS, share * n_cells) if n_cells > 1 else 1):
        return None
    odd = int(np.flatnonzero(codes == other)[0])
    if unit is None and np.flatnonzero(codes == most)[0] == 0 == odd:
        odd = int(np.flatnonzero(codes == other)[-1])
    words = f"some cells hold {_CALLED[UNITS[most]]}, others {_CALLED[UNITS[other]]}"
    return InputState("mixed", words, odd=odd)


#: What makes natural logarithms of others.
FACTORS = {"log2": math.log(2), "log10": math.log(10)}


def as_read(X: sparse.csr_matrix, state: InputState) -> sparse.csr_matrix:
    """Return natural logarithms for those of other bases, and squares for square roots; else ``X`` itself."""
    if state.kind == "sqrt":
        return X.power(2)
    return X * X.dtype.type(FACTORS[state.kind]) if state.kind in FACTORS else X


def contradiction(X: sparse.csr_matrix, state: InputState) -> InputState | None:
    """Detect cells of ``X`` whose values are clearly of another unit than ``state`` says."""
    if not state.is_usable:
        return None
    # Most cells show the unit in a few values, and others can show none: both are told a hundred times as fast.
    rows = np.flatnonzero(~shows(X, state.unit))
    n_open = len(rows)
    if n_open:
        rows = rows[may_show_another(X if n_open == X.shape[0] else X[rows], state.unit)]
    if not len(rows):
        return None
    odd = find_mixed(evidence(X[rows], n_sampled=48), state.unit, n_open)
    return None if odd is None else replace(odd, odd=int(rows[odd.odd or 0]))


DOMINANT = 0.95  #: share of a cell's expression that no single gene has in most cells


def dominant_gene(X: sparse.csr_matrix, state: InputState) -> int | None:
    """Column of the gene that has nearly all expression of most cells, if there is one."""
    lengths = np.diff(X.indptr)
    X = X[lengths > 0].astype(np.float64)
    X.data = undone(X.data, UNITS.index(state.unit))
    total, largest = (np.asarray(part).ravel() for part in (X.sum(axis=1), X.max(axis=1).toarray()))
    is_one = (largest > DOMINANT * total) & (total > 0)
    if not is_one.any():
        return None
    n_cells = np.bincount(np.asarray(X[is_one].argmax(axis=1)).ravel())
    return int(n_cells.argmax()) if 2 * n_cells.max() > (total > 0).sum() else None


def unusable(state: InputState, name: str, cell: str, instead: str) -> ValueError:
    """Return the error for values that are scaled, or of which cells hold different kinds."""
    if state.kind == "mixed":
        return ValueError(
            f"{name} is a mixture: {state.evidence} (such as cell {cell!r}). All cells need values of one kind: put "
            f"the samples together again from their counts.{instead}"
        )
    if state.kind == "not finite":
        return value_error(np.nan, name, instead)
    return ValueError(
        f"{name} looks scaled ({state.evidence}); scaling hides how strongly a gene is expressed. Counts or "
        f"log1p-normalised counts are needed.{instead}"
    )


def _detect_whole(X: sparse.csr_matrix) -> InputState:
    """Distinguish counts from bins, with the same largest value in every cell, and from presence, with ones alone."""
    largest, n_values = float(X.data.max(initial=0)), np.diff(X.indptr)
    n_rows = int((n_values > 0).sum())
    if n_rows >= 10 and 5 <= largest < 256:
        is_largest = X.max(axis=1).toarray().ravel() == largest
        if is_largest.sum() >= 0.99 * n_rows:
            return InputState("binned", f"whole numbers whose largest is {largest:g} in every cell")
    if largest == 1 and np.median(n_values) >= FEWEST_EQUAL and len(X.data) >= 500:
        return InputState("binary", "every value is 0 or 1")
    return InputState("counts", f"whole numbers, largest {largest:g}")


FEWEST_EQUAL = 10  #: values of a cell that counts would not all have in common


def _of_equal_values(X: sparse.csr_matrix) -> InputState | None:
    """Detect presence that was normalised or put into logarithms: one value in each cell."""
    n_values = np.diff(X.indptr)
    if np.median(n_values) < FEWEST_EQUAL or len(X.data) < 500:
        return None
    full = X[n_values >= FEWEST_EQUAL]
    largest, smallest = (reduce(full.data, full.indptr[:-1]) for reduce in (np.maximum.reduceat, np.minimum.reduceat))
    is_equal = largest <= smallest * (1 + 1e-5)
    return InputState("binary", "all values of a cell are equal") if is_equal.mean() > 0.99 else None


def _clear_unit(found: Evidence) -> Unit | None:
    """Return the unit that cells show alone, ``None`` where fewer than one in fifty does."""
    codes = np.where(found.unit == WHOLE, 0, found.unit)
    shown = codes[codes >= 0]
    is_enough = len(shown) >= max(1, 0.02 * (codes != EMPTY).sum())
    return UNITS[int(np.bincount(shown).argmax())] if is_enough else None


def _state_of(unit: Unit, found: Evidence) -> InputState:
    words = f"{_WORDS[unit]}whole multiples of each cell's smallest value"
    if unit != "linear":
        return InputState(unit, words)
    is_count = (found.unit == WHOLE).sum() > (found.unit == 0).sum()
    return InputState("normalised", f"whole numbers, or {words}" if is_count else words)


def _with_rest(
    X: sparse.csr_matrix, found: Evidence, clear: Unit, rest: InputState, open_rows: np.ndarray
) -> InputState:
    """Join the unit that some cells show with the state of those that show none."""
    if not rest.is_usable:
        return rest
    same = _state_of(clear, found)
    if rest.unit == clear:
        return rest if rest.kind == "expected counts" else same
    # Deep cells of logarithms show no multiples, as their smallest count is no one: only what cannot be is mixed.
    largest = X.max(axis=1).toarray().ravel()
    if clear == "linear":
        is_mixed = bool(np.median(largest[found.unit >= 0]) > LARGEST_LOG) or bool((found.unit == WHOLE).any())
    else:
        is_mixed = rest.unit == "linear" and rest.is_traced
    if not is_mixed:
        return same
    words = f"some cells hold {_CALLED[clear]}, others {_CALLED[rest.unit]}"
    return InputState("mixed", words, odd=int(open_rows[0]))


def _together(X: sparse.csr_matrix, found: Evidence, rows: np.ndarray) -> InputState:
    """Detect what the cells ``X`` hold that show nothing alone, ``rows`` of the evidence."""
    unit = found.multiples(rows)
    if unit is not None:
        kind: Kind = "normalised" if unit == "linear" else unit
        return InputState(kind, f"{_WORDS[unit]}whole multiples of each cell's smallest value")
    unit = found.whole(rows)
    if unit is not None:
        kind = "expected counts" if unit == "linear" else unit
        return InputState(kind, f"{_WORDS[unit]}part whole numbers, largest {X.data.max():g}")
    scaled = _scaled(X)
    if scaled is not None:
        return InputState("scaled", scaled)
    of_sums = {each: spread_of_sums(X, each) for each in UNITS}
    same: Unit = "linear" if of_sums["linear"] < SAME else min(UNITS, key=lambda each: of_sums[each])
    if of_sums[same] < SAME:
        return InputState(
            "normalised" if same == "linear" else same, f"{_WORDS[same]}of which all cells have the same sum"
        )
    return _without_trace(X)


SAME = 1e-3  #: coefficient of variation of what is the same for all cells, but for rounding


def _scaled(X: sparse.csr_matrix) -> str | None:
    """Describe a scale that each gene, or each cell after its logarithm, has of its own; ``None`` for neither."""
    n_obs, n_cells = X.shape[0], np.bincount(X.indices, minlength=X.shape[1])
    if n_obs < 10:
        return None
    if spread_of_sums(X, "sqrt") < SAME and abs(sums(X, "sqrt").mean() - 1) < 0.01:
        return "the squares of each cell sum to 1"
    largest = X.max(axis=0).toarray().ravel()
    is_seen = n_cells >= 5
    if is_seen.sum() >= 10 and (largest[is_seen] >= largest.max() * (1 - 1e-5)).mean() > 0.9:
        return f"the largest value of most genes is {largest.max():g}"
    is_often = (n_cells >= 20) & (n_cells > 0.05 * n_obs)
    if is_often.sum() >= 10:
        squares, total = (np.asarray(part.sum(axis=0)).ravel()[is_often] for part in (X.power(2), X))
        for name, values in (
            ("standard deviation", np.sqrt((squares - total**2 / n_obs).clip(min=0) / (n_obs - 1))),
            ("root mean square", np.sqrt(squares / (n_obs - 1))),
        ):
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            if high < 1.15 * low and 0.85 < middle < 1.2:
                return f"the {name} of most genes is near 1"
    # Highly expressed genes have larger values where they are expressed, unless each gene was divided by its own.
    is_some = is_seen & (n_cells < 0.9 * n_obs)
    level = np.bincount(X.indices, np.log(X.data), X.shape[1])[is_some] / n_cells[is_some]
    if is_some.sum() >= 30 and _rank_correlation(n_cells[is_some], level) < -0.4:
        return "the fewer cells express a gene, the larger are its values, as if each gene had been divided by its own"
    return None


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation, 0 where all values are equal."""
    x, y = rankdata(x), rankdata(y)
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else 0.0


def _without_trace(X: sparse.csr_matrix) -> InputState:
    """Detect what values can be that keep no trace of counts; logarithms remain, and are not certain."""
    largest = float(X.data.max())
    if largest > LARGEST_LOG or sums(X, "log2").max(initial=0) > 10 * LARGEST_SUM:
        return InputState("normalised", f"no whole numbers, largest {largest:g}, more than logarithms have")
    full = X[np.diff(X.indptr) >= 5]
    if full.shape[0] >= 10:
        low = np.array([np.quantile(cell, 0.25) for cell in np.split(full.data, full.indptr[1:-1])])
        if 0.7 < np.median(low) <= 1.01 and np.log(low).std() < 0.1:
            return InputState("expected counts", f"the lower values of each cell are just below 1, largest {largest:g}")
        linear = np.exp2(full.data) - 1
        top = np.maximum.reduceat(linear, full.indptr[:-1]) / np.add.reduceat(linear, full.indptr[:-1])
        if np.median(top) > 0.2 and np.log(sums(full, "log2")).std() > 1.4:
            return InputState(
                "expected counts", f"largest {largest:g}; as logarithms, cells would differ a hundredfold"
            )
    if X.shape[0] and sums(X).max(initial=0) <= 1.001 and np.median(np.diff(X.indptr)) >= 10:
        return InputState("normalised", "no cell sums to more than 1")
    is_natural = np.median(sums(X, "log1p")) <= LARGEST_SUM
    base = "a natural logarithm" if is_natural else "log2, for which the largest is not too large"
    words = f"largest {largest:g}; no trace of counts was found, so it is taken for {base}"
    return InputState("log1p" if is_natural else "log2", words, is_traced=False)


def sums(X: sparse.csr_matrix, unit: Unit = "linear") -> np.ndarray:
    """Sum of the undone values of each cell that has any."""
    with np.errstate(over="ignore"):
        linear = sparse.csr_matrix((undone(X.data, UNITS.index(unit)), X.indices, X.indptr), X.shape)
    found = np.asarray(linear.sum(axis=1)).ravel()
    return found[found > 0]


def spread_of_sums(X: sparse.csr_matrix, unit: Unit = "linear") -> float:
    """Coefficient of variation of the cells' sums; infinite for fewer than three cells."""
    found = sums(X, unit)
    if len(found) < 3 or not np.isfinite(found).all():
        return np.inf
    return float((found / found.max()).std() / (found / found.max()).mean())
