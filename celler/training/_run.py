"""Running: Lightning drives a plan over minibatches, quietly, with one progress bar."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from celler._utils._devices import autocast, cpu_threads
from celler._utils._distributed import merged
from celler._utils._messages import has_progress
from celler.data._loader import Minibatches
from celler.mining import HardCells
from celler.network._network import GeneTransformer
from celler.training._callbacks import BestWeights, EachEpoch, ProgressBar
from celler.training._plan import TrainingConfig, TrainingPlan


class RunConfig(Protocol):
    """What a run needs to know of its configuration."""

    @property
    def max_epochs(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def precision(self) -> str: ...
    @property
    def show_progress(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def processes(self) -> tuple[int, int]: ...


def by_metric(curves: list[dict[str, float]]) -> dict[str, list[float]]:
    """Rows of metrics, one per epoch, as a list per metric; NaN where an epoch lacks it."""
    names = sorted({name for row in curves for name in row})
    return {name: [row.get(name, float("nan")) for row in curves] for name in names}


def run_plan(
    plan: LightningModule,
    train: Iterable[Any],
    validation: Iterable[Any] | None,
    config: RunConfig,
    *,
    callbacks: list[Callback],
    title: str,
    shown: dict[str, str],
    n_threads: int | None,
    ckpt_path: Path | None = None,
) -> None:
    """Fit ``plan`` on the minibatches; the global random state and the number of threads stay as they were.

    shown: metrics of the progress bar and their short names. n_threads: of a CPU, at most; ``None`` is all.
    ckpt_path: to go on from, where it is there.
    """
    if has_bars(config):
        callbacks = [ProgressBar(title, shown), *callbacks]
    with torch.random.fork_rng(), _quiet_lightning(), cpu_threads(n_threads):
        torch.manual_seed(config.seed)
        trainer = Trainer(
            max_epochs=config.max_epochs,
            accelerator=config.device.type,
            **placement(config),
            precision="bf16-mixed" if config.precision == "bfloat16" else "32-true",
            callbacks=callbacks,
            enable_progress_bar=False,
            logger=False,
            enable_checkpointing=ckpt_path is not None,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # ours deals the minibatches to the ranks itself
        )
        there = ckpt_path if ckpt_path is not None and ckpt_path.is_file() else None
        # Tensors and numbers alone: a file of someone else must not run code.
        trainer.fit(
            plan, train, validation, ckpt_path=there, weights_only=None if there is None else True
        )


def placement(config: RunConfig) -> dict[str, Any]:
    """Which devices the Trainer takes, on how many machines."""
    n_devices, n_machines = config.processes
    if n_devices * n_machines > 1:
        return {"devices": n_devices, "num_nodes": n_machines, "strategy": "ddp"}
    return {"devices": 1 if config.device.index is None else [config.device.index]}


def has_bars(config: RunConfig) -> bool:
    """Whether progress is shown."""
    return config.show_progress and has_progress()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """No hardware banners and no advice about loaders meant for other programs."""
    loggers = [
        logging.getLogger(f"lightning.pytorch.{name}")
        for name in ("utilities.rank_zero", "accelerators.cuda")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def fit(
    network: GeneTransformer,
    train: Minibatches,
    validation: Minibatches | None,
    class_counts: np.ndarray,
    config: TrainingConfig,
    *,
    hard_cells: HardCells | None = None,
    title: str = "Training",
) -> dict[str, list[float]]:
    """Train ``network`` in place and leave it on ``config.device``; returns its curves, a value per epoch.

    hard_cells: chooses what is trained again; the sampler of ``train`` must be the one that reads it.
    title: of the progress bar.
    """
    if config.teacher is not None:
        config.teacher.network.to(config.device)
    plan = TrainingPlan(network, class_counts, config, hard_cells)
    best = BestWeights(plan, max(10, config.max_epochs // 2) if config.early_stopping else None)
    n_threads = None
    attends = network.config.encoder in ("transformer", "scgpt")
    if not (attends and any(weights.requires_grad for weights in network.encoder.parameters())):
        # Their matrix products are so small that a second thread was never faster on minibatches of 32,
        # and twice as slow where threads sleep while they wait or the cores are busy.
        n_threads = max(1, config.batch_size // 128)
    callbacks: list[Callback] = [] if validation is None else [best]
    if config.ckpt_path is not None:
        known = given(network, class_counts, config)
        callbacks.append(EachEpoch(config.ckpt_path, known, train))
    run_plan(
        plan,
        train,
        validation,
        config,
        callbacks=callbacks,
        title=title,
        shown={"validation_macro_f1": "macro_f1"},
        n_threads=n_threads,
        ckpt_path=config.ckpt_path,
    )
    if best.state is not None:
        plan.load_state_dict(best.state)
    plan.to(config.device).eval()
    return by_metric(plan.curves)


def given(
    network: GeneTransformer, class_counts: np.ndarray, config: TrainingConfig
) -> dict[str, Any]:
    """What a training must have in common with the one that it resumes."""
    names = ("max_epochs", "batch_size", "learning_rate", "token_dropout", "seed", "processes")
    return {name: getattr(config, name) for name in names} | {
        "network": repr(network.config),
        "loss": repr(config.loss),
        "replay": repr(config.replay),
        "class_counts": np.asarray(class_counts).tolist(),
    }


@torch.inference_mode()
def validation_logits(
    network: GeneTransformer, minibatches: Minibatches, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``(N, C)`` and labels ``(N,)`` of all cells in ``minibatches``, of all ranks."""
    device = network.device
    logits, labels = [], []
    for tokens, codes, _, embedding in minibatches:
        if not len(codes):
            continue
        known = None if embedding is None else embedding.to(device)
        with autocast(device, precision):
            output = network(*(part.to(device) for part in tokens), known)
        logits.append(output.logits.cpu())
        labels.append(codes)
    logits.append(torch.empty(0, network.config.n_classes))  # a rank may have no validation cell
    labels.append(torch.empty(0, dtype=torch.long))
    return merged(torch.cat(logits).numpy()), merged(torch.cat(labels).numpy())
