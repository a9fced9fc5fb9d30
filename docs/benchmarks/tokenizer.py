"""Nanoseconds per non-zero of the tokenizer on one core, next to the NumPy row loop it replaces.

    python docs/benchmarks/tokenizer.py [FILE.h5ad ...]

Without files it makes sparse counts of about 150, 500 and 1,500 genes a cell. Each figure is the
median of 7 passes over all cells in minibatches of 128.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
from scipy import sparse

from celler.data._tokenizer import Tokenizer

N_BINS = 51


def synthetic(n_expressed: int, n_genes: int = 20_000, n_cells: int = 2_560) -> sparse.csr_matrix:
    """Counts with about ``n_expressed`` genes a cell, most of them 1, as in droplet data."""
    rng = np.random.default_rng(0)
    rates = rng.lognormal(0, 1.5, n_genes)
    rates *= n_expressed / rates.sum() * 1.6
    X = rng.poisson(rates * rng.lognormal(0, 0.4, (n_cells, 1)), (n_cells, n_genes))
    return sparse.csr_matrix(X, dtype=np.float32)


def log_normalised(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """``log1p`` of counts per 10,000."""
    normalised = sparse.csr_matrix(X.multiply(1e4 / X.sum(axis=1)), dtype=np.float32)
    return normalised.log1p()


def numpy_loop(X: sparse.csr_matrix) -> None:
    """What a row loop does: sort, quantile edges, digitize, log1p."""
    for i in range(X.shape[0]):
        values = X.data[X.indptr[i] : X.indptr[i + 1]]
        np.digitize(values, np.quantile(values, np.linspace(0, 1, N_BINS - 1)))
        np.log1p(values * (1e4 / values.sum()))


def median_ns(work: Callable[[sparse.csr_matrix], object], X: sparse.csr_matrix, repeats: int) -> float:
    """Median nanoseconds per non-zero over ``repeats`` passes."""
    blocks = [X[start : start + 128] for start in range(0, X.shape[0], 128)]
    work(blocks[0])
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for block in blocks:
            work(block)
        times.append(time.perf_counter() - start)
    return 1e9 * float(np.median(times)) / X.nnz


def matrices() -> Iterator[tuple[str, sparse.csr_matrix]]:
    """Files named on the command line, or synthetic counts."""
    for name in sys.argv[1:]:
        yield Path(name).stem, sparse.csr_matrix(ad.read_h5ad(name).X, dtype=np.float32)
    if len(sys.argv) == 1:
        for n_expressed in (150, 500, 1500):
            yield f"synthetic {n_expressed}", synthetic(n_expressed)


def figures(X: sparse.csr_matrix) -> list[float]:
    """Counts, log values, counts with token dropout, and the NumPy loop."""
    tokenizer = Tokenizer(n_bins=N_BINS)
    genes, seeds = np.arange(X.shape[1], dtype=np.int32), np.arange(128, dtype=np.uint64)

    def drop(block: sparse.csr_matrix) -> None:
        tokenizer(block, genes, token_dropout=0.3, seeds=seeds[: block.shape[0]])

    return [
        median_ns(lambda block: tokenizer(block, genes), X, 7),
        median_ns(lambda block: tokenizer(block, genes, is_log=True), log_normalised(X), 7),
        median_ns(drop, X, 7),
        median_ns(numpy_loop, X, 1),
    ]


def main() -> None:
    """Print one row per matrix."""
    print(f"{'ns per non-zero':32}{'genes/cell':>11}{'counts':>9}{'log1p':>9}{'training':>10}{'NumPy':>9}")
    for name, X in matrices():
        counts, log, training, loop = figures(X)
        n_genes = X.nnz / X.shape[0]
        print(f"{name:32}{n_genes:>11.0f}{counts:>9.1f}{log:>9.1f}{training:>10.1f}{loop:>9.1f}")


if __name__ == "__main__":
    main()
