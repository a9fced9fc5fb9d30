"""Methods of :class:`celler.model.Celler` that learn from cells without labels."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from celler._utils._devices import choose_device, choose_precision, choose_processes
from celler._utils._messages import column
from celler.atlas._source import StoreCells
from celler.data._expression import ExpressionReader, check_values, is_log, warn_of_binned
from celler.data._genes import selector
from celler.data._profile import linear
from celler.data._query import rows_of
from celler.data._sources import CellSource, InMemoryCells
from celler.model._fit import check_fits
from celler.model._forward import align_query
from celler.model._state import Pretrained
from celler.network._heads import GeneDecoder
from celler.network._network import build_network
from celler.training._masked import (
    PCA_CELLS,
    MaskedTask,
    PretrainingConfig,
    fit_masked,
    start_from_components,
)
from celler.training._masking import MaskedMinibatch, MaskedMinibatches, Masking, bins_of
from celler.training._plan import TrainingConfig

if TYPE_CHECKING:
    from celler.atlas._datamodule import DataModule
    from celler.model._celler import Celler

#: Validation cells beyond this many tell nothing more.
MAX_VALIDATION = 5000
#: Cells of a store that tell what its genes look like.
STORE_SAMPLE = 10_000


@dataclass(frozen=True)
class UnlabelledCells:
    """Cells to learn from: the rows ``index (N,)`` of ``source``, whose labels are codes of ``batches``.

    sample: ``(n, n_genes)``, counts or what is proportional to them, of all the cells or enough of them to tell what
        genes look like.
    """

    source: CellSource
    index: np.ndarray
    sample: sparse.csr_matrix
    batches: tuple[str, ...]

    def log_rows(self, rows: np.ndarray) -> sparse.csr_matrix:
        """``log1p`` of counts per 10,000 of rows of the sample, ``(n, n_genes)``."""
        return linear(self.sample[rows], is_log=False).log1p()

    @property
    def share(self) -> np.ndarray:
        """Mean share of the counts that each gene has ``(n_genes,)``."""
        total = np.asarray(self.sample.sum(axis=0), dtype=np.float64).ravel()
        return np.asarray(total / total.sum())


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
    datamodule: DataModule | None = None,
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
    datamodule: a :class:`celler.atlas.DataModule` with the model's genes, whose training cells take the place of
        the registered ones and are read from disk as they are needed.

    Raises ``RuntimeError`` after :meth:`train`, whose classes rest on the encoder as it is.
    """
    require_untrained(self)
    if not 0 <= validation_size < 1:
        raise ValueError(f"validation_size={validation_size} was given; 0 <= it < 1 is needed.")
    before: Pretrained | None = self._pretrained
    if datamodule is None:
        cells = unlabelled_cells(self, adata)
    else:
        cells = streamed_unlabelled(self, datamodule, adata)
    n_cells = len(cells.index)
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
        start_from_components(self.module, cells.log_rows, cells.sample.shape[0], seed)
    decoder = new_decoder(self, cells, seed) if before is None else before.decoder
    train, validation = masked_loaders(self, cells, validation_size, config)
    history = fit_masked(self.module, decoder, train, validation, config)
    if before is not None:
        history = {name: before.history.get(name, []) + history[name] for name in history}
    adopt_pretrained(self, Pretrained(decoder, cells.batches, cells.share, n_cells, history))


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


def unlabelled_cells(self: Celler, adata: AnnData | None) -> UnlabelledCells:
    """The model's cells and those of ``adata``, without empty ones."""
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
        raise ValueError(
            "this model has no AnnData; pass the cells as adata, or a store of them as datamodule."
        )
    X, names = sparse.vstack(blocks).tocsr(), np.concatenate(of_cells)
    X.sort_indices()  # what is hidden is drawn by place, and must not depend on the order of columns
    has_counts = np.asarray(X.sum(axis=1)).ravel() > 0
    check_enough(int(has_counts.sum()))
    X, names = X[has_counts], names[has_counts]
    batches = known_batches(self, names)
    codes = pd.Index(batches).get_indexer(pd.Index(names)).astype(np.int64)
    return UnlabelledCells(InMemoryCells(X, codes), np.arange(len(codes)), X, batches)


def streamed_unlabelled(
    self: Celler, datamodule: DataModule, adata: AnnData | None
) -> UnlabelledCells:
    """The training cells of a store, without empty ones; their sample is the first of them, for a store is shuffled."""
    check_fits(self, datamodule, ["gene_names"])
    if adata is not None:
        raise ValueError(
            "adata was given together with datamodule; pass one of them, or put the cells into the store: "
            "cl.atlas.build takes several sources."
        )
    store = datamodule.store
    index = np.flatnonzero(datamodule.is_train & ~store.is_empty())
    check_enough(len(index))
    codes, names = datamodule.batches
    batches = known_batches(
        self, np.array(names, object)[np.unique(codes[index][codes[index] >= 0])]
    )
    code_of = np.append(pd.Index(batches).get_indexer(pd.Index(names)), -1).astype(np.int32)
    sample = store.rows(index[:STORE_SAMPLE])
    return UnlabelledCells(StoreCells(store, code_of[codes]), index, sample, batches)


def known_batches(self: Celler, names: np.ndarray) -> tuple[str, ...]:
    """The batches that the model's decoder knows, or will."""
    before: Pretrained | None = self._pretrained
    return tuple(sorted(set(names) - {""})) if before is None else before.batches


def check_enough(n_cells: int) -> None:
    """Raise ``ValueError`` where there is nothing to learn from."""
    if n_cells < 2:
        raise ValueError(f"{n_cells} cells have counts; at least 2 are needed.")


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
    cells = unlabelled_cells(self, None)
    if before is None:
        decoder = new_decoder(self, cells, config.seed)
    else:
        decoder = deepcopy(before.decoder)
    masking = PretrainingConfig(
        max_epochs=config.max_epochs, batch_size=config.batch_size, seed=config.seed
    )
    minibatches, _ = masked_loaders(self, cells, 0.0, masking)
    history = {} if before is None else before.history
    left = Pretrained(decoder, cells.batches, cells.share, len(cells.index), history)
    return replace(config, masked_task=MaskedTask(decoder, minibatches, weight)), left


def masked_loaders(
    self: Celler, cells: UnlabelledCells, validation_size: float, config: PretrainingConfig
) -> tuple[Iterable[MaskedMinibatch], Iterable[MaskedMinibatch] | None]:
    """Minibatches to learn from and, with the same genes hidden in every epoch, to validate on."""
    n_cells, seed, source = len(cells.index), config.seed, cells.source
    order = np.random.default_rng(seed).permutation(n_cells)
    n_validation = min(round(validation_size * n_cells), MAX_VALIDATION)
    held_out, learned = (cells.index[np.sort(part)] for part in np.split(order, [n_validation]))
    masking = Masking(self._tokenizer, self.module.config.encoder, config.mask_ratio, seed)
    train = MaskedMinibatches(source.shuffled(learned, config.batch_size, seed, None), masking)
    if not n_validation:
        return train, None
    ordered = source.ordered(held_out, 2 * config.batch_size, is_shared=False)
    return train, MaskedMinibatches(ordered, masking, is_fixed=True)


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


def n_epochs(n_cells: int, batch_size: int) -> int:
    """10 up to 50,000 cells, then fewer as their number grows, and at least 1,000 steps in at most 100 epochs."""
    n_steps = -(-n_cells // max(1, batch_size))
    return max(1, round(10 * min(1.0, 50_000 / n_cells)), min(100, -(-1000 // n_steps)))


def new_decoder(self: Celler, cells: UnlabelledCells, seed: int) -> GeneDecoder:
    """A decoder for the model's encoder that knows each gene's mean, other weights from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = GeneDecoder(self.module.config, len(cells.batches))
    rows = np.random.default_rng(seed).permutation(cells.sample.shape[0])[:PCA_CELLS]
    decoder.start_from(bins_of(cells.sample[np.sort(rows)], self._tokenizer))
    return decoder


def adopt_pretrained(self: Celler, pretrained: Pretrained) -> None:
    """Take over what pretraining left, now or in a saved model."""
    self._pretrained = pretrained
    self._genes = replace(self._genes, share=pretrained.gene_share)
