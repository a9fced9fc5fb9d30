"""Hidden values of held-out cells: Celler's pretraining against each gene's mean bin and the nearest cells' average.

    python docs/benchmarks/masked_values.py DATA [--seeds 5]

DATA is the folder with pbmc3k_annotated.h5ad and onek1k_40donors_7811.h5ad. A fifth of the cells is held out, 15 %
of the genes of each are hidden, and their bins are predicted; the error is the mean squared one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from celler._utils._counts import cp10k
from celler.data._sources import InMemoryCells
from celler.model import Celler
from celler.training._masked import MaskedLoss
from celler.training._masking import Masking, bins_of

SETS = ("pbmc3k_annotated", "onek1k_40donors_7811")
N_NEIGHBOURS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for name in SETS:
        path = args.data / f"{name}.h5ad"
        if not path.is_file():
            print(f"{path} is not there; left out.")
            continue
        adata = anndata.read_h5ad(path)
        for seed in range(args.seeds):
            rows.append({"set": name, "seed": seed} | errors(adata, seed))
            print(rows[-1], flush=True)
    if rows:
        table = pd.DataFrame(rows).drop(columns="seed").groupby("set")
        print(table.agg(["mean", "std"]).round(4).to_string())


def errors(adata: anndata.AnnData, seed: int) -> dict[str, float]:
    """Mean squared error of bins, as shares of the highest, by each method on the same hidden genes."""
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    n_test = adata.n_obs // 5
    test, train = np.sort(order[:n_test]), np.sort(order[n_test:])
    reference = adata[train].copy()
    Celler.setup_anndata(reference)
    model = Celler(reference)
    model.pretrain(seed=seed, show_progress=False)
    source = InMemoryCells(sparse.csr_matrix(adata.X)[test], np.full(n_test, -1))
    masking = Masking(model._state.tokenizer, "additive", mask_ratio=0.15, seed=seed)
    masked = masking(source[np.arange(n_test)], (1, 0, 0))
    with torch.inference_mode():
        loss = MaskedLoss(model.module.encoder, model._state.pretrained.decoder)
        value = loss.outputs(masked)[0].numpy()
    asked = masked.is_hidden.numpy()
    true, genes = masked.bins.numpy()[asked], masked.gene_ids.numpy()[asked]
    cell = np.broadcast_to(np.arange(n_test)[:, None], asked.shape)[asked]
    bins = bins_of(sparse.csr_matrix(reference.X), model._state.tokenizer)
    mean = mean_bins(bins)
    neighbours = nearest(reference, masked, bins.shape[1])
    around = np.full(len(true), np.nan)
    for i in range(n_test):
        here = cell == i
        block = bins[neighbours[i]][:, genes[here]]
        n = np.asarray((block > 0).sum(axis=0)).ravel()
        total = np.asarray(block.sum(axis=0)).ravel()
        around[here] = np.where(n > 0, total / np.maximum(n, 1), mean[genes[here]])
    return {
        "celler": float(((value[asked] - true) ** 2).mean()),
        "mean_bin": float(((mean[genes] - true) ** 2).mean()),
        "neighbours": float(((around - true) ** 2).mean()),
        "correlation": float(np.corrcoef(value[asked], true)[0, 1]),
    }


def mean_bins(bins: sparse.csr_matrix) -> np.ndarray:
    """Mean of each gene's bins where it is there; of all genes for one that never is."""
    n = bins.getnnz(axis=0)
    mean = np.asarray(bins.sum(axis=0)).ravel() / np.maximum(n, 1)
    return np.where(n > 0, mean, bins.data.mean())


def nearest(reference: anndata.AnnData, masked, n_genes: int) -> np.ndarray:
    """The nearest training cells of each test cell by what is seen of it, on 30 principal components."""
    tokens = masked.tokens
    is_real = ~tokens.padding_mask.numpy()
    cell = np.broadcast_to(np.arange(len(is_real))[:, None], is_real.shape)[is_real]
    seen = sparse.csr_matrix(
        (tokens.expression.numpy()[is_real], (cell, tokens.gene_ids.numpy()[is_real])),
        (len(is_real), n_genes),
    )
    pca = PCA(30, svd_solver="arpack", random_state=0)
    scores = pca.fit_transform(cp10k(sparse.csr_matrix(reference.X), is_log=False).log1p())
    index = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(scores)
    return index.kneighbors(pca.transform(seen), return_distance=False)


if __name__ == "__main__":
    main()
