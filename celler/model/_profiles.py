"""Profiles: the base learns more cell types from their mean expression, in the genes of a model."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._devices import choose_device, choose_precision
from celler._utils._matrix import as_csr
from celler._utils._messages import column
from celler.data._gene_names import gene_names
from celler.data._genes import align_genes, selector
from celler.data._pseudo_cells import CellProfiles, PseudoCellLoader, Simulation
from celler.model._pretrain import require_untrained
from celler.model._state import ModelState
from celler.network._encoders import BaseEncoder
from celler.training._plan import PretrainingConfig
from celler.training._profiles import EPOCH, ProfileTasks, fit_profiles


@dataclass(frozen=True)
class ProfileOptions:
    """Options of :meth:`celler.model.Celler.learn_profiles`."""

    precision: str
    max_epochs: int = 10
    mask_ratio: float = 0.15
    batch_size: int = 256
    learning_rate: float = 1e-4
    accelerator: str = "auto"
    seed: int = 0
    show_progress: bool = True


def learn_profiles(
    state: ModelState, profiles: AnnData, dataset_key: str | None, options: ProfileOptions
) -> tuple[ModelState, dict[str, list[float]]]:
    """Train the base on pseudo-cells of ``profiles``; return the state and the curves, a value per epoch."""
    require_untrained(state)
    if state.base is None:
        raise RuntimeError(
            f"this model has encoder={state.network.config.encoder!r}, and profiles teach the base alone; make it with "
            "Celler(adata, encoder='base')."
        )
    known = read_profiles(state, profiles, dataset_key)
    device = choose_device(options.accelerator)
    config = PretrainingConfig(
        max_epochs=options.max_epochs,
        batch_size=options.batch_size,
        mask_ratio=options.mask_ratio,
        learning_rate=options.learning_rate,
        device=device,
        precision=choose_precision(options.precision, device),
        show_progress=options.show_progress,
        seed=options.seed,
    )
    network = deepcopy(state.network)  # after an error the model is as it was
    encoder = network.encoder
    assert isinstance(encoder, BaseEncoder)
    is_known = encoder.score.isfinite().all(dim=1).cpu().numpy()
    panel = np.flatnonzero(is_known & ~np.isnan(known.share).all(axis=0))
    if len(panel) < 2:
        raise ValueError("the profiles and the base share fewer than two genes of this model; check their gene names.")
    loader = PseudoCellLoader(known, Simulation(), EPOCH, config.batch_size, config.mask_ratio, config.seed, panel)
    encoder.requires_grad_(True)
    _, curves = fit_profiles(encoder, loader, ProfileTasks(), config)
    encoder.requires_grad_(False)
    n_types = state.base.n_profiles + len(known.types)
    return replace(state, network=network, base=replace(state.base, n_profiles=n_types)), curves


def read_profiles(state: ModelState, profiles: AnnData, dataset_key: str | None) -> CellProfiles:
    """Return profiles in the model's genes, as shares of the counts that were measured."""
    if not isinstance(profiles, AnnData):
        raise TypeError(f"profiles is a {type(profiles).__name__}; an AnnData with a row for each cell type is needed.")
    if profiles.X is None:
        raise ValueError("profiles.X is None; the mean counts of each type are needed there.")
    X = as_csr(profiles.X, "profiles.X", dtype=np.float64).toarray()
    total = np.nansum(X, axis=1, keepdims=True)
    if not (X[~np.isnan(X)] >= 0).all() or not np.isfinite(total).all() or not (total > 0).all():
        raise ValueError(
            "profiles.X has a negative or infinite value, or a row without any; mean counts of each type are needed, "
            "such as sc.get.aggregate(adata, 'cell_type', func='mean', layer='counts')."
        )
    codes = np.zeros(len(X), np.int64)
    if dataset_key is not None:
        codes = pd.factorize(column(profiles.obs, dataset_key, "dataset_key", "profiles.obs").astype(str))[0]
    if np.bincount(codes).min() < 2:
        raise ValueError(
            f"dataset_key={dataset_key!r} has a data set with a single cell type; types are told apart within a data "
            "set, so each needs two."
        )
    gene_map = align_genes(gene_names(profiles.var, None), state.genes.names, profiles.var).gene_map
    to_model = selector(gene_map, len(state.genes.names))
    share = np.nan_to_num(X / total) @ to_model
    share[:, ~(~np.isnan(X).all(axis=0) @ to_model).astype(bool)] = np.nan
    return CellProfiles(share.astype(np.float32), state.genes.names, profiles.obs_names.to_numpy(), codes)
