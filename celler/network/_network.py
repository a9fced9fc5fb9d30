"""The network: tokens in, logits of each expert and a cell embedding out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from celler.network._config import NetworkConfig
from celler.network._encoders import (
    UNSEEN,
    AdditiveEncoder,
    BaseEncoder,
    EvidenceTable,
    LatentEncoder,
    TransformerEncoder,
)
from celler.network._heads import AtlasHead, LinearHead, MLPHead, Standardize, VGGHead
from celler.network._scgpt import ScGPTEncoder

__all__ = ["GeneTransformer", "NetworkOutput", "build_network", "extend_network"]
ENCODERS = {
    "base": BaseEncoder,
    "additive": AdditiveEncoder,
    "latent": LatentEncoder,
    "transformer": TransformerEncoder,
    "scgpt": ScGPTEncoder,
}
HEADS = {"linear": LinearHead, "mlp": MLPHead, "vgg": VGGHead, "atlas": AtlasHead}
PRETRAINED = ("base", "scgpt")  #: encoders that come with weights
#: Weights with a row for each gene, and the values of a gene that was not learned.
UNLEARNED = {f"encoder.{name}": value for name, value in UNSEEN.items()} | {"sum.encoder.gene": 0.0}
BASE_SHARE = 0.5  #: weight of a base, where a query does not say more
FEW_CELLS = 1000  #: labelled cells at which the encoder's weight is halfway between its minimum and 0.5


class NetworkOutput(NamedTuple):
    """Output of a :class:`GeneTransformer` for a minibatch of B cells.

    Attributes
    ----------
    expert_logits, embedding
        Logits of each expert ``(E, B, C)``, the encoder's first, and cell embedding ``(B, D)``.
    encoder_share, sum_share
        Weight of the encoder in :attr:`logits`, and that of a base's sum among the other experts, 0 to 1.
    """

    expert_logits: Tensor
    embedding: Tensor
    encoder_share: float = 0.5
    sum_share: float = 0.0

    @property
    def own_logits(self) -> Tensor:
        """Weighted mean of the logits ``(B, C)`` of the experts that learn from the reference alone."""
        if len(self.expert_logits) == 2:
            return self.expert_logits[1]
        return self.sum_share * self.expert_logits[1] + (1 - self.sum_share) * self.expert_logits[2]

    @property
    def logits(self) -> Tensor:
        """Weighted mean of the experts' logits ``(B, C)``; its softmax is that of their mean log-probability."""
        encoder = self.expert_logits[0]
        if len(self.expert_logits) == 1:
            return encoder
        return self.encoder_share * encoder + (1 - self.encoder_share) * self.own_logits


class GeneTransformer(nn.Module):
    """Experts on the same tokens: an encoder with a head, and a linear evidence table.

    The evidence table learns from few cells, the encoder learns what is not linear in the genes. Each is trained on
    its own loss, so that neither can hide behind the other. Beside a ``"base"`` encoder, which knows genes from
    outside and stays as it is, a sum of gene embeddings learns from the reference.

    Parameters
    ----------
    config
        Sizes, encoder and head.

    Attributes
    ----------
    encoder_share, sum_share
        Weight of the encoder in the joint logits, and that of a base's sum among the other experts, 0 to 1; part of
        :meth:`state_dict`.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: nn.Module = ENCODERS[config.encoder](config)
        self.head: nn.Module = HEADS[config.head](config)
        # Embeddings of pretrained encoders were not scaled for this head.
        self.standardize = Standardize(config) if config.encoder in PRETRAINED else None
        self.sum = SumExpert(config) if config.encoder == "base" and config.use_evidence else None
        self.evidence = EvidenceTable(config) if config.use_evidence else None
        self.encoder_share, self.sum_share = 0.5, 0.0
        self.register_load_state_dict_pre_hook(_add_missing_share)

    def get_extra_state(self) -> Tensor:
        """Return the shares of the experts for :meth:`state_dict`, exact in float64 and always on the CPU."""
        return torch.tensor([self.encoder_share, self.sum_share], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Set the shares of the experts from a :meth:`state_dict`; that of an earlier version has one."""
        self.encoder_share, self.sum_share = [*state.reshape(-1).tolist(), 0.0][:2]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def fixed(self) -> AbstractContextManager[None]:
        """Enter a block in which the weights do not change, so that tables of genes are made once."""
        return self.encoder.fixed() if isinstance(self.encoder, BaseEncoder) else nullcontext()

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
        if self.sum is not None:
            logits.append(self.sum(gene_ids, values, expression, padding_mask))
        if self.evidence is not None:
            logits.append(self.evidence(gene_ids, expression))
        joint = torch.stack([z.float() for z in logits])
        return NetworkOutput(joint, embedding.float(), self.encoder_share, self.sum_share)


class SumExpert(nn.Module):
    """Sum of gene embeddings with a head, for a network whose encoder does not learn from the reference."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        config = replace(config, encoder="additive", d_model=config.d_sum)
        self.encoder, self.head = AdditiveEncoder(config), MLPHead(config)

    def forward(self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(gene_ids, values, expression, padding_mask))
        return logits


def _add_missing_share(network: GeneTransformer, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Keep the present shares where ``state_dict`` is older than its entry."""
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
    heads: dict[str, Any] = {"head": network.head} | ({} if network.sum is None else {"sum.head": network.sum.head})
    of_class = {f"{name}.{len(head) - 1}.{part}" for name, head in heads.items() for part in ("weight", "bias")}
    for name, weights in network.state_dict().items():
        if name == "evidence.weight":
            state[name][: len(weights), codes] = weights
        elif name in UNLEARNED:
            state[name].fill_(UNLEARNED[name])[: len(weights)] = weights
        elif name == "evidence.bias" or name in of_class:
            state[name][codes] = weights
        else:
            state[name].copy_(weights)
    wider.load_state_dict(state)
    return wider
