"""The network: tokens in, logits of each expert and a cell embedding out."""

from __future__ import annotations

import re
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
        Logits of each expert ``(E, B, C)``, and cell embedding ``(B, D)``, of the first member where members have
        encoders of their own. The experts are the head of a base, the members and the evidence table, of which a
        network has one or more.
    encoder_share, sum_share
        Weight of the encoder in :attr:`logits`, and that of a base's sum among the other experts, 0 to 1.
    n_members
        Members M, whose logits are averaged.
    """

    expert_logits: Tensor
    embedding: Tensor
    encoder_share: float = 0.5
    sum_share: float = 0.0
    n_members: int = 1

    @property
    def has_sum(self) -> bool:
        """Whether the members are sums of gene embeddings beside a base."""
        return len(self.expert_logits) == self.n_members + 2

    @property
    def member_logits(self) -> Tensor:
        """Logits of the part that each member has of its own ``(M, B, C)``."""
        first = int(self.has_sum)
        return self.expert_logits[first : first + self.n_members]

    @property
    def learned_logits(self) -> Tensor:
        """Mean of :attr:`member_logits` ``(B, C)``."""
        return self.member_logits[0] if self.n_members == 1 else self.member_logits.mean(0)

    @property
    def encoder_logits(self) -> Tensor:
        """Logits of the encoder ``(B, C)``, the mean over members that have their own."""
        return self.expert_logits[0] if self.has_sum else self.learned_logits

    @property
    def own_logits(self) -> Tensor:
        """Weighted mean of the logits ``(B, C)`` of the experts that learn from the reference alone."""
        if not self.has_sum:
            return self.expert_logits[-1]
        return self.sum_share * self.learned_logits + (1 - self.sum_share) * self.expert_logits[-1]

    @property
    def logits(self) -> Tensor:
        """Weighted mean of the experts' logits ``(B, C)``; its softmax is that of their mean log-probability."""
        if len(self.expert_logits) == self.n_members:
            return self.encoder_logits
        return self.encoder_share * self.encoder_logits + (1 - self.encoder_share) * self.own_logits

    @property
    def member_share(self) -> float:
        """Weight in :attr:`logits` of what each member has of its own."""
        if self.has_sum:
            return (1 - self.encoder_share) * self.sum_share
        return 1.0 if len(self.expert_logits) == self.n_members else self.encoder_share


class GeneTransformer(nn.Module):
    """Experts on the same tokens: an encoder with a head, and a linear evidence table.

    The evidence table learns from few cells, the encoder learns what is not linear in the genes. Each is trained on
    its own loss, so that neither can hide behind the other. Beside a ``"base"`` encoder, which knows genes from
    outside and stays as it is, a sum of gene embeddings learns from the reference. With ``n_members`` there are several
    of what learns by steps, the sum or else encoder and head, whose logits are averaged; all else is there once.

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
        member = Member if self.sum is None else SumExpert
        self.members = nn.ModuleList(member(config) for _ in range(config.n_members - 1))
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
        tokens = gene_ids, values, expression, padding_mask
        if embedding is None:
            embedding = self.encoder(*tokens)
        logits = [self._by_encoder(embedding)]
        if self.sum is not None:
            logits.append(self.sum(*tokens))
        logits += [member(*tokens) for member in self.members]
        if self.evidence is not None:
            logits.append(self.evidence(gene_ids, expression))
        return self.output_of(torch.stack([z.float() for z in logits]), embedding.float())

    def member_logits(self, *tokens: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Return :attr:`NetworkOutput.member_logits` alone, for training beside experts that do not learn."""
        if self.sum is not None:
            first = self.sum(*tokens)
        else:
            first = self._by_encoder(self.encoder(*tokens) if embedding is None else embedding)
        return torch.stack([first.float(), *(member(*tokens).float() for member in self.members)])

    def _by_encoder(self, embedding: Tensor) -> Tensor:
        """Return the logits ``(B, C)`` of the head."""
        logits: Tensor = self.head(embedding if self.standardize is None else self.standardize(embedding))
        return logits

    def output_of(self, expert_logits: Tensor, embedding: Tensor) -> NetworkOutput:
        """Return the output with these logits ``(E, B, C)`` of the experts."""
        return NetworkOutput(expert_logits, embedding, self.encoder_share, self.sum_share, self.config.n_members)

    @property
    def learns_by_members(self) -> bool:
        """Whether only what each member has of its own learns; all other experts stay as they are."""
        others = [self.evidence] if self.sum is None else [self.evidence, self.encoder, self.head]
        return all(part is not None and not any(w.requires_grad for w in part.parameters()) for part in others)

    @property
    def pretrainable_encoders(self) -> list[nn.Module]:
        """The encoder, and those that members have of the same kind."""
        return [self.encoder, *(member.encoder for member in self._members if self.sum is None)]

    @property
    def heads(self) -> list[nn.Module]:
        """Heads of the experts other than the evidence table, in the order of their logits."""
        return [self.head, *([] if self.sum is None else [self.sum.head]), *(member.head for member in self._members)]

    @property
    def _members(self) -> list[Member]:
        return [member for member in self.members if isinstance(member, Member)]


class Member(nn.Module):
    """One more encoder that learns from the reference, with its head."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.encoder: nn.Module = ENCODERS[config.encoder](config)
        self.head: nn.Module = HEADS[config.head](config)

    def forward(self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(gene_ids, values, expression, padding_mask))
        return logits


class SumExpert(Member):
    """Sum of gene embeddings with a head, for a network whose encoder does not learn from the reference."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(replace(config, encoder="additive", head="mlp", d_model=config.d_sum))


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


def without_member(name: str) -> str:
    """Return the name of a member's weights without its number; other names as they are."""
    return re.sub(r"^members\.\d+\.", "", name)


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
    last: list[Any] = [head[-1] for head in network.heads if isinstance(head, nn.Sequential)]
    of_class = {
        f"{name}.{part}" for name, module in network.named_modules() if module in last for part in ("weight", "bias")
    }
    for name, weights in network.state_dict().items():
        if name == "evidence.weight":
            state[name][: len(weights), codes] = weights
        elif (of_gene := without_member(name)) in UNLEARNED:
            state[name].fill_(UNLEARNED[of_gene])[: len(weights)] = weights
        elif name == "evidence.bias" or name in of_class:
            state[name][codes] = weights
        else:
            state[name].copy_(weights)
    wider.load_state_dict(state)
    return wider
