"""Blocks: files of cells sorted by the dataset they are drawn for, from which each takes its part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse


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
