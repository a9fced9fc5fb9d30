"""The cells of an on-disk store: columns of obs, and rows of counts as CSR, never dense."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celler._utils._digest import digest_of
from celler._utils._distributed import rank_and_size
from celler._utils._messages import closest
from celler._utils._prefetch import prefetch
from celler._utils._version import __version__
from celler.atlas._checksums import OF_CELL, check_files, of_cells
from celler.atlas._place import ANEW, Folder, Place, place_of
from celler.data._read import reading

FILE_NAME, STORE_NAME, WORK_NAME = "manifest.json", "cells.zarr", "unfinished"
FORMAT, FORMAT_VERSION = "celler-atlas", 2
#: Most rows that are read from disk at once, in training and to be handed out as an AnnData.
BLOCK_ROWS, ROWS_OF_ANNDATA = 2048, 4096
#: A gap of up to this many rows is read along: they lie in the same compressed chunk.
GAP = 64
#: The codecs of the zarrs package, which decompress in parallel.
PIPELINE = "zarrs.ZarrsCodecPipeline"


def fast_codecs() -> Any:
    """Enter a block in which arrays that are opened use the codecs of zarrs, where it is installed."""
    import zarr

    return zarr.config.set({"codec_pipeline.path": PIPELINE} if find_spec("zarrs") else {})


def require_engine() -> None:
    """Raise ``ImportError`` where annbatch is missing, which writes and reads stores."""
    found, way = ".".join(map(str, sys.version_info[:2])), 'pip install "celler[atlas]"'
    if sys.version_info < (3, 12):
        raise ImportError(
            f"Python {found} was found; cl.atlas needs Python 3.12 or newer, as annbatch does. In an environment of "
            f"it: {way}. Everything else works here."
        )
    if find_spec("annbatch") is None:
        raise ImportError(f"Python {found} was found, which will do, but not annbatch: {way}.")


def read_manifest(out: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the manifest of the store ``out``, which ``make_manifest`` made."""
    place = place_of(out)
    path = f"{place}/{FILE_NAME}"
    with reading(path, place.cure):
        text = _text_of_manifest(place)
    if text is None:
        hint = "cl.atlas.build writes one."
        if isinstance(place, Folder) and (place.path / WORK_NAME).is_dir():
            hint = "A build was begun there: call cl.atlas.build again with the same arguments to finish it."
        raise FileNotFoundError(f"{place} is no store: it has no {FILE_NAME}. {hint}")
    with reading(path, ANEW):
        manifest = json.loads(text)
        name, found = manifest.get("format"), manifest.get("version")
    if name != FORMAT or found not in range(1, FORMAT_VERSION + 1):
        raise ValueError(
            f"{path} is of {name!r}, version {found!r}; this celler ({__version__}) reads {FORMAT!r}, version up to "
            f"{FORMAT_VERSION}. Install the celler that wrote it."
        )
    digest = manifest.pop("digest", None)
    if (found > 1 or "files" in manifest) and digest != digest_of(manifest):
        raise ValueError(f"{path} has other contents than were written: it is damaged. {ANEW}")
    return manifest


def _text_of_manifest(place: Place) -> str | None:
    try:
        with place.open(FILE_NAME) as stream:
            return stream.read().decode(errors="surrogatepass")
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_store(place: Place, manifest: dict[str, Any]) -> None:
    """Raise ``ValueError`` where a file of a store is missing or damaged; each chunk of counts is checked when read."""
    check_files(place.of(STORE_NAME), manifest.get("files", {}))


@dataclass(frozen=True)
class Rows:
    """Cells of a store: ``index (B,)``, their rows, and counts ``X (B, n_genes)``."""

    index: np.ndarray
    X: sparse.csr_matrix


class Store:
    """The cells of a store that :func:`celler.atlas.build` wrote, by row; in memory are 12 bytes for each."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        require_engine()
        import anndata
        from annbatch import DatasetCollection, Loader

        from celler.atlas._sampler import BlockSampler

        self.place, self.manifest = place_of(path), read_manifest(path)
        check_store(self.place, self.manifest)
        with reading(self.place, self.place.cure):
            self._groups: list[Any] = list(DatasetCollection(self.place.of(STORE_NAME).group()))
            datasets = [anndata.io.sparse_dataset(group["X"]) for group in self._groups]
            self.sizes = np.array([dataset.shape[0] for dataset in datasets])
            self.genes: list[str] = [str(name) for name in index_of(self._groups[0]["var"])[:]]
            # Earlier versions wrote none.
            has_checksums = all(OF_CELL in group["obs"] for group in self._groups)
            of_cell = [group["obs"][OF_CELL][:] for group in self._groups] if has_checksums else None
        self._checksums = None if of_cell is None else np.concatenate(of_cell)
        self._sampler, self._lock = BlockSampler(GAP), threading.Lock()
        self._loader = Loader(batch_sampler=self._sampler, return_index=True, preload_to_gpu=False)
        self._loader.add_datasets(datasets)
        # The codecs are chosen when the arrays are opened, which the first read does.
        with fast_codecs():
            self.rows(np.array([0]))

    def __len__(self) -> int:
        return int(self.sizes.sum())

    @property
    def folder(self) -> Path:
        """Where its annotations are; raise ``ValueError`` for a store at an address."""
        if isinstance(self.place, Folder):
            return self.place.path
        raise ValueError(
            f"annotations lie in the folder of a store, and {self.place} is an address. Label its cells by "
            "model.predict(dataloader=dm.inference_dataloader()), or copy the store to a folder."
        )

    @property
    def address(self) -> str:
        """What opens the store in another process."""
        return str(self.place.path.resolve()) if isinstance(self.place, Folder) else str(self.place)

    @property
    def columns(self) -> list[str]:
        """Names of the obs columns."""
        return [str(name) for name in self._groups[0]["obs"].attrs["column-order"] if name != OF_CELL]

    def codes(self, key: str, argument: str = "key") -> tuple[np.ndarray, list[str]]:
        """Category codes ``(n_cells,)`` of an obs column, −1 for none, and the categories."""
        if key not in self.columns:
            raise KeyError(
                f"{argument}={key!r} is not a column of the store.{closest(key, self.columns)} Columns: {self.columns}."
            )
        columns = [group["obs"][key] for group in self._groups]
        if any(column.attrs["encoding-type"] != "categorical" for column in columns):
            raise ValueError(f"{argument}={key!r} does not hold categories; choose another column of {self.columns}.")
        categories = [[str(name) for name in _strings(column["categories"])[:]] for column in columns]
        if any(names != categories[0] for names in categories):
            raise ValueError(f"the datasets of {self.place} differ in the categories of {key!r}; build the store anew.")
        return np.concatenate([column["codes"][:] for column in columns]), categories[0]

    def names(self, index: np.ndarray) -> np.ndarray:
        """obs_names of the rows ``index (n,)``."""
        names = np.empty(len(index), object)
        ends = np.cumsum(self.sizes)
        dataset = np.searchsorted(ends, index, side="right")
        for number in np.unique(dataset):
            is_here = dataset == number
            rows, position = np.unique(index[is_here] - ends[number] + self.sizes[number], return_inverse=True)
            found = index_of(self._groups[number]["obs"]).get_orthogonal_selection((rows,))
            names[is_here] = np.asarray(found, object)[position]
        return names

    def is_empty(self) -> np.ndarray:
        """Whether each cell has no counts ``(n_cells,)``."""
        with reading(self.place, self.place.cure):
            return np.concatenate([np.diff(group["X"]["indptr"][:]) == 0 for group in self._groups])

    def rows(self, index: np.ndarray) -> sparse.csr_matrix:
        """Return counts ``(n, n_genes)`` float32 of the rows ``index (n,)``, in that order."""
        return as_float(self.counts(index))

    def counts(self, index: np.ndarray) -> sparse.csr_matrix:
        """Return counts as :meth:`rows` gives them, in the type of the store."""
        distinct, position = np.unique(index, return_inverse=True)
        parts = [part.X for part in self.stream(pieces(distinct))]
        if not parts:
            return sparse.csr_matrix((0, len(self.genes)), dtype=np.float32)
        X = sparse.vstack(parts, format="csr") if len(parts) > 1 else parts[0]
        return X if np.array_equal(distinct, index) else X[position]

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[Rows]:
        """Return the rows of each block, in its order; a block is read at once."""
        return self.parts([block] for block in blocks)

    def parts(self, blocks: Iterable[list[np.ndarray]]) -> Iterator[Rows]:
        """Return the rows of each part of each block, in its order; a block is read at once."""
        with self._lock:  # another thread may read until the loader has taken the blocks
            self._sampler.blocks = blocks
            loaded = iter(self._loader)
            with reading(self.place, self.place.cure):
                first = list(islice(loaded, 1))
        while first:
            X = first[0]["X"]
            if self._checksums is None:
                check_ids(X, self.place)
            elif (of_cells(X) != self._checksums[first[0]["index"]]).any():
                raise ValueError(f"{self.place} holds other counts than were written: it is damaged. {ANEW}")
            yield Rows(first[0]["index"], X)
            with reading(self.place, self.place.cure):
                first = list(islice(loaded, 1))


def check_ids(X: sparse.csr_matrix, place: Place) -> None:
    """Raise ``ValueError`` for a gene id that no gene has, which would be read beyond the genes."""
    if X.nnz and not 0 <= int(X.indices.min()) <= int(X.indices.max()) < X.shape[1]:
        raise ValueError(f"the counts of {place} name gene {int(X.indices.max())} of {X.shape[1]}: damaged. {ANEW}")


def as_float(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """``X`` in float32; its indices are shared."""
    return sparse.csr_matrix((X.data.astype(np.float32), X.indices, X.indptr), X.shape)


def pieces(index: np.ndarray, max_rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
    """Split sorted rows ``index (n,)`` into blocks for which at most ``max_rows`` rows are read."""
    if not len(index):
        return
    gaps = np.diff(index, prepend=index[0] - 1)
    n_read = np.cumsum(np.where(gaps <= GAP, gaps, 1)) - 1
    yield from np.split(index, np.flatnonzero(np.diff(n_read // max_rows)) + 1)


def index_of(table: Any) -> Any:
    """Return the array of row names of a stored DataFrame."""
    return _strings(table[table.attrs["_index"]])


def _strings(stored: Any) -> Any:
    """Return the array of stored strings, which may come with a mask of missing values."""
    return stored["values"] if "nullable" in stored.attrs.get("encoding-type", "") else stored


class CellBlocks:
    """Cells of a store by blocks, of which each rank reads its part: ascending rows ``index (n,)`` and an AnnData."""

    def __init__(self, store: Store, index: np.ndarray) -> None:
        self.store, self.index = store, index

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[tuple[np.ndarray, AnnData]]:
        return self.read(self.pieces)

    def read(self, blocks: list[np.ndarray]) -> Iterator[tuple[np.ndarray, AnnData]]:
        """Return the rows of each block and their cells, of which the next are read ahead."""
        return prefetch(map(self._anndata, self.store.stream(blocks)))

    @property
    def pieces(self) -> list[np.ndarray]:
        """Rows ``(n,)`` of each block of this rank."""
        rank, n_ranks = rank_and_size()
        return list(pieces(self.index, ROWS_OF_ANNDATA))[rank::n_ranks]

    def sample(self, n_cells: int) -> AnnData:
        """At most ``n_cells`` of the cells, drawn at random and the same at each call."""
        rows = np.random.default_rng(0).permutation(len(self.index))[:n_cells]
        return self.at(self.index[np.sort(rows)])

    def at(self, index: np.ndarray) -> AnnData:
        """Return the cells in the rows ``index (n,)`` of the store."""
        return self._anndata(Rows(index, self.store.counts(index)))[1]

    def names_at(self, index: np.ndarray) -> AnnData:
        """Return the cells in the rows ``index (n,)`` of the store, without their counts."""
        return self._anndata(Rows(index, sparse.csr_matrix((len(index), len(self.store.genes)))))[1]

    def _anndata(self, rows: Rows) -> tuple[np.ndarray, AnnData]:
        obs = pd.DataFrame(index=pd.Index(self.store.names(rows.index).astype(str)))
        var = pd.DataFrame(index=pd.Index(self.store.genes))
        return rows.index, AnnData(as_float(rows.X), obs=obs, var=var)
