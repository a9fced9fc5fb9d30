"""How many planted label errors `model.hard_cells_` finds.

    python docs/benchmarks/label_errors.py FILE.h5ad [...] --labels-key KEY [--share 0.03] [--seeds 3]

A share of the cells, drawn at random, gets the label of another type, drawn at random too. Celler is
trained on all cells with its defaults; its table of hard cells is compared with what was planted.
Original labels are taken as true, which they are not all: the precision is a lower bound.
"""

import argparse
import warnings

import anndata as ad
import numpy as np
import pandas as pd

from celler.model import Celler


def plant(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Labels with a ``share`` of the cells moved to another type."""
    wrong, names = labels.copy(), np.unique(labels)
    for cell in rng.choice(len(labels), round(share * len(labels)), replace=False):
        wrong[cell] = rng.choice(names[names != labels[cell]])
    return wrong


def score(adata: ad.AnnData, labels_key: str, share: float, seed: int) -> dict[str, float]:
    """How many planted cells the table holds, and which share of its first rows they are."""
    labels = adata.obs[labels_key].astype(str).to_numpy()
    adata = adata.copy()
    adata.obs["given"] = plant(labels, share, np.random.default_rng(seed))
    is_wrong = pd.Series(adata.obs["given"].to_numpy() != labels, index=adata.obs_names)
    Celler.setup_anndata(adata, labels_key="given")
    model = Celler(adata)
    model.train(seed=seed, show_progress=False)
    hard = model.hard_cells_
    found = is_wrong[hard["cell"]].to_numpy()
    names = (hard["prediction"] == labels[adata.obs_names.get_indexer(hard["cell"])]).to_numpy()
    return {
        "cells": adata.n_obs,
        "planted": is_wrong.sum(),
        "listed": len(hard),
        "found": found.sum(),
        "of the first 50": found[:50].mean(),
        "of as many as planted": found[: is_wrong.sum()].mean(),
        "right type named": names[found].mean(),
    }


def main() -> None:
    """Print means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--labels-key", default="cell_type")
    parser.add_argument("--share", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    rows = {
        (file.split("/")[-1], seed): score(ad.read_h5ad(file), options.labels_key, options.share, seed)
        for file in options.files
        for seed in range(options.seeds)
    }
    table = pd.DataFrame(rows).T.rename_axis(["file", "seed"])
    print(table.groupby("file").mean().round(3).T.to_string())


if __name__ == "__main__":
    main()
