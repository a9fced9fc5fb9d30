"""Run: Lightning's Trainer fits a plan, with one progress bar and none of its banners.

The Trainer's own reading of SLURM and torchrun does not replace ``processes``: device, precision and seeds are
chosen before there is a Trainer, and on CPUs it needs the number of processes anyway.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from tqdm.auto import tqdm

from celler._utils._devices import Launched, autocast, cpu_threads, launched
from celler._utils._distributed import merged
from celler._utils._messages import has_progress
from celler.data._loader import Groups, Minibatch, TokenLoader
from celler.mining import HardCells
from celler.network._network import GeneTransformer
from celler.training._callbacks import BestWeights, EachEpoch, Finite, ProgressBar
from celler.training._plan import RunConfig, TrainingConfig, TrainingPlan

STEPS_TOGETHER = 8  #: steps in one call of Lightning, which takes as long itself as half a step


def run_plan(
    plan: Any,
    train: Iterable[Any],
    validation: Iterable[Any] | None,
    config: RunConfig,
    *,
    best: BestWeights,
    title: str,
    shown: dict[str, str],
    n_threads: int | None,
    each_epoch: EachEpoch | None = None,
) -> dict[str, list[float]]:
    """Fit ``plan``, give it its best weights and return its curves; random state and threads are restored.

    ``shown`` maps metrics of the progress bar to short names, and ``n_threads`` limits the CPU threads, ``None`` for
    all. Training resumes from the file of ``each_epoch``, where it exists.
    """
    chosen = None if validation is None else best
    callbacks: list[Callback] = [ProgressBar(title, shown, chosen)] if has_bars(config) else []
    callbacks += [] if chosen is None else [chosen]
    callbacks += [Finite(), *([] if each_epoch is None else [each_epoch])]
    n_devices, n_machines = config.processes
    is_alone, index = n_devices * n_machines == 1, config.device.index
    with torch.random.fork_rng(), _quiet_lightning(), cpu_threads(n_threads):
        torch.manual_seed(config.seed)
        trainer = Trainer(
            max_epochs=config.max_epochs,
            accelerator=config.device.type,
            devices=[index] if is_alone and index is not None else n_devices,
            num_nodes=n_machines,
            strategy="auto" if is_alone else "ddp",
            precision="bf16-mixed" if config.precision == "bfloat16" else "32-true",
            plugins=_environment(),
            callbacks=callbacks,
            enable_progress_bar=False,
            logger=False,
            enable_checkpointing=True,  # by the callbacks alone, which look at each epoch
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the samplers split the minibatches over the ranks
        )
        if each_epoch is None:
            with _interruptible():
                trainer.fit(plan, train, validation)
        else:
            with each_epoch.held(trainer.is_global_zero):
                _fit_or_resume(trainer, plan, (train, validation), each_epoch, chosen, title)
    if best.state is not None:
        plan.load_state_dict(best.state)
    plan.to(config.device).eval()
    names = sorted({name for row in plan.curves for name in row})
    return {name: [row.get(name, float("nan")) for row in plan.curves] for name in names}


def _fit_or_resume(
    trainer: Trainer, plan: Any, data: tuple[Any, Any], each_epoch: EachEpoch, best: BestWeights | None, title: str
) -> None:
    """Fit ``plan`` from the start, or from what the file of ``each_epoch`` holds."""
    found = each_epoch.read(plan, best)
    if found is None:
        with _interruptible():
            trainer.fit(plan, *data)
    elif found["celler"]["is_finished"]:
        each_epoch.take_up(found, plan, best)
        if has_bars(plan.config):
            tqdm.write(f"{title}: {each_epoch.path} holds this training, finished, and is taken up as it is.")
    else:
        with _interruptible(), each_epoch.restoring():
            # weights_only: a foreign file must not run code.
            trainer.fit(plan, *data, ckpt_path=each_epoch.path, weights_only=True)


class SrunEnvironment(LightningEnvironment):
    """Processes that srun started, by the variables of their step.

    Lightning's own reads those of the job, which may have other steps, refuses ``--ntasks``, and requeues jobs.
    """

    def __init__(self, process: Launched) -> None:
        super().__init__()
        self.process = process

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST", "127.0.0.1"))
        return os.environ.get("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))

    @property
    def main_port(self) -> int:
        job = os.environ.get("SLURM_JOB_ID", "0")
        own = 15_000 + int(job[-4:]) if job.isdecimal() else 12_910
        return int(os.environ.get("MASTER_PORT", own))

    def world_size(self) -> int:
        return self.process.n_here * self.process.n_machines

    def global_rank(self) -> int:
        return self.process.rank

    def local_rank(self) -> int:
        return self.process.local_rank

    def node_rank(self) -> int:
        return self.process.machine


def _environment() -> list[Any]:
    """Return how processes are found; Lightning's guesses take one process of a cluster's job for one of several."""
    process = launched()
    if process is None:
        return [LightningEnvironment()]
    return [SrunEnvironment(process)] if process.by_srun else []


def has_bars(config: RunConfig) -> bool:
    """Return whether progress is shown."""
    return config.show_progress and has_progress()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Pass on Ctrl-C, for which Lightning exits from the interpreter and then ignores the next one for good."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    finally:
        if is_main and handler is not None and signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence hardware banners and advice about data loaders, for which the Trainer has no switch."""
    loggers = [logging.getLogger(f"lightning.pytorch.{name}") for name in ("utilities.rank_zero", "accelerators.cuda")]
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
    train: TokenLoader,
    validation: Iterable[Minibatch] | None,
    class_counts: np.ndarray,
    config: TrainingConfig,
    *,
    hard_cells: HardCells | None = None,
    title: str = "Training",
) -> dict[str, list[float]]:
    """Train ``network`` in place on ``config.device`` and return its curves, a value per epoch.

    ``class_counts (C,)`` are those of the training cells; the sampler of ``train`` must hold the same ``hard_cells``.
    """
    if config.teacher is not None:
        config.teacher.network.to(config.device)
    plan = TrainingPlan(network, class_counts, config, hard_cells, len(train))
    best = BestWeights(plan, max(10, config.max_epochs // 2) if config.early_stopping else None)
    attends = network.config.encoder in ("transformer", "scgpt")
    is_large = attends and any(weights.requires_grad for weights in network.encoder.parameters())
    # Without attention the matrix products are small: a second thread was never faster on minibatches of 32,
    # and twice as slow on busy cores or with a passive wait policy.
    n_threads = None if is_large else max(1, config.batch_size // 128)
    path = config.ckpt_path
    # Connected processes add up their gradients once for each call of a step.
    n_together = STEPS_TOGETHER if config.processes == (1, 1) else 1
    return run_plan(
        plan,
        Groups(train, n_together),
        validation,
        config,
        best=best,
        title=title,
        shown={"validation_macro_f1": "macro_f1"},
        n_threads=n_threads,
        each_epoch=None if path is None else EachEpoch(path, given(network, class_counts, config), train),
    )


def given(network: GeneTransformer, class_counts: np.ndarray, config: TrainingConfig) -> dict[str, Any]:
    """Return the settings that a training must share with the one it resumes."""
    names = ("max_epochs", "batch_size", "learning_rate", "token_dropout", "class_prior", "class_balance", "seed")
    return (
        {name: getattr(config, name) for name in names}
        | {
            "processes": config.processes,
            "n_members": network.config.n_members,
            "network": repr(network.config),
            "loss": repr(config.loss),
            "replay": repr(config.replay),
            "class_counts": np.asarray(class_counts).tolist(),
        }
        | dict(config.fingerprint)
    )


@torch.inference_mode()
def validation_logits(
    network: GeneTransformer, minibatches: Iterable[Minibatch], precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits ``(N, C)`` and labels ``(N,)`` of the cells of all ranks."""
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
