"""Callbacks: best weights, progress bar and a checkpoint after each epoch."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, distributed, nn
from tqdm.auto import tqdm


class BestWeights(Callback):
    """Holds the weights of the latest epoch within one standard error of the best macro-F1 so far.

    With few validation cells the highest value is mostly luck, and a lucky early epoch would cost
    the end of the schedule; with many the error is small and this is the best epoch. Training stops
    after ``patience`` epochs that are further below, ``None`` for never.
    """

    def __init__(self, module: nn.Module, patience: int | None) -> None:
        self.module, self.patience = module, patience
        self.best, self.n_epochs = -1.0, 0
        self.state: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """For a training that is resumed."""
        return {"best": self.best, "n_epochs": self.n_epochs, "state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        vars(self).update(state_dict)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the epoch that just ended."""
        metrics = trainer.callback_metrics
        score, error = (
            float(metrics["validation_macro_f1"]),
            float(metrics["validation_macro_f1_error"]),
        )
        self.best = max(self.best, score)
        if score >= self.best - error:
            self.state = deepcopy(self.module.state_dict())
            self.n_epochs = trainer.current_epoch + 1
        n_without = trainer.current_epoch + 1 - self.n_epochs
        trainer.should_stop = self.patience is not None and n_without >= self.patience


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


class LowestLoss(Callback):
    """Holds the weights of the epoch with the lowest validation loss; stops after ``patience`` without one."""

    def __init__(self, modules: dict[str, nn.Module], patience: int | None) -> None:
        self.modules, self.patience = modules, patience
        self.best, self.n_without = float("inf"), 0
        self.states: dict[str, dict[str, Tensor]] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the epoch that just ended."""
        loss = float(trainer.callback_metrics["validation_loss"])
        self.n_without += 1
        if loss < self.best:
            self.best, self.n_without = loss, 0
            self.states = {
                name: {key: weights.clone() for key, weights in module.state_dict().items()}
                for name, module in self.modules.items()
            }
        trainer.should_stop = self.patience is not None and self.n_without >= self.patience


class EachEpoch(Checkpoint):
    """Writes ``path`` after each epoch, whole or not at all; a training that finds it goes on from there.

    given: what the training was called with; one that was called with something else is refused.
    minibatches: those trained on, with ``set_epoch``.

    Lightning keeps weights, optimizer, schedule and callbacks. Beside them go the curves, the hard cells and the
    random state of each rank, without which the next epoch would be another.
    """

    def __init__(self, path: Path, given: dict[str, Any], minibatches: Any) -> None:
        self.path, self.given, self.minibatches = path, given, minibatches
        self.found: dict[str, Any] | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; Lightning calls this when all else that ends an epoch is done."""
        part = self.path.with_name(self.path.name + ".part")
        trainer.save_checkpoint(part, weights_only=False)
        if trainer.is_global_zero:
            os.replace(part, self.path)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning does not know of."""
        hard_cells = pl_module.hard_cells
        checkpoint["celler"] = {
            "given": self.given,
            "curves": pl_module.curves,
            "hard_cells": None if hard_cells is None else hard_cells.to_plain(),
            "random": gathered(random_state(pl_module)),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Take it up again; raises ``ValueError`` for the file of another training."""
        found = checkpoint.get("celler", {})
        given = found.get("given", {})
        differing = [name for name in self.given if given.get(name) != self.given[name]]
        if differing:
            raise ValueError(
                f"ckpt_path={str(self.path)!r} is of a training with other {', '.join(differing)}; call train as it "
                "was called then, or name a file that is not there yet."
            )
        pl_module.curves = found["curves"]
        if pl_module.hard_cells is not None:
            pl_module.hard_cells.restore(found["hard_cells"])
        self.found = found

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Go on with the epoch and the random state that would have come next."""
        if self.found is None:
            return
        self.minibatches.set_epoch(trainer.current_epoch)
        state = self.found["random"][trainer.global_rank]
        pl_module.generator.set_state(state["noise"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], pl_module.device)


def random_state(plan: Any) -> dict[str, torch.Tensor]:
    """States that the plan draws noise and dropout from."""
    state = {"noise": plan.generator.get_state(), "torch": torch.get_rng_state()}
    return state | (
        {"cuda": torch.cuda.get_rng_state(plan.device)} if plan.device.type == "cuda" else {}
    )


def gathered(state: dict[str, torch.Tensor]) -> list[Any]:
    """That of each rank."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [state]
    states: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(states, state)
    return states
