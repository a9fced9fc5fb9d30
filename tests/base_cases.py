"""Cells with genes that the base knows, and small models of them, for the tests of the base."""

import anndata as ad
import numpy as np
from scipy import sparse
from toy import QUICK

from celler.data._gene_table import _species
from celler.datasets import toy_long_tail
from celler.model import Celler
from celler.network._base import read_base

N_GENES = 140
#: Genes of the base, from A to Z, that have an Ensembl id.
TABLE = _species("human")
SYMBOLS = [name for name in read_base().genes[::120] if TABLE.own_ids[TABLE.row_of_symbol[name]]][:N_GENES]


def known_cells(n_obs: int = 300, seed: int = 0, names=None) -> ad.AnnData:
    """Counts of four types in genes with symbols; the same types whatever the seed."""
    full = toy_long_tail(2000, N_GENES, 4, imbalance=10)
    rng = np.random.default_rng(seed)
    adata = full[rng.choice(full.n_obs, n_obs, replace=False)].copy()
    counts = rng.binomial(adata.X.toarray().astype(int), 0.3)
    counts[counts.sum(1) == 0, 0] = 1
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    adata.var_names = list(SYMBOLS if names is None else names)
    return adata


def untrained(adata: ad.AnnData, **options) -> Celler:
    Celler.setup_anndata(adata, "cell_type")
    return Celler(adata, **{"d_model": 16, "precision": "float32"} | options)


def fit_known(adata: ad.AnnData | None = None, *, network: dict | None = None, **train) -> Celler:
    """A model that starts from the base, trained quickly."""
    model = untrained(known_cells() if adata is None else adata, **network or {})
    model.train(**QUICK | train)
    return model
