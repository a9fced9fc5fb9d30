"""Time of Celler and its peers in one run, from the same raw counts: training and scANVI, prediction and CellTypist.

    python docs/benchmarks/peers_speed.py DATA [--skip-training]

DATA is a folder with the files named below. Seconds are processor time summed over threads, so that other jobs on the
machine count little; wall time is printed too. Peers run as in ``celler benchmark compare``; scvi-tools and celltypist
must be installed. Normalisation is part of the time.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split
from synthetic import synthetic_cells

from celler.benchmark.methods._celler import celler
from celler.benchmark.methods._celltypist import celltypist
from celler.benchmark.methods._scanvi import scanvi

TRAINING = {"cbmc": "cbmc_cite_8617_nogenes.h5ad", "hpbmc_reference": "hpbmc_reference.h5ad"}
PREDICTION = {"pbmc3k_annotated": "pbmc3k_annotated.h5ad", "cbmc": TRAINING["cbmc"]}
N_ROUNDS = 5


def parts(file: Path) -> tuple[ad.AnnData, ad.AnnData]:
    """Nine tenths of the cells as the reference, a tenth as the query."""
    adata = ad.read_h5ad(file)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    adata.uns = {"kind": "counts"}
    rows = np.arange(adata.n_obs)
    counts = adata.obs["cell_type"].value_counts()
    rows = rows[adata.obs["cell_type"].map(counts).to_numpy() > 1]
    labels = adata.obs["cell_type"].to_numpy()[rows]
    reference, query = train_test_split(rows, test_size=0.1, stratify=labels, random_state=0)
    return adata[np.sort(reference)].copy(), adata[np.sort(query)].copy()


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Processor and wall seconds, and the result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def training(data: Path) -> pd.DataFrame:
    """Seconds to train, and scANVI's over Celler's."""
    rows = []
    for name, file in TRAINING.items():
        reference, query = parts(data / file)
        row: dict[str, Any] = {"data": name, "cells": reference.n_obs, "genes": reference.n_vars}
        for title, method in (("Celler", celler), ("scANVI", scanvi)):
            fit = partial(method, reference.copy(), "cell_type", query.copy(), 0)
            cpu, wall, _ = timed(fit)
            row |= {f"{title}, s": cpu, f"{title}, wall s": wall}
        rows.append(row | {"ratio": row["scANVI, s"] / row["Celler, s"]})
        print(pd.DataFrame(rows[-1:]).round(1).to_string(index=False), flush=True)
    return pd.DataFrame(rows)


def prediction(data: Path) -> pd.DataFrame:
    """Cells per second of the processor that probabilities take, all cells of a set, in turns."""
    rows = []
    for name, file in PREDICTION.items():
        reference, _ = parts(data / file)
        query = ad.read_h5ad(data / file)
        query.uns = {"kind": "counts"}
        predict = {
            title: method(reference.copy(), "cell_type", query, 0)
            for title, method in (("Celler", celler), ("CellTypist", celltypist))
        }
        seconds: dict[str, list[float]] = {title: [] for title in predict}
        for _ in range(N_ROUNDS + 1):
            for title, run in predict.items():
                seconds[title].append(timed(partial(run, query))[0])
        rate = {title: query.n_obs / median(each[1:]) for title, each in seconds.items()}
        row = {"data": name, "cells": query.n_obs, "genes": query.n_vars}
        row |= {f"{title}, cells/s": value for title, value in rate.items()}
        rows.append(row | {"ratio": rate["Celler"] / rate["CellTypist"]})
        print(pd.DataFrame(rows[-1:]).round(2).to_string(index=False), flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--skip-training", action="store_true")
    options = parser.parse_args()
    missing = [f for f in {*TRAINING.values(), *PREDICTION.values()} if not (options.data / f).exists()]
    if missing:
        raise SystemExit(f"{options.data} lacks {missing}")
    warnings.simplefilter("ignore")
    toy = synthetic_cells(200, n_genes=60, n_expressed=20, n_classes=3)
    celler(toy, "cell_type", toy, 0)(toy)  # compiles the tokenizer
    prediction(options.data)
    if not options.skip_training:
        training(options.data)


if __name__ == "__main__":
    main()
