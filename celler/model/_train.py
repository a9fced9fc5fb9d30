"""Train: the model's cells and the options of ``train`` become a trained state."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from celler._utils._devices import choose_precision, choose_processes, choose_training_device
from celler.atlas._datamodule import DataModule
from celler.atlas._source import StoreCells
from celler.data._expression import ExpressionReader
from celler.data._sources import CellSource, InMemoryCells
from celler.losses import DEFAULT, Loss
from celler.mining import Replay
from celler.model._base import start_line
from celler.model._extend import complete, training_cells
from celler.model._few_labels import with_neighbourhoods
from celler.model._fit import (
    Split,
    TrainingCells,
    check_classes,
    describe_reference,
    fit_network,
    warn_of_small_classes,
)
from celler.model._new_classes import fit_new_classes, learns_new_classes_alone
from celler.model._predict import Cells
from celler.model._pretrain import check_fits, with_masked_task
from celler.model._state import ModelState
from celler.network._network import BASE_SHARE, GeneTransformer, build_network, encoder_share
from celler.training._plan import PRETRAINED_RATE, TrainingConfig
from celler.training._run import has_bars

#: Powers of the class frequencies in the reference, by their names.
NAMED_PRIORS = {"balanced": 0.0, "reference": 1.0}
#: Cells that a training shows at least, a cell once an epoch.
FEWEST_SHOWN = 19_200
#: Cells of a store whose values a checkpoint is compared by.
N_COMPARED = 500


@dataclass(frozen=True)
class Options:
    """Options of :meth:`celler.model.Celler.train`."""

    precision: str
    max_epochs: int | None = None
    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    split: Split = Split()
    batch_size: int | None = None
    early_stopping: bool = True
    class_prior: str | float = "auto"
    class_balance: float = 0.0
    loss: Loss | None = None
    replay: Replay | None = field(default_factory=Replay)
    masked_weight: float = 0.0
    learning_rate: float = 3e-3
    n_members: int | None = None
    seed: int = 0
    show_progress: bool = True
    ckpt_path: str | os.PathLike[str] | None = None


def train(state: ModelState, registered: Cells | None, datamodule: DataModule | None, options: Options) -> ModelState:
    """Train on the registered cells, or on those of a store."""
    _check_has_reference(state)
    _check_masked(options, datamodule)
    cells = (
        _cells_in_memory(state, registered, options.seed) if datamodule is None else _streamed_cells(state, datamodule)
    )
    config = training_config(state, cells.source, options)
    if config.ckpt_path is not None:
        config = replace(config, fingerprint=fingerprint(state, cells.source))
    network = starting_network(state, cells.source.n_labelled, options)
    start = replace(state, network=network, precision=config.precision)
    if has_bars(config) and state.fitted is None and state.old is None and state.scgpt is None:
        tqdm.write(start_line(state.genes.names, state.base))
    if registered is not None:
        cells = with_neighbourhoods(start, cells, registered, config)
    config, pretrained = with_masked_task(start, registered, config, options.masked_weight)
    if learns_new_classes_alone(start, config):
        _check_balance(options)
        found = fit_new_classes(start, network, cells, options.split, config)
    else:
        found = fit_network(network, state.tokenizer, cells, options.split, config)
    if options.loss is not None:
        found = replace(found, class_prior=None)
    fitted = describe_reference(found, cells, state.tree.classes, config)
    if state.old is not None:
        fitted = complete(state.old, fitted, cells.source)
    return (start if pretrained is None else start.with_pretrained(pretrained)).with_fitted(fitted)


def training_config(state: ModelState, source: CellSource, options: Options) -> TrainingConfig:
    """Return the settings of a training, with those chosen by the number of labelled cells."""
    device, network = choose_training_device(options.accelerator, options.devices), state.network.config
    # A loss of the user's trains both experts; a teacher's predictions are kept in minibatches alone.
    is_solved = options.loss is None and state.old is None
    sums_beside = is_solved and network.use_evidence and network.encoder in ("base", "additive")
    max_epochs, batch_size = schedule(source, options.max_epochs, options.batch_size, 128 if sums_beside else 32)
    return TrainingConfig(
        max_epochs=max_epochs,
        batch_size=batch_size,
        loss=DEFAULT if options.loss is None else options.loss,
        replay=options.replay,
        learning_rate=options.learning_rate,
        encoder_rate=1.0 if state.scgpt is None else PRETRAINED_RATE,
        token_dropout=state.network.config.dropout_rate,
        early_stopping=options.early_stopping,
        device=device,
        precision=choose_precision(options.precision, device),
        show_progress=options.show_progress,
        seed=options.seed,
        teacher=None if state.old is None else state.old.teacher,
        solves_evidence=is_solved,
        solves_new_classes=options.loss is None and options.masked_weight == 0,
        class_prior=class_prior_of(options),
        class_balance=options.class_balance,
        processes=choose_processes(options.devices),
        ckpt_path=checkpoint_file(options.ckpt_path),
    )


def class_prior_of(options: Options) -> float | None:
    """Return the power of the class frequencies that labels are weighed by; ``None`` where the reference chooses it.

    A loss that was given gets the class counts as they are.
    """
    given = options.class_prior
    if given == "auto":
        return None if options.loss is None else 0.0
    if options.loss is not None:
        raise ValueError(
            f"class_prior={given!r} was given with a loss; a loss decides itself how much frequent classes count. "
            "Leave one of them out."
        )
    return NAMED_PRIORS[given] if isinstance(given, str) else float(given)


def schedule(
    source: CellSource, max_epochs: int | None, batch_size: int | None, batch_size_of_few: int
) -> tuple[int, int]:
    """Epochs and cells per minibatch, chosen by the number of labelled cells where ``None``.

    Up to 10,000 cells a minibatch has ``batch_size_of_few``, beyond that 128; 12 epochs up to 4,000 cells, then
    fewer as the root of their number, and with few cells as many as show ``FEWEST_SHOWN``, up to 200.
    """
    n_cells = source.n_labelled
    if batch_size is None:
        batch_size = batch_size_of_few if n_cells <= 10_000 else 128
    if max_epochs is None:
        n_epochs = round(12 * min(1.0, (4000 / n_cells) ** 0.5))
        max_epochs = max(3, n_epochs, min(200, -(-FEWEST_SHOWN // n_cells)))
    return max_epochs, batch_size


def starting_network(state: ModelState, n_labelled: int, options: Options) -> GeneTransformer:
    """Return what training starts from: a copy of the present weights, or new ones with a pretrained encoder."""
    if state.fitted is not None or state.old is not None:
        if options.n_members not in (None, state.n_members):
            raise ValueError(
                f"n_members={options.n_members} was given; this training goes on from the weights of a model with "
                f"{state.n_members}. Leave it out, or train a new Celler(adata)."
            )
        network = deepcopy(state.network)  # after an error the model is as it was
        network.encoder.requires_grad_(not state.is_frozen)
        return network
    network = build_network(replace(state.network.config, n_members=options.n_members or 1), options.seed)
    if state.base is not None:
        network.encoder_share = BASE_SHARE
        network.sum_share = encoder_share(n_labelled, knows_genes=False)
    elif state.scgpt is None:
        knows_genes = state.is_pretrained or options.masked_weight > 0
        network.encoder_share = encoder_share(n_labelled, knows_genes=knows_genes)
    if state.is_pretrained:
        for encoder in network.pretrainable_encoders:
            encoder.load_state_dict(state.network.encoder.state_dict())
    network.encoder.requires_grad_(not state.is_frozen)
    return network


def fingerprint(state: ModelState, source: CellSource) -> dict[str, str]:
    """Return digests of what a training learns from and starts from, by name."""
    left = state.fitted if state.old is None else state.old.fitted
    start = (
        state.is_frozen,
        None if state.base is None else (state.base.name, state.base.n_profiles),
        None if state.scgpt is None else state.scgpt,
        None if left is None else (left.seed, left.class_counts.tolist(), len(left.history.get("train_loss", ()))),
        None if left is None else _digest(left.gene_share),
        None if state.pretrained is None else (state.pretrained.n_cells, *state.pretrained.batches),
        None if state.pretrained is None else _digest(state.pretrained.gene_share),
        None if state.pretrained is None else len(state.pretrained.history.get("train_loss", ())),
    )
    return {
        "gene names": _digest(*(str(name).encode() for name in state.genes.names)),
        "class names": _digest(*(name.encode(errors="surrogatepass") for name in state.tree.classes)),
        "labels of cells": _digest(source.labels.astype(np.int64)),
        "values": _digest(*values_of(source)),
        "starting model": _digest(repr(start).encode()),
    }


def values_of(source: CellSource) -> Iterator[np.ndarray]:
    """Yield the values of the cells of a source a piece at a time; those of a store are a sample of its cells."""
    n_cells, step = len(source), 10_000
    if isinstance(source, InMemoryCells):
        pieces = [np.arange(start, min(start + step, n_cells)) for start in range(0, n_cells, step)]
    else:
        pieces = [np.unique(np.linspace(0, n_cells - 1, N_COMPARED).astype(np.int64))]
    for piece in pieces:
        X = source.rows(piece)
        yield from (X.data.astype(np.float32), X.indices.astype(np.int64), X.indptr.astype(np.int64))


def _digest(*parts: bytes | np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def checkpoint_file(ckpt_path: str | os.PathLike[str] | None) -> Path | None:
    """Return the path of a file; raise ``FileNotFoundError`` or ``IsADirectoryError`` where none can be written."""
    if ckpt_path is None:
        return None
    path = Path(ckpt_path)
    if path.exists() and not path.is_dir() and not path.is_file():
        raise ValueError(f"ckpt_path={str(path)!r} is a device or a pipe; name a file, such as last.ckpt.")
    if path.is_dir():
        raise IsADirectoryError(f"ckpt_path={str(path)!r} is a folder; name a file in it, such as last.ckpt.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"ckpt_path={str(path)!r} is in a folder that does not exist; make {str(path.parent)!r} first."
        )
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"ckpt_path={str(path)!r} is in a folder that may not be written to; name another one.")
    return path


def _check_masked(options: Options, datamodule: DataModule | None) -> None:
    """Raise for options that exclude the masked task."""
    if options.masked_weight and datamodule is not None:
        raise ValueError("masked_weight needs the cells in memory; leave it at 0 with datamodule.")
    if options.masked_weight and (options.n_members or 1) > 1:
        raise ValueError(
            f"n_members={options.n_members} was given with masked_weight, whose task trains one encoder; leave one of "
            "them out. After model.pretrain() all members start from the pretrained encoder."
        )
    if options.masked_weight and options.ckpt_path is not None:
        raise ValueError("a training with masked_weight cannot be resumed yet; leave it at 0, or ckpt_path out.")


def _check_balance(options: Options) -> None:
    """Raise for a balance of minibatches where there are none."""
    if options.class_balance:
        raise ValueError(
            f"class_balance={options.class_balance} was given, but new classes are solved from all cells at once, each "
            "class weighing the same: there are no minibatches to balance. Leave it out, or give a loss to learn by "
            "steps."
        )


def _check_has_reference(state: ModelState) -> None:
    if state.names_atlases:
        raise RuntimeError(
            "this model names cells by public atlases and is not trained on cells: predict or annotate label a query "
            "as it is. To learn your own labels: model = Celler.load_query_data(adata, model, labels_key=...), then "
            "model.train()."
        )


def _cells_in_memory(state: ModelState, registered: Cells | None, seed: int) -> TrainingCells:
    """Return the labelled cells of the registered AnnData."""
    if registered is None:
        build = "Celler(adata)" if state.scgpt is None else "from_pretrained(scgpt_folder, adata)"
        raise RuntimeError(
            "this model was loaded and can only predict. To train: Celler.setup_anndata(adata, ...), then "
            f"{build}.train(); from a store on disk, train(datamodule=dm); to go on from this model, "
            "Celler.load_query_data(adata, model)."
        )
    adata = registered.adata
    reader = ExpressionReader(adata, state.setup.layer)
    own = registered.reference.own
    assert own is not None
    if state.old is not None:  # which knows the columns by their place
        own.check_columns(adata)
        return training_cells(state, reader, own.labels_of(adata), seed)
    return training_cells(state, reader, own.labels_of(adata), seed, own.columns_of(adata, state.genes.names))


def _streamed_cells(state: ModelState, datamodule: DataModule) -> TrainingCells:
    """Return the labelled training cells of a store; raise ``ValueError`` where the model was not made for it."""
    check_fits(state, datamodule)
    if datamodule.labels_key is None:
        raise ValueError(
            "this data module has no labels_key, which is enough for pretrain alone; name the column of cell types: "
            f"DataModule(path, labels_key=...). Columns: {datamodule.store.columns}."
        )
    classes = tuple(datamodule.classes)
    check_classes(classes)
    warn_of_small_classes(datamodule.labels, classes)
    source = StoreCells(datamodule.store, datamodule.labels)
    return TrainingCells(source, datamodule.store.names, False)
