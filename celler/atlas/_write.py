"""Shuffling: the cells of all sources are dealt to datasets at random, and each dataset is shuffled and written."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from celler.atlas._curate import KEPT
from celler.atlas._files import AtlasFile, Matrix, check_fits, check_whole
from celler.atlas._options import generator
from celler.atlas._plan import BASE_BYTES, BUCKETS, ORDER, Plan


@dataclass(frozen=True)
class Part:
    """Cells on their way to a dataset: ``ends (n + 1,)`` of each cell's values and of its name.

    codes: ``(n, columns)`` int32. text: names of the cells, one after another, UTF-8.
    """

    codes: np.ndarray
    ends: np.ndarray
    name_ends: np.ndarray
    text: bytes
    indices: np.ndarray
    values: np.ndarray

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.codes)


@dataclass(frozen=True)
class BlockFormat:
    """What the files of a build have in common."""

    n_buckets: int
    n_columns: int
    index: np.dtype[Any]
    value: np.dtype[Any]

    def write(
        self,
        path: Path,
        X: sparse.csr_matrix,
        codes: np.ndarray,
        names: np.ndarray,
        bucket: np.ndarray,
    ) -> None:
        """Write cells, each for its ``bucket (n,)``, at once or not at all."""
        order = np.argsort(bucket, kind="stable")
        X = X[order]
        text = [name.encode() for name in names[order]]
        firsts = np.searchsorted(bucket[order], np.arange(self.n_buckets + 1))
        name_ends = np.concatenate([[0], np.cumsum([len(name) for name in text], dtype=np.int64)])
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            for array in (
                np.array([X.shape[0], name_ends[-1], X.nnz], np.int64),
                firsts.astype(np.int64),
                X.indptr.astype(np.int64),
                name_ends.astype(np.int64),
                codes[order].astype(np.int32),
                np.frombuffer(b"".join(text), np.uint8),
                X.indices.astype(self.index),
                X.data.astype(self.value, copy=False),
            ):
                file.write(np.ascontiguousarray(array).data)
        part.replace(path)

    def n_obs(self, path: Path, bucket: int) -> int:
        """Number of cells in a file that are for ``bucket``."""
        first, last = np.fromfile(path, np.int64, 2, offset=8 * (3 + bucket))
        return int(last - first)

    def read(self, path: Path, bucket: int) -> Part:
        """The cells of a file that are for ``bucket``."""
        head = np.fromfile(path, np.int64, 3 + self.n_buckets + 1)
        n_obs, n_bytes, n_values = map(int, head[:3])
        first, last = map(int, head[3 + bucket : 5 + bucket])
        place = head.nbytes
        with path.open("rb") as file:

            def take(dtype: Any, length: int, start: int, stop: int) -> np.ndarray:
                """Entries ``start`` to ``stop`` of the next array, which has ``length``."""
                nonlocal place
                size = np.dtype(dtype).itemsize
                file.seek(place + start * size)
                place += length * size
                return np.fromfile(file, dtype, stop - start)

            ends = take(np.int64, n_obs + 1, first, last + 1)
            name_ends = take(np.int64, n_obs + 1, first, last + 1)
            width = self.n_columns
            codes = take(np.int32, n_obs * width, first * width, last * width)
            text = take(np.uint8, n_bytes, int(name_ends[0]), int(name_ends[-1])).tobytes()
            indices = take(self.index, n_values, int(ends[0]), int(ends[-1]))
            values = take(self.value, n_values, int(ends[0]), int(ends[-1]))
        return Part(
            codes.reshape(-1, width),
            ends - ends[0],
            name_ends - name_ends[0],
            text,
            indices,
            values,
        )


def gather(
    parts: list[Part], n_genes: int, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, np.ndarray, list[str]]:
    """All cells of the parts in an order drawn at random: counts, codes and names.

    The list is emptied on the way, so that little more than the counts is in memory twice.
    """
    lengths = np.concatenate([np.diff(part.ends) for part in parts])
    place = rng.permutation(len(lengths))  # of each cell, its row in the result
    of_row = np.empty_like(lengths)
    of_row[place] = lengths
    ends = np.concatenate([[0], np.cumsum(of_row)])
    index = np.int32 if ends[-1] < 2**31 else np.int64
    indices = np.empty(ends[-1], index)
    values = np.empty(ends[-1], parts[0].values.dtype)
    codes = np.empty((len(place), parts[0].codes.shape[1]), np.int32)
    names = [""] * len(place)
    cell = 0
    while parts:
        part = parts.pop(0)
        own = place[cell : cell + part.n_obs]
        cell += part.n_obs
        codes[own] = part.codes
        for i, row in enumerate(own):
            low, high, start = part.ends[i], part.ends[i + 1], ends[row]
            indices[start : start + high - low] = part.indices[low:high]
            values[start : start + high - low] = part.values[low:high]
            names[row] = part.text[part.name_ends[i] : part.name_ends[i + 1]].decode()
    X = sparse.csr_matrix((values, indices, ends.astype(index)), (len(place), n_genes))
    return X, codes, names


#: Stored values read at once, at most, and the bytes of memory that each takes on the way.
N_VALUES, BYTES_PER_VALUE = 16_000_000, 80
#: Cells of a chunk, the least that can be read, and size of the files that chunks lie in.
N_OBS_PER_CHUNK, SHARD_SIZE = 64, "256MB"


def format_of(plan: Plan) -> BlockFormat:
    """The format of the block files."""
    index = np.dtype(np.uint16 if len(plan.genes) <= 2**16 else np.uint32)
    return BlockFormat(
        plan.n_buckets, len(plan.categories), index, np.dtype(plan.settings["dtype"])
    )


def deal(plan: Plan, number: int, source: AtlasFile) -> Iterator[int]:
    """Deal the cells of a source to datasets, block by block; yields the rows of each block once it is written.

    A block whose file is there is skipped, so a build that was killed goes on where it was.
    """
    cells, gene_map = plan.cells(number), plan.gene_map(number)
    layout = format_of(plan)
    # for all rows at once: a cell's dataset must not depend on the blocks
    rng = generator(plan.settings["seed"], BUCKETS, number)
    drawn = rng.integers(plan.n_buckets, size=len(cells.reason), dtype=np.int32)
    codes = np.stack([cells.codes[name] for name in plan.categories], axis=1)
    place = plan.sources[number]["counts"]
    with source.open() as contents:
        matrix = Matrix(contents, place)
        for start, stop in _ranges(matrix, plan.settings["memory_gb"]):
            path = plan.folder / f"block_{number:05d}_{start:012d}"
            if not path.exists():
                rows = start + np.flatnonzero(cells.reason[start:stop] == KEPT)
                X = matrix.rows(start, stop)
                X = X if len(rows) == stop - start else X[rows - start]
                check_whole(X, rows, contents, place)
                X = _in_genes(X, gene_map, len(plan.genes))
                check_fits(X, rows, contents, layout.value)
                names = np.array(cells.names(contents, start, stop), dtype=object)
                # a cell without any count says nothing
                is_empty = np.diff(X.indptr) == 0
                if is_empty.any():
                    X, rows = X[~is_empty], rows[~is_empty]
                layout.write(path, X, codes[rows], names[rows - start], drawn[rows])
            yield stop - start


def _ranges(matrix: Matrix, memory_gb: float) -> list[tuple[int, int]]:
    """Rows that are read at once."""
    most = int((memory_gb * 1e9 - BASE_BYTES) / BYTES_PER_VALUE)
    # each block of CSC is a pass over the whole matrix, so there it is as large as can be
    return matrix.blocks(most if matrix.form == "csc" else min(most, N_VALUES))


def _in_genes(X: sparse.csr_matrix, gene_map: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    """Counts under the store's genes, without zeros, those of one gene added up, genes in order."""
    genes = gene_map[X.indices]
    is_taken = (genes >= 0) & (X.data != 0)
    ends = X.indptr
    # sums of small integers would begin at 0 again
    values = X.data if X.data.dtype.itemsize >= 4 else X.data.astype(np.uint32)
    if not is_taken.all():
        ends = np.concatenate([[0], np.cumsum(is_taken)])[ends]
        genes, values = genes[is_taken], values[is_taken]
    counts = sparse.csr_matrix(
        (values, genes.astype(X.indices.dtype), ends.astype(X.indices.dtype)), (X.shape[0], n_genes)
    )
    counts.sum_duplicates()  # sorts too
    return counts


def write_dataset(plan: Plan, bucket: int) -> int:
    """Shuffle and write one dataset of the collection, unless it is there; returns its number of cells."""
    store = plan.folder / "cells.zarr"
    final, part = store / f"dataset_{bucket}", plan.folder / "dataset.part"
    layout = format_of(plan)
    blocks = sorted(plan.folder.glob("block_?????_????????????"))
    n_obs = sum(layout.n_obs(path, bucket) for path in blocks)
    if final.exists() or not n_obs:
        return n_obs
    parts = [layout.read(path, bucket) for path in blocks]
    X, codes, names = gather(
        parts, len(plan.genes), generator(plan.settings["seed"], ORDER, bucket)
    )
    obs = {
        name: pd.Categorical.from_codes(codes[:, i], plan.categories[name])
        for i, name in enumerate(plan.categories)
    }
    adata = anndata.AnnData(
        X=X,
        obs=pd.DataFrame(obs, index=pd.Index(names, dtype=object)),
        var=pd.DataFrame(index=pd.Index(plan.genes, dtype=object)),
    )
    shutil.rmtree(part, ignore_errors=True)
    _write_zarr(part, adata)
    store.mkdir(exist_ok=True)
    part.rename(final)
    return n_obs


def _write_zarr(path: Path, adata: anndata.AnnData) -> None:
    import annbatch
    import zarr

    with warnings.catch_warnings():
        # zarr says of every store that metadata in one place are not part of its standard yet
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        group = zarr.open_group(path, mode="w", zarr_format=3)
        n_chunk = min(N_OBS_PER_CHUNK, adata.n_obs)
        annbatch.write_sharded(group, adata, n_obs_per_chunk=n_chunk, shard_size=SHARD_SIZE)


def close_collection(store: Path) -> None:
    """Make the folder of datasets a collection that annbatch opens."""
    import zarr
    from annbatch.io import V1_ENCODING

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        # attributes only: mode "w" would empty the folder
        (store / "zarr.json").unlink(missing_ok=True)
        group = zarr.open_group(store, mode="a", zarr_format=3)
        group.update_attributes(dict(V1_ENCODING))
        zarr.consolidate_metadata(group.store)
