"""Methods of :class:`celler.model.Celler` that learn from cells without labels."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from celler.devices import choose_device, choose_precision, choose_processes
from celler.genes import selector
from celler.inputs import ExpressionReader, check_values, is_log, warn_of_binned
from celler.loading import OrderedMinibatches, ShuffledMinibatches
from celler.model.forward import rows_of
from celler.model.query import align_query
from celler.names import column
from celler.network import build_network
from celler.network.decoder import GeneDecoder
from celler.pretraining import (
    PCA_CELLS,
    PretrainingConfig,
    fit_masked,
    start_from_components,
)
from celler.pretraining.joint import MaskedTask
from celler.pretraining.masking import MaskedCells, MaskedMinibatch, bins_of
from celler.shift import linear
from celler.training import TrainingConfig

if TYPE_CHECKING:
    from celler.model.celler import Celler

#: Validation cells beyond this many tell nothing more.
MAX_VALIDATION = 5000


@dataclass(frozen=True)
class Pretrained:
    """What pretraining leaves beside the encoder's weights: ``gene_share (n_genes,)`` as in the reference."""

    decoder: GeneDecoder
    batches: tuple[str, ...]
    gene_share: np.ndarray
    n_cells: int
    history: dict[str, list[float]]

    def to_plain(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return {
            "decoder": {name: tensor.cpu() for name, tensor in self.decoder.state_dict().items()},
            "batches": list(self.batches),
            "gene_share": torch.from_numpy(self.gene_share),
            "n_cells": self.n_cells,
            "history": self.history,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any], model: Celler) -> Pretrained:
        """What :meth:`to_plain` was made from, in a model of the same sizes."""
        decoder = GeneDecoder(model.module.config, len(plain["batches"]))
        decoder.load_state_dict(plain["decoder"])
        share, n_cells = plain["gene_share"].numpy(), plain["n_cells"]
        return cls(decoder.eval(), tuple(plain["batches"]), share, n_cells, plain["history"])


@dataclass(frozen=True)
class UnlabelledCells:
    """Counts ``X (N, n_genes)`` of the model's genes, or what is proportional to them, and batch codes ``(N,)``."""

    X: sparse.csr_matrix
    batch: np.ndarray

    def log_rows(self, rows: np.ndarray) -> sparse.csr_matrix:
        """``log1p`` of counts per 10,000, ``(n, n_genes)``."""
        return linear(self.X[rows], is_log=False).log1p()


def pretrain(
    self: Celler,
    max_epochs: int | None = None,
    *,
    adata: AnnData | None = None,
    mask_ratio: float = 0.15,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    validation_size: float = 0.1,
    early_stopping: bool = True,
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
    seed: int = 0,
    show_progress: bool = True,
) -> None:
    """Learn the genes from cells, labelled or not: hide some of a cell's genes and predict them from the others.

    The encoder's gene embeddings start from the principal components of the cells; then the hidden genes'
    bins, and which genes are there, are predicted from the cell embedding. :meth:`train` starts from
    the encoder that results. A second call continues. :attr:`pretraining_history` has the curves.

    max_epochs: ``None`` is 10 up to 50,000 cells, fewer beyond, and at least 1,000 steps.
    adata: more cells, matched by gene name; they join those of the model.
    mask_ratio: share of a cell's genes that are hidden.
    batch_size: cells per minibatch.
    learning_rate: peak of the one-cycle schedule.
    validation_size: share of the cells, 5,000 at most, that chooses the weights; 0 does without.
    early_stopping: stop when the validation loss has not fallen for a quarter of the epochs (5 at least).
    accelerator, devices, seed, show_progress: as in :meth:`train`.

    Raises ``RuntimeError`` after :meth:`train`, whose classes rest on the encoder as it is.
    """
    require_untrained(self)
    if not 0 <= validation_size < 1:
        raise ValueError(f"validation_size={validation_size} was given; 0 <= it < 1 is needed.")
    before: Pretrained | None = self._pretrained
    cells, batches = unlabelled_cells(self, adata)
    n_cells = cells.X.shape[0]
    device = choose_device(accelerator, devices)
    self._precision = choose_precision(self.init_params_["non_kwargs"]["precision"], device)
    config = PretrainingConfig(
        max_epochs=n_epochs(n_cells, batch_size) if max_epochs is None else max_epochs,
        batch_size=batch_size,
        mask_ratio=mask_ratio,
        learning_rate=learning_rate,
        early_stopping=early_stopping,
        device=device,
        precision=self._precision,
        show_progress=show_progress,
        seed=seed,
        processes=choose_processes(devices),
    )
    if before is None:
        self.module = build_network(self.module.config, seed)
        start_from_components(self.module, cells.log_rows, n_cells, seed)
    decoder = new_decoder(self, cells, len(batches), seed) if before is None else before.decoder
    train, validation = masked_loaders(self, cells, validation_size, config)
    history = fit_masked(self.module, decoder, train, validation, config)
    if before is not None:
        history = {name: before.history.get(name, []) + history[name] for name in history}
    adopt_pretrained(self, Pretrained(decoder, batches, share_of(cells), n_cells, history))


def require_untrained(self: Celler) -> None:
    """Raise ``RuntimeError`` where there are classes or foreign weights that rest on the encoder."""
    if self._scgpt:
        raise RuntimeError(
            "this encoder has been pretrained: it came with from_pretrained; call train()."
        )
    if self.is_trained:
        raise RuntimeError(
            "this Celler is trained, and its classes rest on the encoder as it is; pretrain first: "
            "model = Celler(adata), model.pretrain(), model.train()."
        )


def unlabelled_cells(
    self: Celler, adata: AnnData | None
) -> tuple[UnlabelledCells, tuple[str, ...]]:
    """The model's cells and those of ``adata``, without empty ones, and the names of the batches."""
    key = self._setup_args["batch_key"]
    blocks, of_cells = [], []
    if self.adata is not None:
        reader = ExpressionReader(self.adata, self._setup_args["layer"])
        blocks.append(proportional(reader))
        of_cells.append(batch_names(self.adata, key))
    if adata is not None:
        rows_of(adata, None)
        query = align_query(self, adata)
        blocks.append(proportional(query.reader) @ selector(query.gene_map, query.n_genes))
        of_cells.append(batch_names(adata, known_key(self, adata)))
    if not blocks:
        raise ValueError("this model was loaded without an AnnData; pass the cells as adata.")
    X, names = sparse.vstack(blocks).tocsr(), np.concatenate(of_cells)
    X.sort_indices()  # what is hidden is drawn by place, and must not depend on the order of columns
    has_counts = np.asarray(X.sum(axis=1)).ravel() > 0
    if has_counts.sum() < 2:
        raise ValueError(f"{int(has_counts.sum())} cells have counts; at least 2 are needed.")
    X, names = X[has_counts], names[has_counts]
    before = self._pretrained
    batches = tuple(sorted(set(names) - {""})) if before is None else before.batches
    return UnlabelledCells(
        X, pd.Index(batches).get_indexer(pd.Index(names)).astype(np.int64)
    ), batches


def with_masked_task(
    self: Celler, config: TrainingConfig, weight: float
) -> tuple[TrainingConfig, Pretrained | None]:
    """The configuration with the masked task of all registered cells, and what that leaves when it is trained.

    Without one where ``weight`` is 0.
    """
    if weight == 0:
        return config, None
    if not weight > 0:
        raise ValueError(f"masked_weight={weight} was given; 0 or more is needed.")
    if self._scgpt or self._knowledge is not None or self.adata is None:
        raise ValueError(
            "masked_weight is for a model that learns its genes from a registered AnnData, not for one that "
            "from_pretrained or load_query_data made or that reads a store on disk; leave it at 0."
        )
    before: Pretrained | None = self._pretrained
    cells, batches = unlabelled_cells(self, None)
    if before is None:
        decoder = new_decoder(self, cells, len(batches), config.seed)
    else:
        decoder = deepcopy(before.decoder)
    masking = PretrainingConfig(
        max_epochs=config.max_epochs, batch_size=config.batch_size, seed=config.seed
    )
    minibatches, _ = masked_loaders(self, cells, 0.0, masking)
    history = {} if before is None else before.history
    left = Pretrained(decoder, batches, share_of(cells), cells.X.shape[0], history)
    return replace(config, masked_task=MaskedTask(decoder, minibatches, weight)), left


def masked_loaders(
    self: Celler, cells: UnlabelledCells, validation_size: float, config: PretrainingConfig
) -> tuple[Iterable[MaskedMinibatch], Iterable[MaskedMinibatch] | None]:
    """Minibatches to learn from and, with the same genes hidden in every epoch, to validate on."""
    n_cells, seed = cells.X.shape[0], config.seed
    order = np.random.default_rng(seed).permutation(n_cells)
    n_validation = min(round(validation_size * n_cells), MAX_VALIDATION)
    held_out, learned = np.sort(order[:n_validation]), np.sort(order[n_validation:])
    masked = partial(
        MaskedCells,
        cells.X,
        cells.batch,
        self._tokenizer,
        self.module.config.encoder,
        mask_ratio=config.mask_ratio,
        seed=seed,
    )
    train = masked().loader(ShuffledMinibatches(learned, config.batch_size, seed))
    if not n_validation:
        return train, None
    ordered = OrderedMinibatches(held_out, 2 * config.batch_size)
    return train, masked(is_fixed=True).loader(ordered)


def proportional(reader: ExpressionReader) -> sparse.csr_matrix:
    """All rows as counts or, from logarithms, as what is proportional to them: bins and shares are the same."""
    warn_of_binned(reader)
    X = reader.matrix()
    if is_log(reader):
        return X.expm1()
    check_values(X, reader)
    return X


def known_key(self: Celler, adata: AnnData) -> str | None:
    """The model's batch column where ``adata`` has it."""
    key = self._setup_args["batch_key"]
    return key if key in adata.obs.columns else None


def batch_names(adata: AnnData, key: str | None) -> np.ndarray:
    """Name of each cell's donor/assay batch ``(n_obs,)``, "" where there is none."""
    if key is None:
        return np.full(adata.n_obs, "", dtype=object)
    values = column(adata.obs, key, "batch_key")
    return values.astype(object).where(values.notna(), "").astype(str).to_numpy().astype(object)


def share_of(cells: UnlabelledCells) -> np.ndarray:
    """Mean share of a cell's counts that each gene has ``(n_genes,)``."""
    total = np.asarray(cells.X.sum(axis=0), dtype=np.float64).ravel()
    return np.asarray(total / total.sum())


def n_epochs(n_cells: int, batch_size: int) -> int:
    """10 up to 50,000 cells, then fewer as their number grows, and at least 1,000 steps in at most 100 epochs."""
    n_steps = -(-n_cells // max(1, batch_size))
    return max(1, round(10 * min(1.0, 50_000 / n_cells)), min(100, -(-1000 // n_steps)))


def new_decoder(self: Celler, cells: UnlabelledCells, n_batches: int, seed: int) -> GeneDecoder:
    """A decoder for the model's encoder that knows each gene's mean, other weights from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = GeneDecoder(self.module.config, n_batches)
    rows = np.random.default_rng(seed).permutation(cells.X.shape[0])[:PCA_CELLS]
    decoder.start_from(bins_of(cells.X[np.sort(rows)], self._tokenizer))
    return decoder


def adopt_pretrained(self: Celler, pretrained: Pretrained) -> None:
    """Take over what pretraining left, now or in a saved model."""
    self._pretrained = pretrained
    self._genes = replace(self._genes, share=pretrained.gene_share)
