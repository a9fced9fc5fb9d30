"""Expression: rows of any AnnData as CSR, whatever its storage, and what their values are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celler._utils import _counts
from celler._utils._counts import (
    DOMINANT,
    InputState,
    as_read,
    contradiction,
    detect,
    dominant_gene,
    unusable,
    value_error,
)
from celler._utils._kinds import genes_among
from celler._utils._matrix import as_csr, check_sparse, check_stored, check_view, only_columns, spread
from celler._utils._messages import closest, warn

KEPT_ROWS = 5000  #: most rows that are kept until others are read
ROWS_AT_ONCE = 4096  #: rows read at once of a matrix that is not in memory


@dataclass(frozen=True)
class ExpressionReader:
    """Rows of ``adata.X`` or a layer, in any storage, as CSR float32.

    Logarithms of base 2 and 10 become natural ones, square roots become squares. Every row that is read is checked
    against the kind of the others. Columns that are no genes hold nothing, unless ``has_others``.
    """

    adata: AnnData
    layer: str | None = None
    place: str = "adata.X"  # what messages call ``X``
    has_others: bool = False
    known: InputState | None = None  # what the values are, where it was found in more cells than these
    # The rows that were read last: a sample of a query is read for its labels, its profile and its labels again.
    _last: list[tuple[np.ndarray, sparse.csr_matrix]] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer not in self.adata.layers:
            layers = [name for name in self.adata.layers if name is not None]
            raise KeyError(
                f"layer={self.layer!r} is not in adata.layers, which has {layers}.{closest(self.layer, layers)}"
            )
        check_view(self.adata, self.layer)
        if self.layer is None and not self.adata.isbacked and self._first().X is None:
            raise ValueError("adata.X is None; pass layer= to name the layer with the expression values.")

    @property
    def name(self) -> str:
        """Name of the matrix in messages."""
        return self.place if self.layer is None else f"adata.layers[{self.layer!r}]"

    def rows(self, index: np.ndarray) -> sparse.csr_matrix:
        """Return the rows ``index (n,)`` in the order given, ``(n, n_vars)``; not to be changed in place."""
        if self._last and np.array_equal(index, self._last[0][0]):
            return self._last[0][1]
        found = as_read(self._checked(self.stored(index), index), self.state)
        if len(index) <= KEPT_ROWS:
            self._last[:] = [(index.copy(), found)]
        return found

    def stored(self, index: np.ndarray) -> sparse.csr_matrix:
        """Return rows as :meth:`rows` does, with the stored values, unchecked."""
        # Files can only be read in rising order, each row once, and fastest as one range.
        distinct, position = np.unique(index, return_inverse=True)
        is_range = len(distinct) > 0 and distinct[-1] - distinct[0] == len(distinct) - 1
        block = self._read(slice(int(distinct[0]), int(distinct[-1]) + 1) if is_range else distinct)
        return block if np.array_equal(distinct, index) else block[position]

    @property
    def file(self) -> Path | None:
        """The file whose ``X`` this is, for other processes to read; ``None`` for cells in memory and for views."""
        adata = self.adata
        return Path(adata.filename).resolve() if adata.isbacked and not adata.is_view and self.layer is None else None

    def without_cells(self) -> ExpressionReader:
        """Return the same for no cells, which is small enough to be sent to other processes."""
        var = self.adata.var.set_axis(pd.RangeIndex(self.adata.n_vars).astype(str), axis=0)
        empty = AnnData(sparse.csr_matrix((0, len(var)), dtype=np.float32), var=var)
        return ExpressionReader(empty, None, self.place, self.has_others, known=self.state)

    def of_file(self, path: Path) -> ExpressionReader:
        """Return the same for the cells of a file, without their names."""
        X = h5py.File(path, "r")["X"]
        X = X if isinstance(X, h5py.Dataset) else anndata.io.sparse_dataset(X)
        return ExpressionReader(AnnData(X, var=self.adata.var), None, self.place, self.has_others, known=self.state)

    def matrix(self) -> sparse.csr_matrix:
        """All rows; not copied if they are CSR float32 in memory."""
        X = self._whole()
        for start in range(0, X.shape[0], ROWS_AT_ONCE):
            end = min(start + ROWS_AT_ONCE, X.shape[0])
            self._checked(X[start:end], range(start, end))
        return as_read(X, self.state)

    def probe(self) -> sparse.csr_matrix:
        """One to two thousand rows, evenly spaced, with the stored values."""
        return self._read(spread(self.adata.n_obs))

    @property
    def state(self) -> InputState:
        """What the values of :meth:`probe` are."""
        return self._probed[0]

    @property
    def dominant(self) -> str | None:
        """The gene that has nearly all expression of most cells, if there is one."""
        return self._probed[1]

    @property
    def odd_cell(self) -> str:
        """Name of the first probed cell that differs from the others."""
        return str(self.adata.obs_names[spread(self.adata.n_obs)][self.state.odd or 0])

    @cached_property
    def _probed(self) -> tuple[InputState, str | None]:
        if self.known is not None:
            return self.known, None
        X = self.probe()
        state = detect(X)
        gene = dominant_gene(X, state) if state.is_usable else None
        return state, None if gene is None else str(self.adata.var_names[gene])

    def _checked(self, X: sparse.csr_matrix, rows: np.ndarray | range) -> sparse.csr_matrix:
        """Return ``X``, the ``rows`` of the matrix; raise where cells hold values of another kind than the others."""
        odd = contradiction(X, self.state)
        if odd is not None:
            raise unusable(odd, self.name, str(self.adata.obs_names[rows[odd.odd or 0]]), _what_to_pass(self))
        return X

    def _whole(self) -> sparse.csr_matrix:
        X = self._stored(self.adata)
        if isinstance(X, np.ndarray) or sparse.issparse(X) or hasattr(X, "to_memory"):
            with self._named():
                return only_columns(as_csr(X, self.name), self._is_read)
        starts = range(0, self.adata.n_obs, ROWS_AT_ONCE)
        return sparse.vstack([self._read(slice(start, start + ROWS_AT_ONCE)) for start in starts], format="csr")

    def _read(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        with self._named():
            return only_columns(as_csr(self._values(rows), self.name), self._is_read)

    @cached_property
    def _is_read(self) -> np.ndarray | None:
        """Columns whose values are read ``(n_vars,)``, ``None`` for all: antibodies may be of another unit."""
        return None if self.has_others else genes_among(self.adata.var)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the matrix, and its file, in the error of a file that cannot be read."""
        try:
            yield
        except OSError as error:
            where = f" of {self.adata.filename}" if self.adata.isbacked else ""
            raise ValueError(f"{self.name}{where} cannot be read: {error}") from error

    def _values(self, rows: slice | np.ndarray) -> Any:
        if self._converted is not None:
            return self._converted[rows]
        if self._checked_ends and not (self.adata.is_view or self.adata.isbacked):
            # An AnnData of these rows would copy obs as well, which takes longer than their values.
            return self._stored(self.adata)[rows]
        return self._stored(self._indexable[rows])

    @cached_property
    def _checked_ends(self) -> bool:
        """True, or raises: rows are taken along ``indptr``, blindly."""
        if self.adata.is_view:
            return True  # anndata has taken the rows
        with self._named():
            check_stored(self._stored(self.adata), self.name)
        return True

    def _first(self) -> AnnData:
        """Return an AnnData with the same kind of matrices: a view would copy all of its rows, a file read them."""
        return self.adata[:0] if self.adata.is_view or self.adata.isbacked else self.adata

    def _stored(self, adata: AnnData) -> Any:
        return adata.X if self.layer is None else adata.layers[self.layer]

    @cached_property
    def _converted(self) -> sparse.csr_matrix | None:
        """A sparse matrix in memory as CSR where SciPy takes no rows of it, or, of CSC, each in a pass over all."""
        if self.adata.isbacked:
            return None
        X = self._stored(self._first())
        has_rows = not sparse.issparse(X) or (X.format == "csr" and X.dtype.kind in "buif" and X.dtype != np.float16)
        return None if has_rows else self._whole()

    @cached_property
    def _indexable(self) -> AnnData:
        """``adata``, or its copy in memory: anndata 0.12 cannot index a view of a backed file."""
        try:
            self.adata[:0]
        except ValueError:
            return self.adata.to_memory()
        return self.adata


def is_log(reader: ExpressionReader) -> bool:
    """Whether the values are logarithms; raises ``ValueError`` for values that cannot be used."""
    state = reader.state
    if state.is_usable:
        return state.is_log
    check_values(reader.probe(), reader)
    raise unusable(state, reader.name, reader.odd_cell, _what_to_pass(reader))


def doubts(reader: ExpressionReader) -> list[str]:
    """Say what makes labels from the values less certain."""
    state, name, found = reader.state, reader.name, []
    if state.kind == "binned":
        found.append(
            f"{name} looks binned already ({state.evidence}); counts or log1p-normalised counts are needed, and labels "
            f"from bins are less certain.{_what_to_pass(reader)}"
        )
    if state.kind == "binary":
        found.append(
            f"{name} says only which genes a cell expresses ({state.evidence}); counts or log1p-normalised counts are "
            f"needed, and labels are less certain.{_what_to_pass(reader)}"
        )
    if not state.is_traced:
        found.append(f"{name}: {state.evidence}. If it holds something else, counts are needed.{_what_to_pass(reader)}")
    if reader.dominant is not None:
        found.append(
            f"{reader.dominant!r} carries more than {DOMINANT:.0%} of the expression in {name} of most cells; labels "
            "rest on next to nothing. Leave that gene out, or look where its values come from."
        )
    return found


def warn_of_doubts(reader: ExpressionReader) -> None:
    """Warn of what makes labels from the values less certain."""
    for message in doubts(reader):
        warn(message)


def check_genes(reader: ExpressionReader) -> None:
    """Raise ``ValueError`` where a single gene is expressed, or no gene differs: cells cannot be told apart."""
    X = reader.probe()
    X.eliminate_zeros()
    genes = np.unique(X.indices)
    if len(genes) == 1:
        raise ValueError(
            f"{reader.name} has values of one gene alone, {str(reader.adata.var_names[genes[0]])!r}; at least two are "
            f"needed, and some hundred to tell cell types apart.{_what_to_pass(reader)}"
        )
    is_same = X.shape[0] > 1 and X.nnz == len(genes) * X.shape[0]  # no cell lacks a gene of another
    if (
        is_same
        and np.ptp(_counts.cp10k(X, is_log=reader.state.is_log)[:, genes].toarray(), axis=0).max(initial=0) < 1e-6
    ):
        raise ValueError(
            f"{reader.name} has the same values in every cell; cells cannot be told apart.{_what_to_pass(reader)}"
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
    others = {f"layer={name!r}": _state_or_none(adata, name) for name in names}
    if reader.layer is not None and (adata.isbacked or adata[:0].X is not None):
        others["adata.X (layer=None)"] = _state_or_none(adata, None)
    if adata.raw is not None:
        others["adata.raw.to_adata()"] = _state_of_raw(adata)
    usable = {name: state for name, state in others.items() if state is not None and state.is_usable}
    return dict(sorted(usable.items(), key=lambda item: item[1].kind != "counts"))


def _state_or_none(adata: AnnData, layer: str | None) -> InputState | None:
    """Return the state, ``None`` for a matrix that cannot be read."""
    try:
        return ExpressionReader(adata, layer).state
    except (TypeError, ValueError):
        return None


def _state_of_raw(adata: AnnData) -> InputState | None:
    try:
        check_view(adata, "raw")
        X = adata.raw.X
        if sparse.issparse(X):
            check_sparse(X, "adata.raw.X")
        block = as_csr(X[spread(adata.n_obs)], "adata.raw.X")
        return detect(only_columns(block, genes_among(adata.raw.var)))
    except (OSError, TypeError, ValueError):
        return None


def _what_to_pass(reader: ExpressionReader) -> str:
    """Name the other usable matrices in a sentence."""
    others = elsewhere(reader)
    if not others:
        return " Pass the layer or object that holds them."
    found = " or ".join(f"{name} ({state.kind})" for name, state in others.items())
    return f" Here, pass {found}."
