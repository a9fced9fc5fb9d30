"""Matrices: values in any storage as CSR, checked before compiled code walks through them."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

LARGEST = float(np.finfo(np.float32).max)
N_PROBED = 1000  #: rows read to tell what the values are


def spread(n_obs: int) -> slice:
    """Return one to two thousand rows, evenly spaced."""
    return slice(None, None, max(1, n_obs // N_PROBED))


def as_csr(X: Any, name: str, dtype: Any = np.float32) -> sparse.csr_matrix:
    """``X`` as CSR with each entry once; not copied if it is that already.

    Raises ``ValueError`` for a damaged matrix, masked values, and numbers that single precision cannot hold, and
    ``TypeError`` for what is no number; ``name`` is that of the matrix in messages.
    """
    X = in_memory(X)
    if sparse.issparse(X):
        X = X if X.format in ("csr", "csc") else X.tocsr()
        check_sparse(X, name)
        values = numbers(X.data, name)
        X = X if values is X.data else type(X)((values, X.indices, X.indptr), shape=X.shape)
    else:
        X = values = numbers(_unmasked(X, name), name)
        if X.ndim != 2:
            raise ValueError(f"{name} has {X.ndim} dimensions; a table of cells x genes is needed.")
    if values.dtype.itemsize > 4 and values.dtype.kind == "f":
        _check_size(values, name)
    if values.dtype == np.float16 and dtype is None:
        dtype = np.float32  # SciPy has no sparse matrices of half precision
    block = sparse.csr_matrix(X, dtype=dtype)
    if not block.has_canonical_format:
        # To columns and back orders the entries in linear time, three times as fast as sorting.
        block = block.copy() if block.has_sorted_indices else block.tocsc().tocsr()
        block.sum_duplicates()
    return block


def only_columns(X: sparse.csr_matrix, is_kept: np.ndarray | None) -> sparse.csr_matrix:
    """Return ``X`` without values in other columns, of the same shape; ``None`` keeps all, and ``X`` itself."""
    if is_kept is None:
        return X
    is_in = is_kept[X.indices]
    ends = np.concatenate([[0], np.cumsum(is_in)])[X.indptr]
    return sparse.csr_matrix((X.data[is_in], X.indices[is_in], ends), shape=X.shape)


def in_memory(X: Any) -> Any:
    """Read what is neither NumPy nor SciPy: backed files, dask, arrays on a GPU, PyData's sparse."""
    for _ in range(4):  # dask arrays may hold any of the others
        if isinstance(X, np.ndarray) or sparse.issparse(X):
            return X
        for method in ("to_memory", "compute", "get", "tocsr"):
            if callable(getattr(X, method, None)):
                X = getattr(X, method)()
                break
        else:
            X = np.asarray(X)
    return X


def check_sparse(X: Any, name: str) -> None:
    """Raise ``ValueError`` for a CSR or CSC matrix whose arrays do not fit together."""
    if X.format not in ("csr", "csc"):
        return
    rows, columns = X.shape if X.format == "csr" else X.shape[::-1]
    across = ("column", "genes") if X.format == "csr" else ("row", "cells")
    check_ends(X.indptr, rows, min(len(X.indices), len(X.data)), name)
    indices = X.indices[: X.indptr[-1]]
    if not len(indices):
        return
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= columns:
        raise ValueError(
            f"{name} is damaged: it names {across[0]} {low if low < 0 else high} of {columns:,} {across[1]}. Read or "
            "make it again from where it came from."
        )


def check_stored(X: Any, name: str) -> None:
    """Raise ``ValueError`` for a CSR matrix, in memory or in a file, whose rows cannot be taken along ``indptr``."""
    group = getattr(X, "group", None)
    if sparse.issparse(X) and X.format == "csr":
        check_ends(X.indptr, X.shape[0], min(len(X.indices), len(X.data)), name)
    elif group is not None and getattr(X, "format", "") == "csr":
        check_ends(group["indptr"][:], X.shape[0], min(group["indices"].shape[0], group["data"].shape[0]), name)


def check_view(adata: AnnData, place: str | None) -> None:
    """Raise ``ValueError`` for a view of a damaged or masked matrix: a layer, "raw", or ``None`` for ``X``.

    anndata takes the rows and columns of a view without looking, which ends the process.
    """
    # No public name leads to the parent, the one AnnData that a view holds.
    parent = next((value for value in vars(adata).values() if isinstance(value, AnnData)), None)
    if parent is None or not adata.is_view:
        return
    if place is None:
        X, name = parent.X, "adata.X"
    elif place == "raw":
        X, name = (None if parent.raw is None else parent.raw.X), "adata.raw.X"
    else:
        X, name = parent.layers.get(place), f"adata.layers[{place!r}]"
    if isinstance(X, np.ma.MaskedArray):
        _unmasked(X, name)  # a view has the values without the mask
    if sparse.issparse(X):
        check_sparse(X, name)
    else:
        check_stored(X, name)


def check_ends(ends: np.ndarray, n_rows: int, n_values: int, name: str) -> None:
    """Raise ``ValueError`` unless ``indptr`` rises from 0 to at most ``n_values``, over ``n_rows``."""
    is_right = len(ends) == n_rows + 1 and int(ends[0]) == 0 and int(ends[-1]) <= n_values
    if not is_right or (ends[1:] < ends[:-1]).any():
        raise ValueError(
            f"{name} is damaged: its indptr does not rise from 0 to the number of its values, {n_values:,}, in "
            f"{n_rows:,} steps. Read or make it again from where it came from."
        )


def numbers(values: np.ndarray, name: str) -> np.ndarray:
    """Return ``values`` if they are numbers, Python's as float64; raise ``TypeError`` for text and others."""
    if values.dtype.kind in "buif":
        # SciPy has no sparse matrices of foreign byte order and of more than double precision.
        plain = values.dtype.newbyteorder("=") if values.dtype.itemsize <= 8 else np.dtype(np.float64)
        return values.astype(plain, copy=False)
    if values.dtype.kind == "O":
        is_text = [isinstance(value, str | bytes) for value in values.flat]
        text = values.flat[int(np.argmax(is_text))] if any(is_text) else None
        try:
            found = None if text is not None else values.astype(np.float64)
        except (TypeError, ValueError):
            found = None
        if found is not None:
            return found
        example = text if text is not None else next(v for v in values.flat if not isinstance(v, int | float))
    else:
        first = values.reshape(-1)[:1].tolist()
        example = first[0] if first else None
    read = "The table was read as text: name its decimal sign, as in pandas.read_csv(path, decimal=',')."
    advice = read if isinstance(example, str | bytes) else "Convert it first."
    raise TypeError(f"{name} holds {example!r} ({values.dtype}); numbers are needed. {advice}")


def _unmasked(X: np.ndarray, name: str) -> np.ndarray:
    if isinstance(X, np.ma.MaskedArray):
        n_masked = int(np.ma.getmaskarray(X).sum())
        if n_masked:
            raise ValueError(
                f"{name} masks {n_masked:,} of its values; each must be known. Fill them, for example with "
                "adata.X = adata.X.filled(0) if they mean 'not expressed'."
            )
    return np.asarray(X)


def _check_size(values: np.ndarray, name: str) -> None:
    largest = float(values.max(initial=0)) if values.size else 0.0
    if LARGEST < largest < np.inf:
        raise ValueError(f"{name} holds the value {largest:g}; numbers up to {LARGEST:.2g} are possible. Leave it out.")
