"""Folded: a network with a base made ready for prediction alone, with the same logits in about half the time.

What is linear between the genes and the next nonlinearity becomes one table with a row for each gene, and of the
embedding only the length of the sum is computed. Latents ``(D, L, B)`` have the cells last: short rows are slow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celler.network._encoders import D_LATENT, D_VALUE, MAX_SCORE, BaseEncoder, Block
from celler.network._heads import LinearHead
from celler.network._network import GeneTransformer, NetworkOutput

#: Classes up to which the table holds each gene's part of the logits; with more, a product with the sum is faster.
FEW_CLASSES = 64
#: Multiple of cells that are computed at once: in a rest, sums run in another order, and logits would depend on the
#: cells beside.
N_CELLS = 32
N_COLUMNS = 16  #: columns that a sum of rows reads at once: with a multiple of them it is fastest
EPSILON = 1e-5  #: of layer norm


def can_fold(network: GeneTransformer) -> bool:
    """Whether a :class:`FoldedBase` can take the place of ``network``: a base with a linear head."""
    return isinstance(network.encoder, BaseEncoder) and isinstance(network.head, LinearHead)


class FoldedBase:
    """The logits of a network that :func:`can_fold`, with its present weights, always in float32."""

    def __init__(self, network: GeneTransformer) -> None:
        encoder, standardize = network.encoder, network.standardize
        assert isinstance(encoder, BaseEncoder)
        assert isinstance(network.head, LinearHead)
        head = network.head[-1]
        assert isinstance(head, nn.Linear)
        assert standardize is not None
        self.network = network
        self.sums = [] if network.sum is None else [network.sum, *network.members]
        # The head reads (norm(sum) + gate · pool(norm(latents)) - mean) / scale.
        weight = head.weight / standardize.scale
        of_sum, bias = after_norm(encoder.sum_norm, weight, head.bias - weight @ standardize.mean)
        self.of_sum, weight = of_sum.T, weight * encoder.gate
        bias = bias + weight @ encoder.pool.bias
        of_latents, self.bias = after_norm(encoder.attention_norm, weight @ encoder.pool.weight, bias)
        self.of_latents = of_latents.unflatten(1, (-1, D_LATENT)).transpose(1, 2).flatten(1).T
        # The mean over the columns, which the norm subtracts from the sum, is subtracted from each gene.
        gene = encoder.gene - encoder.gene.mean(1, keepdim=True)
        parts = [gene, gene @ self.of_sum if len(bias) <= FEW_CLASSES else gene[:, :0]]
        parts += [member.encoder.gene for member in self.sums]
        if network.evidence is not None:
            parts += [network.evidence.weight, torch.ones_like(gene[:, :1])]
        self.widths, self.table = [part.shape[1] for part in parts], padded(torch.cat(parts, dim=1))
        self.halves, self.latent = halves_of(encoder), encoder.latent.T[:, :, None]
        self.blocks = [FoldedBlock(block) for block in encoder.blocks]

    def __call__(self, gene_ids: Tensor, expression: Tensor, starts: Tensor) -> NetworkOutput:
        """Return the output, without embedding, of cells whose tokens ``(N,)`` begin at ``starts (B,)``."""
        n_cells = len(starts)
        starts = F.pad(starts, (0, -n_cells % N_CELLS), value=len(gene_ids))
        with torch.autocast(expression.device.type, enabled=False):
            sums = weighted_sums(self.table, gene_ids, expression, starts)
            total, of_sum, *others = sums[:, : sum(self.widths)].split(self.widths, dim=1)
            if not of_sum.shape[1]:
                of_sum = total @ self.of_sum
            scale = (torch.linalg.vecdot(total, total)[:, None] / total.shape[1] + EPSILON).sqrt()
            latents = normalized(self.latents(gene_ids, expression, starts).flatten(0, 1))
            logits = [torch.addmm(self.bias, latents.T, self.of_latents) + of_sum / scale]
            logits += [member.head(member.encoder.norm(others.pop(0))) for member in self.sums]
            if self.network.evidence is not None:
                evidence, expressed = others
                share = self.network.evidence.share_of_bias(expressed)
                logits.append(evidence + share * self.network.evidence.bias)
        return self.network.output_of(torch.stack(logits)[:, :n_cells], total[:n_cells, :0])

    def latents(self, gene_ids: Tensor, expression: Tensor, starts: Tensor) -> Tensor:
        """Return the latents ``(D, L, B)`` after the blocks."""
        seen = []
        for slope, table, weight, of_level in self.halves:
            by_value = (slope * expression).exp_()
            sums = weighted_sums(table, gene_ids, by_value, starts).T.contiguous()
            level = weighted_sums(weight, gene_ids, by_value.mul_(expression), starts).T
            n = len(level)
            contents = sums[: D_LATENT * n].unflatten(0, (D_LATENT, n))
            seen.append(torch.addcmul(contents, of_level, level) / (sums[D_LATENT * n :][:n] + 1e-6))
        latents = torch.cat(seen, dim=1).add_(self.latent)
        for block in self.blocks:
            block.add_to(latents)
        return latents


class Half(NamedTuple):
    """Half of the latents: slope, weighted contents and weights of the genes, weights alone, part of the level."""

    slope: Tensor
    table: Tensor
    weight: Tensor
    of_level: Tensor


def halves_of(encoder: BaseEncoder) -> list[Half]:
    """Return both halves of the latents; contents are what a latent adds of a gene, feature by feature."""
    n_latents, n_half = len(encoder.latent), len(encoder.latent) // 2
    weight = encoder.score.clamp(max=MAX_SCORE).exp()
    # A latent reads and writes without a nonlinearity between.
    read = encoder.read.weight.unflatten(0, (n_latents, D_VALUE)) * encoder.gene.shape[1] ** 0.5
    read_written = torch.einsum("lvk,lvd->kdl", read, encoder.write).flatten(1)
    contents = (encoder.gene @ read_written).unflatten(1, (D_LATENT, n_latents)) * weight[:, None]
    halves = []
    for slope, half in zip(encoder.slope, (slice(n_half), slice(n_half, None)), strict=True):
        if not len(encoder.latent[half]):
            continue  # of a single latent
        table = padded(torch.cat([contents[:, :, half].flatten(1), weight[:, half]], dim=1))
        halves.append(Half(slope, table, weight[:, half].contiguous(), encoder.level.T[:, half, None]))
    return halves


class FoldedBlock:
    """A block of latents with the cells last."""

    def __init__(self, block: nn.Module) -> None:
        assert isinstance(block, Block)
        first, second = block.feed[0], block.feed[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        project, out = block.in_projection, block.out_projection
        self.n_heads = block.n_heads
        self.project, self.project_bias = after_norm(block.attention_norm, project.weight, project.bias)
        self.first, self.first_bias = after_norm(block.feed_norm, first.weight, first.bias)
        self.out, self.out_bias = out.weight, out.bias[:, None, None]
        self.second, self.second_bias = second.weight, second.bias[:, None, None]

    def add_to(self, x: Tensor) -> None:
        """Add the outputs of attention and of the hidden layer to the latents ``x (D, L, B)``."""
        columns = x.flatten(1)
        projected = torch.addmm(self.project_bias[:, None], self.project, normalized(columns))
        attended = attend(projected.unflatten(1, x.shape[1:]), self.n_heads)
        columns.addmm_(self.out, attended.flatten(1))
        x += self.out_bias
        hidden = torch.addmm(self.first_bias[:, None], self.first, normalized(columns))
        columns.addmm_(self.second, F.gelu(hidden))
        x += self.second_bias


def attend(projected: Tensor, n_heads: int) -> Tensor:
    """Return multi-head self-attention ``(D, L, B)`` of queries, keys and values ``projected (3 D, L, B)``."""
    query, key, value = projected.unflatten(0, (3, n_heads, -1)).unbind()
    _, width, n_latents, n_cells = value.shape
    scores = value.new_zeros(n_heads, n_latents, n_latents, n_cells)
    for of_query, of_key in zip(query.unsqueeze(3).unbind(1), key.unsqueeze(2).unbind(1), strict=True):
        scores.addcmul_(of_query, of_key, value=width**-0.5)
    attended = torch.zeros_like(value)
    weights = scores.softmax(2).unsqueeze(1)
    for weight, of_latent in zip(weights.unbind(3), value.unsqueeze(2).unbind(3), strict=True):
        attended.addcmul_(weight, of_latent)
    return attended.flatten(0, 1)


def weighted_sums(table: Tensor, gene_ids: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
    """Return, per cell, the sum of rows of ``table (n_genes, K)``, each times the weight of its token: ``(B, K)``."""
    return F.embedding_bag(gene_ids, table, starts, per_sample_weights=weights, mode="sum")


def normalized(x: Tensor) -> Tensor:
    """Return layer norm of the columns of ``x (D, N)``, without weights."""
    x = x - x.mean(0)
    return x.mul_((x.square().mean(0) + EPSILON).rsqrt_())


def after_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a linear layer that takes over those of the ``norm`` before it."""
    return weight * norm.weight, bias + weight @ norm.bias


def padded(table: Tensor) -> Tensor:
    """Return ``table`` with columns of zeros, up to a multiple of :data:`N_COLUMNS`."""
    return F.pad(table, (0, -table.shape[1] % N_COLUMNS))
