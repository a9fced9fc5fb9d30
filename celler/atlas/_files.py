"""Sources: h5ad files and zarr stores opened by rows, so that none is ever in memory as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from celler._utils._messages import closest


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


#: Bytes read at once for a checksum.
BLOCK = 1 << 24
#: What h5py, zarr and anndata raise for files that are damaged or are something else.
_READING = (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError)


class UnreadableSource(ValueError):
    """A source that is damaged, half-written or something else; says which, why and what to do."""

    def __init__(self, source: object, what: object) -> None:
        super().__init__(
            f"{source} cannot be read: {what}. It may be corrupt, half-written or no AnnData in .h5ad or "
            ".zarr; write or download it again, or leave it out."
        )


@dataclass(frozen=True)
class AtlasFile:
    """A source by its name in messages and in the store, and where it lies."""

    name: str
    path: Path

    def __str__(self) -> str:
        return f"source {self.name!r} ({self.path})"

    @contextmanager
    def open(self) -> Iterator[Contents]:
        """The contents, open for reading."""
        if not self.path.exists():
            raise FileNotFoundError(f"{self} does not exist.")
        with ExitStack() as stack:
            with self.reading():
                contents = Contents(self, stack.enter_context(_open_group(self.path)))
            yield contents

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Errors of the libraries in here become one that names the source and says what to do."""
        try:
            yield
        except UnreadableSource:
            raise
        except _READING as error:
            if getattr(error, "errno", None) is not None:
                raise  # the system's own, such as no permission
            raise UnreadableSource(self, error) from error

    def stamp(self) -> list[float]:
        """Size and time of the last change, which tell that the source is still the same."""
        files = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        states = [file.stat() for file in files if file.is_file()]
        return [sum(s.st_size for s in states), max((s.st_mtime for s in states), default=0.0)]

    def checksum(self) -> str:
        """SHA-256 of the file; of a zarr store, that of its files' names and contents."""
        digest = hashlib.sha256()
        is_folder = self.path.is_dir()
        for file in sorted(self.path.rglob("*")) if is_folder else [self.path]:
            if not file.is_file():
                continue
            if is_folder:
                digest.update(str(file.relative_to(self.path)).encode())
            with file.open("rb") as stream:
                while block := stream.read(BLOCK):
                    digest.update(block)
        return digest.hexdigest()


class Contents:
    """An open source: names, columns of obs and rows of a matrix, each read when asked for."""

    def __init__(self, source: AtlasFile, group: Any) -> None:
        self.source, self.group = source, group
        if "obs" not in group or "var" not in group:
            raise UnreadableSource(source, "it has no obs and var")
        obs = group["obs"]
        # older files keep all of obs in one table, or its categories apart
        is_by_column = dict(obs.attrs).get("encoding-version") == "0.2.0"
        self._obs: Any = None
        if is_by_column:
            self._names: Any = obs[obs.attrs["_index"]]
        else:
            self._obs = anndata.io.read_elem(obs)
            self._names = self._obs.index
        if not hasattr(self._names, "shape"):  # text with missing values is a group
            self._names = self._names["values"] if "values" in self._names else self._whole_names()
        self.n_obs = int(self._names.shape[0])

    @property
    def columns(self) -> list[str]:
        """Names of the columns of obs."""
        if self._obs is not None:
            return list(self._obs.columns)
        return list(self.group["obs"].attrs["column-order"])

    def column(self, key: str, argument: str) -> pd.Series:
        """A column of obs, or a ``KeyError`` that names the source and the closest one."""
        if key not in self.columns:
            raise KeyError(
                f"{argument}={key!r} is not a column of obs in {self.source}.{closest(key, self.columns)} "
                f"Columns: {self.columns}. Where sources differ, pass a dict from source to column."
            )
        if self._obs is not None:
            return self._obs[key].reset_index(drop=True)
        with self.source.reading():
            return pd.Series(anndata.io.read_elem(self.group["obs"][key]))

    def names(self, start: int, stop: int) -> np.ndarray:
        """obs_names of these rows, an object array of str."""
        with self.source.reading():
            part = np.asarray(self._names[start:stop], dtype=object)
        return np.array(
            [n.decode() if isinstance(n, bytes) else str(n) for n in part], dtype=object
        )

    def var(self, place: str) -> pd.DataFrame:
        """The genes of the matrix at ``place``."""
        with self.source.reading():
            return anndata.io.read_elem(self.group["raw/var" if place == "raw/X" else "var"])

    def places(self) -> list[str]:
        """Where a matrix of all cells stands: ``X``, ``raw/X`` and ``layers/...``."""
        layers = list(self.group["layers"]) if "layers" in self.group else []
        places = ["X", "raw/X", *(f"layers/{name}" for name in layers)]
        return [place for place in places if place in self.group and _is_matrix(self.group[place])]

    def matrix(self, place: str) -> Matrix:
        """The matrix at ``place``, checked to be complete."""
        with self.source.reading():
            return Matrix(self, place)

    def _whole_names(self) -> pd.Index:
        return anndata.io.read_elem(self.group["obs"]).index


class Matrix:
    """A matrix on disk, CSR, CSC or dense, read in blocks of rows."""

    def __init__(self, contents: Contents, place: str) -> None:
        self.source, self.place = contents.source, place
        node = contents.group[place]
        attributes: dict[str, Any] = dict(node.attrs)
        kind: str = attributes.get("encoding-type", attributes.get("h5sparse_format", "array"))
        self.form = kind.removesuffix("_matrix") if kind.startswith("cs") else "dense"
        if self.form == "dense":
            self.shape = tuple(map(int, node.shape))
            self._values = node
        else:
            shape = attributes["shape" if "shape" in attributes else "h5sparse_shape"]
            self.shape = tuple(map(int, shape))
            self._data, self._indices = node["data"], node["indices"]
            self._indptr = np.asarray(node["indptr"][:]).astype(np.int64)
            self._check_sparse()
        if self.shape[0] != contents.n_obs:
            raise UnreadableSource(
                self.source, f"{place} has {self.shape[0]:,} rows and obs {contents.n_obs:,}"
            )

    @property
    def nnz(self) -> int:
        """Stored values; of a dense matrix, all."""
        return int(self._indptr[-1]) if self.form != "dense" else int(np.prod(self.shape))

    def blocks(self, n_most: int, n_rows: int = 1 << 17) -> list[tuple[int, int]]:
        """Ranges of rows with at most so many stored values and rows each, at least one row."""
        n_obs = self.shape[0]
        if self.form != "csr":
            per_row = max(1, self.nnz // max(1, n_obs))
            n_rows = max(1, min(n_rows, n_most // per_row))
            return [(start, min(start + n_rows, n_obs)) for start in range(0, n_obs, n_rows)]
        ranges, start = [], 0
        while start < n_obs:
            most = np.searchsorted(self._indptr, self._indptr[start] + n_most, side="right") - 1
            stop = int(min(max(most, start + 1), start + n_rows, n_obs))
            ranges.append((start, stop))
            start = stop
        return ranges

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start`` to ``stop`` with the values as stored."""
        with self.source.reading():
            if self.form == "dense":
                return sparse.csr_matrix(np.asarray(self._values[start:stop]))
            if self.form == "csc":
                return self._rows_of_columns(start, stop)
            low, high = int(self._indptr[start]), int(self._indptr[stop])
            indices = np.asarray(self._indices[low:high])
            if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self.shape[1]):
                raise UnreadableSource(
                    self.source, f"it names column {int(indices.max())} of {self.shape[1]}"
                )
            ends = self._indptr[start : stop + 1] - low
            index = np.int32 if ends[-1] < 2**31 else np.int64
            parts = np.asarray(self._data[low:high]), indices.astype(index), ends.astype(index)
            return sparse.csr_matrix(parts, (stop - start, self.shape[1]))

    def probe(self, n_rows: int = 300) -> tuple[np.ndarray, sparse.csr_matrix]:
        """Some rows from the beginning, the middle and the end, and which they are."""
        n_obs = self.shape[0]
        # of CSC, each further range would read all again
        starts = [0] if self.form == "csc" else sorted({0, n_obs // 2, max(0, n_obs - n_rows)})
        ranges = [(start, min(start + n_rows, n_obs)) for start in starts]
        rows = np.concatenate([np.arange(*limits) for limits in ranges])
        return rows, sparse.vstack([self.rows(*limits) for limits in ranges], "csr")

    def _rows_of_columns(self, start: int, stop: int) -> sparse.csr_matrix:
        """The rows of a CSC matrix: all columns are read, some at a time."""
        found, n_vars = [], self.shape[1]
        bounds = np.arange(0, self.nnz, BLOCK)
        edges = np.unique(np.searchsorted(self._indptr, bounds, side="left").clip(0, n_vars))
        for first, last in zip(edges, [*edges[1:], n_vars], strict=True):
            low, high = int(self._indptr[first]), int(self._indptr[last])
            rows = np.asarray(self._indices[low:high])
            is_in = (rows >= start) & (rows < stop)
            columns = np.repeat(np.arange(first, last), np.diff(self._indptr[first : last + 1]))
            data = np.asarray(self._data[low:high])[is_in]
            found.append((data, rows[is_in] - start, columns[is_in]))
        data, rows, columns = (np.concatenate(part) for part in zip(*found, strict=True))
        return sparse.csr_matrix((data, (rows, columns)), (stop - start, n_vars))

    def _check_sparse(self) -> None:
        """Raise where the arrays do not belong together, as after a write or copy that was cut off."""
        ends, major = self._indptr, self.shape[0 if self.form == "csr" else 1]
        n_data, n_indices = int(self._data.shape[0]), int(self._indices.shape[0])
        is_whole = len(ends) == major + 1 and ends[0] == 0 and (np.diff(ends) >= 0).all()
        if not is_whole or n_data != ends[-1] or n_indices != ends[-1]:
            raise UnreadableSource(
                self.source,
                f"{self.place} should hold {major:,} rows or columns and {int(ends[-1]) if len(ends) else 0:,} "
                f"values, but has {len(ends) - 1:,} and {min(n_data, n_indices):,}",
            )
        for name, array in (("data", self._data), ("indices", self._indices)):
            # a chunk that a zarr store lacks would read as zeros; of shards, all of one count as there
            n_there = getattr(array, "nchunks_initialized", None)
            if n_there is not None and n_there < array.nchunks:
                raise UnreadableSource(
                    self.source,
                    f"{n_there} of {array.nchunks} chunks of {self.place}/{name} are there",
                )


@contextmanager
def _open_group(path: Path) -> Iterator[Any]:
    if path.is_dir():
        import zarr

        yield zarr.open_group(path, mode="r")
    else:
        import h5py

        with h5py.File(path, "r") as file:
            yield file


def _is_matrix(node: Any) -> bool:
    kind = dict(node.attrs).get("encoding-type", "")
    return hasattr(node, "shape") or kind in ("csr_matrix", "csc_matrix") or "indptr" in node
