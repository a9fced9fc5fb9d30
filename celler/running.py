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
from tqdm.auto import tqdm

from celler.devices import cpu_threads
from celler.progress import has_progress


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


class ScheduleConfig(Protocol):
    """What the schedule needs to know of a configuration."""

    @property
    def max_epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def check_schedule(config: ScheduleConfig) -> None:
    """Raise ``ValueError`` for epochs, minibatches or a learning rate that cannot be."""
    for name in ("max_epochs", "batch_size"):
        value = getattr(config, name)
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}={value!r} was given; at least 1 is needed, a whole number.")
    if config.learning_rate <= 0:
        raise ValueError(f"learning_rate={config.learning_rate} was given; it must be above 0.")


def one_cycle(
    groups: list[dict[str, Any]], config: ScheduleConfig, n_steps: int, warmup: float = 0.1
) -> dict[str, Any]:
    """AdamW on a one-cycle schedule over ``n_steps``, for Lightning; each group has its peak as ``lr``."""
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    n_steps = max(2, n_steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in groups],
        total_steps=n_steps,
        pct_start=max(warmup, 1.5 / n_steps),  # a warm-up of one step divides by zero
        cycle_momentum=False,
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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


class ProgressBar(Callback):
    """One bar over all minibatches, with the epoch and the metrics ``shown``, each by its short name."""

    def __init__(self, title: str, shown: dict[str, str]) -> None:
        self.title, self.shown = title, shown

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self.bar = tqdm(
            total=int(trainer.estimated_stepping_batches),
            desc=self.title,
            unit="minibatch",
            disable=not trainer.is_global_zero,
        )

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Advance by one minibatch."""
        self.bar.update()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the epoch's metrics."""
        figures = {"epoch": f"{trainer.current_epoch + 1}/{trainer.max_epochs}"}
        for metric, name in self.shown.items():
            if metric in trainer.callback_metrics:
                figures[name] = f"{float(trainer.callback_metrics[metric]):.3f}"
        self.bar.set_postfix(figures, refresh=False)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar: after an error there is no teardown."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar, also when training stopped early or failed."""
        if hasattr(self, "bar"):
            self.bar.close()


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
