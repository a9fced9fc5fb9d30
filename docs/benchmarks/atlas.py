"""Time, memory and disk of building a store of synthetic cells: python docs/benchmarks/atlas.py --cells 1000000

Writes h5ad files to OUT/sources and the store to OUT/store. docs/benchmarks/streaming.py then measures reading it.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from processes import measure_alone, peak_mb
from scipy import sparse

import celler as cl

N_TYPES, N_DONORS, N_MARKERS = 30, 20, 50
#: Cells that are made at once.
BLOCK = 5000


def make_files(
    folder: Path,
    n_cells: int,
    *,
    n_genes: int = 20_000,
    n_files: int = 10,
    n_values: int = 1500,
    seed: int = 0,
) -> list[Path]:
    """Write ``n_files`` h5ad files of counts with about ``n_values`` non-zeros a cell; keep files that exist.

    30 types of falling size with 50 markers each, 20 donors a file. Each file lacks a twentieth of the genes; every
    second file has its genes in another order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part_{i}.h5ad" for i in range(n_files)]
    for i, path in enumerate(paths):
        if not path.exists():
            n_own = n_cells // n_files + (i < n_cells % n_files)
            make_file(path, n_own, n_genes, n_values, np.random.default_rng([seed, i]), i)
    return paths


def measure_build(sources: list[Path], out: Path, memory_gb: float = 4.0) -> dict[str, Any]:
    """Build in a process of its own: seconds, processor seconds, peak memory MiB, GB of sources and store."""
    measured = measure_alone(__file__, "--one", json.dumps([list(map(str, sources)), str(out), memory_gb]))
    return measured | {"sources_gb": gigabytes(sources), "store_gb": gigabytes([out])}


def build(sources: list[str], out: str, memory_gb: float) -> dict[str, float]:
    """Build in this process: seconds, processor seconds and MiB at the peak."""
    start = time.perf_counter()
    cl.atlas.build(sources, out, labels_key="cell_type", storage=cl.atlas.Storage(memory_gb=memory_gb))
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    processor = used.ru_utime + used.ru_stime
    return {"seconds": seconds, "processor_seconds": processor, "peak_memory_mb": peak_mb()}


def make_file(path: Path, n_cells: int, n_genes: int, n_values: int, rng: np.random.Generator, number: int) -> None:
    genes = rng.permutation(n_genes)[: n_genes * 19 // 20]
    genes = genes if number % 2 else np.sort(genes)
    profile = 100.0 ** -np.linspace(0, 1, N_TYPES)
    codes = rng.choice(N_TYPES, n_cells, p=profile / profile.sum())
    donors = rng.integers(N_DONORS, size=n_cells)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type {c:02d}" for c in codes]),
            "parent_type": pd.Categorical([f"lineage {c // 5}" for c in codes]),
            "donor_id": pd.Categorical([f"donor {number}.{d}" for d in donors]),
            "tissue": pd.Categorical([f"tissue {number // 2}"] * n_cells),
            "disease": pd.Categorical(np.where(donors % 3 == 0, "disease", "normal")),
        },
        index=[f"CELL{number:02d}{i:08d}-1" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"GENE{gene:05d}" for gene in genes])
    part = path.with_suffix(".part.h5ad")
    empty = sparse.csr_matrix((n_cells, len(genes)), dtype=np.float32)
    anndata.AnnData(empty, obs, var).write_h5ad(part)
    with h5py.File(part, "a") as file:
        write_counts(file["X"], codes, genes, n_genes, n_values, rng)
    part.replace(path)


def write_counts(
    group: Any,
    codes: np.ndarray,
    genes: np.ndarray,
    n_genes: int,
    n_values: int,
    rng: np.random.Generator,
) -> None:
    """Counts of the file's ``genes`` as CSR, a block at a time."""
    for name in ("data", "indices", "indptr"):
        del group[name]
    options: dict[str, Any] = {"maxshape": (None,), "chunks": (1 << 17,), "compression": "lzf"}
    data = group.create_dataset("data", (0,), np.float32, shuffle=True, **options)
    indices = group.create_dataset("indices", (0,), np.int32, shuffle=True, **options)
    ends = [np.zeros(1, np.int64)]
    for start in range(0, len(codes), BLOCK):
        X = counts(codes[start : start + BLOCK], n_genes, n_values, rng)[:, genes]
        X.sort_indices()
        n_before = len(data)
        for array, values in ((data, X.data), (indices, X.indices)):
            array.resize(n_before + X.nnz, axis=0)
            array[n_before:] = values
        ends.append(X.indptr[1:].astype(np.int64) + n_before)
    group["indptr"] = np.concatenate(ends)


def counts(codes: np.ndarray, n_genes: int, n_values: int, rng: np.random.Generator) -> sparse.csr_matrix:
    """Random gaps between the genes of a cell; the markers of its type count more."""
    gap = n_genes / n_values
    steps = 1 + rng.exponential(gap - 0.5, (len(codes), int(1.2 * n_values))).astype(np.int32)
    genes = np.cumsum(steps, axis=1, dtype=np.int32) - 1
    is_in = genes < n_genes
    ends = np.concatenate([[0], np.cumsum(is_in.sum(axis=1))])
    counts = rng.geometric(0.6, genes.shape).astype(np.float32)
    counts += 4 * (genes // N_MARKERS == codes[:, None])
    return sparse.csr_matrix((counts[is_in], genes[is_in], ends), (len(codes), n_genes))


def gigabytes(paths: list[Path]) -> float:
    files = [f for path in paths for f in (path.rglob("*") if path.is_dir() else [path])]
    return sum(f.stat().st_size for f in files if f.is_file()) / 1e9


def main() -> None:
    """Make the files, build the store and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000, help="default: 100000")
    parser.add_argument("--genes", type=int, default=20_000, help="default: 20000")
    parser.add_argument("--files", type=int, default=10, help="number of sources (default: 10)")
    parser.add_argument("--memory-gb", type=float, default=4.0, help="limit (default: 4)")
    parser.add_argument("--out", type=Path, default=Path("atlas"), help="folder (default: atlas)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(build(*json.loads(options.one))))
        return
    sources, store = options.out / "sources", options.out / "store"
    paths = make_files(sources, options.cells, n_genes=options.genes, n_files=options.files)
    for name, value in measure_build(paths, store, options.memory_gb).items():
        print(f"{name}: {value:,.2f}")
    print(f"wrote {store}; {sources} can be deleted")


if __name__ == "__main__":
    main()
