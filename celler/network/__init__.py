"""The network: tokens in, logits of each expert and a cell embedding out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from celler.network.additive import AdditiveEncoder, EvidenceTable
from celler.network.attention import TransformerEncoder
from celler.network.config import NetworkConfig
from celler.network.heads import MLPHead, VGGHead
from celler.network.latent import LatentEncoder

__all__ = ["GeneTransformer", "NetworkConfig", "NetworkOutput", "build_network"]

ENCODERS = {
    "additive": AdditiveEncoder,
    "latent": LatentEncoder,
    "transformer": TransformerEncoder,
}
HEADS = {"mlp": MLPHead, "vgg": VGGHead}


class NetworkOutput(NamedTuple):
    """expert_logits: ``(E, B, C)``, one block per expert. embedding: ``(B, D)``."""

    expert_logits: Tensor
    embedding: Tensor

    @property
    def logits(self) -> Tensor:
        """``(B, C)``: the experts' mean, whose softmax is that of their mean log-probability."""
        return self.expert_logits.mean(0)


class GeneTransformer(nn.Module):
    """Two experts on one set of tokens: a linear evidence table, and an encoder with a head.

    The evidence table carries small data, the encoder what is not linear in the genes; each is
    trained on its own loss, so neither can hide behind the other.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: nn.Module = ENCODERS[config.encoder](config)
        self.head: nn.Module = HEADS[config.head](config)
        self.evidence = EvidenceTable(config) if config.use_evidence else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(
        self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor
    ) -> NetworkOutput:
        """Arguments as in :class:`celler.tokenizer.TokenBatch`, each ``(B, T)``."""
        gene_ids, values = gene_ids.long(), values.long()
        embedding = self.encoder(gene_ids, values, expression, padding_mask)
        logits = [self.head(embedding)]
        if self.evidence is not None:
            logits.append(self.evidence(gene_ids, expression))
        return NetworkOutput(torch.stack([z.float() for z in logits]), embedding.float())


def build_network(config: NetworkConfig, seed: int) -> GeneTransformer:
    """A network with initial weights from ``seed``; the global random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GeneTransformer(config)
