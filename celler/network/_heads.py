"""Heads: from a cell embedding to logits of classes, and to bins and presence of genes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from celler.network._config import NetworkConfig

SOFTENING = 2.0  #: temperature of the layer solved for the genes at hand: pseudo-cells make it surer than cells do
SHARPNESS = 16.0  #: what cosines between an embedding and the vectors of types are multiplied by


class Standardize(nn.Module):
    """Standardise an embedding ``(B, D)`` with mean and standard deviation from :meth:`measure`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(config.d_model))
        self.register_buffer("scale", torch.ones(config.d_model))

    @property
    def is_measured(self) -> bool:
        """Whether :meth:`measure` was called."""
        return bool(self.mean.any())

    def measure(self, embedding: Tensor) -> None:
        """Store mean and standard deviation of ``embedding (n, D)``."""
        self.mean.copy_(embedding.mean(0))
        self.scale.copy_(embedding.std(0, correction=0).clamp(min=1e-6))

    def forward(self, embedding: Tensor) -> Tensor:
        return (embedding - self.mean) / self.scale


class Dropout(nn.Dropout):
    """torch's layer, in half the time on a CPU, whose random bits take 2.7 times as long as numbers from 0 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training or not self.p:
            return super().forward(x)
        scale = (torch.rand_like(x) >= self.p).to(x.dtype).mul_(1 / (1 - self.p))
        return x * scale


class LinearHead(nn.Sequential):
    """No hidden layer, from ``(B, D)`` to logits ``(B, C)``."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(Dropout(config.dropout_rate), nn.Linear(config.d_model, config.n_classes))


class MLPHead(nn.Sequential):
    """One hidden layer, from ``(B, D)`` to logits ``(B, C)``."""

    def __init__(self, config: NetworkConfig) -> None:
        d = config.d_model
        super().__init__(
            Dropout(config.dropout_rate),
            nn.Linear(d, 2 * d),
            nn.GELU(),
            Dropout(config.dropout_rate),
            nn.Linear(2 * d, config.n_classes),
        )


class VGGHead(nn.Sequential):
    """The paper's head: 3-wide convolutions along the embedding, ReLU, max-pool, then dense layers."""

    def __init__(self, config: NetworkConfig) -> None:
        n_channels = (16, 32)
        layers: list[nn.Module] = [nn.Unflatten(1, (1, config.d_model))]
        for n_in, n_out in zip((1, *n_channels), n_channels, strict=False):
            layers += [nn.Conv1d(n_in, n_out, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv1d(n_out, n_out, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2, ceil_mode=True)]
        d, width = config.d_model, n_channels[-1] * -(-config.d_model // 4)
        dense = [nn.Linear(width, 2 * d), nn.ReLU(), Dropout(config.dropout_rate)]
        super().__init__(*layers, nn.Flatten(), *dense, nn.Linear(2 * d, config.n_classes))


class AtlasHead(nn.Module):
    """From ``(B, D)`` to logits ``(B, C)`` of classes that atlases name, without a reference.

    The mean of the log-probabilities of two experts on the direction of the embedding: the types of the atlases by the
    vectors that pretraining gave them, summed to classes, and a linear layer solved for the genes at hand, softened.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.vectors: Tensor
        self.member: Tensor
        self.register_buffer("vectors", torch.zeros(config.n_types, config.d_model))
        self.register_buffer("member", torch.zeros(config.n_types, config.n_classes))  # share of a type in each class
        self.solved = nn.Linear(config.d_model, config.n_classes)

    def forward(self, embedding: Tensor) -> Tensor:
        direction = F.normalize(embedding.float(), dim=1)
        of_types = (SHARPNESS * direction @ self.vectors.T).softmax(1) @ self.member
        solved = (self.solved(direction) / SOFTENING).log_softmax(1)
        return (of_types.clamp(min=1e-9).log() + solved) / 2


class GeneDecoder(nn.Module):
    """Predict bin and presence of hidden genes, as products of a cell vector and a gene vector.

    The cell vector is made from the embedding, the lowest visible bin (it shows how many counts are ties), the number
    of visible genes, and the donor/assay batch, which enters here and never the encoder; code −1 is an unknown batch.
    """

    def __init__(self, config: NetworkConfig, n_batches: int = 0) -> None:
        super().__init__()
        d = config.d_model
        self.cell = nn.Sequential(nn.Linear(d + 2, 2 * d), nn.GELU(), nn.Linear(2 * d, 2 * d))
        self.gene = nn.Parameter(torch.randn(config.n_genes, 2 * d) * 0.1 / d**0.5)
        self.gene_bias = nn.Parameter(torch.zeros(config.n_genes, 2))
        self.batch = nn.Parameter(torch.zeros(n_batches + 1, 2 * d))
        self.bin_variance: Tensor
        self.register_buffer("bin_variance", torch.tensor(0.1))
        self.token = nn.Linear(d, 2 * d) if config.encoder == "transformer" else None

    def forward(
        self, embedding: Tensor, context: Tensor, batch: Tensor, gene_ids: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return bins as shares of the highest, and logits of presence of ``gene_ids``, ``(B, M)`` each.

        ``context (B, 2)`` is from :func:`context_of`; ``tokens (B, M, D)`` are the encoder's outputs for the genes.
        """
        hidden = (self.cell(torch.cat([embedding, context], dim=1)) + self.batch[batch + 1])[:, None]
        if self.token is not None and tokens is not None:
            hidden = hidden + self.token(tokens)
        products = (hidden * F.embedding(gene_ids, self.gene)).unflatten(2, (2, -1)).sum(3)
        return (products + F.embedding(gene_ids, self.gene_bias)).unbind(2)

    def start_from(self, bins: sparse.csr_matrix) -> None:
        """Initialise the biases with each gene's mean bin and odds of presence in cells ``bins (N, n_genes)``."""
        n_cells, n_present = bins.shape[0], bins.getnnz(axis=0)
        mean = (np.asarray(bins.sum(axis=0)).ravel() + bins.data.mean()) / (n_present + 1)
        # Pretraining draws one absent gene, of all, per hidden gene: the odds are scaled to that.
        odds = (n_present + 0.5) / (n_cells - n_present + 0.5) / (len(bins.data) / np.prod(bins.shape))
        bias = np.stack([mean, np.log(odds)], axis=1).astype(np.float32)
        variance = float(np.square(bins.data - mean[bins.indices]).mean())
        with torch.no_grad():
            self.gene_bias.copy_(torch.from_numpy(bias))
            self.bin_variance.fill_(max(variance, 1e-6))  # the unit of the loss


class TypeHead(nn.Module):
    """Logits of the types of atlases: cosines between an embedding ``(B, D)`` and a vector of each type, sharpened."""

    def __init__(self, n_types: int, d_model: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(n_types, d_model) * 0.1)

    def forward(self, embedding: Tensor) -> Tensor:
        return SHARPNESS * F.normalize(embedding, dim=1) @ F.normalize(self.vectors, dim=1).T


class PanelDecoder(nn.Module):
    """Predict the values of all genes of a panel: products of a cell vector and gene vectors, plus a gene's bias."""

    def __init__(self, n_genes: int, d_model: int) -> None:
        super().__init__()
        self.cell = nn.Sequential(nn.Linear(d_model + 1, 2 * d_model), nn.GELU(), nn.Linear(2 * d_model, d_model))
        self.gene = nn.Parameter(torch.randn(n_genes, d_model) * 0.02)
        self.gene_bias = nn.Parameter(torch.zeros(n_genes))

    def forward(self, embedding: Tensor, n_expressed: Tensor, genes: Tensor) -> Tensor:
        """Return values ``(B, P)`` of ``genes (P,)``, given the number of expressed genes ``(B,)``."""
        size = n_expressed.float().log1p()[:, None] / 5
        cell = self.cell(torch.cat([embedding, size], dim=1))
        return cell @ self.gene[genes].T + self.gene_bias[genes]


def context_of(values: Tensor, is_visible: Tensor, n_bins: int) -> Tensor:
    """Return the lowest visible bin as a share of the highest, and the log number of visible genes: ``(B, 2)``."""
    highest = n_bins - 1
    lowest = torch.where(is_visible, values.float(), float(highest)).min(1).values / highest
    return torch.stack([lowest, is_visible.sum(1).float().log1p() / 5], dim=1)
