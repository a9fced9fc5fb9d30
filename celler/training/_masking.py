"""Masking: minibatches of cells in which some genes are hidden."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from celler._utils._distributed import rank_and_size
from celler.data._samplers import RowSampler
from celler.data._sources import CellBlock, CellSource
from celler.data._tokenizer import TokenBatch, Tokenizer
from celler.network._heads import context_of

BLOCK = 1024  #: cells whose bins are made in one call: tokens take several times the memory of counts


class MaskedMinibatch(NamedTuple):
    """B cells with up to M hidden genes each; parts are ``(B, M)`` where no other shape is given."""

    tokens: TokenBatch  # the visible genes
    gene_ids: Tensor  # the hidden genes
    bins: Tensor  # of the hidden genes, as shares of the highest bin
    is_hidden: Tensor  # False where a cell has fewer than M hidden genes
    position: Tensor  # tokens of the hidden genes, for an encoder that sees a gene without its value
    absent: Tensor  # genes drawn at random
    is_absent: Tensor  # whether the cell lacks them
    context: Tensor  # of context_of (B, 2)
    batch: Tensor  # codes (B,)

    def to(self, device: torch.device) -> MaskedMinibatch:
        """Return the same with every tensor on ``device``."""
        tokens = TokenBatch(*(part.to(device) for part in self.tokens))
        return MaskedMinibatch(tokens, *(part.to(device) for part in self[1:]))


def hide(
    tokens: TokenBatch,
    batch: Tensor,
    *,
    mask_ratio: float,
    n_genes: int,
    n_bins: int,
    keep_genes: bool,
    generator: torch.Generator,
) -> MaskedMinibatch:
    """Hide the share ``mask_ratio`` of each cell's genes, drawn at random, and at least one where it has two.

    With ``keep_genes`` a gene stays visible and only its value is hidden (bin 0), as in the paper, for an encoder with
    an output for each token. Otherwise the gene is left out.
    """
    gene_ids, values, expression, padding_mask = tokens
    n_tokens = (~padding_mask).sum(1)
    n_hidden = (n_tokens * mask_ratio).round().long().clamp(min=1)
    n_hidden = torch.where(n_tokens > 1, torch.minimum(n_hidden, n_tokens - 1), 0)
    order = (torch.rand(padding_mask.shape, generator=generator) + padding_mask).argsort(1)
    position = order[:, : max(1, int(n_hidden.max()))]
    is_hidden = torch.arange(position.shape[1]) < n_hidden[:, None]
    hidden_ids = gene_ids.gather(1, position).long()
    bins = values.gather(1, position).float() / (n_bins - 1)
    is_visible = ~padding_mask & ~torch.zeros_like(padding_mask).scatter_(1, position, is_hidden)
    expressed = torch.zeros(len(gene_ids), n_genes, dtype=torch.bool)
    expressed.scatter_(1, gene_ids.long(), ~padding_mask)
    expressed[torch.arange(len(gene_ids)), gene_ids[:, 0].long()] = n_tokens > 0  # padding repeats gene 0
    absent = torch.randint(n_genes, position.shape, generator=generator)
    is_absent = is_hidden & ~expressed.gather(1, absent)
    if keep_genes:
        seen = TokenBatch(gene_ids, values * is_visible, expression * is_visible, padding_mask)
    else:
        # Visible genes first, in the order they had; then the rest is padding and is cut off.
        order = (~is_visible).to(torch.uint8).argsort(dim=1, stable=True)
        order = order[:, : max(1, int(is_visible.sum(1).max()))]
        seen_mask = is_visible.gather(1, order)
        ids, bin_, level = (part.gather(1, order) * seen_mask for part in tokens[:3])
        seen = TokenBatch(ids, bin_, level, ~seen_mask)
    context = context_of(values, is_visible, n_bins)
    return MaskedMinibatch(seen, hidden_ids, bins, is_hidden, position, absent, is_absent, context, batch)


@dataclass(frozen=True)
class Masking:
    """Hides the share ``mask_ratio`` of each cell's genes, for an encoder of the kind ``encoder``."""

    tokenizer: Tokenizer
    encoder: str
    mask_ratio: float
    seed: int

    def __call__(self, block: CellBlock, draw: tuple[int, ...]) -> MaskedMinibatch:
        """Hide genes of the cells of ``block``, whose labels are batch codes; ``draw`` seeds the choice."""
        rng = np.random.default_rng((self.seed, *draw))
        n_genes = block.X.shape[1]
        tokens = self.tokenizer(
            block.X,
            np.arange(n_genes, dtype=np.int32),
            rows=block.rows,
            seeds=rng.integers(2**63, size=len(block.rows)).astype(np.uint64),
        )
        return hide(
            tokens,
            torch.from_numpy(block.labels),
            mask_ratio=self.mask_ratio,
            n_genes=n_genes,
            n_bins=self.tokenizer.n_bins,
            keep_genes=self.encoder == "transformer",
            generator=torch.Generator().manual_seed(int(rng.integers(2**63))),
        )


@dataclass(eq=False)
class MaskedLoader:
    """Minibatches of cells with hidden genes."""

    source: CellSource  # its labels are batch codes
    row_sampler: RowSampler
    masking: Masking
    is_fixed: bool = field(default=False, kw_only=True)  # the same genes in every epoch, for validation
    n_given: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.row_sampler)

    def __iter__(self) -> Iterator[MaskedMinibatch]:
        for block in self.source.blocks(self.row_sampler):
            self.n_given += 1
            draw = (1, int(block.index[0]), 0) if self.is_fixed else (0, self.n_given, rank_and_size()[0])
            yield self.masking(block, draw)


def bins_of(X: sparse.csr_matrix, tokenizer: Tokenizer) -> sparse.csr_matrix:
    """Bins of counts ``X (N, n_genes)`` as shares of the highest."""
    genes = np.arange(X.shape[1], dtype=np.int32)
    parts = []
    for start in range(0, max(1, X.shape[0]), BLOCK):
        block = X[start : start + BLOCK]
        tokens = tokenizer(block, genes)
        is_real = ~tokens.padding_mask
        row = torch.arange(len(is_real))[:, None].expand_as(is_real)[is_real]
        share = tokens.values[is_real].double() / (tokenizer.n_bins - 1)
        gene = tokens.gene_ids[is_real]
        parts.append(sparse.csr_matrix((share.numpy(), (row.numpy(), gene.numpy())), block.shape))
    return sparse.vstack(parts, format="csr")
