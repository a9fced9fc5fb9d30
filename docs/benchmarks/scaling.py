"""Processor time and memory by cells, genes, tokens and classes: python docs/benchmarks/scaling.py [--out scaling]

Synthetic cells, the default network, one thread. Each row is a process of its own, since a peak never goes down. A
million cells are labelled by a model of ten thousand; beyond 100,000 none are trained on. Writes scaling.csv and
scaling.png to the folder OUT.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from processes import measure_alone, peak_mb
from synthetic import synthetic_cells

import celler as cl

USUAL = {"cells": 10_000, "genes": 5000, "tokens": 500, "classes": 20}
STEPS = {
    "cells": [1000, 10_000, 100_000, 1_000_000],
    "genes": [2000, 5000, 30_000],
    "tokens": [250, 500, 1000, 2000],
    "classes": [10, 100, 1000],
}
MOST_TRAINED = 100_000
SHOWN = {
    "train_s": "Training of one epoch, CPU s",
    "predict_rate": "Predicted, cells per CPU s",
}


def cells(size: dict[str, int], n_cells: int):
    """Synthetic cells of a size."""
    return synthetic_cells(
        n_cells,
        n_genes=size["genes"],
        n_expressed=size["tokens"],
        n_classes=size["classes"],
    )


def measure(size: dict[str, int]) -> dict[str, float]:
    """Seconds, rate and peak at one size."""
    reference = cells(size, min(size["cells"], MOST_TRAINED if size["cells"] < 10**6 else 10_000))
    cl.model.Celler.setup_anndata(reference, labels_key="cell_type")
    model = cl.model.Celler(reference)
    options = {"refit": False, "show_progress": False}
    start = time.process_time()
    model.train(1, **options)
    train = time.process_time() - start if size["cells"] <= MOST_TRAINED else float("nan")
    model.predict(reference[:200].copy())
    query = reference if size["cells"] == reference.n_obs else cells(size, size["cells"])
    matrix = query.X.data.nbytes + query.X.indices.nbytes + query.X.indptr.nbytes
    loaded, start = peak_mb(), time.process_time()
    model.predict(query)
    rate = size["cells"] / (time.process_time() - start)
    found = {"matrix_mb": matrix / 2**20, "train_s": train, "predict_rate": rate}
    return found | {"peak_mb": peak_mb() - loaded}


def plot(table: pd.DataFrame, file: Path) -> None:
    """A panel per measure and axis."""
    mpl.use("agg")
    figure, axes = plt.subplots(len(SHOWN), len(STEPS), figsize=(12, 5.5), sharey="row")
    for j, axis in enumerate(STEPS):
        rows = table[table["axis"] == axis]
        for i, (column, title) in enumerate(SHOWN.items()):
            axes[i, j].loglog(rows[axis], rows[column], "o-", color="#0072B2")
            axes[i, j].set_xticks(rows[axis], [f"{step:,}" for step in rows[axis]], fontsize=7)
            axes[i, j].minorticks_off()
            axes[i, j].grid(alpha=0.3)
            if j == 0:
                axes[i, j].set_ylabel(title, fontsize=8)
        axes[-1, j].set_xlabel(axis)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def main() -> None:
    """Print and write the table, and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("scaling"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(json.loads(options.one))))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for axis, steps in STEPS.items():
        for step in steps:
            size = USUAL | {axis: step}
            found = measure_alone(__file__, "--one", json.dumps(size))
            rows.append({"axis": axis} | size | found)
            print(rows[-1], flush=True)
            table = pd.DataFrame(rows)
            table.to_csv(options.out / "scaling.csv", index=False)
    plot(table, options.out / "scaling.png")
    print(table.round(1).to_string(index=False))


if __name__ == "__main__":
    main()
