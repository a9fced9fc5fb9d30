"""Callbacks: best weights, progress bar and a checkpoint after each epoch.

Lightning's own were compared and do not pay. ``ModelCheckpoint(save_last=True)`` writes through a temporary file in
the system's folder, so a kill during the move leaves half a checkpoint, and curves, hard cells and random states
need the same hooks. ``TQDMProgressBar`` draws a bar per epoch; one bar for the training overrides it whole.
"""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from tqdm.auto import tqdm

from celler._utils._distributed import gather_objects
from celler._utils._lock import locked

#: What a checkpoint holds, as Lightning writes it, and what is added.
PARTS = ("epoch", "state_dict", "callbacks", "loops", "optimizer_states", "lr_schedulers")
OWN_PARTS = ("is_finished", "curves", "hard_cells", "random")
#: What torch and Lightning raise for contents that they cannot use.
UNREADABLE = (RuntimeError, EOFError, KeyError, IndexError, TypeError, AttributeError, ValueError)


class BestWeights(Callback):
    """Hold the weights of the latest epoch within one standard error of the best score so far.

    With few validation cells the highest macro-F1 is mostly luck, and a lucky early epoch would cost the end of the
    schedule. With many, or a loss, the error ``<monitor>_error`` is small or none: this is then the best epoch.
    On five sets of 28 to 574 validation cells, three seeds, no expert solved, a query's macro-F1 was lower by 0.5 ± 0.4
    points with the best epoch, by 0.6 ± 0.3 with the best mean of three epochs, and the same (±0.3) with the last epoch
    or the lowest mean loss of five. With solved experts, the default, no choice moved the mean by more than 0.2 points.
    Training stops after ``patience`` epochs below the best score, ``None`` for never.
    """

    def __init__(self, module: nn.Module, patience: int | None, monitor: str = "validation_macro_f1") -> None:
        self.module, self.patience, self.monitor = module, patience, monitor
        self.best, self.n_epochs = float("-inf"), 0
        self.state: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "n_epochs": self.n_epochs, "state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.n_epochs, self.state = state_dict["best"], state_dict["n_epochs"], state_dict["state"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        score = float(metrics[self.monitor]) * (-1 if self.monitor.endswith("loss") else 1)
        self.best = max(self.best, score)
        if score >= self.best - float(metrics.get(f"{self.monitor}_error", 0)):
            self.state = deepcopy(self.module.state_dict())
            self.n_epochs = trainer.current_epoch + 1
        n_without = trainer.current_epoch + 1 - self.n_epochs
        # |=: another callback or a signal may have asked for the stop.
        trainer.should_stop |= self.patience is not None and n_without >= self.patience


def kept_epoch(scores: np.ndarray, errors: np.ndarray) -> int:
    """Return the epoch whose weights :class:`BestWeights` keeps, of ``scores (n,)`` and their standard errors."""
    return int(np.flatnonzero(scores >= np.maximum.accumulate(scores) - errors)[-1])


class ProgressBar(Callback):
    """Draw one bar over all minibatches, with the epoch, the metrics ``shown``, by short name, and the kept epoch.

    It ends on the kept epoch and its metrics: those of the last would look as if the model had got worse.
    """

    def __init__(self, title: str, shown: dict[str, str], best: BestWeights | None) -> None:
        self.title, self.shown, self.best = title, shown, best

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        n_steps = pl_module.n_steps
        self.bar = tqdm(total=n_steps, desc=self.title, unit="minibatch", disable=not trainer.is_global_zero)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.bar.update(len(batch) if isinstance(batch, list) else 1)  # a list is a group of minibatches

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures = {"epoch": f"{trainer.current_epoch + 1}/{trainer.max_epochs}"}
        for metric, name in self.shown.items():
            if metric in trainer.callback_metrics:
                figures[name] = f"{float(trainer.callback_metrics[metric]):.3f}"
        if self.best is not None:
            figures["kept"] = str(self.best.n_epochs)
        self.bar.set_postfix(figures, refresh=False)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        n_epochs = len(pl_module.curves)
        if self.best is None or not 0 < self.best.n_epochs <= n_epochs:
            return
        kept = pl_module.curves[self.best.n_epochs - 1]
        figures = {"kept epoch": f"{self.best.n_epochs} of {n_epochs}"}
        figures |= {name: f"{kept[metric]:.3f}" for metric, name in self.shown.items() if metric in kept}
        self.bar.set_postfix(figures)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # Lightning does not, after an error

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


class Finite(Checkpoint):
    """Stop a training that diverged: its loss or weights are NaN or infinite, and its labels would be arbitrary.

    A ``Checkpoint`` by kind, so that it is asked after the plan has its losses and before a file is written.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        row = pl_module.curves[-1]
        # The score of a gene that the base has never seen is −∞, and stays so.
        finite = lambda name, weights: (weights.isfinite() | (weights.isneginf() & name.endswith("score"))).all()
        losses = {name: row[name] for name in ("train_loss", "masked_loss") if name in row}
        wrong = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        wrong += [
            f"the weights {name} are not finite"
            for name, weights in pl_module.named_parameters()
            if weights.requires_grad and not finite(name, weights)  # a base is frozen, and large
        ]
        if wrong:
            raise RuntimeError(
                f"training diverged in epoch {trainer.current_epoch + 1}: {wrong[0]}; finite numbers are needed. Train "
                f"again with a lower learning_rate ({pl_module.config.learning_rate} was given), or check your own "
                "loss. The model is as it was before."
            )


class EachEpoch(Checkpoint):
    """Write a checkpoint after each epoch, whole or not at all; a training that finds it resumes from it.

    Lightning stores weights, optimizer, schedule and callbacks. The curves, the hard cells and the random state of
    each rank are added, so that the resumed training is bit-equal to an uninterrupted one.
    ``given`` are the settings of the training; a file with other settings is refused.
    """

    def __init__(self, path: Path, given: dict[str, Any], minibatches: Any) -> None:
        self.path, self.given, self.minibatches = path, given, minibatches
        self.found: dict[str, Any] | None = None
        self.is_restored = False

    @contextmanager
    def held(self, is_writer: bool) -> Iterator[None]:
        """Keep the file for this training, whose first process writes it; raise where another one does."""
        lock = self.path.with_name(self.path.name + ".lock")
        with locked(lock, f"ckpt_path={str(self.path)!r}") if is_writer else nullcontext():
            yield

    def read(self, plan: Any, best: BestWeights | None) -> dict[str, Any] | None:
        """Return what the file holds, checked; ``None`` where there is none. Raise ``ValueError`` for a damaged one."""
        if not self.path.exists():
            return None
        try:
            with zipfile.ZipFile(self.path) as archive:  # torch does not look at the checksums
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile("a checksum is wrong")
            # weights_only: a foreign file must not run code.
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # its message advises to load the file unsafely
            raise self._damaged("it holds more than tensors and plain values") from None
        except OSError as error:
            if error.errno is not None:
                raise OSError(error.errno, f"ckpt_path={str(self.path)!r} cannot be read: {error.strerror}") from error
            raise self._damaged(error) from None
        except (*UNREADABLE, zipfile.BadZipFile, NotImplementedError) as error:
            raise self._damaged(error) from None
        try:
            self._check(found, plan, best)
        except (AttributeError, TypeError, KeyError, IndexError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from None
        differing = [name for name, value in self.given.items() if found["celler"]["given"].get(name) != value]
        if differing:
            raise ValueError(
                f"ckpt_path={str(self.path)!r} belongs to a training with other {', '.join(differing)}; repeat that "
                "call of train, or name a new file."
            )
        return dict(found)

    def _check(self, found: Any, plan: Any, best: BestWeights | None) -> None:
        """Raise ``ValueError`` unless the contents are those of this training."""
        own = found.get("celler") if isinstance(found, dict) else None
        if not isinstance(own, dict) or not isinstance(own.get("given"), dict):
            raise self._damaged("it is no checkpoint of Celler, or of an earlier version")
        missing = [name for name in OWN_PARTS if name not in own] + [name for name in PARTS if name not in found]
        if missing:
            raise self._damaged(f"it lacks {missing[0]}")
        curves, n_epochs = own["curves"], found["epoch"]
        is_table = isinstance(curves, list) and all(isinstance(row, dict) for row in curves)
        if type(n_epochs) is not int or not is_table or len(curves) != n_epochs + 1:
            raise self._damaged("its curves and its epochs differ")
        if any(own["given"].get(name) != value for name, value in self.given.items()):
            return  # the weights are of another network
        sizes = {name: (weights.dtype, weights.shape) for name, weights in plan.state_dict().items()}
        found["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]  # raises where there is none
        kept = None if best is None else found["callbacks"][best.state_key]["state"]
        for weights in (found["state_dict"], *([] if kept is None else [kept])):
            if {name: (values.dtype, values.shape) for name, values in weights.items()} != sizes:
                raise self._damaged("its weights are of another network")
            self._check_finite(weights, plan)

    def _check_finite(self, weights: dict[str, Tensor], plan: Any) -> None:
        """Raise ``ValueError`` for weights that are not finite where those of a new network are.

        The score of a gene that is never seen is −∞ in both.
        """
        for name, values in plan.state_dict().items():
            if values.is_floating_point() and (~weights[name].isfinite() & values.isfinite()).any():
                raise self._damaged(f"its weights {name} are not finite")

    def _damaged(self, cause: object) -> ValueError:
        return ValueError(
            f"ckpt_path={str(self.path)!r} cannot be taken up: it is damaged or of another program ({cause}). Delete "
            "the file to train from the start, or name a new one."
        )

    def take_up(self, found: dict[str, Any], plan: Any, best: BestWeights | None) -> None:
        """Give ``plan`` what a finished training left."""
        with self.restoring():
            plan.load_state_dict(found["state_dict"])
            self.on_load_checkpoint(None, plan, found)
            if best is not None:
                best.load_state_dict(found["callbacks"][best.state_key])

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Name the file in what is raised while it is taken up."""
        try:
            yield
        except UNREADABLE as error:
            if self.is_restored:
                raise
            raise self._damaged(error) from error

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        part = self.path.with_name(self.path.name + ".part")
        try:
            trainer.save_checkpoint(part, weights_only=False)
            if trainer.is_global_zero:
                os.replace(part, self.path)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise OSError(
                f"ckpt_path={str(self.path)!r} could not be written: {error} Free space or name another file; the one "
                "of the last epoch is whole, if there was one."
            ) from error

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        hard_cells, device = pl_module.hard_cells, pl_module.device
        random = {"noise": pl_module.generator.get_state(), "torch": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        checkpoint["celler"] = {
            "given": self.given,
            "is_finished": trainer.should_stop or trainer.current_epoch + 1 >= (trainer.max_epochs or 0),
            "curves": pl_module.curves,
            "hard_cells": None if hard_cells is None else hard_cells.to_plain(),
            "random": gather_objects(random),
        }

    def on_load_checkpoint(self, trainer: Trainer | None, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        found = checkpoint["celler"]
        pl_module.curves = found["curves"]
        if pl_module.hard_cells is not None:
            pl_module.hard_cells.restore(found["hard_cells"])
        self.found = found

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Set the epoch and the random state with which the interrupted training would have continued."""
        if self.found is None:
            return
        self.minibatches.set_epoch(trainer.current_epoch)
        state = self.found["random"][trainer.global_rank]
        pl_module.generator.set_state(state["noise"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], pl_module.device)
        self.is_restored = True
