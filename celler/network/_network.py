"""The network: tokens in, logits of each expert and a cell embedding out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from celler.network._config import NetworkConfig
from celler.network._encoders import AdditiveEncoder, EvidenceTable, LatentEncoder, TransformerEncoder
from celler.network._heads import MLPHead, Standardize, VGGHead
from celler.network._scgpt import ScGPTEncoder

__all__ = ["GeneTransformer", "NetworkOutput", "build_network", "extend_network"]
ENCODERS = {
    "additive": AdditiveEncoder, "latent": LatentEncoder, "transformer": TransformerEncoder, "scgpt": ScGPTEncoder
}  # fmt: skip
HEADS = {"mlp": MLPHead, "vgg": VGGHead}
FEW_CELLS = 1000  #: labelled cells at which the encoder's weight is halfway between its minimum and 0.5


class NetworkOutput(NamedTuple):
    """Output of a :class:`GeneTransformer` for a minibatch of B cells.

    Attributes
    ----------
    expert_logits, embedding
        Logits of each expert ``(E, B, C)``, the encoder's first, and cell embedding ``(B, D)``.
    encoder_share
        Weight of the encoder in :attr:`logits`, 0 to 1.
    """

    expert_logits: Tensor
    embedding: Tensor
    encoder_share: float = 0.5

    @property
    def logits(self) -> Tensor:
        """Weighted mean of the experts' logits ``(B, C)``; its softmax is that of their mean log-probability."""
        encoder = self.expert_logits[0]
        if len(self.expert_logits) == 1:
            return encoder
        return self.encoder_share * encoder + (1 - self.encoder_share) * self.expert_logits[1]


class GeneTransformer(nn.Module):
    """Two experts on the same tokens: an encoder with a head, and a linear evidence table.

    The evidence table learns from few cells, the encoder learns what is not linear in the genes. Each is trained on
    its own loss, so that neither can hide behind the other.

    Parameters
    ----------
    config
        Sizes, encoder and head.

    Attributes
    ----------
    encoder_share
        Weight of the encoder in the joint logits, 0 to 1; part of :meth:`state_dict`.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: nn.Module = ENCODERS[config.encoder](config)
        self.head: nn.Sequential = HEADS[config.head](config)
        # Embeddings of scGPT differ little between cells, around a large common part.
        self.standardize = Standardize(config) if config.encoder == "scgpt" else None
        self.evidence = EvidenceTable(config) if config.use_evidence else None
        self.encoder_share = 0.5
        self.register_load_state_dict_pre_hook(_add_missing_share)

    def get_extra_state(self) -> Tensor:
        """Return :attr:`encoder_share` for :meth:`state_dict`, exact in float64 and always on the CPU."""
        return torch.tensor(self.encoder_share, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Set :attr:`encoder_share` from a :meth:`state_dict`."""
        self.encoder_share = float(state)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def forward(
        self,
        gene_ids: Tensor,
        values: Tensor,
        expression: Tensor,
        padding_mask: Tensor,
        embedding: Tensor | None = None,
    ) -> NetworkOutput:
        """Return logits and embeddings of tokens ``(B, T)``; a known ``embedding (B, D)`` replaces the encoder's."""
        gene_ids, values = gene_ids.long(), values.long()
        if embedding is None:
            embedding = self.encoder(gene_ids, values, expression, padding_mask)
        logits = [self.head(embedding if self.standardize is None else self.standardize(embedding))]
        if self.evidence is not None:
            logits.append(self.evidence(gene_ids, expression))
        return NetworkOutput(torch.stack([z.float() for z in logits]), embedding.float(), self.encoder_share)


def _add_missing_share(network: GeneTransformer, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Keep the present :attr:`encoder_share` where ``state_dict`` is older than its entry."""
    state_dict.setdefault(f"{prefix}_extra_state", network.get_extra_state())


def encoder_share(n_cells: int, *, knows_genes: bool) -> float:
    """Return the encoder's weight after training on ``n_cells``: 0.5, and less with few cells."""
    # An encoder that was not pretrained makes the predictions of a hundred labelled cells worse.
    least = 0.25 if knows_genes else 0.05
    return least + (0.5 - least) * n_cells**2 / (n_cells**2 + FEW_CELLS**2)


def build_network(config: NetworkConfig, seed: int) -> GeneTransformer:
    """Return a network with initial weights from ``seed``; the global random state does not change."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GeneTransformer(config)


def extend_network(
    network: GeneTransformer, n_genes: int, classes: np.ndarray, n_classes: int, seed: int
) -> GeneTransformer:
    """Return ``network`` with ``n_genes``, the new ones last, and ``n_classes``.

    ``classes (C,)`` are the codes of the present classes among the new. New genes start at zero and change no
    prediction before they are trained; new classes start as in :func:`build_network`.
    """
    config = replace(network.config, n_genes=n_genes, n_classes=n_classes)
    wider = build_network(config, seed).to(network.device)
    state, codes = wider.state_dict(), torch.as_tensor(classes, device=network.device)
    last = f"head.{len(network.head) - 1}"
    for name, weights in network.state_dict().items():
        if name == "evidence.weight":
            state[name][: len(weights), codes] = weights
        elif name == "encoder.gene":
            state[name].zero_()[: len(weights)] = weights
        elif name in ("evidence.bias", f"{last}.weight", f"{last}.bias"):
            state[name][codes] = weights
        else:
            state[name].copy_(weights)
    wider.load_state_dict(state)
    return wider
