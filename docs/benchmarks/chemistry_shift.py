"""Celler and balanced logistic regression from one chemistry to another, on the same cells.

    python docs/benchmarks/chemistry_shift.py REFERENCE.h5ad QUERY.h5ad [--seeds 3]

Both files hold counts. The reference is labelled by ``obs["cell_type"]``, the query by
``obs["cell_type_harmonised"]``, of which the cells with "5p" in ``obs["batch"]`` are taken.
"""

import argparse
import time

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.linear_model import LogisticRegression

import celler as cl


def logistic_regression(reference: ad.AnnData, query: ad.AnnData) -> np.ndarray:
    """Balanced logistic regression on log1p(CP10K) of the genes both have."""
    genes = reference.var_names.intersection(query.var_names)
    X = []
    for adata in (reference, query):
        log = adata[:, genes].copy()
        sc.pp.normalize_total(log, target_sum=1e4)
        sc.pp.log1p(log)
        X.append(log.X)
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    return model.fit(X[0], reference.obs["cell_type"].astype(str)).predict(X[1])


def celler(reference: ad.AnnData, query: ad.AnnData, seed: int) -> np.ndarray:
    """Celler with its defaults."""
    cl.model.Celler.setup_anndata(reference, labels_key="cell_type")
    model = cl.model.Celler(reference)
    model.train(seed=seed, show_progress=False)
    return model.predict(query)


def main() -> None:
    """Print one row per run, then means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference")
    parser.add_argument("query")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    reference, query = ad.read_h5ad(options.reference), ad.read_h5ad(options.query)
    query = query[query.obs["batch"].astype(str).str.contains("5p")].copy()
    truth = query.obs["cell_type_harmonised"].astype(str).to_numpy()
    counts = reference.obs["cell_type"].astype(str).value_counts().to_dict()
    rows = []
    for name, seed in [("logistic regression", 0), *(("celler", s) for s in range(options.seeds))]:
        start = time.perf_counter()
        if name == "celler":
            labels = celler(reference, query, seed)
        else:
            labels = logistic_regression(reference, query)
        scores = cl.metrics.summary(truth, labels, counts)
        seconds = time.perf_counter() - start
        rows.append({"method": name, "seed": seed, "seconds": seconds, **scores})
    table = pd.DataFrame(rows)
    columns = ["macro_f1", "recall_tail", "accuracy", "seconds"]
    print(table[["method", "seed", *columns]].round(3).to_string(index=False))
    print(table.groupby("method")[columns].agg(["mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    main()
