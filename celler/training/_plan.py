"""Plan: the Lightning module of a training, its configuration and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from celler.data._loader import Minibatch
from celler.data._tokenizer import TokenBatch
from celler.losses import DEFAULT, Loss
from celler.mining import HardCells, Replay
from celler.network._network import GeneTransformer

PRETRAINED_RATE = 1 / 30  #: factor of the learning rate for a pretrained encoder: 1e-4 with the default rate


@dataclass(frozen=True)
class Teacher:
    """Keep the predictions for known classes while the network learns new ones (knowledge distillation).

    Parameters
    ----------
    network
        Network before it was extended.
    classes
        Codes of its classes in the extended network ``(K,)``.
    strength
        Loss in nats per nat of divergence, for each expert.
    """

    network: GeneTransformer
    classes: np.ndarray
    strength: float = 10.0

    def divergence(self, tokens: TokenBatch, labels: Tensor, expert_logits: Tensor) -> Tensor:
        """Return the mean Kullback-Leibler divergence of ``expert_logits (E, B, C)`` from the teacher's.

        Only cells labelled with one of :attr:`classes` count; the others contribute 0.
        """
        classes = torch.as_tensor(self.classes, device=labels.device)
        with torch.no_grad():
            wanted = self.network.eval()(*tokens).expert_logits[..., classes].softmax(-1)
        given = expert_logits[..., classes].log_softmax(-1)
        of_cell = F.kl_div(given, wanted, reduction="none").sum(dim=(0, 2))
        return self.strength * (of_cell * torch.isin(labels, classes)).mean()


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training; :meth:`celler.model.Celler.train` documents those not listed here.

    Parameters
    ----------
    encoder_rate, evidence_l2
        Factor of the learning rate for the encoder, and strength of the L2 penalty on the evidence table, 1 / C of
        scikit-learn's logistic regression.
    warmup, gradient_clip
        Share of the steps in which the learning rate rises, and largest norm of the gradient.
    token_dropout
        Share of a cell's tokens left out at random in each epoch.
    teacher
        Network whose predictions are kept, ``None`` for none.
    masked_task
        Module that maps the encoder to a loss, which is added in each step; its weights are trained too.
    solves_evidence
        Whether linear parts are solved as logistic regressions before training, and then frozen.
    solves_new_classes
        Whether new classes of an extended model are solved, and all else stays as it is.
    class_prior
        Power of the class frequencies that labels are weighed by; ``None`` where solved parts choose it.
    count_power
        Power of the class counts in the loss, 1 less the class prior that is used.
    processes, ckpt_path
        Processes on each machine and machines, and the file that each epoch writes, ``None`` for none.
    fingerprint
        What a training that resumes from the file has to have in common with it, by name.
    """

    max_epochs: int
    batch_size: int
    loss: Loss = DEFAULT
    replay: Replay | None = field(default_factory=Replay)
    learning_rate: float = 3e-3
    encoder_rate: float = 1.0
    weight_decay: float = 1e-2
    evidence_l2: float = 1.0
    warmup: float = 0.1
    gradient_clip: float = 1.0
    token_dropout: float = 0.3
    early_stopping: bool = True
    device: torch.device = torch.device("cpu")
    precision: str = "float32"
    show_progress: bool = True
    seed: int = 0
    teacher: Teacher | None = None
    masked_task: nn.Module | None = None
    solves_evidence: bool = False
    solves_new_classes: bool = False
    class_prior: float | None = None
    class_balance: float = 0.0
    count_power: float = 1.0
    processes: tuple[int, int] = (1, 1)
    ckpt_path: Path | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PretrainingConfig:
    """Settings of a pretraining; :meth:`celler.model.Celler.pretrain` documents them.

    Parameters
    ----------
    mask_ratio
        Share of a cell's genes that are hidden, above 0 and below 1.
    """

    max_epochs: int
    batch_size: int = 64
    mask_ratio: float = 0.15
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    early_stopping: bool = True
    device: torch.device = torch.device("cpu")
    precision: str = "float32"
    show_progress: bool = True
    seed: int = 0
    processes: tuple[int, int] = (1, 1)


RunConfig = TrainingConfig | PretrainingConfig


class TrainingPlan(LightningModule):
    """Loss of each expert, AdamW on a one-cycle schedule, and macro-F1 on the validation cells.

    :attr:`curves` gets a row of metrics per epoch, and those of :meth:`celler.mining.HardCells.report`.
    """

    def __init__(
        self,
        network: GeneTransformer,
        class_counts: np.ndarray,
        config: TrainingConfig,
        hard_cells: HardCells | None = None,
        n_minibatches: int = 1,
    ) -> None:
        super().__init__()
        self.automatic_optimization, self.n_minibatches = False, n_minibatches
        self.network, self.config, self.hard_cells = network, config, hard_cells
        self.masked_task, self.learns_by_members = config.masked_task, network.learns_by_members
        self.class_counts: Tensor
        # A balanced loss takes out what its counts hold of the prior: with these, all experts use the same.
        counts = np.asarray(class_counts) ** config.count_power
        self.register_buffer("class_counts", torch.as_tensor(counts, dtype=torch.float32))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.losses: list[tuple[Tensor, int]] = []
        self.masked_losses: list[Tensor] = []
        self.outcomes: list[tuple[Tensor, Tensor]] = []
        self.curves: list[dict[str, float]] = []

    def on_train_start(self) -> None:
        """Seed noise and dropout of each rank; the first rank draws the same as a single process."""
        if self.global_rank and not self.trainer.current_epoch:  # else resumed
            seed = self.config.seed + 1_000_003 * self.global_rank
            self.generator.manual_seed(seed)
            torch.manual_seed(seed)

    def training_step(self, group: list[Minibatch], _: int) -> None:
        """Take a step for each minibatch: Lightning needs as long for a group as for one, half a step."""
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        for minibatch in group:
            loss = self.loss_of(minibatch)
            optimizer.zero_grad()  # type: ignore[union-attr]
            with torch.autocast(self.device.type, enabled=False):
                self.manual_backward(loss)
            self.clip_gradient()
            optimizer.step()  # type: ignore[union-attr]
            schedule.step()  # type: ignore[union-attr]

    def loss_of(self, minibatch: Minibatch) -> Tensor:
        """Return the mean loss of the cells, summed over the experts, plus the L2 penalty of the evidence table."""
        tokens, labels, index, embedding = minibatch
        evidence = self.network.evidence
        is_solved = evidence is not None and not evidence.weight.requires_grad
        if self.learns_by_members:
            expert_logits = self.network.member_logits(*tokens, embedding=embedding)
            logits = expert_logits.mean(0)
        else:
            output = self.network(*tokens, embedding)
            # Experts that were solved are right about nearly all the cells that they were solved for.
            expert_logits, logits = output.expert_logits, output.learned_logits if is_solved else output.logits
        loss = self.expert_loss(expert_logits, labels).mean()
        if self.config.teacher is not None:
            loss = loss + self.config.teacher.divergence(tokens, labels, expert_logits)
        if self.hard_cells is not None:
            self.hard_cells.watch(index, labels, logits)
        self.losses.append((loss.detach(), len(labels)))
        if self.masked_task is not None:
            other = self.masked_task(self.network.encoder)
            self.masked_losses.append(other.detach())
            loss = loss + other
        if evidence is not None and not is_solved:
            # The strength of scikit-learn's logistic regression with C = 1 / evidence_l2.
            strength = self.config.evidence_l2 / self.class_counts.sum()
            loss = loss + 0.5 * strength * evidence.weight.square().sum()
        return loss

    def expert_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss ``(B,)`` of ``logits (E, B, C)``, summed over the experts unless the loss joins them."""
        loss, n_experts = self.config.loss, len(logits)
        if getattr(loss, "joins_experts", False):
            return loss(logits, labels, self.class_counts, self.generator)
        # One call for all experts: with a few dozen cells, launching the operations is most of the cost.
        each = loss(logits.flatten(0, 1), labels.repeat(n_experts), self.class_counts, self.generator)
        return each.view(n_experts, -1).sum(0)

    def validation_step(self, minibatch: Minibatch, _: int) -> None:
        """Keep logits and labels: macro-F1 is computed on the whole split, not averaged over minibatches."""
        tokens, labels, _index, embedding = minibatch
        if len(labels):  # a rank may have no validation cell
            self.outcomes.append((self.network(*tokens, embedding).logits, labels))

    def on_validation_epoch_end(self) -> None:
        """Log loss, macro-F1 and its standard error over the validation cells of all ranks."""
        n_classes = len(self.class_counts)
        sums = torch.zeros(n_classes**2 + 1, device=self.device)
        if self.outcomes:
            logits, labels = (torch.cat(parts) for parts in zip(*self.outcomes, strict=True))
            sums[:-1] = confusion_of(logits, labels).flatten()
            sums[-1] = F.cross_entropy(logits.float(), labels, reduction="sum")
        self.outcomes.clear()
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        macro_f1, standard_error = macro_f1_with_error(sums[:-1].view(n_classes, n_classes))
        self.log("validation_loss", sums[-1] / sums[:-1].sum())
        self.log("validation_macro_f1", macro_f1)
        self.log("validation_macro_f1_error", standard_error)

    def on_train_epoch_end(self) -> None:
        """Store the metrics of the epoch and choose the cells to replay in the next."""
        row = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        losses, n_cells = zip(*self.losses, strict=True)
        total = torch.stack(losses).cpu().numpy() @ np.array(n_cells)
        part = torch.tensor([total, sum(n_cells)], device=self.device)
        sums = self.trainer.strategy.reduce(part, reduce_op="sum")
        row["train_loss"] = float(sums[0] / sums[1])
        self.losses.clear()
        if self.masked_losses:
            row["masked_loss"] = float(torch.stack(self.masked_losses).mean())
            self.masked_losses.clear()
        if self.hard_cells is not None:
            row |= self.hard_cells.report()
            self.hard_cells.choose()
        self.curves.append(row)

    def clip_gradient(self) -> None:
        """Clip the gradient; Lightning refuses to with a fused optimizer, although bfloat16 needs no scaling."""
        # Members do not share a gradient: each is clipped about as one alone.
        limit = self.config.gradient_clip * self.network.config.n_members**0.5
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)

    @property
    def n_steps(self) -> int:
        """Steps of the whole training."""
        return self.config.max_epochs * self.n_minibatches

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.network, self.config)
        return one_cycle(groups, self.config, self.n_steps, self.config.warmup)


class Pretraining(LightningModule):
    """AdamW on a one-cycle schedule for all weights, as each pretraining has it; ``config`` holds its settings."""

    config: PretrainingConfig

    @property
    def n_steps(self) -> int:
        """Steps of the whole training."""
        return int(self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> Any:
        return one_cycle(parameter_groups(self, self.config), self.config, self.n_steps)


def parameter_groups(module: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups: with and without weight decay, the encoder apart where it has its own rate."""
    named, encoder_rate = [*module.named_parameters()], 1.0
    if isinstance(config, TrainingConfig):
        encoder_rate = config.encoder_rate
        named += [] if config.masked_task is None else config.masked_task.named_parameters()
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, weights in named:
        if weights.requires_grad:
            is_slow = name.startswith("encoder.") and encoder_rate != 1
            # Biases, norms and gates are not decayed; the evidence table has its own L2 term.
            is_decayed = weights.ndim > 1 and "evidence" not in name and "bias" not in name
            groups.setdefault((is_slow, is_decayed), []).append(weights)
    return [
        {"params": weights, "lr": config.learning_rate * (encoder_rate if is_slow else 1.0)}
        | ({} if is_decayed else {"weight_decay": 0.0})
        for (is_slow, is_decayed), weights in groups.items()
    ]


def one_cycle(groups: list[dict[str, Any]], config: RunConfig, n_steps: int, warmup: float = 0.1) -> dict[str, Any]:
    """Return AdamW on a one-cycle schedule over ``n_steps``, as Lightning takes it; ``lr`` of a group is its peak."""
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


def confusion_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the confusion matrix ``(C, C)``: true classes in rows, predicted in columns."""
    n_classes = logits.shape[1]
    pairs = labels * n_classes + logits.argmax(1)
    return torch.bincount(pairs, minlength=n_classes**2).view(n_classes, n_classes)


def macro_f1_with_error(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Return macro-F1 over the classes with cells in ``confusion (C, C)``, and the standard error of their mean recall.

    The error is binomial in each class. One success and one failure are added: a single cell is not certain.
    """
    hits, n_cells, n_predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    present = n_cells > 0
    f1 = (2 * hits / (n_cells + n_predicted).clamp(min=1))[present]
    recall = ((hits + 1) / (n_cells + 2))[present]
    variance = recall * (1 - recall) / (n_cells[present] + 2)
    return f1.mean(), variance.sum().sqrt() / len(f1)
