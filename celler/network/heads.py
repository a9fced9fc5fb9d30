"""Heads: from a cell embedding to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from celler.network.config import NetworkConfig


class Standardize(nn.Module):
    """Embedding ``(B, D)`` less the mean and over the standard deviation that :meth:`measure` saw in some cells."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(config.d_model))
        self.register_buffer("scale", torch.ones(config.d_model))

    @property
    def is_measured(self) -> bool:
        """Whether it does anything yet."""
        return bool(self.mean.any())

    def measure(self, embedding: Tensor) -> None:
        """Take mean and standard deviation of ``embedding (n, D)``."""
        self.mean.copy_(embedding.mean(0))
        self.scale.copy_(embedding.std(0, correction=0).clamp(min=1e-6))

    def forward(self, embedding: Tensor) -> Tensor:
        """``(B, D)`` -> ``(B, D)``."""
        return (embedding - self.mean) / self.scale


class MLPHead(nn.Sequential):
    """Embedding ``(B, D)`` -> logits ``(B, C)``: one hidden layer."""

    def __init__(self, config: NetworkConfig) -> None:
        d = config.d_model
        super().__init__(
            nn.Dropout(config.dropout_rate),
            nn.Linear(d, 2 * d),
            nn.GELU(),
            nn.Dropout(config.dropout_rate),
            nn.Linear(2 * d, config.n_classes),
        )


class VGGHead(nn.Sequential):
    """The paper's head: 3-wide convolutions along the embedding, ReLU, max-pool, then dense layers."""

    def __init__(self, config: NetworkConfig) -> None:
        n_channels = (16, 32)
        layers: list[nn.Module] = [nn.Unflatten(1, (1, config.d_model))]
        for n_in, n_out in zip((1, *n_channels), n_channels, strict=False):
            layers += [nn.Conv1d(n_in, n_out, 3, padding=1), nn.ReLU()]
            layers += [
                nn.Conv1d(n_out, n_out, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool1d(2, ceil_mode=True),
            ]
        width = n_channels[-1] * -(-config.d_model // 4)
        super().__init__(
            *layers,
            nn.Flatten(),
            nn.Linear(width, 2 * config.d_model),
            nn.ReLU(),
            nn.Dropout(config.dropout_rate),
            nn.Linear(2 * config.d_model, config.n_classes),
        )
