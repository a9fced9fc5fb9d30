"""Write the shuffled datasets of a store; a build that was killed goes on after its last finished file.

Each cell draws its dataset. Blocks of a file are written with the cells sorted by dataset, then each dataset is
gathered from all blocks, shuffled and written by annbatch.

annbatch's own shuffle, ``DatasetCollection.add_adatas``, was measured with 200,000 cells of 1,500 values: the same
28 s of processor time, but 3.6 instead of 2.1 GB of memory. It begins anew after a kill, keeps runs of 1,000
neighbours in one dataset, and takes no CSC files, so resumable builds are worth these lines.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from scipy import sparse
from zarr.codecs import BloscCodec, Crc32cCodec

from celler.atlas._checksums import OF_CELL, of_cells
from celler.atlas._counts import Counts, in_genes
from celler.atlas._files import AtlasFile, Matrix, check_fits, check_whole
from celler.atlas._plan import BASE_BYTES, BUCKETS, ORDER, Plan
from celler.atlas._store import STORE_NAME, fast_codecs

#: Most stored values that are read at once, and the bytes of memory that each takes on the way.
N_VALUES, BYTES_PER_VALUE = 16_000_000, 80
#: Cells of a chunk, the least that can be read, and size of the files in which chunks lie.
N_OBS_PER_CHUNK, SHARD_SIZE = 64, "256MB"


def write_blocks(plan: Plan, number: int, source: AtlasFile) -> Iterator[int]:
    """Write the cells of a file in blocks and yield the rows of each; a block that exists is skipped."""
    cells, gene_map = plan.cells(number), np.load(plan.folder / f"genes_{number}.npy")
    # Drawn for all rows at once: the dataset of a cell must not depend on the blocks.
    rng = np.random.default_rng([plan.settings["seed"], BUCKETS, number])
    bucket = rng.integers(plan.n_buckets, size=len(cells.reason), dtype=np.int32)
    codes = np.stack([cells.columns[name].codes for name in plan.categories], axis=1)
    place = plan.sources[number]["counts"]
    with source.open() as contents:
        matrix = Matrix(contents, place)
        most = int((plan.settings["memory_gb"] * 1e9 - BASE_BYTES) / BYTES_PER_VALUE)
        # Each block of CSC is a pass over the whole matrix: as few as possible.
        for start, stop in matrix.blocks(most if matrix.form == "csc" else min(most, N_VALUES)):
            path = plan.folder / f"block_{number:05d}_{start:012d}"
            if not path.exists():
                rows = start + np.flatnonzero(cells.is_kept[start:stop])
                X = matrix.rows(start, stop)
                X = X if len(rows) == stop - start else X[rows - start]
                check_whole(X, rows, contents, place)
                order = np.argsort(bucket[rows], kind="stable")
                rows, types = rows[order], types_of(plan)
                counts = in_genes(X, order, gene_map, len(plan.genes), types)
                check_fits(counts.misfit, rows, contents, types[1])
                has_counts = np.diff(counts.indptr) > 0
                rows = rows[has_counts]
                indptr = np.append(0, counts.indptr[1:][has_counts])
                names = np.array(cells.names(contents, start, stop), dtype=object)[rows - start]
                write_block(plan, path, counts._replace(indptr=indptr), codes[rows], names, bucket[rows])
            yield stop - start


def types_of(plan: Plan) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return the types of the genes and of the counts in a block."""
    return np.dtype("u2" if len(plan.genes) <= 2**16 else "u4"), np.dtype(plan.settings["dtype"])


def write_block(
    plan: Plan, path: Path, counts: Counts, codes: np.ndarray, names: np.ndarray, bucket: np.ndarray
) -> None:
    """Write cells, which are sorted by their ``bucket (n,)``, whole or not at all."""
    part = path.with_suffix(".part")
    with h5py.File(part, "w") as file:
        file["firsts"] = np.searchsorted(bucket, np.arange(plan.n_buckets + 1))
        file["codes"] = codes
        file["names"] = np.array([name.encode() for name in names], bytes)
        file["indptr"], file["indices"], file["data"] = counts[:3]
    part.replace(path)


def read_blocks(blocks: list[Path], bucket: int, n_genes: int) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Read counts, codes and names of the cells of all blocks that belong to ``bucket``."""
    lengths, codes, names, ranges = [np.zeros(1, int)], [], [], []
    for path in blocks:
        with h5py.File(path) as file:
            first, last = file["firsts"][bucket : bucket + 2]
            ends, count_type = file["indptr"][first : last + 1], file["data"].dtype
            lengths.append(np.diff(ends))
            codes.append(file["codes"][first:last])
            names.append(file["names"][first:last])
            ranges.append(slice(ends[0], ends[-1]))
    indptr = np.cumsum(np.concatenate(lengths))
    # Filled in place: a list of all parts would take the memory of the counts once more.
    data = np.empty(indptr[-1], count_type)
    indices = np.empty(len(data), np.int32 if len(data) < 2**31 else np.int64)
    start = 0
    for path, values in zip(blocks, ranges, strict=True):
        place = slice(start, start + values.stop - values.start)
        with h5py.File(path, "r") as file:
            data[place], indices[place] = file["data"][values], file["indices"][values]
        start = place.stop
    X = sparse.csr_matrix((data, indices, indptr), (len(indptr) - 1, n_genes))
    return X, np.concatenate(codes), np.concatenate(names)


def write_dataset(plan: Plan, bucket: int) -> int:
    """Shuffle and write a dataset of the collection, unless it exists; returns its number of cells."""
    store = plan.folder / STORE_NAME
    final, part = store / f"dataset_{bucket}", plan.folder / "dataset.part"
    blocks = sorted(plan.folder.glob("block_?????_????????????"))
    n_obs = 0
    for path in blocks:
        with h5py.File(path) as file:
            n_obs += int(file["firsts"][bucket + 1] - file["firsts"][bucket])
    if final.exists() or not n_obs:
        return n_obs
    X, codes, names = read_blocks(blocks, bucket, len(plan.genes))
    order = np.argsort(np.random.default_rng([plan.settings["seed"], ORDER, bucket]).permutation(n_obs))
    obs = pd.DataFrame(index=pd.Index([name.decode() for name in names[order]], dtype=object))
    for i, (name, categories) in enumerate(plan.categories.items()):
        obs[name] = pd.Categorical.from_codes(codes[order, i], categories)
    X = X[order]
    obs[OF_CELL] = of_cells(X)
    adata = anndata.AnnData(X, obs, pd.DataFrame(index=pd.Index(plan.genes, dtype=object)))
    del X
    shutil.rmtree(part, ignore_errors=True)
    _write_zarr(part, adata)
    store.mkdir(exist_ok=True)
    part.rename(final)
    return n_obs


def _write_zarr(path: Path, adata: anndata.AnnData) -> None:
    import annbatch

    with warnings.catch_warnings():
        # zarr's, of what is not in its standard yet
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        group = zarr.open_group(path, mode="w", zarr_format=3)
        n_chunk = min(N_OBS_PER_CHUNK, adata.n_obs)
        # annbatch's codec, and a checksum of each chunk, which is verified when it is read.
        codecs = BloscCodec(cname="lz4", clevel=3, shuffle="shuffle"), Crc32cCodec()
        # The same bytes of counts in less processor time.
        with fast_codecs():
            annbatch.write_sharded(group, adata, n_obs_per_chunk=n_chunk, shard_size=SHARD_SIZE, compressors=codecs)


def close_collection(store: Path) -> None:
    """Make the folder of datasets a collection that annbatch opens."""
    from annbatch.io import V1_ENCODING

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        (store / "zarr.json").unlink(missing_ok=True)
        group = zarr.open_group(store, mode="a", zarr_format=3)  # "w" would empty the folder
        group.update_attributes(dict(V1_ENCODING))
        zarr.consolidate_metadata(group.store)
