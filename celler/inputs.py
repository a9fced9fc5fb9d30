"""Inputs: rows of expression from any AnnData as CSR, and what the values are."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

#: ``log1p`` of a cell's largest value stays below this; counts and CP10K go far beyond.
LARGEST_LOG = 30.0
#: Rows looked at to tell what the values are.
N_PROBED = 1000


@dataclass(frozen=True)
class ExpressionReader:
    """Reads rows of ``adata.X`` or of a layer as CSR float32 and never changes ``adata``.

    Views, files in backed mode, CSR, CSC and dense matrices all read alike, a chunk at a time.
    """

    adata: AnnData
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer not in self.adata.layers:
            layers = [name for name in self.adata.layers if name is not None]
            raise KeyError(f"layer={self.layer!r} is not in adata.layers, which has {layers}.")
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
        block = _canonical(self._values(rows))
        return block if np.array_equal(distinct, index) else block[position]

    def matrix(self) -> sparse.csr_matrix:
        """All rows, without a copy where the values already are CSR float32 in memory."""
        X = self._stored(self.adata)
        if hasattr(X, "to_memory"):
            X = X.to_memory()
        elif not (sparse.issparse(X) or isinstance(X, np.ndarray)):
            X = X[:]
        return _canonical(X)

    def probe(self) -> sparse.csr_matrix:
        """Up to 1,000 rows spread evenly over the cells."""
        return _canonical(self._values(slice(None, None, max(1, self.adata.n_obs // N_PROBED))))

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
        return self.matrix() if sparse.issparse(X) and X.format == "csc" else None

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
    warnings.warn(
        f"the model was set up with layer={layer!r}, which this AnnData lacks; its X is used instead.",
        UserWarning,
        stacklevel=4,
    )
    return ExpressionReader(adata)


def is_log(reader: ExpressionReader) -> bool:
    """Whether the values are logarithms (``log1p``) rather than proportional to counts.

    Whole numbers are counts; other values up to 30 are logarithms, above that expected or scaled
    counts, which serve as counts do. Raises ``ValueError`` where :func:`check_values` does.
    """
    values = check_values(reader.probe(), reader)
    if not len(values) or (values == np.round(values)).all():
        return False
    return float(values.max()) <= LARGEST_LOG


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
    others = [f"layer={name!r}" for name in reader.adata.layers if name not in (None, reader.layer)]
    raw = ["adata.raw.to_adata()"] if reader.adata.raw is not None else []
    return ValueError(
        f"{where}; {what}. Counts or log1p-normalised counts are needed: "
        f"pass {' or '.join(others + raw) or 'the layer or object that holds them'}."
    )
