"""Expression: rows of any AnnData as CSR, whatever its storage, and what their values are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from celler._utils import _counts
from celler._utils._counts import InputState, detect, value_error
from celler._utils._messages import closest, warn

N_PROBED = 1000  #: rows read to tell what the values are


@dataclass(frozen=True)
class ExpressionReader:
    """Rows of ``adata.X`` or a layer, in any storage, as CSR float32; log2(x + 1) becomes the natural logarithm."""

    adata: AnnData
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer not in self.adata.layers:
            layers = [name for name in self.adata.layers if name is not None]
            raise KeyError(
                f"layer={self.layer!r} is not in adata.layers, which has {layers}.{closest(self.layer, layers)}"
            )
        if self.layer is None and not self.adata.isbacked and self._first().X is None:
            raise ValueError("adata.X is None; pass layer= to name the layer with the expression values.")

    @property
    def name(self) -> str:
        """Name of the matrix in messages."""
        return "adata.X" if self.layer is None else f"adata.layers[{self.layer!r}]"

    def rows(self, index: np.ndarray) -> sparse.csr_matrix:
        """Return the rows ``index (n,)`` in the order given, ``(n, n_vars)``."""
        # Files can only be read in rising order, each row once, and fastest as one range.
        distinct, position = np.unique(index, return_inverse=True)
        is_range = len(distinct) > 0 and distinct[-1] - distinct[0] == len(distinct) - 1
        rows = slice(int(distinct[0]), int(distinct[-1]) + 1) if is_range else distinct
        block = self._natural(_canonical(self._values(rows)))
        return block if np.array_equal(distinct, index) else block[position]

    def matrix(self) -> sparse.csr_matrix:
        """All rows; not copied if they are CSR float32 in memory."""
        return self._natural(self._whole())

    def probe(self) -> sparse.csr_matrix:
        """One to two thousand rows, evenly spaced, with the stored values."""
        return _canonical(self._values(_spread(self.adata.n_obs)))

    @cached_property
    def state(self) -> InputState:
        """What the values of :meth:`probe` are."""
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
        if not (self.adata.is_view or self.adata.isbacked):
            X = self._stored(self.adata)
            # An AnnData of these rows would copy obs as well, which takes longer than their values.
            if isinstance(X, np.ndarray) or sparse.issparse(X):
                return X[rows]
        return self._stored(self._indexable[rows])

    def _first(self) -> AnnData:
        """Return an AnnData with the same kind of matrices: a view would copy all of its rows, a file read them."""
        return self.adata[:0] if self.adata.is_view or self.adata.isbacked else self.adata

    def _stored(self, adata: AnnData) -> Any:
        return adata.X if self.layer is None else adata.layers[self.layer]

    @cached_property
    def _converted(self) -> sparse.csr_matrix | None:
        """A CSC matrix in memory as CSR, because each row of CSC costs a pass over all values."""
        if self.adata.isbacked:
            return None
        X = self._stored(self._first())
        return self._whole() if sparse.issparse(X) and X.format == "csc" else None

    @cached_property
    def _indexable(self) -> AnnData:
        """``adata``, or its copy in memory: anndata 0.12 cannot index a view of a backed file."""
        try:
            self.adata[:0]
        except ValueError:
            return self.adata.to_memory()
        return self.adata


def _canonical(X: Any) -> sparse.csr_matrix:
    """``X`` as CSR float32 with each entry once; not copied if it already is."""
    block = sparse.csr_matrix(X, dtype=np.float32)
    if not block.has_canonical_format:
        # To columns and back orders the entries in linear time, three times as fast as sorting.
        block = block.copy() if block.has_sorted_indices else block.tocsc().tocsr()
        block.sum_duplicates()
    return block


def query_reader(adata: AnnData, layer: str | None) -> ExpressionReader:
    """Reader of a query's ``layer``; without that layer, of ``X`` and with a warning."""
    if layer is None or layer in adata.layers:
        return ExpressionReader(adata, layer)
    warn(f"the model was set up with layer={layer!r}, which this AnnData lacks; its X is used instead.")
    return ExpressionReader(adata)


def is_log(reader: ExpressionReader) -> bool:
    """Whether the values are logarithms; raises as :func:`check_values` does."""
    if not reader.state.is_usable:
        check_values(reader.probe(), reader)
    return reader.state.is_log


def warn_of_binned(reader: ExpressionReader) -> None:
    """Warn if the values are bins: the magnitudes that the network reads are lost."""
    if reader.state.kind == "binned":
        warn(
            f"{reader.name} looks binned already ({reader.state.evidence}); counts or log1p-normalised counts "
            f"are needed, and labels from bins are less certain.{_what_to_pass(reader)}"
        )


def check_values(X: sparse.csr_matrix, reader: ExpressionReader) -> None:
    """Raise ``ValueError`` for negative, NaN and infinite values of ``X``."""
    _counts.check_values(X.data, reader.name, lambda: _what_to_pass(reader))


def bad_value(value: float, reader: ExpressionReader, cell: str) -> ValueError:
    """Return the error for a value of ``cell`` that cannot be used."""
    return value_error(value, reader.name, _what_to_pass(reader), cell)


def elsewhere(reader: ExpressionReader) -> dict[str, InputState]:
    """Return the AnnData's other usable matrices: what to pass, and what it holds."""
    adata = reader.adata
    names = (name for name in adata.layers if name not in (None, reader.layer))
    others = {f"layer={name!r}": ExpressionReader(adata, name).state for name in names}
    if reader.layer is not None and (adata.isbacked or adata[:0].X is not None):
        others["adata.X (layer=None)"] = ExpressionReader(adata).state
    if adata.raw is not None:
        others["adata.raw.to_adata()"] = detect(_canonical(adata.raw.X[_spread(adata.n_obs)]))
    usable = {name: state for name, state in others.items() if state.is_usable}
    return dict(sorted(usable.items(), key=lambda item: item[1].kind != "counts"))


def _what_to_pass(reader: ExpressionReader) -> str:
    """Name the other usable matrices in a sentence."""
    others = elsewhere(reader)
    if not others:
        return " Pass the layer or object that holds them."
    found = " or ".join(f"{name} ({state.kind})" for name, state in others.items())
    copy = "; predict has no layer argument, so give it a copy with those values in X" if "layer" in found else ""
    return f" Here, pass {found}{copy}."


def _spread(n_obs: int) -> slice:
    return slice(None, None, max(1, n_obs // N_PROBED))
