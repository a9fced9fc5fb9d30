"""Blood cells with known types, pseudo-cells of atlases' types, and models that name cells without a reference."""

from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from celler.data._atlas_types import read_atlas_types
from celler.data._pseudo_cells import PseudoCellLoader, Simulation, draw_counts
from celler.datasets import pbmc68k
from celler.model import Celler
from celler.network._base import read_base

#: Tissue of five types, each of one cluster: a model of it is solved in half a second.
FEW = {"tissue": "thymus", "organism": "human"}
#: Broad types of the labels that the 700 blood cells came with.
BROAD = {
    "CD14+ Monocyte": "monocyte",
    "CD19+ B": "B",
    "CD34+": "hematopoietic precursor cell",
    "CD4+/CD25 T Reg": "T cell",
    "CD4+/CD45RA+/CD25- Naive T": "T cell",
    "CD4+/CD45RO+ Memory": "T cell",
    "CD56+ NK": "natural killer cell",
    "CD8+ Cytotoxic T": "T cell",
    "CD8+/CD45RA+ Naive Cytotoxic": "T cell",
    "Dendritic": "dendritic cell",
}
OF_B_LINEAGE = {"B cell": "B", "antibody secreting cell": "B", "lymphocyte of B lineage": "B"}


@cache
def _blood() -> ad.AnnData:
    adata = pbmc68k()
    return adata[:, adata.var_names.isin(read_base().genes)].copy()


def blood(n_obs: int | None = None) -> ad.AnnData:
    """700 blood cells, or the first of them, in the 681 of their genes that the base knows by these names."""
    return _blood()[:n_obs].copy()


def pseudo_cells(
    tissue: str, n_obs: int = 120, n_genes: int = 600, organism: str | None = "human", seed: int = 0
) -> ad.AnnData:
    """Counts of cells drawn from the profiles of a tissue's types, in genes that all its atlases measured."""
    types, rng = read_atlas_types().of(tissue, organism), np.random.default_rng(seed)
    measured = types.is_measured[types.table["dataset"]].all(axis=0)
    rows = np.sort(rng.choice(np.flatnonzero(measured), n_genes, replace=False))
    genes = np.arange(n_genes)
    loader = PseudoCellLoader(types.profiles(rows), Simulation(depth=(2000, 6000)), 1, n_obs, 0.0, seed, panel=genes)
    codes = rng.integers(len(types), size=n_obs)
    counts = draw_counts(loader, codes, genes, rng)
    obs = pd.DataFrame({"name": types.table["name"].to_numpy()[codes]}, [f"cell {i}" for i in range(n_obs)])
    return ad.AnnData(sparse.csr_matrix(counts), obs, pd.DataFrame(index=types.genes[rows]))


def new(**options) -> Celler:
    """A model that has met no cells, of a tissue with few types."""
    return Celler.from_pretrained("celler-base", **FEW | {"precision": "float32"} | options)


def of_blood() -> Celler:
    """A model of blood that has met no cells."""
    return new(tissue="blood", organism=None)


@cache
def of_all() -> tuple[Celler, ad.AnnData]:
    """A model of all tissues and 40 cells that it was solved for; neither is to be changed."""
    model, adata = new(tissue=None, organism=None), blood(40)
    model.predict(adata)
    return model, adata
