"""Processor time and memory by the number of synthetic cells: python docs/benchmarks/scaling.py [N ...]"""

import argparse
import resource
import subprocess
import sys
import time

import anndata as ad
import numpy as np
from scipy import sparse

import celler as cl

N_GENES, N_TYPES, GENES_PER_CELL = 5000, 20, 500


def cells(n_cells: int, seed: int = 0) -> ad.AnnData:
    """Counts of 20 types with 500 of 5,000 genes each, in blocks, so that making them needs no memory beyond theirs."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(N_TYPES, size=n_cells)
    indices = np.empty((n_cells, GENES_PER_CELL), np.int32)
    counts = np.empty((n_cells, GENES_PER_CELL), np.float32)
    for first in range(0, n_cells, 1000):
        rows = slice(first, min(n_cells, first + 1000))
        start = rng.integers(N_GENES, size=(rows.stop - first, 1))
        indices[rows] = np.sort((start + np.arange(GENES_PER_CELL) * 7) % N_GENES, axis=1)
        is_marker = indices[rows] // 20 == codes[rows, None]
        counts[rows] = rng.poisson(1.5 + 5 * is_marker) + 1
    indptr = np.arange(n_cells + 1, dtype=np.int32) * GENES_PER_CELL
    X = sparse.csr_matrix((counts.ravel(), indices.ravel(), indptr), (n_cells, N_GENES))
    adata = ad.AnnData(X)
    adata.obs_names = [f"cell {i}" for i in range(n_cells)]
    adata.var_names = [f"gene {i}" for i in range(N_GENES)]
    adata.obs["cell_type"] = [f"type {code}" for code in codes]
    return adata


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(n_cells: int) -> None:
    small = cells(500)
    cl.model.Celler.setup_anndata(small, labels_key="cell_type")
    warm = cl.model.Celler(small)
    warm.train(max_epochs=1, show_progress=False)  # compiles the tokenizer
    warm.predict(small)
    before = peak_mb()
    adata = cells(n_cells)
    data = (adata.X.data.nbytes + adata.X.indices.nbytes + adata.X.indptr.nbytes) / 2**20
    loaded = max(before, peak_mb())
    cl.model.Celler.setup_anndata(adata, labels_key="cell_type")
    model = cl.model.Celler(adata)
    start = time.process_time()
    model.train(max_epochs=1, refit=False, show_progress=False)
    epoch = time.process_time() - start
    start = time.process_time()
    model.predict(adata)
    speed = n_cells / (time.process_time() - start)
    print(f"| {n_cells:,} | {data:,.0f} | {epoch:.1f} | {speed:,.0f} | {peak_mb() - loaded:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n_cells", type=int, nargs="*", default=[5_000, 20_000, 80_000])
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        measure(options.n_cells[0])
        return
    print(
        "| Cells | Matrix, MiB | One epoch, CPU s | Predicted, cells per CPU s | Peak beyond the data, MiB |"
    )
    print("| ---: | ---: | ---: | ---: | ---: |", flush=True)
    for n_cells in options.n_cells:  # a process each: a peak never goes down
        subprocess.run([sys.executable, __file__, str(n_cells), "--alone"], check=True)


if __name__ == "__main__":
    main()
