"""Self-attention: the transformer block, and the paper's encoder built of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celler.network.config import NetworkConfig


class TransformerEncoder(nn.Module):
    """The paper's encoder: full self-attention over all tokens and a cell token, which is returned."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.d_model
        self.gene = nn.Parameter(torch.randn(config.n_genes, d) * 0.02)
        self.value = nn.Parameter(torch.randn(config.n_bins, d) * 0.02)
        self.cell_token = nn.Parameter(torch.randn(d) * 0.02)
        self.token_norm, self.norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))

    def forward(
        self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor
    ) -> Tensor:
        """``(B, T)`` each -> embedding ``(B, D)``; the encoder reads bins, not ``expression``."""
        return self.tokens(gene_ids, values, expression, padding_mask)[0]

    def tokens(
        self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The embedding ``(B, D)`` and the output for each token ``(B, T, D)``; bin 0 is a hidden value."""
        tokens = F.embedding(gene_ids, self.gene) + F.embedding(values, self.value)
        cell = self.cell_token.expand(len(tokens), 1, -1)
        tokens = self.token_norm(torch.cat([cell, tokens], dim=1))
        is_token = F.pad(~padding_mask, (1, 0), value=True)[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, is_token)
        tokens = self.norm(tokens)
        return tokens[:, 0], tokens[:, 1:]


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then a feed-forward layer four times as wide."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, self.n_heads, self.dropout_rate = config.d_model, config.n_heads, config.dropout_rate
        self.attention_norm, self.feed_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.in_projection, self.out_projection = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.feed = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x (B, S, D)``, ``mask (B, 1, 1, S)`` True where attended to -> ``(B, S, D)``."""
        n_cells, length, d = x.shape
        heads = self.in_projection(self.attention_norm(x)).view(
            n_cells, length, 3, self.n_heads, -1
        )
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.dropout(
            self.out_projection(attended.transpose(1, 2).reshape(n_cells, length, d))
        )
        return x + self.dropout(self.feed(self.feed_norm(x)))
