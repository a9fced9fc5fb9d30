"""Queries of other studies: shift, realised false alarms, calibration, independence of order, and types left out.

    python docs/benchmarks/across_studies.py DATA [--out across] [--seeds 3] [--parts pairs,left_out] [--sets ...]

DATA is the folder of ``studies.py``, whose pairs are used. ``pairs`` trains on the reference and labels the query; its
cells of types that the reference lacks are left out. ``left_out`` leaves each class with five cells in the
query out of the reference once, with one seed. A CSV for each part; rows that it has already are not run again.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from studies import NATURAL, SYNTHETIC, pair, trained

import celler as cl

RATES = (0.01, 0.05, 0.2)
PAIRS = [*NATURAL, "endocrine", "cortex44", *SYNTHETIC]
WITHIN = {
    "hpbmc_within": "hpbmc_reference.h5ad",
    "cbmc_within": "cbmc_cite_8617_nogenes.h5ad",
    "zeisel_within": "mouse_cortex_zeisel_550.h5ad",
}
LEFT_OUT = [*WITHIN, "pbmc_5p", "tcells", "onek1k", "pbmc_3tech", "endocrine+0.7", "forebrain"]


def figures(model: cl.model.Celler, query: ad.AnnData) -> dict[str, float]:
    """Shift, accuracy, expected accuracy, calibration error, false alarms and what they find."""
    query = query.copy()
    model.annotate(query)
    record, truth = query.uns["celler"], query.obs["cell_type"].to_numpy()
    is_known = np.isin(truth, model.classes_)
    is_right = (query.obs["celler"].astype(str).to_numpy() == truth)[is_known]
    confidence, novelty = query.obs["celler_confidence"].to_numpy(), query.obs["celler_novelty"].to_numpy()
    found = {
        "shift": record["shift"],
        "accuracy": is_right.mean(),
        "expected accuracy": record["expected_accuracy"],
        "calibration error": cl.metrics.expected_calibration_error(confidence[is_known], is_right),
        "temperature": record["temperature"],
        "novelty location": record["novelty_location"],
        "novelty spread": record["novelty_spread"],
    }
    for rate in RATES:
        limit = np.quantile(model._state.fitted.novelty.known, 1 - rate)
        found[f"false alarms at {rate}"] = (novelty[is_known] > limit).mean()
        found[f"found at {rate}"] = (novelty[~is_known] > limit).mean() if (~is_known).any() else np.nan
    found["unknown cells"] = (~is_known).mean()
    found["AUROC"] = roc_auc_score(~is_known, novelty) if (~is_known).sum() >= 5 else np.nan
    return found


def independence(model: cl.model.Celler, query: ad.AnnData) -> dict[str, bool]:
    """Whether permuted rows, and chunks with the adaptation to all, get the probabilities of the whole, bit by bit."""
    soft, order = model.predict(query, soft=True).to_numpy(), np.random.default_rng(0).permutation(query.n_obs)
    turned = model.predict(query[order].copy(), soft=True).to_numpy()
    whole = model.adapt(query)
    chunks = [query[start : start + 997].copy() for start in range(0, query.n_obs, 997)]
    parts = np.concatenate([model.predict(chunk, soft=True, adaptation=whole).to_numpy() for chunk in chunks])
    of_parts = model.adapt(chunks)
    first = model.predict(chunks[0], soft=True, adaptation=of_parts).to_numpy()
    return {
        "permuted equal": bool((turned == soft[order]).all()),
        "chunks equal": bool((parts == soft).all() and (first == soft[: len(first)]).all()),
    }


def run_pairs(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row for each pair and seed."""
    for seed in range(options.seeds):
        models: dict[str, cl.model.Celler] = {}
        for name in options.sets or PAIRS:
            if (name, seed) in options.done:
                continue
            reference, query = pair(name, options.data, seed)
            origin, start = name.partition("+")[0], time.perf_counter()
            if origin not in models:
                models = {origin: trained(reference, seed)}
            row = figures(models[origin], query) | (independence(models[origin], query) if seed == 0 else {})
            yield {"set": name, "seed": seed, **row, "seconds": time.perf_counter() - start}


def run_left_out(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row for each set and class."""
    for name in options.sets or LEFT_OUT:
        if name in WITHIN:
            adata = ad.read_h5ad(options.data / WITHIN[name])
            if "is_qc_class" in adata.obs:
                adata = adata[~adata.obs["is_qc_class"].astype(bool)].copy()
            adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
            rows = train_test_split(
                np.arange(adata.n_obs), train_size=0.6, stratify=adata.obs["cell_type"], random_state=0
            )
            reference, query = (adata[np.sort(part)].copy() for part in rows)
        else:
            reference, query = pair(name, options.data, 0)
        for left_out in sorted(set(reference.obs["cell_type"])):
            is_left_out = (reference.obs["cell_type"] == left_out).to_numpy()
            asked = ad.concat([query, reference[is_left_out]]) if name in WITHIN else query
            if (name, left_out) in options.done or (asked.obs["cell_type"] == left_out).sum() < 5:
                continue
            model = trained(reference[~is_left_out].copy(), 0, refit=False)
            yield {"set": name, "seed": left_out, **figures(model, asked)}


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", default="across")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", default="pairs,left_out")
    parser.add_argument("--sets", type=lambda names: names.split(","))
    options = parser.parse_args()
    for part in options.parts.split(","):
        path = Path(f"{options.out}_{part}.csv")
        table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["set", "seed"])
        options.done = set(zip(table["set"], table["seed"], strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row in {"pairs": run_pairs, "left_out": run_left_out}[part](options):
                table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
                table.to_csv(path, index=False)
        numbers = table.drop(columns="seed").groupby("set", sort=False)
        print(part, numbers.agg("mean").astype(float).round(3).T.to_string(), sep="\n")
        if part == "pairs":
            print("largest", numbers.agg("max").astype(float).round(3).T.to_string(), sep="\n")


if __name__ == "__main__":
    main()
