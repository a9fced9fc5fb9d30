"""scANVI by the tutorial of scvi-tools: SCVI, then SCANVI from it, with the query unlabelled.

https://docs.scvi-tools.org/en/stable/tutorials/notebooks/scrna/tabula_muris.html: counts of 2,000
variable genes, two layers, 30 latent dimensions, then SCANVI with 100 cells of each type.
"""

from __future__ import annotations

from functools import partial

import anndata
import numpy as np
import scanpy as sc
import scvi
from anndata import AnnData

from celler.benchmark.methods._registry import Predict

#: Minibatches of 128 to train SCVI on; its default of 400 epochs applies where that is less. On the public tasks the
#: default is ten times as long, half an hour on two cores.
N_STEPS = 2300


def scanvi(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train scANVI on both; the returned function labels the query alone."""
    scvi.settings.seed = seed
    query = query.copy()
    query.obs[labels_key] = "Unknown"
    both = anndata.concat({"reference": reference, "query": query}, label="part", index_unique="-")
    if both.n_vars > 2000:
        both = both[:, _variable(both)].copy()
    scvi.model.SCVI.setup_anndata(both, batch_key="part")
    base = scvi.model.SCVI(both, n_layers=2, n_latent=30, gene_likelihood="nb")
    n_epochs = min(400, round(N_STEPS / (0.9 * both.n_obs / 128)))
    base.train(max_epochs=max(1, n_epochs), enable_progress_bar=False)
    model = scvi.model.SCANVI.from_scvi_model(base, "Unknown", labels_key)
    model.train(max_epochs=10, n_samples_per_label=100, enable_progress_bar=False)
    rows = np.flatnonzero(both.obs["part"] == "query")
    return lambda query: model.predict(indices=rows, soft=True).set_axis(query.obs_names)


def _variable(both: AnnData) -> np.ndarray:
    """Return whether each gene is among the 2,000 most variable in the counts of both parts."""
    choose = partial(sc.pp.highly_variable_genes, both, flavor="seurat_v3", n_top_genes=2000, inplace=False)
    try:
        found = choose(batch_key="part")
    except ValueError:  # its smoothing can fail on a part of a few hundred cells
        found = choose()
    return found["highly_variable"].to_numpy()
