"""Resuming: a file after each epoch, with all that the next one depends on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import distributed


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
