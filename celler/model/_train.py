"""The method ``train`` of :class:`celler.model.Celler`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from celler._utils._devices import choose_device, choose_precision, choose_processes
from celler.data._expression import ExpressionReader
from celler.losses import DEFAULT, Loss
from celler.mining import Replay
from celler.model._extend import training_cells
from celler.model._few_labels import with_neighbourhoods
from celler.model._fit import TrainingCells, fit_network, schedule, streamed_cells
from celler.model._pretrain import adopt_pretrained, with_masked_task
from celler.model._setup import LABELS_COLUMN
from celler.network._network import GeneTransformer, build_network, encoder_share
from celler.training._plan import PRETRAINED_RATE, TrainingConfig

if TYPE_CHECKING:
    from celler.atlas._datamodule import DataModule
    from celler.model._celler import Celler


def train(
    self: Celler,
    max_epochs: int | None = None,
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
    train_size: float = 0.9,
    validation_size: float | None = None,
    batch_size: int | None = None,
    early_stopping: bool = True,
    *,
    loss: Loss | None = None,
    replay: Replay | None = Replay(),
    masked_weight: float = 0.0,
    learning_rate: float = 3e-3,
    refit: bool | None = None,
    seed: int = 0,
    show_progress: bool = True,
    datamodule: DataModule | None = None,
    ckpt_path: str | os.PathLike[str] | None = None,
) -> None:
    """Train on the labelled cells of the registered AnnData, or of a store on disk.

    After :meth:`pretrain` and with few labels, means of the unlabelled cells that are registered are seen as well.

    max_epochs: ``None`` is 12 up to 4,000 labelled cells, fewer beyond, and at least 600 steps.
    accelerator, devices: ``"auto"`` takes a GPU where there is one; ``"cpu"``, ``"gpu"`` with
        ``devices=[i]``, or ``"mps"`` insist. ``devices=4`` trains in four processes, one for each device,
        which run the script from its start; those that torchrun or srun launched are taken as they are.
    train_size, validation_size: shares of each class. Validation cells choose the weights, by
        macro-F1, and the temperature of the probabilities; ``train_size=1.0`` does without.
    batch_size: cells per minibatch; ``None`` is 32 up to 10,000 labelled cells, then 128.
    early_stopping: stop when validation macro-F1 stays more than a standard error below its best
        for half of the epochs (10 at least).
    loss: one of ``celler.losses``; ``None`` is GInf with Hard Data Mining, ``losses.DEFAULT``.
    replay: which misclassified cells of an epoch the next one trains again, see
        :class:`celler.mining.Replay`; ``None`` is none. :attr:`hard_cells_` lists them afterwards.
    masked_weight: above 0, each step also hides genes of as many cells, unlabelled ones included, and adds
        this many times the loss of predicting them, see :meth:`pretrain`, which gains more where labels are few.
    learning_rate: peak of the one-cycle schedule; an encoder of :meth:`from_pretrained` learns at a
        thirtieth of it.
    refit: after validation, which sets the temperature, train anew on all labelled cells; ``None``
        does where there are fewer than 5,000 of them.
    seed: of the split, the initial weights, the shuffling and every draw. Calling ``train``
        again continues from the present weights.
    show_progress: a progress bar with the validation macro-F1. ``scvi.settings.verbosity`` above
        ``logging.INFO`` hides the bars of all models.
    datamodule: a :class:`celler.atlas.DataModule`, the one the model was made with, whose cells are read from
        disk as they are needed: ``Celler(registry=dm.registry).train(datamodule=dm)``.
    ckpt_path: a file that is written after each epoch. Where it is there already, training goes on from it, to
        the same model that it would have become; a refit has its own beside it.
    """
    check_masked(masked_weight, datamodule, ckpt_path)
    known = self._knowledge
    cells = cells_in_memory(self, seed) if datamodule is None else streamed_cells(self, datamodule)
    device = choose_device(accelerator, devices)
    max_epochs, batch_size = schedule(cells.source, max_epochs, batch_size)
    self._precision = choose_precision(self.init_params_["non_kwargs"]["precision"], device)
    config = TrainingConfig(
        max_epochs=max_epochs,
        batch_size=batch_size,
        loss=DEFAULT if loss is None else loss,
        replay=replay,
        learning_rate=learning_rate,
        encoder_rate=PRETRAINED_RATE if self._scgpt else 1.0,
        token_dropout=self.module.config.dropout_rate,
        early_stopping=early_stopping,
        device=device,
        precision=self._precision,
        show_progress=show_progress,
        seed=seed,
        teacher=None if known is None else known.teacher,
        processes=choose_processes(devices),
        ckpt_path=checkpoint_file(ckpt_path),
    )
    network = starting_network(self, cells.source.n_labelled, masked_weight > 0, seed)
    cells = with_neighbourhoods(self, cells, network, config)
    config, pretrained = with_masked_task(self, config, masked_weight)
    fitted = fit_network(
        network,
        self._tokenizer,
        cells,
        classes=self._tree.classes,
        train_size=train_size,
        validation_size=validation_size,
        refit=refit,
        config=config,
    )
    self.module = network
    if pretrained is not None:
        adopt_pretrained(self, pretrained)
    self._adopt(fitted if known is None else known.complete(fitted, cells.source))


def check_masked(masked_weight: float, datamodule: DataModule | None, ckpt_path: object) -> None:
    """Raise where the masked task cannot go along."""
    if masked_weight and datamodule is not None:
        raise ValueError("masked_weight needs the cells in memory; leave it at 0 with datamodule.")
    if masked_weight and ckpt_path is not None:
        raise ValueError(
            "a training with masked_weight cannot be resumed yet; leave it at 0, or ckpt_path out."
        )


def checkpoint_file(ckpt_path: str | os.PathLike[str] | None) -> Path | None:
    """The path of a file; raises ``FileNotFoundError`` or ``IsADirectoryError`` where none can be written."""
    if ckpt_path is None:
        return None
    path = Path(ckpt_path)
    if path.is_dir():
        raise IsADirectoryError(
            f"ckpt_path={str(path)!r} is a folder; name a file in it, such as last.ckpt."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"ckpt_path={str(path)!r} is in a folder that is not there; make {str(path.parent)!r} first."
        )
    return path


def cells_in_memory(self: Celler, seed: int) -> TrainingCells:
    """The labelled cells of the registered AnnData."""
    self._require_registered()
    labels = self.adata.obs[LABELS_COLUMN]
    reader = ExpressionReader(self.adata, self._setup_args["layer"])
    columns = self._genes.columns_of(self.adata) if self._scgpt else None
    return training_cells(reader, labels, self._tree, self._knowledge, seed, columns)


def starting_network(
    self: Celler, n_labelled: int, will_know_genes: bool, seed: int
) -> GeneTransformer:
    """What training starts from: the present weights, a pretrained encoder, or weights from ``seed``.

    will_know_genes: it learns them from unlabelled cells beside the labels.
    """
    if self.is_trained or self._knowledge is not None:
        return self.module
    network = build_network(self.module.config, seed)
    if not self._scgpt:
        knows_genes = self.is_pretrained or will_know_genes
        network.encoder_share = encoder_share(n_labelled, knows_genes=knows_genes)
    if self.is_pretrained:
        network.encoder.load_state_dict(self.module.encoder.state_dict())
    network.encoder.requires_grad_(not self._scgpt.get("is_frozen", False))
    return network
