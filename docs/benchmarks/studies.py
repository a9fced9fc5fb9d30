"""Pairs of studies, a labelled reference and a query with known truth, that the checks across studies share.

``pbmc_3tech`` is blood of one study labelled from another with three chemistries; the other names are tasks of
``shared_tasks.py``: other chemistry, donors, samples or libraries. A name with a number, such as ``endocrine+0.7``,
multiplies each gene of the query by a log-normal factor with that standard deviation of its logarithm.
"""

from pathlib import Path

import anndata as ad
import numpy as np
from scipy import sparse
from shared_tasks import TASKS

import celler as cl

NATURAL = ("pbmc_5p", "forebrain", "tcells", "onek1k", "pbmc_3tech")
SYNTHETIC = tuple(f"{name}+{sd}" for name in ("endocrine", "cortex44") for sd in (0.3, 0.7, 1.0))


def pair(name: str, data: Path, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Reference and query, both with counts and ``obs["cell_type"]``; ``data`` is the folder of ``shared_tasks.py``."""
    base, _, sd = name.partition("+")
    if base == "pbmc_3tech":
        reference = ad.read_h5ad(data / "pbmc3k_annotated.h5ad")
        query = ad.read_h5ad(data / "pbmc_10x_3tech_1200.h5ad")
        for adata in (reference, query):
            adata.obs["cell_type"] = adata.obs["cell_type_harmonised"]
        reference = reference[:, reference.var_names.isin(query.var_names)].copy()
    else:
        reference, query, _ = next(iter(TASKS[base](data, [seed])))
    for adata in (reference, query):
        adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    return reference, shifted(query, float(sd), seed) if sd else query


def shifted(query: ad.AnnData, sd: float, seed: int) -> ad.AnnData:
    """The cells after an experiment that catches each gene with an efficiency of its own, at the same depth."""
    rng = np.random.default_rng(100 + seed)
    X = sparse.csr_matrix(query.X, dtype=np.float64)
    changed = X @ sparse.diags_array(rng.lognormal(0, sd, query.n_vars))
    depth = np.asarray(X.sum(axis=1) / np.maximum(changed.sum(axis=1), 1e-9)).ravel()
    changed = sparse.csr_matrix(sparse.diags_array(depth) @ changed)
    changed.data = np.floor(changed.data + rng.random(changed.nnz))
    changed.eliminate_zeros()
    query = query.copy()
    query.X = changed.astype(np.float32)
    return query[np.asarray(changed.sum(axis=1)).ravel() > 0].copy()


def trained(reference: ad.AnnData, seed: int, **options: object) -> cl.model.Celler:
    """A model with its defaults, or other ``options`` of ``train``."""
    cl.model.Celler.setup_anndata(reference, labels_key="cell_type")
    model = cl.model.Celler(reference)
    model.train(seed=seed, show_progress=False, **options)
    return model
