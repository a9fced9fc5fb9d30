"""The network: tokens in, logits of each expert and a cell embedding out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from celler.network._config import NetworkConfig
from celler.network._encoders import (
    AdditiveEncoder,
    EvidenceTable,
    LatentEncoder,
    TransformerEncoder,
)
from celler.network._heads import MLPHead, Standardize, VGGHead
from celler.network._scgpt import ScGPTEncoder

__all__ = ["GeneTransformer", "NetworkOutput", "build_network", "extend_network"]
ENCODERS = {
    "additive": AdditiveEncoder,
    "latent": LatentEncoder,
    "transformer": TransformerEncoder,
    "scgpt": ScGPTEncoder,
}
#: Labelled cells at which the encoder's weight is halfway from its least to a half.
FEW_CELLS = 1000
HEADS = {"mlp": MLPHead, "vgg": VGGHead}


class NetworkOutput(NamedTuple):
    """expert_logits: ``(E, B, C)``, that of the encoder first. embedding: ``(B, D)``."""

    expert_logits: Tensor
    embedding: Tensor
    encoder_share: float = 0.5

    @property
    def logits(self) -> Tensor:
        """``(B, C)``: the experts' weighted mean, whose softmax is that of their mean log-probability."""
        encoder = self.expert_logits[0]
        if len(self.expert_logits) == 1:
            return encoder
        return self.encoder_share * encoder + (1 - self.encoder_share) * self.expert_logits[1]


class GeneTransformer(nn.Module):
    """Two experts on one set of tokens: a linear evidence table, and an encoder with a head.

    The evidence table carries small data, the encoder what is not linear in the genes; each is
    trained on its own loss, so neither can hide behind the other. ``encoder_share`` is the encoder's
    weight in what they say together, see ``encoder_share``.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: nn.Module = ENCODERS[config.encoder](config)
        self.head: nn.Sequential = HEADS[config.head](config)
        # What a pretrained encoder says of a cell lies in small differences around a large common part.
        self.standardize = Standardize(config) if config.encoder == "scgpt" else None
        self.evidence = EvidenceTable(config) if config.use_evidence else None
        self.encoder_share = 0.5
        self.register_load_state_dict_pre_hook(_add_missing_share)

    def get_extra_state(self) -> Tensor:
        """Return the encoder's weight for :meth:`state_dict`; on the CPU and in float64, so that it stays exact."""
        return torch.tensor(self.encoder_share, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the encoder's weight from a loaded :meth:`state_dict`."""
        self.encoder_share = float(state)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(
        self,
        gene_ids: Tensor,
        values: Tensor,
        expression: Tensor,
        padding_mask: Tensor,
        embedding: Tensor | None = None,
    ) -> NetworkOutput:
        """Arguments as in :class:`celler.data._tokenizer.TokenBatch`, each ``(B, T)``.

        embedding: ``(B, D)`` of these cells where it is known; the encoder is then not asked.
        """
        gene_ids, values = gene_ids.long(), values.long()
        if embedding is None:
            embedding = self.encoder(gene_ids, values, expression, padding_mask)
        features = embedding if self.standardize is None else self.standardize(embedding)
        logits = [self.head(features)]
        if self.evidence is not None:
            logits.append(self.evidence(gene_ids, expression))
        experts = torch.stack([z.float() for z in logits])
        return NetworkOutput(experts, embedding.float(), self.encoder_share)


def _add_missing_share(
    network: GeneTransformer, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Keep the present weight of the encoder where the file is older than its entry."""
    state_dict.setdefault(f"{prefix}_extra_state", network.get_extra_state())


def encoder_share(n_cells: int, *, knows_genes: bool) -> float:
    """Weight of the encoder beside the evidence table, trained on ``n_cells``: a half, and less where they are few.

    A table of genes by classes needs few cells; an encoder that knows the genes from a hundred of them costs
    more than it tells. knows_genes: it learned them from cells without labels.
    """
    least = 0.25 if knows_genes else 0.05
    return least + (0.5 - least) * n_cells**2 / (n_cells**2 + FEW_CELLS**2)


def build_network(config: NetworkConfig, seed: int) -> GeneTransformer:
    """A network with initial weights from ``seed``; the global random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GeneTransformer(config)


def extend_network(
    network: GeneTransformer, n_genes: int, classes: np.ndarray, n_classes: int, seed: int
) -> GeneTransformer:
    """A network with the weights of ``network`` and more genes, after its own, and classes.

    classes: ``(C,)``, places of the present classes among ``n_classes``. A new gene starts with zeros, so that it
    changes nothing before it is trained; a new class starts as in :func:`build_network`.
    """
    config = replace(network.config, n_genes=n_genes, n_classes=n_classes)
    wider = build_network(config, seed).to(network.device)
    state, places = wider.state_dict(), torch.as_tensor(classes, device=network.device)
    last = f"head.{len(network.head) - 1}"
    for name, weights in network.state_dict().items():
        if name == "evidence.weight":
            state[name][: len(weights), places] = weights
        elif name == "encoder.gene":
            state[name].zero_()[: len(weights)] = weights
        elif name in ("evidence.bias", f"{last}.weight", f"{last}.bias"):
            state[name][places] = weights
        else:
            state[name].copy_(weights)
    wider.load_state_dict(state)
    return wider
