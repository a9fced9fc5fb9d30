"""The encoder in which a few learned latents attend to a cell's genes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celler.network.additive import weighted_sum
from celler.network.attention import Block
from celler.network.config import NetworkConfig

#: Cells that attend at once: fewer hold less padding, more take fewer operations. Measured on a CPU.
GROUP_SIZE = 16


class LatentEncoder(nn.Module):
    """The expression-weighted sum of gene embeddings plus gated attention of a few latents.

    A few learned latents attend to all tokens of the cell, then to each other. Token keys and
    values are sums of a gene's and a bin's, so they are projected once per table row and minibatch
    instead of once per token, and with learned queries the first attention needs only a gather.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, self.n_heads = config.d_model, config.n_heads
        self.gene = nn.Parameter(torch.randn(config.n_genes, d) / d**0.5)
        self.value = nn.Parameter(torch.randn(config.n_bins, d) / d**0.5)
        self.query = nn.Parameter(
            torch.randn(config.n_heads, config.n_latents, d // config.n_heads)
        )
        self.key_projection, self.value_projection = nn.Linear(d, d, bias=False), nn.Linear(d, d)
        self.latent = nn.Parameter(torch.randn(config.n_latents, d) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.sum_norm, self.pool = nn.LayerNorm(d), nn.Linear(config.n_latents * d, d)
        self.gate = nn.Parameter(torch.zeros(d))
        self.attention_norm, self.dropout = (
            nn.LayerNorm(config.n_latents * d),
            nn.Dropout(config.dropout_rate),
        )

    def forward(
        self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor
    ) -> Tensor:
        """``(B, T)`` each -> embedding ``(B, D)``."""
        additive = self.sum_norm(weighted_sum(self.gene, gene_ids, expression))
        latents = self.latent + self.attend(gene_ids, values, padding_mask)
        for block in self.blocks:
            latents = block(latents)
        attended = self.pool(self.dropout(self.attention_norm(latents.flatten(1))))
        return additive + self.gate * attended

    def attend(self, gene_ids: Tensor, values: Tensor, padding_mask: Tensor) -> Tensor:
        """What the latents see in the tokens, ``(B, n_latents, D)``; zeros for an empty cell."""
        # Bin 0 is padding and nothing else: a floor in its row masks at the cost of one table row.
        is_padding = torch.arange(len(self.value), device=values.device)[:, None] == 0
        tables = (
            self.scores(self.gene),
            self.scores(self.value) - 1e4 * is_padding,
            self.value_projection(self.gene),
        )
        order, groups = groups_by_length(padding_mask)
        seen = torch.cat(
            [attend_rows(gene_ids[rows, :n], values[rows, :n], *tables) for rows, n in groups]
        )
        # One product for all heads, of which each keeps its own columns: cheaper than splitting the tokens.
        seen = (
            seen[order.argsort()]
            .unflatten(1, self.query.shape[:2])
            .unflatten(3, self.query.shape[::2])
            .diagonal(dim1=1, dim2=3)
        )
        return seen.transpose(2, 3).flatten(2) * (~padding_mask).any(1)[:, None, None]

    def scores(self, table: Tensor) -> Tensor:
        """Score of each table row under every head and latent, ``(rows, H·L)``."""
        keys = self.key_projection(table).unflatten(-1, self.query.shape[::2])
        return torch.einsum("rhd,hld->rhl", keys, self.query).flatten(1)


def groups_by_length(padding_mask: Tensor) -> tuple[Tensor, list[tuple[Tensor, int]]]:
    """An order of the cells, and its parts with the length ``n`` to which each needs its tokens.

    On a CPU cells of like length come together: one long cell would make padding of most of a
    minibatch. A GPU prefers one part, and no wait for a length.
    """
    n_cells, n_most = padding_mask.shape
    if padding_mask.device.type != "cpu":
        order = torch.arange(n_cells, device=padding_mask.device)
        return order, [(order, n_most)]
    n_tokens, order = (~padding_mask).sum(1).sort()
    longest = n_tokens[GROUP_SIZE - 1 :: GROUP_SIZE].tolist() + n_tokens[-1:].tolist()
    return order, [
        (rows, max(1, n)) for rows, n in zip(order.split(GROUP_SIZE), longest, strict=False)
    ]


def attend_rows(
    gene_ids: Tensor, values: Tensor, gene_scores: Tensor, value_scores: Tensor, contents: Tensor
) -> Tensor:
    """What each of Q queries sees in tokens ``(B, T)``, ``(B, Q, D)``, from tables by gene and by bin.

    gene_scores, value_scores: ``(rows, Q)``, whose sum the softmax over the tokens takes. contents: ``(rows, D)``.
    """
    scores = F.embedding(gene_ids, gene_scores) + F.embedding(values, value_scores)
    return scores.softmax(1).transpose(1, 2) @ F.embedding(gene_ids, contents)
