"""Gene panels and bins of few counts: which reference to train on, and what to expect by the number of genes.

    python docs/benchmarks/panels.py DATA [--out panels.csv] [--seeds 3] [--parts panels,merfish,bins]

DATA is a folder with ``pbmc3k_annotated.h5ad`` and ``lung_merfish_3177.h5ad``, both with counts and
``obs["cell_type"]``. Half of the cells of each type are the reference, the others the query; the seed draws the halves,
the panel and the counts that are kept. Genes of a panel are drawn from those that at least 2 % of the reference's cells
express. ``panels``: a query of a panel's genes, with the whole reference and with the reference cut to the panel.
``merfish``: the same for parts of a measured panel. ``bins``: cells thinned to as many counts as a bin of Visium HD
has. A CSV with a row for each run; rows that it has already are not run again.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import celler as cl
from celler.data import _genes

#: Numbers of genes and of counts; in this order, so that a run that is stopped has the ends.
PANELS, OF_MERFISH, COUNTS = (300, 100, 1000, 200, 500), (479, 200, 100, 300), (50, 200, 100)
MIN_SHARE = 0.02
Labels = Callable[[ad.AnnData], np.ndarray]


def halves(adata: ad.AnnData, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Half of the cells of each type, and the others."""
    first, second = train_test_split(
        np.arange(adata.n_obs), test_size=0.5, stratify=adata.obs["cell_type"], random_state=seed
    )
    return adata[np.sort(first)].copy(), adata[np.sort(second)].copy()


def draw_panel(reference: ad.AnnData, n_genes: int, seed: int) -> pd.Index:
    """Draw genes among those that are expressed."""
    share = np.asarray((reference.X > 0).mean(axis=0)).ravel()
    genes = np.flatnonzero(share >= MIN_SHARE)
    return reference.var_names[np.sort(np.random.default_rng(seed).choice(genes, n_genes, replace=False))]


def thinned(adata: ad.AnnData, n_counts: int, seed: int) -> ad.AnnData:
    """Keep so many counts of each cell, drawn without replacement."""
    rng, X = np.random.default_rng(seed), sparse.csr_matrix(adata.X).astype(np.int64)
    for i in range(X.shape[0]):
        row = X.data[X.indptr[i] : X.indptr[i + 1]]
        row[:] = rng.multivariate_hypergeometric(row, min(n_counts, row.sum()), method="marginals")
    X.eliminate_zeros()
    adata = adata.copy()
    adata.X = X.astype(np.float32)
    return adata


def celler(reference: ad.AnnData, encoder: str | None, seed: int) -> Labels:
    """Celler with its defaults, or without the base."""
    reference = reference[np.asarray(reference.X.sum(axis=1)).ravel() > 0].copy()
    cl.model.Celler.setup_anndata(reference, labels_key="cell_type")
    model = cl.model.Celler(reference, encoder=encoder)
    model.train(seed=seed, show_progress=False)
    return model.predict


def logistic_regression(reference: ad.AnnData) -> Labels:
    """Balanced logistic regression on log1p of counts, scaled to the median count of the reference."""
    median = float(np.median(np.asarray(reference.X.sum(axis=1))))

    def log(adata: ad.AnnData) -> ad.AnnData:
        adata = adata[:, reference.var_names].copy()
        sc.pp.normalize_total(adata, target_sum=median)
        sc.pp.log1p(adata)
        return adata

    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(log(reference).X, reference.obs["cell_type"].astype(str))
    return lambda query: model.predict(log(query).X)


METHODS = {
    "logistic regression": lambda reference, seed: logistic_regression(reference),
    "celler": lambda reference, seed: celler(reference, None, seed),
    "celler without base": lambda reference, seed: celler(reference, "additive", seed),
}
Task = tuple[str, int, str, ad.AnnData, ad.AnnData]  # part, size, name of the reference, reference, query


def panels(data: Path, seed: int) -> Iterator[Task]:
    """Queries of panels."""
    reference, query = halves(ad.read_h5ad(data / "pbmc3k_annotated.h5ad"), seed)
    chosen = {n_genes: draw_panel(reference, n_genes, seed) for n_genes in PANELS}
    for n_genes, genes in chosen.items():
        yield "panels", n_genes, "cut", reference[:, genes].copy(), query[:, genes].copy()
    yield "panels", reference.n_vars, "whole", reference, query
    for n_genes, genes in chosen.items():
        yield "panels", n_genes, "whole", reference, query[:, genes].copy()


def merfish(data: Path, seed: int) -> Iterator[Task]:
    """Parts of a measured panel."""
    reference, query = halves(ad.read_h5ad(data / "lung_merfish_3177.h5ad"), seed)
    for n_genes in OF_MERFISH:
        genes = np.sort(np.random.default_rng(seed).choice(reference.n_vars, n_genes, replace=False))
        yield "merfish", n_genes, "cut", reference[:, genes].copy(), query[:, genes].copy()


def bins(data: Path, seed: int) -> Iterator[Task]:
    """Queries of few counts."""
    reference, query = halves(ad.read_h5ad(data / "pbmc3k_annotated.h5ad"), seed)
    for n_counts in COUNTS:
        yield "bins", n_counts, "whole", reference, thinned(query, n_counts, seed)
    for n_counts in COUNTS:
        yield "bins", n_counts, "thinned", thinned(reference, n_counts, seed), thinned(query, n_counts, seed)


def scores(labels: Labels, query: ad.AnnData, reference: ad.AnnData) -> dict[str, float]:
    """Accuracy and macro-F1 of the cells with counts, and the share of the others."""
    has_counts = np.asarray(query.X.sum(axis=1)).ravel() > 0
    query = query[has_counts].copy()
    truth = query.obs["cell_type"].astype(str).to_numpy()
    found = cl.metrics.summary(truth, labels(query), dict(reference.obs["cell_type"].astype(str).value_counts()))
    return {"accuracy": found["accuracy"], "macro_f1": found["macro_f1"], "empty cells": float((~has_counts).mean())}


def main() -> None:
    """Write a row for each run, then print the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("panels.csv"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", default="panels,merfish,bins")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _genes.MIN_OVERLAP = 0  # the error for few genes, whose reason is measured here
    rows = pd.read_csv(options.out).to_dict("records") if options.out.exists() else []
    done = {(row["part"], row["size"], row["reference"], row["seed"], row["method"]) for row in rows}
    tasks = {"panels": panels, "merfish": merfish, "bins": bins}
    for seed in range(options.seeds):
        trained: dict[str, Labels] = {}  # on the whole reference, once for all sizes
        for part, method in product(options.parts.split(","), METHODS):
            for _, size, name, reference, query in tasks[part](options.data, seed):
                if (part, size, name, seed, method) in done:
                    continue
                if method == "logistic regression" and reference.n_vars > query.n_vars:
                    continue  # it needs all genes
                start = time.perf_counter()
                labels = trained.get(method) if name == "whole" else None
                labels = METHODS[method](reference, seed) if labels is None else labels
                if name == "whole":
                    trained[method] = labels
                row = {"part": part, "size": size, "reference": name, "seed": seed, "method": method}
                row |= scores(labels, query, reference) | {"seconds": time.perf_counter() - start}
                rows.append(row)
                print(row, flush=True)
                pd.DataFrame(rows).to_csv(options.out, index=False)
    table = pd.DataFrame(rows).groupby(["part", "size", "reference", "method"])[["accuracy", "macro_f1"]]
    print(table.mean().round(3).to_string())
    print(table.std().round(3).to_string())


if __name__ == "__main__":
    main()
