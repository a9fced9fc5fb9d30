"""Inputs: rows of expression from any AnnData as CSR, and what the values are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
from anndata import AnnData
from scipy import sparse

from celler._utils._messages import closest, warn

#: ``log1p`` of a cell's largest value stays below this; counts and CP10K go far beyond.
LARGEST_LOG = 30.0
#: Rows looked at to tell what the values are.
N_PROBED = 1000
#: No cell of logarithms of counts per million, the largest scale in use, sums to more.
LARGEST_SUM = 1.05e6
Kind = Literal[
    "counts", "expected counts", "normalised", "log1p", "log2", "binned", "scaled", "not finite"
]


@dataclass(frozen=True)
class InputState:
    """What expression values are, and the evidence for it in words.

    kind: ``"counts"``; ``"expected counts"``, as RSEM gives them; ``"normalised"`` to a library size
        and not logarithmised; ``"log1p"``; ``"log2"`` of x + 1; ``"binned"`` into ranks;
        ``"scaled"``, with negative values; or ``"not finite"``.
    """

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


@dataclass(frozen=True)
class ExpressionReader:
    """Reads rows of ``adata.X`` or of a layer as CSR float32 and never changes ``adata``.

    Views, files in backed mode, CSR, CSC and dense matrices all read alike, a chunk at a time.
    log2(x + 1) values are read as the natural logarithm, all others as they are.
    """

    adata: AnnData
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer not in self.adata.layers:
            layers = [name for name in self.adata.layers if name is not None]
            raise KeyError(
                f"layer={self.layer!r} is not in adata.layers, which has {layers}."
                f"{closest(self.layer, layers)}"
            )
        # No rows are asked of X: those of a view would all be copied, those of a file read.
        if self.layer is None and not self.adata.isbacked and self.adata[:0].X is None:
            raise ValueError(
                "adata.X is None; pass layer= to name the layer with the expression values."
            )

    @property
    def name(self) -> str:
        """Where the values come from, for messages."""
        return "adata.X" if self.layer is None else f"adata.layers[{self.layer!r}]"

    def rows(self, index: np.ndarray) -> sparse.csr_matrix:
        """The rows ``index (n,)`` in the order given, ``(n, n_vars)``."""
        # Files are read in rising order only, each row once, and fastest as one range.
        distinct, position = np.unique(index, return_inverse=True)
        is_range = len(distinct) > 0 and distinct[-1] - distinct[0] == len(distinct) - 1
        rows = slice(int(distinct[0]), int(distinct[-1]) + 1) if is_range else distinct
        block = self._natural(_canonical(self._values(rows)))
        return block if np.array_equal(distinct, index) else block[position]

    def matrix(self) -> sparse.csr_matrix:
        """All rows, without a copy where the values already are CSR float32 in memory."""
        return self._natural(self._whole())

    def probe(self) -> sparse.csr_matrix:
        """A thousand or two of the rows, spread evenly over the cells, with the values as stored."""
        return _canonical(self._values(_spread(self.adata.n_obs)))

    @cached_property
    def state(self) -> InputState:
        """What the values are, told from :meth:`probe`."""
        return detect(self.probe())

    def _natural(self, X: sparse.csr_matrix) -> sparse.csr_matrix:
        return X * np.float32(math.log(2)) if self.state.kind == "log2" else X

    def _whole(self) -> sparse.csr_matrix:
        X = self._stored(self.adata)
        if hasattr(X, "to_memory"):
            X = X.to_memory()
        elif not (sparse.issparse(X) or isinstance(X, np.ndarray)):
            X = X[:]
        return _canonical(X)

    def _values(self, rows: slice | np.ndarray) -> Any:
        if self._converted is not None:
            return self._converted[rows]
        return self._stored(self._indexable[rows])

    def _stored(self, adata: AnnData) -> Any:
        return adata.X if self.layer is None else adata.layers[self.layer]

    @cached_property
    def _converted(self) -> sparse.csr_matrix | None:
        """The whole as CSR where it is CSC in memory, in which each row costs a pass over everything."""
        if self.adata.isbacked:
            return None
        X = self._stored(self.adata[:0])  # of a view, this is cheaper to look at than the whole
        return self._whole() if sparse.issparse(X) and X.format == "csc" else None

    @cached_property
    def _indexable(self) -> AnnData:
        """``adata``, or its copy in memory where it is a view of a file, which anndata 0.12 cannot index."""
        try:
            self.adata[:0]
        except ValueError:
            return self.adata.to_memory()
        return self.adata


def _canonical(X: Any) -> sparse.csr_matrix:
    """``X`` as CSR float32 with each entry once, without a copy where it is that already."""
    block = sparse.csr_matrix(X, dtype=np.float32)
    if not block.has_canonical_format:
        block = block.copy()
        block.sum_duplicates()
    return block


def query_reader(adata: AnnData, layer: str | None) -> ExpressionReader:
    """Reads the reference's ``layer`` of a query, or ``X``, and says so, where the query lacks it."""
    if layer is None or layer in adata.layers:
        return ExpressionReader(adata, layer)
    warn(
        f"the model was set up with layer={layer!r}, which this AnnData lacks; its X is used instead."
    )
    return ExpressionReader(adata)


def is_log(reader: ExpressionReader) -> bool:
    """Whether the values are logarithms rather than proportional to counts.

    Raises ``ValueError`` where :func:`check_values` does.
    """
    if not reader.state.is_usable:
        check_values(reader.probe(), reader)
    return reader.state.is_log


def warn_of_binned(reader: ExpressionReader) -> None:
    """Warn where values are ranks already: the magnitudes that the evidence expert reads are gone."""
    if reader.state.kind == "binned":
        warn(
            f"{reader.name} looks binned already ({reader.state.evidence}); counts or log1p-normalised counts "
            f"are needed, and labels from bins are less certain.{_elsewhere_in_words(reader)}"
        )


def check_values(X: sparse.csr_matrix, reader: ExpressionReader) -> np.ndarray:
    """The stored values of ``X``; raises ``ValueError`` for negative, NaN or infinite ones."""
    values = X.data
    is_bad = ~(np.isfinite(values) & (values >= 0))
    if is_bad.any():
        raise bad_value(float(values[is_bad][0]), reader)
    return values


def bad_value(value: float, reader: ExpressionReader, cell: str | None = None) -> ValueError:
    """The error for a value that is not allowed: what was found, what is needed, what to do."""
    where = f"{reader.name} holds the value {value:g}" + (
        f" (cell {cell!r})" if cell is not None else ""
    )
    if value < 0 and np.isfinite(value):
        what = "negative values mean scaled or centred data"
    else:
        what = "NaN and infinite values cannot be ranked"
    todo = _elsewhere_in_words(reader) or " Pass the layer or object that holds them."
    return ValueError(f"{where}; {what}. Counts or log1p-normalised counts are needed.{todo}")


def elsewhere(reader: ExpressionReader) -> dict[str, InputState]:
    """What the other matrices of the AnnData hold, by what to pass for them, the usable ones only."""
    adata = reader.adata
    others = {
        f"layer={name!r}": ExpressionReader(adata, name).state
        for name in adata.layers
        if name not in (None, reader.layer)
    }
    if reader.layer is not None and (adata.isbacked or adata[:0].X is not None):
        others["adata.X (layer=None)"] = ExpressionReader(adata).state
    if adata.raw is not None:
        others["adata.raw.to_adata()"] = detect(_canonical(adata.raw.X[_spread(adata.n_obs)]))
    usable = {name: state for name, state in others.items() if state.is_usable}
    return dict(sorted(usable.items(), key=lambda item: item[1].kind != "counts"))


def _elsewhere_in_words(reader: ExpressionReader) -> str:
    """What to pass instead, as a sentence that starts with a space; empty where there is nothing."""
    others = elsewhere(reader)
    if not others:
        return ""
    found = [f"{name} ({state.kind})" for name, state in others.items()]
    has_layers = any("layer" in name for name in others)
    copy = "; predict has no layer argument, so give it a copy with those values in X"
    return f" Here, pass {' or '.join(found)}{copy if has_layers else ''}."


def _spread(n_obs: int) -> slice:
    return slice(None, None, max(1, n_obs // N_PROBED))


# ---- what values are ----
def detect(X: sparse.csr_matrix) -> InputState:
    """What the rows of ``X`` hold, from the values alone.

    Whole numbers are counts. Otherwise the values that count and scale share a trace of the counts
    beneath: once any logarithm is undone, the values of a cell are whole multiples of its smallest,
    or all cells sum to the same. Where neither tells, values up to 30 are logarithms.
    """
    X = sparse.csr_matrix((X.data.astype(np.float64), X.indices, X.indptr), X.shape)
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
    """Counts, or bins: in those, every cell has the same largest value."""
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
    """The kind whose values, with the logarithm undone, are traces of counts; ``None`` without a trace."""
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
    """Mean distance of small multiples of a cell's smallest value from whole ones; 0.25 by chance."""
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


def _spread_of_sums(
    X: sparse.csr_matrix, undo: Callable[[np.ndarray], np.ndarray] = _UNDO["normalised"]
) -> float:
    """Coefficient of variation of the cells' sums; infinite for too few cells to tell."""
    sums = _sums(X, undo)
    return float(sums.std() / sums.mean()) if len(sums) >= 3 else math.inf


def read_h5ad(path: Path) -> AnnData:
    """The AnnData in a file; says which file when there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; name an .h5ad file.")
    try:
        return anndata.read_h5ad(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as .h5ad: {error}") from error
