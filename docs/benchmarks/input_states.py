"""Labels of one query given as counts, CP10K, log1p and log2, by a model trained on counts: share of equal labels.

    python docs/benchmarks/input_states.py DATA [--seeds 3]

DATA is a folder with ``pbmc3k_annotated.h5ad``, raw counts. Half of each type is the reference, the other
half the query; each model sees the reference in counts and the query in four forms.
"""

import argparse
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.model_selection import train_test_split

from celler.model import Celler

FILE = "pbmc3k_annotated.h5ad"


def forms(counts: ad.AnnData) -> dict[str, ad.AnnData]:
    """The query as it may come: the same cells, four ways to write their values."""
    per_10k = counts.copy()
    sc.pp.normalize_total(per_10k, target_sum=1e4)
    log1p, log2 = per_10k.copy(), per_10k.copy()
    sc.pp.log1p(log1p)
    log2.X = per_10k.X.copy()
    log2.X.data = np.log2(1 + log2.X.data)
    return {"counts": counts, "CP10K": per_10k, "log1p": log1p, "log2": log2}


def main() -> None:
    """Print a row for each seed: how many labels equal those of the counts, and accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if not (arguments.data / FILE).exists():
        sys.exit(f"{arguments.data / FILE} is missing; pass the folder that holds it.")
    cells = ad.read_h5ad(arguments.data / FILE)
    rows = []
    for seed in range(arguments.seeds):
        known, asked = train_test_split(
            np.arange(cells.n_obs),
            test_size=0.5,
            stratify=cells.obs["cell_type"],
            random_state=seed,
        )
        reference, query = cells[known].copy(), cells[asked].copy()
        Celler.setup_anndata(reference, labels_key="cell_type")
        model = Celler(reference)
        model.train(seed=seed, show_progress=False)
        labels = {name: model.predict(form) for name, form in forms(query).items()}
        row = {"seed": seed, "cells": query.n_obs}
        row["accuracy"] = np.mean(labels["counts"] == query.obs["cell_type"].astype(str))
        row |= {name: np.mean(labels[name] == labels["counts"]) for name in labels}
        rows.append(row)
        print(row, flush=True)
    print(pd.DataFrame(rows).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
