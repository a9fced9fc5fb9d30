"""Configuration of a network: its sizes, encoder and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Encoder = Literal["base", "additive", "latent", "transformer", "scgpt"]
Head = Literal["linear", "mlp", "vgg"]


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes and kinds of a :class:`GeneTransformer`.

    Parameters
    ----------
    n_genes, n_classes, n_bins
        Genes of the vocabulary, classes, and bins of expression values, with the zero bin.
    encoder
        ``"base"`` is the pretrained transformer that comes with the package, ``"additive"`` sums gene embeddings,
        ``"latent"`` adds attention of a few latents, ``"transformer"`` is the paper's self-attention over all tokens,
        and ``"scgpt"`` takes the weights of scGPT.
    head
        ``"mlp"`` has one hidden layer, ``"linear"`` none, ``"vgg"`` is the paper's convolutions, and ``"atlas"`` names
        cells by ``n_types`` types of the atlases of a ``"base"``.
    n_layers, d_model, n_heads, n_latents
        Attention blocks, width of the embedding, attention heads, and latents of the ``"base"`` and ``"latent"``
        encoders.
    d_sum
        Width of the sum of gene embeddings that is trained beside a ``"base"`` encoder.
    dropout_rate, use_evidence
        Share of activations set to zero in training, and whether the evidence table is the second expert.
    n_types
        Types of the atlases, for the ``"atlas"`` head.
    n_members
        Times that what learns by steps is there, each with its own initial weights: the sum of gene embeddings beside a
        ``"base"``, else encoder and head.
    d_feed, pad_value
        Width of the feed-forward layers and value of the cell token, of the ``"scgpt"`` encoder.
    """

    n_genes: int
    n_classes: int
    n_bins: int = 51
    encoder: Encoder = "additive"
    head: Head | Literal["atlas"] = "mlp"
    n_layers: int = 1
    d_model: int = 64
    d_sum: int = 64
    n_heads: int = 4
    n_latents: int = 8
    dropout_rate: float = 0.3
    use_evidence: bool = True
    n_types: int = 0
    n_members: int = 1
    d_feed: int = 512
    pad_value: float = -2.0

    @property
    def reads_expression(self) -> bool:
        """Whether an expert reads expression values and not their bins alone."""
        return self.use_evidence or self.encoder in ("base", "additive", "latent")

    @property
    def can_have_members(self) -> bool:
        """Whether there is a part that learns by steps alone, of which a network can have several."""
        return self.encoder in ("additive", "latent", "transformer") or (self.encoder == "base" and self.use_evidence)

    def __post_init__(self) -> None:
        if self.encoder != "additive" and self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}; "
                f"take d_model={self.n_heads * max(1, round(self.d_model / self.n_heads))}."
            )
        for name, kinds in (("encoder", get_args(Encoder)), ("head", get_args(Head))):
            if getattr(self, name) not in kinds and not (self.head == "atlas" and name == "head"):
                raise ValueError(f"{name}={getattr(self, name)!r} was given; choose from {sorted(kinds)}.")
        if self.n_members > 1 and not self.can_have_members:
            raise ValueError(
                f"n_members={self.n_members} was given with encoder={self.encoder!r}"
                f"{'' if self.use_evidence else ' and evidence=False'}, of which members would share all that learns; "
                "leave it at 1."
            )
        if (self.head == "atlas") != (self.n_types > 0):
            raise ValueError("head='atlas' is for models made by Celler.from_pretrained('celler-base', tissue=...).")
