"""Variable genes, for the methods that choose some; others need not wait for scanpy."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from celler.benchmark.methods.shared import log_values


def variable_genes(adata: AnnData, n_genes: int = 2000) -> np.ndarray:
    """Columns of the most variable genes, scanpy's default; all of them where there are no more."""
    if adata.n_vars <= n_genes:
        return np.arange(adata.n_vars)
    log = AnnData(log_values(adata), var=pd.DataFrame(index=adata.var_names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sc.pp.highly_variable_genes(log, n_top_genes=n_genes, inplace=False)
    return np.flatnonzero(found["highly_variable"])
