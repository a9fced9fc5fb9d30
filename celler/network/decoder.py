"""The decoder of pretraining: what hidden genes hold, asked of a cell embedding gene by gene."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celler.network.config import NetworkConfig


class GeneDecoder(nn.Module):
    """Value and presence of genes that the encoder did not see.

    A cell is its embedding, the lowest bin in sight (which tells how many of its counts are ties) and how many
    genes it shows; the donor/assay batch, where there is one, enters here and never the encoder.

    n_batches: of ``batch_key``; code −1 is a batch that was not there in pretraining.
    """

    def __init__(self, config: NetworkConfig, n_batches: int = 0) -> None:
        super().__init__()
        d = config.d_model
        self.n_bins, self.n_batches = config.n_bins, n_batches
        self.cell = nn.Sequential(nn.Linear(d + 2, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.gene = nn.Parameter(torch.randn(config.n_genes, d) * 0.1)
        self.gene_bias = nn.Parameter(torch.zeros(config.n_genes, 2))
        self.batch = nn.Parameter(torch.zeros(n_batches + 1, d))
        self.token = nn.Linear(d, d, bias=False) if config.encoder == "transformer" else None
        self.out = nn.Linear(d, 2)

    def forward(
        self,
        embedding: Tensor,
        context: Tensor,
        batch: Tensor,
        gene_ids: Tensor,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Bins as shares of the highest ``(B, M)``, and logits of presence ``(B, M)``.

        embedding: ``(B, D)``. context: ``(B, 2)``, from :func:`context_of`. batch: codes ``(B,)``.
        gene_ids: ``(B, M)``, the genes asked for. tokens: ``(B, M, D)``, the encoder's output where it
        has one for each of them.
        """
        cell = self.cell(torch.cat([embedding, context], dim=1)) + self.batch[batch + 1]
        hidden = cell[:, None] + F.embedding(gene_ids, self.gene)
        if self.token is not None and tokens is not None:
            hidden = hidden + self.token(tokens)
        value, presence = (self.out(F.gelu(hidden)) + F.embedding(gene_ids, self.gene_bias)).unbind(
            -1
        )
        return value, presence


def context_of(values: Tensor, is_visible: Tensor, n_bins: int) -> Tensor:
    """``(B, 2)``: the lowest visible bin as a share of the highest, and the log of the visible genes' number."""
    highest = n_bins - 1
    lowest = torch.where(is_visible, values.float(), float(highest)).min(1).values / highest
    return torch.stack([lowest, is_visible.sum(1).float().log1p() / 5], dim=1)
