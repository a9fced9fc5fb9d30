"""Calibration error of Celler's probabilities, beside logistic regression, on held-out and on shifted cells.

    python docs/benchmarks/calibration.py DATA [--out calibration.csv] [--seeds 1]

DATA is a folder with the files of shared_tasks.py, whose five tasks come first; then sets of which four tenths of
each class are held out. ``T = 1`` are Celler's probabilities without the temperature. Rows that the CSV has already are
not run again.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from shared_tasks import TASKS, stratified
from sklearn.linear_model import LogisticRegression

import celler as cl

HELD_OUT = {
    "hpbmc": "hpbmc_reference.h5ad",
    "cbmc": "cbmc_cite_8617_nogenes.h5ad",
    "kidney": "human_kidney_5685_nogenes.h5ad",
    "pbmc4k": "pbmc4k_4271_nogenes.h5ad",
    "cortex": "mouse_cortex_zeisel_550.h5ad",
}


def held_out(file: str, data: Path, seeds: list[int]) -> Iterator[tuple]:
    """Six tenths of each class as the reference."""
    yield from stratified(data / file, 0.6, seeds)


def error(probabilities: np.ndarray, classes: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error of the best class."""
    is_correct = classes[probabilities.argmax(axis=1)] == truth
    return cl.metrics.expected_calibration_error(probabilities.max(axis=1), is_correct)


def logistic_regression(reference: ad.AnnData, query: ad.AnnData, truth: np.ndarray) -> float:
    """Calibration error of balanced logistic regression on log1p(CP10K) of the shared genes."""
    genes = reference.var_names.intersection(query.var_names)
    logs = []
    for adata in (reference, query):
        log = ad.AnnData(adata[:, genes].X.astype(np.float32))
        sc.pp.normalize_total(log, target_sum=1e4)
        sc.pp.log1p(log)
        logs.append(log.X)
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(logs[0], reference.obs["cell_type"].astype(str))
    return error(model.predict_proba(logs[1]), model.classes_, truth)


def row(reference: ad.AnnData, query: ad.AnnData, seed: int) -> dict[str, float]:
    """Calibration errors, the temperature and the validation cells it is from."""
    truth = query.obs["cell_type"].astype(str).to_numpy()
    cl.model.Celler.setup_anndata(reference, labels_key="cell_type")
    model = cl.model.Celler(reference)
    model.train(seed=seed, show_progress=False)
    model.annotate(query)
    soft = model.predict(query, soft=True).to_numpy()
    temperature = query.uns["celler"]["temperature"]
    without = soft**temperature / (soft**temperature).sum(axis=1, keepdims=True)
    return {
        "Celler": error(soft, model.classes_, truth),
        "T = 1": error(without, model.classes_, truth),
        "logistic regression": logistic_regression(reference, query, truth),
        "temperature": temperature,
        "validation cells": len(model.validation_indices_),
    }


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("calibration.csv"))
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    tasks: dict[str, Callable[..., Iterator]] = dict(TASKS)
    tasks |= {name: partial(held_out, file) for name, file in HELD_OUT.items()}
    table = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    for name, task in tasks.items():
        for seed in range(options.seeds):
            if not table.empty and ((table["task"] == name) & (table["seed"] == seed)).any():
                continue
            try:
                reference, query, _ = next(iter(task(options.data, [seed])))
            except FileNotFoundError as missing:
                print(f"{name}: {missing.filename} is missing, left out")
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scores = {"task": name, "seed": seed, **row(reference, query, seed)}
            table = pd.concat([table, pd.DataFrame([scores])], ignore_index=True)
            table.to_csv(options.out, index=False)
    print(table.drop(columns="seed").groupby("task", sort=False).mean().round(3).to_string())


if __name__ == "__main__":
    main()
