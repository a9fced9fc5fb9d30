"""Cells of a type that the reference lacks: AUROC of known against novel, each class left out once.

    python docs/benchmarks/novelty.py DATA [--out novelty.csv] [--sets hpbmc,cbmc,cortex,shift]

DATA is a folder with the files named below. Four tenths of the cells of each class are held out; of the others Celler
and, where it is installed, CellTypist are trained without one class, and score the held-out cells against
all cells of that class. ``shift`` trains on all of hpbmc_reference and scores the 10x_5p cells of another study. Rows
that the CSV has already are not run again. Classes with fewer than five novel cells are left out.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

import celler as cl

try:
    from celler.benchmark.methods._celltypist import celltypist
except ImportError:
    celltypist = None

FILES = {
    "hpbmc": "hpbmc_reference.h5ad",
    "cbmc": "cbmc_cite_8617_nogenes.h5ad",
    "cortex": "mouse_cortex_zeisel_550.h5ad",
    "shift": "hpbmc_reference.h5ad",
}
MIN_CELLS = 5
FALSE_ALARM_RATE = 0.05


def cells(name: str, data: Path) -> tuple[ad.AnnData, ad.AnnData]:
    """Reference and query of a set, both with ``obs["label"]``."""
    adata = ad.read_h5ad(data / FILES[name])
    if "is_qc_class" in adata.obs:
        adata = adata[~adata.obs["is_qc_class"].astype(bool)].copy()
    adata.obs["label"] = adata.obs["cell_type"].astype(str)
    if name == "shift":
        query = ad.read_h5ad(data / "pbmc_10x_3tech_1200.h5ad")
        query = query[query.obs["batch"] == "10x_5p"].copy()
        query.obs["label"] = query.obs["cell_type_harmonised"].astype(str)
        return adata, query
    rows = np.arange(adata.n_obs)
    train, held_out = train_test_split(rows, train_size=0.6, stratify=adata.obs["label"], random_state=0)
    return adata[np.sort(train)].copy(), adata[np.sort(held_out)].copy()


def cases(name: str, data: Path) -> Iterator[tuple[str, ad.AnnData, ad.AnnData]]:
    """Each class that is left out, with the reference without it and the query."""
    reference, query = cells(name, data)
    for left_out in sorted(set(reference.obs["label"])):
        is_left_out = reference.obs["label"] == left_out
        asked = query
        if name != "shift":
            asked = ad.concat([query, reference[is_left_out]])
        if (asked.obs["label"] == left_out).sum() >= MIN_CELLS:
            yield left_out, reference[~is_left_out].copy(), asked.copy()


def row(left_out: str, reference: ad.AnnData, query: ad.AnnData) -> dict[str, float | str]:
    """AUROC of each score, and what a false alarm rate of 5 % does."""
    is_novel = (query.obs["label"] == left_out).to_numpy()
    cl.model.Celler.setup_anndata(reference, labels_key="label")
    model = cl.model.Celler(reference)
    model.train(refit=False, show_progress=False)  # novelty does not depend on the network
    model.annotate(query, false_alarm_rate=FALSE_ALARM_RATE)
    is_unknown = (query.obs["celler"] == "Unknown").to_numpy()
    scores = {
        "novelty": query.obs["celler_novelty"],
        "max probability": -query.obs["celler_confidence"],
    }
    if celltypist is not None:
        genes = reference.var_names.intersection(query.var_names)
        known, asked = reference[:, genes].copy(), query[:, genes].copy()
        known.uns["kind"] = asked.uns["kind"] = "counts"
        scores["CellTypist"] = -celltypist(known, "label", asked, 0)(asked).max(axis=1)
    return {
        "left out": left_out,
        "cells": int(is_novel.sum()),
        **{score: roc_auc_score(is_novel, values) for score, values in scores.items()},
        "false alarms": is_unknown[~is_novel].mean(),
        "found": is_unknown[is_novel].mean(),
    }


def main() -> None:
    """Run what is missing, print a table per set and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("novelty.csv"))
    parser.add_argument("--sets", default=",".join(FILES))
    options = parser.parse_args()
    if celltypist is None:
        print("CellTypist is not installed; its column is left out")
    table = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    done = set() if table.empty else set(zip(table["set"], table["left out"], strict=True))
    for name in options.sets.split(","):
        if not (options.data / FILES[name]).exists():
            print(f"{name}: {options.data / FILES[name]} is missing, left out")
            continue
        for left_out, reference, query in cases(name, options.data):
            if (name, left_out) in done:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scores = {"set": name, **row(left_out, reference, query)}
            table = pd.concat([table, pd.DataFrame([scores])], ignore_index=True)
            table.to_csv(options.out, index=False)
    print(table.round(3).to_string(index=False))
    print(table.drop(columns="left out").groupby("set", sort=False).mean().round(3).to_string())


if __name__ == "__main__":
    main()
