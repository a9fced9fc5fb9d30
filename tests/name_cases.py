"""Cells with clean names and labels, and what a call on changed ones says."""

import sys
import warnings
from functools import cache

import anndata as ad
import numpy as np
from toy import cells, fit

from celler.model import Celler

GENES = ["HLA-DRA", "HLA-DRB1", "NKX2-1", *(f"GENE{i}" for i in range(3, 80))]
TYPES = [f"type {i}" for i in range(4)]
HAS_ATLAS = sys.version_info >= (3, 12)


def clean(n_obs=120, seed=3) -> ad.AnnData:
    return made(n_obs, seed).copy()


@cache
def made(n_obs, seed) -> ad.AnnData:
    adata = cells(n_obs, seed=seed)
    adata.var_names = GENES
    adata.obs = adata.obs[["cell_type"]].astype(str).astype(object)
    adata.obs["group"] = np.where(np.arange(n_obs) % 2, "x", "y")
    return adata


@cache
def model() -> Celler:
    return fit(clean(300, seed=0))


def quietly(change, adata):
    """The changed AnnData; what AnnData itself says of odd names is not the matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed = change(adata)
    return adata if changed is None else changed


def outcome_of(call):
    """What a call returns, and the UserWarnings it gives, without those of AnnData."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    ours = [str(one.message) for one in caught if one.category is UserWarning]
    others = ("\nAnnData expects", "Variable names", "Observation names", "classes with fewer", "The cells are of one")
    return result, [message for message in ours if not message.startswith(others)]
