"""Profiles: an encoder learns genes from pseudo-cells of public cell-type profiles.

Two tasks at once: name the type among those of the cell's own data set, with the losses of ``train``, and predict
hidden values, the paper's masked-expression objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from celler.data._pseudo_cells import CellProfiles, PseudoCellLoader, PseudoCells
from celler.losses import HDM, Loss
from celler.network._encoders import BaseEncoder
from celler.network._heads import PanelDecoder, TypeHead
from celler.training._callbacks import BestWeights
from celler.training._plan import Pretraining, PretrainingConfig
from celler.training._run import run_plan

#: Minibatches of an epoch.
EPOCH = 100


@dataclass(frozen=True)
class ProfileTasks:
    """What is learned from pseudo-cells.

    Parameters
    ----------
    loss
        Loss of the types, among those of a cell's data set.
    masked_weight
        Weight of the squared error of hidden values; 0 leaves them out.
    """

    loss: Loss = HDM(n_hard=20)
    masked_weight: float = 1.0


class ProfilePlan(Pretraining):
    """Train an encoder, a head of types and a decoder; :attr:`curves` gets a row of metrics per epoch."""

    def __init__(
        self, encoder: BaseEncoder, profiles: CellProfiles, tasks: ProfileTasks, config: PretrainingConfig
    ) -> None:
        super().__init__()
        d = encoder.gene.shape[1]
        self.encoder, self.tasks, self.config = encoder, tasks, config
        self.head, self.decoder = TypeHead(len(profiles.types), d), PanelDecoder(len(profiles.genes), d)
        self.is_same: Tensor
        self.class_counts: Tensor
        self.register_buffer("is_same", torch.from_numpy(profiles.is_same_dataset), persistent=False)
        self.register_buffer("class_counts", torch.ones(len(profiles.types)), persistent=False)
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self.curves: list[dict[str, float]] = []

    def training_step(self, cells: PseudoCells, _: int) -> Tensor:
        """Return the loss of the types plus the weighted squared error of the hidden values."""
        weight = self.tasks.masked_weight
        has_counts = cells.expression.sum(1) > 0
        expression, types, is_hidden = (part[has_counts] for part in (cells.expression, cells.types, cells.is_hidden))
        seen = rescaled_without(expression, is_hidden) if weight else expression
        embedding = self.encoder.embed_panel(cells.genes, seen)
        logits = self.head(embedding).masked_fill(~self.is_same[types], -1e4)
        loss = self.tasks.loss(logits, types, self.class_counts, None).mean()
        error = logits.new_zeros(())
        if weight:
            value = self.decoder(embedding, (seen > 0).sum(1), cells.genes)
            error = (value - expression)[is_hidden].square().mean()
        hits = (logits.argmax(1) == types).float().mean()
        self.rows.append((loss.detach(), error.detach(), hits))
        return loss + weight * error

    def on_train_epoch_end(self) -> None:
        """Store the metrics of the epoch."""
        means = torch.tensor(self.rows).mean(0).tolist()
        self.rows.clear()
        self.curves.append(dict(zip(("train_loss", "masked_error", "accuracy"), means, strict=True)))
        self.log("accuracy", means[2])


def rescaled_without(expression: Tensor, is_hidden: Tensor) -> Tensor:
    """Return ``log1p`` of counts per 10,000 ``(B, P)`` without the hidden values, of what is left."""
    linear = expression.expm1() * ~is_hidden
    total = expression.expm1().sum(1, keepdim=True)
    return (linear * (total / linear.sum(1, keepdim=True).clamp(min=1e-6))).log1p()


def fit_profiles(
    encoder: BaseEncoder, loader: PseudoCellLoader, tasks: ProfileTasks, config: PretrainingConfig
) -> tuple[TypeHead, dict[str, list[float]]]:
    """Train ``encoder`` in place on pseudo-cells; return the head of types and the curves, a value per epoch."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        plan = ProfilePlan(encoder, loader.profiles, tasks, config)
    curves = run_plan(
        plan,
        loader,
        None,
        config,
        best=BestWeights(plan, None, "accuracy"),
        title="Learning genes",
        shown={"accuracy": "accuracy"},
        n_threads=None,
    )
    return plan.head, curves
