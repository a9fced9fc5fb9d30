"""scGPT's encoder: post-norm self-attention over gene and value tokens, for weights trained elsewhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celler.network.config import NetworkConfig
from celler.network.latent import groups_by_length


class ScGPTEncoder(nn.Module):
    """The encoder of scGPT :cite:p:`Cui24`; returns the output at its cell token, ``<cls>``.

    A token is the normalised embedding of its gene plus an encoding of its bin, which is read as a number.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.d_model
        self.gene = nn.Parameter(torch.randn(config.n_genes, d) * 0.02)
        self.cell_token, self.gene_norm = nn.Parameter(torch.randn(d) * 0.02), nn.LayerNorm(d)
        self.value = nn.Sequential(
            nn.Linear(1, d),
            nn.ReLU(),
            nn.Linear(d, d),
            nn.LayerNorm(d),
            nn.Dropout(config.dropout_rate),
        )
        self.blocks = nn.ModuleList(PostNormBlock(config) for _ in range(config.n_layers))
        # Bin 0 is padding and nothing else, so its place is free for the value that <cls> has. scGPT's clamp at
        # 512 is left out, since there are 256 bins at most.
        levels = torch.tensor([float(config.pad_value), *range(1, config.n_bins)])
        self.register_buffer("levels", levels[:, None], persistent=False)

    def forward(
        self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor
    ) -> Tensor:
        """``(B, T)`` each -> embedding ``(B, D)``; the encoder reads bins, not ``expression``."""
        order, groups = groups_by_length(padding_mask)
        embedding = [
            self.encode(gene_ids[rows, :n], values[rows, :n], padding_mask[rows, :n])
            for rows, n in groups
        ]
        return torch.cat(embedding)[order.argsort()]

    def encode(self, gene_ids: Tensor, values: Tensor, padding_mask: Tensor) -> Tensor:
        """Embedding ``(B, D)`` of cells that attend together."""
        cell = self.cell_token.expand(len(gene_ids), 1, -1)
        genes = torch.cat([cell, F.embedding(gene_ids, self.gene)], dim=1)
        table = self.value[:-1](self.levels)  # one row per bin rather than per token
        levels = F.embedding(F.pad(values, (1, 0)), table)
        tokens = self.gene_norm(genes) + self.value[-1](levels)
        is_token = None  # without a mask attention takes a faster path
        if padding_mask.any():
            is_token = F.pad(~padding_mask, (1, 0), value=True)[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, is_token)
        return tokens[:, 0]


class PostNormBlock(nn.Module):
    """torch's encoder layer with ``norm_first=False`` and ReLU; dropout of attention weights is left out.

    With it, attention would have to hold all its weights, the square of the number of tokens.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, self.n_heads = config.d_model, config.n_heads
        self.in_projection, self.out_projection = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.feed_in, self.feed_out = nn.Linear(d, config.d_feed), nn.Linear(config.d_feed, d)
        self.attention_norm, self.feed_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``x (B, S, D)``, ``mask (B, 1, 1, S)`` True where attended to -> ``(B, S, D)``."""
        heads = self.in_projection(x).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.attention_norm(
            x + self.dropout(self.out_projection(attended.transpose(1, 2).flatten(2)))
        )
        hidden = self.dropout(F.relu(self.feed_in(x)))
        normed: Tensor = self.feed_norm(x + self.dropout(self.feed_out(hidden)))
        return normed
