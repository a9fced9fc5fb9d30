"""Pretraining: genes of a cell are hidden, and what they hold is predicted from the others; no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from scipy import sparse
from sklearn.decomposition import PCA
from torch import Tensor, nn

from celler.network._heads import GeneDecoder
from celler.network._network import GeneTransformer
from celler.training._callbacks import LowestLoss
from celler.training._masking import MaskedMinibatch
from celler.training._plan import check_schedule, one_cycle
from celler.training._run import by_metric, run_plan


class MaskedTask(nn.Module):
    """``weight`` times the masked loss of the next minibatch at each call, epoch after epoch without end."""

    def __init__(
        self, decoder: GeneDecoder, minibatches: Iterable[MaskedMinibatch], weight: float
    ) -> None:
        super().__init__()
        self.decoder, self.weight = decoder, weight
        self._endless = endless(minibatches)

    def forward(self, encoder: nn.Module) -> Tensor:
        """The weighted loss of ``encoder`` and the decoder, a scalar."""
        minibatch = next(self._endless).to(self.decoder.gene.device)
        loss, _ = MaskedLoss(encoder, self.decoder)(minibatch)
        return self.weight * loss


def endless(minibatches: Iterable[MaskedMinibatch]) -> Iterator[MaskedMinibatch]:
    """All of them, again and again; their sampler draws each epoch anew."""
    while True:
        yield from minibatches


#: Cells from which the principal components are taken that gene embeddings start from, and how many of them.
PCA_CELLS, N_COMPONENTS = 20_000, 50


@dataclass(frozen=True)
class PretrainingConfig:
    """How to pretrain; :meth:`celler.model.Celler.pretrain` says what each is for."""

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

    def __post_init__(self) -> None:
        check_schedule(self)
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio} was given; 0 < it < 1 is needed.")


@dataclass(frozen=True)
class MaskedLoss:
    """Loss of a masked minibatch: squared error of bins, 1 for each gene's mean, and presence in nats."""

    encoder: Any
    decoder: GeneDecoder

    def outputs(self, minibatch: MaskedMinibatch) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Bins ``(B, M)``, and logits of presence of the hidden and of the absent genes, ``(B, M)`` each.

        Presence is not asked of an encoder that is told which genes are there.
        """
        tokens, position = minibatch.tokens, minibatch.position
        parts = (tokens.gene_ids.long(), tokens.values.long(), *tokens[2:])
        if self.decoder.token is not None:
            embedding, outputs = self.encoder.tokens(*parts)
            index = position[:, :, None].expand(-1, -1, outputs.shape[2])
            each = outputs.gather(1, index)
            value, _ = self.decoder(
                embedding, minibatch.context, minibatch.batch, minibatch.gene_ids, each
            )
            return value.float(), None, None
        asked = torch.cat([minibatch.gene_ids, minibatch.absent], dim=1)
        value, presence = self.decoder(
            self.encoder(*parts), minibatch.context, minibatch.batch, asked
        )
        n = position.shape[1]
        return value[:, :n].float(), presence[:, :n].float(), presence[:, n:].float()

    def __call__(self, minibatch: MaskedMinibatch) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the predicted bins ``(B, M)``."""
        value, there, absent = self.outputs(minibatch)
        asked = minibatch.is_asked
        n_asked = asked.sum().clamp(min=1)
        squares = ((value - minibatch.bins).square() * asked).sum()
        loss = squares / (n_asked * self.decoder.bin_variance)
        if there is not None and absent is not None:
            presence = (F.softplus(-there) * asked).sum() + (
                F.softplus(absent) * minibatch.is_absent
            ).sum()
            loss = loss + presence / (n_asked + minibatch.is_absent.sum())
        return loss, value


class PretrainingPlan(LightningModule):
    """Masked-value training of an encoder with a decoder; ``curves`` gets a row of metrics per epoch."""

    def __init__(
        self, network: GeneTransformer, decoder: GeneDecoder, config: PretrainingConfig
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.config = network.encoder, decoder, config
        self.losses: list[Tensor] = []
        self.outcomes: list[tuple[Tensor, Tensor, Tensor]] = []
        self.curves: list[dict[str, float]] = []

    def training_step(self, minibatch: MaskedMinibatch, _: int) -> Tensor:
        """The masked loss."""
        loss, _value = MaskedLoss(self.encoder, self.decoder)(minibatch)
        self.losses.append(loss.detach())
        return loss

    def transfer_batch_to_device(
        self, minibatch: MaskedMinibatch, device: torch.device, dataloader_idx: int
    ) -> MaskedMinibatch:
        """Every tensor to ``device``, without Lightning's search for them."""
        return minibatch.to(device)

    def validation_step(self, minibatch: MaskedMinibatch, _: int) -> None:
        """Keep predicted and true bins."""
        loss, value = MaskedLoss(self.encoder, self.decoder)(minibatch)
        asked = minibatch.is_asked
        self.outcomes.append((loss[None], value[asked], minibatch.bins[asked]))

    def on_validation_epoch_end(self) -> None:
        """Log loss, and the correlation of predicted with true bins over all hidden genes."""
        loss, value, bins = (torch.cat(parts) for parts in zip(*self.outcomes, strict=True))
        self.outcomes.clear()
        self.log("validation_loss", loss.mean())
        self.log("validation_correlation", torch.corrcoef(torch.stack([value, bins]))[0, 1])

    def on_train_epoch_end(self) -> None:
        """Copy the epoch's metrics; the loss is that of all ranks."""
        row = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        loss = torch.stack(self.losses).mean()
        row["train_loss"] = float(self.trainer.strategy.reduce(loss, reduce_op="mean"))
        self.losses.clear()
        self.curves.append(row)

    def configure_optimizers(self) -> Any:
        """AdamW on a one-cycle schedule over the steps of the whole training."""
        config = self.config
        named = [*self.encoder.named_parameters(), *self.decoder.named_parameters()]
        free = [p for name, p in named if p.ndim <= 1 or name == "gene_bias"]
        decayed = [p for name, p in named if p.ndim > 1 and name != "gene_bias"]
        rate = {"lr": config.learning_rate}
        groups: list[dict[str, Any]] = [
            {"params": decayed} | rate,
            {"params": free, "weight_decay": 0.0} | rate,
        ]
        n_steps = int(self.trainer.estimated_stepping_batches)
        return one_cycle(groups, config, n_steps)


def fit_masked(
    network: GeneTransformer,
    decoder: GeneDecoder,
    train: Iterable[MaskedMinibatch],
    validation: Iterable[MaskedMinibatch] | None,
    config: PretrainingConfig,
) -> dict[str, list[float]]:
    """Pretrain the encoder of ``network`` and ``decoder`` in place; returns the curves, a value per epoch."""
    plan = PretrainingPlan(network, decoder, config)
    modules = {"encoder": network.encoder, "decoder": decoder}
    best = LowestLoss(modules, max(5, config.max_epochs // 4) if config.early_stopping else None)
    is_small = network.config.encoder != "transformer"
    run_plan(
        plan,
        train,
        validation,
        config,
        callbacks=[] if validation is None else [best],
        title="Pretraining",
        shown={"validation_loss": "loss", "validation_correlation": "correlation"},
        n_threads=max(1, config.batch_size // 128) if is_small else None,
    )
    for name, state in best.states.items():
        modules[name].load_state_dict(state)
    network.to(config.device).eval()
    decoder.to(config.device).eval()
    return by_metric(plan.curves)


def start_from_components(
    network: GeneTransformer,
    log_rows: Callable[[np.ndarray], sparse.csr_matrix],
    n_cells: int,
    seed: int,
) -> None:
    """Set the gene embeddings of an encoder that sums them to the principal components of the cells.

    They are the optimum of the linear model of the same task and save it most of its epochs. Each component is
    scaled to variance 1 over the cells. log_rows: ``log1p`` of counts per 10,000 of some cells, ``(n, G)``.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(n_cells)[:PCA_CELLS])
    X = log_rows(rows)
    n = min(N_COMPONENTS, network.config.d_model, min(X.shape) - 1)
    if network.config.encoder == "transformer" or n < 1:
        return
    pca = PCA(n, svd_solver="arpack", random_state=seed).fit(X)
    scale = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
    with torch.no_grad():
        gene: Any = network.encoder.gene
        gene[:, :n] = torch.from_numpy(pca.components_.T / scale)
        gene[:, n:] *= 0.1
