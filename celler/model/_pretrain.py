"""Pretrain: learn genes from cells without labels, in memory or in a store."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from celler._utils._counts import cp10k
from celler._utils._devices import choose_precision, choose_processes, choose_training_device
from celler._utils._messages import column, counted
from celler.atlas._datamodule import DataModule
from celler.atlas._source import StoreCells
from celler.data._expression import ExpressionReader, check_values, is_log, warn_of_doubts
from celler.data._genes import selector, take_columns
from celler.data._samplers import OrderedSampler, ShuffledSampler
from celler.data._sources import CellSource, InMemoryCells
from celler.model._predict import Cells
from celler.model._state import ModelState, Pretrained
from celler.network._heads import GeneDecoder
from celler.network._network import build_network
from celler.training._masked import PCA_CELLS, MaskedTask, fit_masked, start_from_components
from celler.training._masking import MaskedLoader, Masking, bins_of
from celler.training._plan import PretrainingConfig, TrainingConfig

#: Validation cells at most: more do not sharpen the choice of weights.
MAX_VALIDATION = 5000
#: Cells of a store from which the mean expression of genes is taken.
STORE_SAMPLE = 10_000


@dataclass(frozen=True)
class UnlabelledCells:
    """Cells to learn genes from."""

    source: CellSource  # the cells; their labels are codes of batches
    index: np.ndarray  # rows of the source (N,)
    sample: sparse.csr_matrix  # counts (n, n_genes), or values proportional to them, of all the cells or of a sample
    batches: tuple[str, ...]  # names of the donor/assay batches

    def log_rows(self, rows: np.ndarray) -> sparse.csr_matrix:
        """``log1p`` of counts per 10,000 of rows of the sample, ``(n, n_genes)``."""
        return cp10k(self.sample[rows], is_log=False).log1p()

    @property
    def share(self) -> np.ndarray:
        """Mean share of the counts that each gene has ``(n_genes,)``."""
        total = np.asarray(self.sample.sum(axis=0), dtype=np.float64).ravel()
        return np.asarray(total / total.sum())


@dataclass(frozen=True)
class PretrainOptions:
    """Options of :meth:`celler.model.Celler.pretrain`."""

    precision: str
    max_epochs: int | None = None
    mask_ratio: float = 0.15
    batch_size: int = 64
    learning_rate: float = 3e-3
    validation_size: float = 0.1
    early_stopping: bool = True
    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    seed: int = 0
    show_progress: bool = True


def pretrain(
    state: ModelState, own: Cells | None, more: Cells | None, datamodule: DataModule | None, options: PretrainOptions
) -> ModelState:
    """Learn genes from the model's ``own`` cells and ``more``, or from those of a store."""
    require_untrained(state)
    before, seed = state.pretrained, options.seed
    if datamodule is None:
        cells = unlabelled_cells(state, own, more)
    else:
        cells = streamed_unlabelled(state, datamodule, more)
    config = pretraining_config(options, len(cells.index))
    if before is None and state.base is None:
        state = replace(state, network=build_network(state.network.config, seed))
        start_from_components(state.network, cells.log_rows, cells.sample.shape[0], seed)
    else:
        state = replace(state, network=deepcopy(state.network))  # after an error the model is as it was
    state.network.encoder.requires_grad_(not state.is_frozen)  # a loaded one's weights are all trainable
    decoder = new_decoder(state, cells, seed) if before is None else deepcopy(before.decoder)
    train, validation = masked_loaders(state, cells, options.validation_size, config)
    history = fit_masked(state.network, decoder, train, validation, config)
    if before is not None:
        history = {name: before.history.get(name, []) + history[name] for name in history}
    left = Pretrained(decoder, cells.batches, cells.share, len(cells.index), history)
    return replace(state, precision=config.precision).with_pretrained(left)


def pretraining_config(options: PretrainOptions, n_cells: int) -> PretrainingConfig:
    """Return the settings of a pretraining, with the epochs chosen by the number of cells where ``None``."""
    device = choose_training_device(options.accelerator, options.devices)
    max_epochs, batch_size = options.max_epochs, options.batch_size
    return PretrainingConfig(
        max_epochs=n_epochs(n_cells, batch_size) if max_epochs is None else max_epochs,
        batch_size=batch_size,
        mask_ratio=options.mask_ratio,
        learning_rate=options.learning_rate,
        early_stopping=options.early_stopping,
        device=device,
        precision=choose_precision(options.precision, device),
        show_progress=options.show_progress,
        seed=options.seed,
        processes=choose_processes(options.devices),
    )


def require_untrained(state: ModelState) -> None:
    """Raise ``RuntimeError`` where classes or foreign weights rest on the encoder."""
    if state.scgpt is not None:
        raise RuntimeError("this encoder has been pretrained: it came with from_pretrained; call train().")
    if state.fitted is not None:
        raise RuntimeError(
            "this Celler is trained, and its classes rest on the encoder as it is; pretrain first: "
            "model = Celler(adata), model.pretrain(), model.train()."
        )


def unlabelled_cells(state: ModelState, own: Cells | None, more: Cells | None) -> UnlabelledCells:
    """Return the model's own cells and ``more``, without empty ones."""
    blocks, of_cells = [], []
    for cells in filter(None, (own, more)):
        if cells is own and own.reference.own is not None and state.old is None:
            key, reader = state.setup.batch_key, ExpressionReader(own.adata, state.setup.layer)
            columns = own.reference.own.columns_of(own.adata, state.genes.names)
            blocks.append(take_columns(proportional(reader), columns))
        else:
            key, query = known_key(state, cells.adata), cells.align(state)
            blocks.append(proportional(query.reader) @ selector(query.gene_map, query.n_genes))
        of_cells.append(batch_names(cells.adata, key))
    if not blocks:
        raise ValueError("this model has no AnnData; pass the cells as adata, or a store of them as datamodule.")
    X, names = sparse.vstack(blocks).tocsr(), np.concatenate(of_cells)
    X.sort_indices()  # hidden genes are drawn by place, which must not depend on the order of columns
    has_counts = np.asarray(X.sum(axis=1)).ravel() > 0
    check_enough(int(has_counts.sum()))
    X, names = X[has_counts], names[has_counts]
    batches = known_batches(state, names)
    codes = pd.Index(batches).get_indexer(pd.Index(names)).astype(np.int64)
    return UnlabelledCells(InMemoryCells(X, codes), np.arange(len(codes)), X, batches)


def streamed_unlabelled(state: ModelState, datamodule: DataModule, more: Cells | None) -> UnlabelledCells:
    """Return the training cells of a store, without empty ones; a store is shuffled, so the first are a sample."""
    check_fits(state, datamodule, ("gene_names",))
    if more is not None:
        raise ValueError(
            "adata was given together with datamodule; pass one of them, or put the cells into the store: "
            "cl.atlas.build takes several sources."
        )
    store = datamodule.store
    index = np.flatnonzero(datamodule.is_train & ~store.is_empty())
    check_enough(len(index))
    codes, names = datamodule.batches
    used = np.unique(codes[index][codes[index] >= 0])
    batches = known_batches(state, np.array(names, object)[used])
    code_of = np.append(pd.Index(batches).get_indexer(pd.Index(names)), -1).astype(np.int32)
    sample = store.rows(index[:STORE_SAMPLE])
    return UnlabelledCells(StoreCells(store, code_of[codes]), index, sample, batches)


def check_fits(
    state: ModelState, datamodule: DataModule, keys: tuple[str, ...] = ("gene_names", "classes", "parents")
) -> None:
    """Raise ``ValueError`` unless genes and classes of the model are those of the store."""
    if not isinstance(datamodule, DataModule):
        raise TypeError(
            f"datamodule is a {type(datamodule).__name__}; a celler.atlas.DataModule is needed: "
            "dm = cl.atlas.DataModule(path, labels_key=...)."
        )
    described, own = datamodule.registry["celler"], state.described
    differing = [key for key in keys if list(described[key]) != own[key]]
    if differing:
        raise ValueError(
            f"the model and the store differ in {', '.join(differing)}; make the model of the same data module: "
            "model = Celler(registry=dm.registry)."
        )
    if state.scgpt is not None or state.old is not None:
        raise ValueError(
            "models of from_pretrained and load_query_data train on an AnnData alone; leave datamodule out."
        )


def known_batches(state: ModelState, names: np.ndarray) -> tuple[str, ...]:
    """Donor/assay batches of the model's decoder, or of a new one."""
    before = state.pretrained
    return tuple(sorted(set(names) - {""})) if before is None else before.batches


def check_enough(n_cells: int) -> None:
    """Raise ``ValueError`` for fewer than two cells."""
    if n_cells < 2:
        raise ValueError(f"{counted(n_cells, 'cells have')} counts; at least 2 are needed.")


def with_masked_task(
    state: ModelState, own: Cells | None, config: TrainingConfig, weight: float
) -> tuple[TrainingConfig, Pretrained | None]:
    """Add the masked task of all registered cells to a training, and what it leaves; nothing for the weight 0."""
    if weight == 0:
        return config, None
    if state.scgpt is not None or state.old is not None or own is None:
        raise ValueError(
            "masked_weight is for a model that learns its genes from a registered AnnData, not for one that "
            "from_pretrained or load_query_data made or that reads a store on disk; leave it at 0."
        )
    before = state.pretrained
    cells = unlabelled_cells(state, own, None)
    if before is None:
        decoder = new_decoder(state, cells, config.seed)
    else:
        decoder = deepcopy(before.decoder)
    masking = PretrainingConfig(max_epochs=config.max_epochs, batch_size=config.batch_size, seed=config.seed)
    minibatches, _ = masked_loaders(state, cells, 0.0, masking)
    history = {} if before is None else before.history
    left = Pretrained(decoder, cells.batches, cells.share, len(cells.index), history)
    return replace(config, masked_task=MaskedTask(decoder, minibatches, weight)), left


def masked_loaders(
    state: ModelState, cells: UnlabelledCells, validation_size: float, config: PretrainingConfig
) -> tuple[MaskedLoader, MaskedLoader | None]:
    """Minibatches to learn from, and to validate on with the same genes hidden in every epoch."""
    n_cells, seed, source = len(cells.index), config.seed, cells.source
    order = np.random.default_rng(seed).permutation(n_cells)
    n_validation = min(round(validation_size * n_cells), MAX_VALIDATION)
    held_out, learned = (cells.index[np.sort(part)] for part in np.split(order, [n_validation]))
    encoder = state.network.config.encoder
    masking = Masking(state.tokenizer, encoder, config.mask_ratio, seed)
    train = MaskedLoader(source, ShuffledSampler(learned, config.batch_size, seed), masking)
    if not n_validation:
        return train, None
    ordered = OrderedSampler(held_out, 2 * config.batch_size)
    return train, MaskedLoader(source, ordered, masking, is_fixed=True)


def proportional(reader: ExpressionReader) -> sparse.csr_matrix:
    """All rows as counts, or from logarithms as values proportional to counts: bins and shares are the same."""
    warn_of_doubts(reader)
    X = reader.matrix()
    if is_log(reader):
        return X.expm1()
    check_values(X, reader)
    return X


def known_key(state: ModelState, adata: AnnData) -> str | None:
    """Return the model's batch column, where ``adata`` has it."""
    key = state.setup.batch_key
    return key if key in adata.obs.columns else None


def batch_names(adata: AnnData, key: str | None) -> np.ndarray:
    """Donor/assay batch of each cell ``(n_obs,)``, "" for none."""
    if key is None:
        return np.full(adata.n_obs, "", dtype=object)
    values = column(adata.obs, key, "batch_key")
    return values.astype(object).where(values.notna(), "").astype(str).to_numpy().astype(object)


def n_epochs(n_cells: int, batch_size: int) -> int:
    """10 up to 50,000 cells, then fewer as their number grows, and at least 1,000 steps in at most 100 epochs."""
    n_steps = -(-n_cells // max(1, batch_size))
    return max(1, round(10 * min(1.0, 50_000 / n_cells)), min(100, -(-1000 // n_steps)))


def new_decoder(state: ModelState, cells: UnlabelledCells, seed: int) -> GeneDecoder:
    """Make a decoder for the model's encoder that starts at each gene's mean, other weights from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = GeneDecoder(state.network.config, len(cells.batches))
    rows = np.random.default_rng(seed).permutation(cells.sample.shape[0])[:PCA_CELLS]
    decoder.start_from(bins_of(cells.sample[np.sort(rows)], state.tokenizer))
    return decoder
