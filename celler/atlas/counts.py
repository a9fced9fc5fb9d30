"""Counts: where a source keeps them, and that they are counts and fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from celler.atlas.sources import Contents
from celler.names import closest


def find_counts(contents: Contents, layer: str | None) -> str:
    """Where the raw counts stand: as ``layer`` says, else ``X`` where it holds whole numbers, else ``raw``.

    layer: ``"X"``, ``"raw"`` or the name of a layer.
    """
    places = contents.places()
    if layer is not None:
        place = {"X": "X", "raw": "raw/X"}.get(layer, f"layers/{layer}")
        if place not in places:
            known = list(map(_in_words, places))
            raise KeyError(
                f"layer={layer!r} is not in {contents.source}.{closest(layer, known)} It has {known}."
            )
        return place
    for place in ("X", "raw/X"):
        if place in places and _are_counts(contents, place):
            return place
    if not places:
        raise ValueError(f"{contents.source} has no X, no raw and no layers; counts are needed.")
    rows, X = contents.matrix(places[0]).probe()
    check_whole(X, rows, contents, places[0])
    return places[0]


def check_whole(X: sparse.csr_matrix, rows: np.ndarray, contents: Contents, place: str) -> None:
    """Raise ``ValueError`` with the cell and the value where a value is no count.

    rows: ``(n,)`` the source's rows that ``X (n, n_vars)`` has.
    """
    is_bad = ~_is_whole(X.data)
    if not is_bad.any():
        return
    cell, value = _example(X, is_bad, rows, contents)
    others = [p for p in contents.places() if p != place and _are_counts(contents, p)]
    hint = (
        f"layer={{{contents.source.name!r}: {_in_words(others[0])!r}}} holds counts."
        if others
        else "Nothing else in it holds counts; write them to a layer or leave the source out."
    )
    raise ValueError(
        f"cell {cell!r} of {contents.source} has the value {value:g} in {_in_words(place)}; raw counts are "
        f"needed, whole numbers from 0 on. {hint}"
    )


def check_fits(
    X: sparse.csr_matrix, rows: np.ndarray, contents: Contents, dtype: np.dtype[Any]
) -> None:
    """Raise ``ValueError`` with the cell and the count where one does not fit the store's type."""
    most = np.iinfo(dtype).max
    is_large = X.data > most
    if is_large.any():
        cell, value = _example(X, is_large, rows, contents)
        wider = " Pass storage=cl.atlas.Storage(dtype='uint32'), or leave the cell out."
        raise ValueError(
            f"cell {cell!r} of {contents.source} has the count {value:.0f}; {dtype} holds up to "
            f"{most:,}.{wider * (dtype.itemsize < 4)}"
        )


def _is_whole(values: np.ndarray) -> np.ndarray:
    """Whether each value is a count: finite, whole and not negative."""
    if values.dtype.kind in "ub":
        return np.ones(len(values), bool)
    is_good = values >= 0  # False for NaN
    return is_good & (values == np.floor(values)) if values.dtype.kind == "f" else is_good


def _are_counts(contents: Contents, place: str) -> bool:
    return bool(_is_whole(contents.matrix(place).probe()[1].data).all())


def _example(
    X: sparse.csr_matrix, is_bad: np.ndarray, rows: np.ndarray, contents: Contents
) -> tuple[str, float]:
    """Name of the first cell with such a value, and the value."""
    first = int(np.flatnonzero(is_bad)[0])
    row = int(rows[np.searchsorted(X.indptr, first, side="right") - 1])
    return str(contents.names(row, row + 1)[0]), float(X.data[first])


def _in_words(place: str) -> str:
    """What ``layer`` calls the place."""
    return "raw" if place == "raw/X" else place.removeprefix("layers/")
