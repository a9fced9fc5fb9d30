"""A query of a million cells from end to end: time and peak memory of ``annotate``, and of spreading labels.

    python docs/benchmarks/million.py DATA [--cells 1000000] [--exact 20000]

DATA is a folder with ``onek1k_40donors_7811.h5ad``. A model is trained on half of the donors; the query has cells of
the others, drawn many times, each with counts drawn anew around the cell's. ``--exact`` takes that many of them and
compares labels by the approximate graph of neighbours with those by the exact one.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
from scipy import sparse
from studies import pair, trained

from celler.inference import _propagation

BLOCK = 50_000


def drawn(query: ad.AnnData, n_cells: int) -> ad.AnnData:
    """``n_cells`` cells like those of ``query``."""
    rng, X, blocks = np.random.default_rng(0), sparse.csr_matrix(query.X, dtype=np.float32), []
    rows = rng.integers(query.n_obs, size=n_cells)
    for first in range(0, n_cells, BLOCK):
        block = X[rows[first : first + BLOCK]]
        block.data = rng.poisson(block.data).astype(np.float32)
        block.eliminate_zeros()
        blocks.append(block)
    found = ad.AnnData(sparse.vstack(blocks, format="csr"), var=query.var[[]])
    return found[np.asarray(found.X.sum(axis=1)).ravel() > 0].copy()


def measured(name: str, run: Callable[[], object]) -> object:
    """Print processor and wall seconds and the peak of memory so far; return the result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {wall:.0f} s, {cpu:.0f} s of processors, peak {peak:.1f} GiB", flush=True)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--exact", type=int, default=20_000)
    arguments = parser.parse_args()
    reference, query = pair("onek1k", arguments.data, 0)
    model = trained(reference, 0)
    some = drawn(query, arguments.exact)
    exact = model.predict(some, propagate=True)
    _propagation.EXACT_CELLS = 0
    print(
        f"labels as by the exact graph: {(model.predict(some, propagate=True) == exact).mean():.2%} of {some.n_obs:,}"
    )
    many = measured("the query is made", lambda: drawn(query, arguments.cells))
    print(f"{many.n_obs:,} cells, {many.X.nnz / many.n_obs:.0f} values each")
    measured("predict", lambda: model.predict(many))
    measured("annotate", lambda: model.annotate(many))
    measured("annotate, propagated", lambda: model.annotate(many, propagate=True))


if __name__ == "__main__":
    main()
