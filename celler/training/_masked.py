"""Masked genes: the self-supervised task of predicting hidden genes of a cell from the others (pretraining)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from sklearn.decomposition import PCA
from torch import Tensor, nn

from celler.network._heads import GeneDecoder
from celler.network._network import GeneTransformer
from celler.training._callbacks import BestWeights
from celler.training._masking import MaskedMinibatch
from celler.training._plan import Pretraining, PretrainingConfig
from celler.training._run import run_plan


class MaskedTask(nn.Module):
    """Return ``weight`` times the masked loss of the next minibatch at each call, without end."""

    def __init__(self, decoder: GeneDecoder, minibatches: Iterable[MaskedMinibatch], weight: float) -> None:
        super().__init__()
        self.decoder, self.weight = decoder, weight
        self._minibatches = chain.from_iterable(repeat(minibatches))  # the sampler draws each epoch anew

    def forward(self, encoder: nn.Module) -> Tensor:
        minibatch = next(self._minibatches).to(self.decoder.gene.device)
        loss, _ = MaskedLoss(encoder, self.decoder)(minibatch)
        return self.weight * loss


#: Cells whose principal components initialise the gene embeddings, and number of components.
PCA_CELLS, N_COMPONENTS = 20_000, 50


class MaskedSums(NamedTuple):
    """Sums over hidden genes: squared errors of their bins and cross-entropies of presence, with the counts."""

    squares: Tensor
    n_hidden: Tensor
    presence: Tensor
    n_presence: Tensor

    def loss(self, bin_variance: Tensor) -> Tensor:
        """Return the mean squared error over ``bin_variance``, plus the mean cross-entropy in nats."""
        squares = self.squares / (self.n_hidden.clamp(min=1) * bin_variance)
        return squares + self.presence / self.n_presence.clamp(min=1)


@dataclass(frozen=True)
class MaskedLoss:
    """Loss of a masked minibatch; predicting each gene's mean has a squared error of 1."""

    encoder: Any
    decoder: GeneDecoder

    def outputs(self, minibatch: MaskedMinibatch) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return bins, and logits of presence of the hidden and of the absent genes, ``(B, M)`` each."""
        tokens, position, context, batch = minibatch.tokens, minibatch.position, minibatch.context, minibatch.batch
        parts = (tokens.gene_ids.long(), tokens.values.long(), *tokens[2:])
        if self.decoder.token is not None:  # the encoder sees which genes are hidden
            embedding, outputs = self.encoder.tokens(*parts)
            each = outputs.gather(1, position[:, :, None].expand(-1, -1, outputs.shape[2]))
            value, _ = self.decoder(embedding, context, batch, minibatch.gene_ids, each)
            return value.float(), None, None
        gene_ids = torch.cat([minibatch.gene_ids, minibatch.absent], dim=1)
        value, presence = self.decoder(self.encoder(*parts), context, batch, gene_ids)
        n = position.shape[1]
        return value[:, :n].float(), presence[:, :n].float(), presence[:, n:].float()

    def sums(self, minibatch: MaskedMinibatch) -> tuple[MaskedSums, Tensor]:
        """Return the sums that make the loss, and the predicted bins ``(B, M)``."""
        value, present, absent = self.outputs(minibatch)
        is_hidden, is_absent, n_hidden = minibatch.is_hidden, minibatch.is_absent, minibatch.is_hidden.sum()
        squares = ((value - minibatch.bins).square() * is_hidden).sum()
        if present is None or absent is None:
            return MaskedSums(squares, n_hidden, torch.zeros_like(squares), torch.zeros_like(n_hidden)), value
        presence = (F.softplus(-present) * is_hidden).sum() + (F.softplus(absent) * is_absent).sum()
        return MaskedSums(squares, n_hidden, presence, n_hidden + is_absent.sum()), value

    def __call__(self, minibatch: MaskedMinibatch) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and the predicted bins ``(B, M)``."""
        sums, value = self.sums(minibatch)
        return sums.loss(self.decoder.bin_variance), value


class PretrainingPlan(Pretraining):
    """Train an encoder and a decoder on masked genes; :attr:`curves` gets a row of metrics per epoch."""

    def __init__(self, network: GeneTransformer, decoder: GeneDecoder, config: PretrainingConfig) -> None:
        super().__init__()
        self.encoder, self.decoder, self.config = network.encoder, decoder, config
        self.losses: list[Tensor] = []
        self.outcomes: list[tuple[MaskedSums, Tensor, Tensor]] = []
        self.curves: list[dict[str, float]] = []

    def training_step(self, minibatch: MaskedMinibatch, _: int) -> Tensor:
        loss, _value = MaskedLoss(self.encoder, self.decoder)(minibatch)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, minibatch: MaskedMinibatch, _: int) -> None:
        """Keep the sums of the loss, and predicted and true bins."""
        sums, value = MaskedLoss(self.encoder, self.decoder).sums(minibatch)
        is_hidden = minibatch.is_hidden
        self.outcomes.append((sums, value[is_hidden], minibatch.bins[is_hidden]))

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the correlation of predicted with true bins, over all hidden genes."""
        sums, value, bins = zip(*self.outcomes, strict=True)
        self.outcomes.clear()
        total = MaskedSums(*(torch.stack(part).sum() for part in zip(*sums, strict=True)))
        self.log("validation_loss", total.loss(self.decoder.bin_variance))
        self.log("validation_correlation", torch.corrcoef(torch.stack([torch.cat(value), torch.cat(bins)]))[0, 1])

    def on_train_epoch_end(self) -> None:
        """Store the metrics of the epoch; the loss is the mean over the ranks."""
        row = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        row["train_loss"] = float(self.trainer.strategy.reduce(torch.stack(self.losses).mean(), reduce_op="mean"))
        self.losses.clear()
        self.curves.append(row)


def fit_masked(
    network: GeneTransformer,
    decoder: GeneDecoder,
    train: Iterable[MaskedMinibatch],
    validation: Iterable[MaskedMinibatch] | None,
    config: PretrainingConfig,
) -> dict[str, list[float]]:
    """Pretrain the encoder of ``network`` and ``decoder`` in place and return the curves, a value per epoch."""
    plan = PretrainingPlan(network, decoder, config)
    patience = max(5, config.max_epochs // 4) if config.early_stopping else None
    curves = run_plan(
        plan,
        train,
        validation,
        config,
        best=BestWeights(plan, patience, "validation_loss"),
        title="Pretraining",
        shown={"validation_loss": "loss", "validation_correlation": "correlation"},
        n_threads=None if network.config.encoder == "transformer" else max(1, config.batch_size // 128),
    )
    network.to(config.device).eval()
    return curves


def start_from_components(
    network: GeneTransformer, log_rows: Callable[[np.ndarray], sparse.csr_matrix], n_cells: int, seed: int
) -> None:
    """Set the gene embeddings of a summing encoder to the principal components of the cells.

    They are the optimum of the linear model of the same task, so most epochs are saved. Each component is scaled to
    variance 1 over the cells. An encoder that attends to all tokens is left as it is. ``log_rows`` returns ``log1p`` of
    counts per 10,000 of the cells at given positions, ``(n, G)``.
    """
    X = log_rows(np.sort(np.random.default_rng(seed).permutation(n_cells)[:PCA_CELLS]))
    n = min(N_COMPONENTS, network.config.d_model, min(X.shape) - 1)
    if network.config.encoder == "transformer" or n < 1:
        return
    pca = PCA(n, svd_solver="arpack", random_state=seed).fit(X)
    scale = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
    with torch.no_grad():
        gene: Any = network.encoder.gene
        gene[:, :n] = torch.from_numpy(pca.components_.T / scale)
        gene[:, n:] *= 0.1
