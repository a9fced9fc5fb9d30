"""Queries of other studies: shift, realised false alarms, calibration, independence of order, and types left out.

    python docs/benchmarks/across_studies.py DATA [--out across] [--seeds 3] [--parts pairs,left_out] [--sets ...]

DATA is a folder with the files named below. ``pairs`` trains on one study, donor group or sample and labels another, or
the same with each gene multiplied by a log-normal factor (``+0.7`` is its standard deviation); cells of types that the
reference lacks are left out of the figures. ``left_out`` leaves each class with five cells in the query out of the
reference once, with one seed. A CSV for each part; rows that it has already are not run again.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

import celler as cl

RATES = (0.01, 0.05, 0.2)
SHIFTED = [f"{name}+{sd}" for name in ("endocrine", "cortex") for sd in ("0.0", "0.3", "0.7", "1.0")]
PAIRS = ["hpbmc", "forebrain", "tcells", "onek1k", "pbmc3k", *SHIFTED]
WITHIN = {
    "hpbmc_within": "hpbmc_reference.h5ad",
    "cbmc_within": "cbmc_cite_8617_nogenes.h5ad",
    "zeisel_within": "mouse_cortex_zeisel_550.h5ad",
}
LEFT_OUT = [*WITHIN, "hpbmc", "tcells", "onek1k", "pbmc3k", "endocrine+0.7", "forebrain"]
HARMONISED = {
    "Naive CD4 T": "CD4 T",
    "Memory CD4 T": "CD4 T",
    "CD14+ Mono": "CD14 Mono",
    "FCGR3A+ Mono": "CD16 Mono",
    "Platelet": "MK",
}


def halves(adata: ad.AnnData, key: str) -> tuple[ad.AnnData, ad.AnnData]:
    """Every second group of ``obs[key]``, and the others."""
    groups = adata.obs[key].astype(str)
    is_first = groups.isin(np.sort(groups.unique())[::2]).to_numpy()
    return adata[is_first].copy(), adata[~is_first].copy()


def three_technologies(data: Path) -> ad.AnnData:
    """Blood cells of three chemistries with names that are those of the references."""
    query = ad.read_h5ad(data / "pbmc_10x_3tech_1200.h5ad")
    query.obs["cell_type"] = query.obs["cell_type_harmonised"].astype(str)
    return query


def pair(name: str, data: Path, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Reference and query, both with ``obs["cell_type"]``."""
    name, _, sd = name.partition("+")
    if name == "hpbmc":
        reference, query = ad.read_h5ad(data / "hpbmc_reference.h5ad"), three_technologies(data)
        query = query[query.obs["batch"] == "10x_5p"].copy()
    elif name == "pbmc3k":
        reference, query = ad.read_h5ad(data / "pbmc3k_annotated.h5ad"), three_technologies(data)
        reference.obs["cell_type"] = reference.obs["cell_type"].astype(str).replace(HARMONISED)
        reference = reference[:, reference.var_names.isin(query.var_names)].copy()
    elif name == "forebrain":
        both = ad.concat([ad.read_h5ad(data / f"forebrain_{part}_2237.h5ad") for part in "ab"])
        both.obs_names_make_unique()
        both = both[~both.obs["is_qc_class"].astype(bool)]
        reference, query = (both[both.obs["batch"] == batch].copy() for batch in ("10X353_7", "10X355_7"))
        counts = reference.obs["cell_type"].value_counts()
        reference = reference[reference.obs["cell_type"].isin(counts.index[counts >= 2])].copy()
    elif name == "endocrine":
        adata = ad.read_h5ad(data / "mouse_endocrinogenesis_3696.h5ad")
        is_reference = np.random.default_rng(0).random(adata.n_obs) < 0.5
        reference, query = adata[is_reference].copy(), adata[~is_reference].copy()
    else:
        file, key = {
            "tcells": ("tcells_compocyte_861.h5ad", "donor"),
            "onek1k": ("onek1k_40donors_7811.h5ad", "donor"),
            "cortex": ("mouse_motor_cortex_11444_44types.h5ad", "batch"),
        }[name]
        reference, query = halves(ad.read_h5ad(data / file), key)
    for cells in (reference, query):
        cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    return reference, shifted(query, float(sd), seed) if sd and float(sd) else query


def shifted(query: ad.AnnData, sd: float, seed: int) -> ad.AnnData:
    """The cells after an experiment that catches each gene with an efficiency of its own, at the same depth."""
    rng = np.random.default_rng(100 + seed)
    X = sparse.csr_matrix(query.X).astype(np.float64)
    changed = sparse.csr_matrix(X @ sparse.diags_array(rng.lognormal(0, sd, query.n_vars)))
    depth = np.asarray(X.sum(axis=1) / np.maximum(changed.sum(axis=1), 1e-9)).ravel()
    changed = sparse.csr_matrix(sparse.diags_array(depth) @ changed)
    changed.data = np.floor(changed.data + rng.random(changed.nnz))
    changed.eliminate_zeros()
    query = query.copy()
    query.X = changed.astype(np.float32)
    return query[np.asarray(changed.sum(axis=1)).ravel() > 0].copy()


def trained(reference: ad.AnnData, seed: int, **options: object) -> cl.model.Celler:
    """A model with its defaults."""
    cl.model.Celler.setup_anndata(reference, labels_key="cell_type")
    model = cl.model.Celler(reference)
    model.train(seed=seed, show_progress=False, **options)
    return model


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
