"""Encoders: from the tokens of a cell to its embedding ``(B, D)``, and the evidence table.

An encoder takes ``gene_ids``, ``values``, ``expression`` and ``padding_mask``, ``(B, T)`` each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from celler._utils._compile import compiled
from celler.network._config import NetworkConfig

TINY = 1e-6  #: expression that is none


class EvidenceTable(nn.Module):
    """Logits linear in expression, one weight per gene and class; its weights explain the model.

    The biases stand against what the expression of all cells has in common. So they fade where a cell has less
    expression in all than ``enough``, as with few counts or on a panel of genes, and would decide alone.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.n_genes, config.n_classes))
        self.bias = nn.Parameter(torch.zeros(config.n_classes))
        self.enough: Tensor
        self.register_buffer("enough", torch.zeros(()))
        self.register_load_state_dict_pre_hook(_add_missing_enough)

    def forward(self, gene_ids: Tensor, expression: Tensor) -> Tensor:
        share = self.share_of_bias(expression.sum(1))
        return weighted_sum(self.weight, gene_ids, expression) + share[:, None] * self.bias

    def share_of_bias(self, total: Tensor) -> Tensor:
        """Return the share of the biases ``(B,)`` that cells with the sums ``total (B,)`` of expression get."""
        return ((total + TINY) / (self.enough + TINY)).clamp(max=1)


def _add_missing_enough(table: EvidenceTable, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Keep the present value where ``state_dict`` is older than it."""
    state_dict.setdefault(f"{prefix}enough", table.enough)


class AdditiveEncoder(nn.Module):
    """Sum of gene embeddings, each weighted by the gene's expression, then layer norm; ``values`` are not read."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.gene = nn.Parameter(torch.randn(config.n_genes, config.d_model) / config.d_model**0.5)
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor) -> Tensor:
        embedding: Tensor = self.norm(weighted_sum(self.gene, gene_ids, expression))
        return embedding


def weighted_sum(table: Tensor, gene_ids: Tensor, expression: Tensor) -> Tensor:
    """Return, per cell, the sum of rows of ``table (n_genes, K)`` weighted by expression: ``(B, K)``, in float32."""
    with torch.autocast(table.device.type, enabled=False):
        total: Tensor = _WeightedSum.apply(table, gene_ids, expression)
        return total


class _WeightedSum(torch.autograd.Function):
    """Embedding bag whose backward pass is one too, by gene: two to thirty times faster on a CPU than torch's."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, gene_ids: Tensor, expression: Tensor) -> Tensor:
        ctx.save_for_backward(table, gene_ids, expression)
        return F.embedding_bag(gene_ids, table, per_sample_weights=expression, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:  # type: ignore[override]
        """Return the gradients of the table and, where needed, of the expression ``(B, T)``."""
        table, gene_ids, expression = ctx.saved_tensors
        of_expression = None
        if ctx.needs_input_grad[2]:
            of_expression = (F.embedding(gene_ids, table) @ grad[:, :, None]).squeeze(2)
        return _sum_by_gene(len(table), gene_ids, expression, grad), None, of_expression


def _sum_by_gene(n_genes: int, gene_ids: Tensor, expression: Tensor, rows: Tensor) -> Tensor:
    """Return, per gene, the sum of the cells' ``rows (B, K)`` weighted by its expression: ``(n_genes, K)``."""
    if rows.device.type != "cpu":
        by_cell = expression.new_zeros(len(gene_ids), n_genes)  # scatter_add: padding repeats gene 0
        return by_cell.scatter_add_(1, gene_ids.long(), expression).T @ rows
    parts = _by_gene(gene_ids.numpy(), expression.detach().numpy(), n_genes)
    cells, values, starts = map(torch.from_numpy, parts)
    return F.embedding_bag(cells, rows, starts, mode="sum", per_sample_weights=values)


@compiled
def _by_gene(gene_ids, expression, n_genes):  # type: ignore[no-untyped-def]
    """Sort the tokens ``(B, T)`` by gene: their cells and expression, and where each gene begins."""
    cells, values = np.empty(gene_ids.size, np.int32), np.empty(gene_ids.size, expression.dtype)
    starts = np.zeros(n_genes + 2, np.int32)  # of the gene two places before, then one, then its own
    for gene in gene_ids.flat:
        starts[gene + 2] += 1
    for gene in range(2, n_genes + 2):
        starts[gene] += starts[gene - 1]
    for b in range(gene_ids.shape[0]):
        for t in range(gene_ids.shape[1]):
            place = np.uint64(gene_ids[b, t]) + np.uint64(1)
            k = np.uint64(starts[place])
            cells[k], values[k] = b, expression[b, t]
            starts[place] += 1
    return cells, values, starts[:n_genes]


def product_with(X: np.ndarray | sparse.spmatrix) -> Callable[[np.ndarray], np.ndarray]:
    """Return the product of ``X (n, m)`` with a table ``(m, k)`` as a function of the table, of its type."""
    if isinstance(X, np.ndarray):
        return X.__matmul__
    # An embedding bag sums rows of a table three times as fast as SciPy's product.
    X = sparse.csr_matrix(X)
    values, columns, starts = (torch.from_numpy(part) for part in (X.data, X.indices, X.indptr[:-1]))
    columns, starts = columns.int(), starts.int()
    return lambda table: F.embedding_bag(
        columns, torch.from_numpy(table), starts, mode="sum", per_sample_weights=values
    ).numpy()


class TransformerEncoder(nn.Module):
    """The paper's encoder: self-attention over a cell token, whose output is the embedding, and all gene tokens."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.d_model
        self.gene = nn.Parameter(torch.randn(config.n_genes, d) * 0.02)
        self.value = nn.Parameter(torch.randn(config.n_bins, d) * 0.02)
        self.cell_token = nn.Parameter(torch.randn(d) * 0.02)
        self.token_norm, self.norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))

    def forward(self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor) -> Tensor:
        return self.tokens(gene_ids, values, expression, padding_mask)[0]

    def tokens(
        self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the embedding and the output of each token ``(B, T, D)``; bin 0 hides a value."""
        tokens = F.embedding(gene_ids, self.gene) + F.embedding(values.int(), self.value)
        cell = self.cell_token.expand(len(tokens), 1, -1)
        tokens = self.token_norm(torch.cat([cell, tokens], dim=1))
        is_token = F.pad(~padding_mask, (1, 0), value=True)[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, is_token)
        tokens = self.norm(tokens)
        return tokens[:, 0], tokens[:, 1:]


class Block(nn.Module):
    """Pre-norm transformer block on ``x (B, S, D)``; ``mask (B, 1, 1, S)`` is True where a token is attended to.

    The hidden layer of its feed-forward part is ``widening`` times as wide as ``x``.
    """

    def __init__(self, config: NetworkConfig, widening: int = 4) -> None:
        super().__init__()
        d, self.n_heads = config.d_model, config.n_heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.in_projection, self.out_projection = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.feed = nn.Sequential(nn.Linear(d, widening * d), nn.GELU(), nn.Linear(widening * d, d))
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        projected = self.in_projection(self.attention_norm(x))
        x = x + self.dropout(self.out_projection(attention(projected, self.n_heads, mask)))
        return x + self.dropout(self.feed(self.feed_norm(x)))


def attention(projected: Tensor, n_heads: int, mask: Tensor | None) -> Tensor:
    """Return multi-head self-attention ``(B, S, D)`` of queries, keys and values ``projected (B, S, 3 D)``."""
    query, key, value = projected.unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)


#: Widths of what a latent of the base reads from a token and of the latent, and largest score of a gene. Narrow
#: latents keep prediction fast: blocks as wide as the embedding would take most of its time.
D_VALUE, D_LATENT, MAX_SCORE = 32, 32, 6.0
#: Weights of the base with a row for each gene, and the values by which a gene is never seen.
UNSEEN = {"gene": 0.0, "score": -torch.inf}


class BaseEncoder(nn.Module):
    r"""Encoder of the pretrained base: latents attend to the gene tokens and to each other, beside their sum.

    The score of a token is a number of its gene and latent plus the latent's slope times expression,
    :math:`k_{gl} + a_l x`. So its weight is the product :math:`e^{k_{gl}} e^{a_l x}`, and softmax attention is the
    ratio of two weighted sums over the tokens: as fast as the sum of gene embeddings. A gene without a score, of
    which :math:`k` is :math:`-\infty`, is not seen.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, n = config.d_model, config.n_latents
        self.gene = nn.Parameter(torch.randn(config.n_genes, d) / d**0.5)
        self.score = nn.Parameter(torch.randn(config.n_genes, n) * 0.3)
        self.slope = nn.Parameter(torch.tensor([0.25, 1.0]))  # of the first half of the latents and the second
        self.read = nn.Linear(d, n * D_VALUE, bias=False)
        self.write = nn.Parameter(torch.randn(n, D_VALUE, D_LATENT) / D_VALUE**0.5)
        self.level = nn.Parameter(torch.zeros(n, D_LATENT))
        self.latent = nn.Parameter(torch.randn(n, D_LATENT) * 0.02)
        narrow = replace(config, d_model=D_LATENT, dropout_rate=0.0)
        self.blocks = nn.ModuleList(Block(narrow, widening=2) for _ in range(config.n_layers))
        self.sum_norm, self.attention_norm = nn.LayerNorm(d), nn.LayerNorm(n * D_LATENT)
        self.pool, self.gate = nn.Linear(n * D_LATENT, d), nn.Parameter(torch.full((d,), 0.1))
        self._fixed: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor) -> Tensor:
        tables = self._tables(self.gene, self.score) if self._fixed is None else self._fixed
        return self._embed(self.gene, tables, expression, lambda table, x: weighted_sum(table, gene_ids, x))

    def embed_panel(self, genes: Tensor, expression: Tensor) -> Tensor:
        """Return the embedding ``(B, D)`` of ``expression (B, P)`` of the ``genes (P,)``: dense, for pretraining."""
        gene = self.gene[genes]
        tables = self._tables(gene, self.score[genes])
        return self._embed(gene, tables, expression, lambda table, x: x @ table)

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Make the tables of the genes once: the weights must not change within."""
        self._fixed = self._tables(self.gene, self.score)
        try:
            yield
        finally:
            self._fixed = None

    def _tables(self, gene: Tensor, score: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return, for each half of the latents, a gene's weighted contents and weight, flat, and its weight alone."""
        n_latents, n_half = len(self.latent), len(self.latent) // 2
        weight = score.clamp(max=MAX_SCORE).exp()
        contents = self.read(gene).unflatten(1, (n_latents, D_VALUE)) * gene.shape[1] ** 0.5
        table = torch.cat([contents * weight[:, :, None], weight[:, :, None]], dim=2)
        return [(table[:, half].flatten(1), weight[:, half]) for half in (slice(n_half), slice(n_half, None))]

    def _embed(
        self,
        gene: Tensor,
        tables: list[tuple[Tensor, Tensor]],
        expression: Tensor,
        total: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Return the embedding, where ``total(table, x)`` sums the rows of ``table`` of each cell, weighted by x."""
        seen = []
        for slope, (table, weight) in zip(self.slope, tables, strict=True):
            if not weight.shape[1]:
                continue  # of a single latent
            by_value = (slope * expression).exp() * (expression > 0)
            sums = total(table, by_value).unflatten(1, (-1, D_VALUE + 1))
            level = total(weight, by_value * expression)[:, :, None]
            seen.append(torch.cat([sums[:, :, :-1], level], dim=2) / (sums[:, :, -1:] + 1e-6))
        contents, level = torch.cat(seen, dim=1).split((D_VALUE, 1), dim=2)
        latents = self.latent + torch.einsum("blv,lvd->bld", contents, self.write) + level * self.level
        for block in self.blocks:
            latents = block(latents)
        attended = self.pool(self.attention_norm(latents.flatten(1)))
        embedding: Tensor = self.sum_norm(total(gene, expression)) + self.gate * attended
        return embedding


#: Cells per group: small groups hold less padding, large ones take fewer operations. Measured on a CPU.
GROUP_SIZE = 16


class LatentEncoder(nn.Module):
    """Expression-weighted sum of gene embeddings plus gated attention of a few latents.

    Learned latents attend to all tokens of the cell, then to each other. Keys and values of a token are sums of a
    gene's and a bin's, so they are projected once per table row and minibatch instead of once per token. As the
    queries are learned, the first attention needs only a gather.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, self.n_heads = config.d_model, config.n_heads
        self.gene = nn.Parameter(torch.randn(config.n_genes, d) / d**0.5)
        self.value = nn.Parameter(torch.randn(config.n_bins, d) / d**0.5)
        self.query = nn.Parameter(torch.randn(config.n_heads, config.n_latents, d // config.n_heads))
        self.key_projection, self.value_projection = nn.Linear(d, d, bias=False), nn.Linear(d, d)
        self.latent = nn.Parameter(torch.randn(config.n_latents, d) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.sum_norm, self.pool = nn.LayerNorm(d), nn.Linear(config.n_latents * d, d)
        self.gate = nn.Parameter(torch.zeros(d))
        self.attention_norm = nn.LayerNorm(config.n_latents * d)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor) -> Tensor:
        additive = self.sum_norm(weighted_sum(self.gene, gene_ids, expression))
        latents = self.latent + self.attend(gene_ids, values, padding_mask)
        for block in self.blocks:
            latents = block(latents)
        attended = self.pool(self.dropout(self.attention_norm(latents.flatten(1))))
        return additive + self.gate * attended

    def attend(self, gene_ids: Tensor, values: Tensor, padding_mask: Tensor) -> Tensor:
        """Return the attention of the latents to the tokens ``(B, n_latents, D)``; zeros for an empty cell."""
        # Only padding has bin 0, so a large negative score in that row masks it; no mask per token is needed.
        is_padding = torch.arange(len(self.value), device=values.device)[:, None] == 0
        tables = (self.scores(self.gene), self.scores(self.value) - 1e4 * is_padding, self.value_projection(self.gene))
        order, groups = groups_by_length(padding_mask)
        values = values.int()
        seen = torch.cat([attend_rows(gene_ids[rows, :n], values[rows, :n], *tables) for rows, n in groups])
        # One product serves all heads; each keeps its own columns. Splitting the tokens by head is slower.
        seen = (
            seen[order.argsort()]
            .unflatten(1, self.query.shape[:2])
            .unflatten(3, self.query.shape[::2])
            .diagonal(dim1=1, dim2=3)
        )
        return seen.transpose(2, 3).flatten(2) * (~padding_mask).any(1)[:, None, None]

    def scores(self, table: Tensor) -> Tensor:
        """Return the score of each table row for every head and latent, ``(rows, H·L)``."""
        keys = self.key_projection(table).unflatten(-1, self.query.shape[::2])
        return torch.einsum("rhd,hld->rhl", keys, self.query).flatten(1)


def groups_by_length(padding_mask: Tensor) -> tuple[Tensor, list[tuple[Tensor, int]]]:
    """Return an order of the cells, and groups of similar length with the number of tokens each needs."""
    n_cells, n_most = padding_mask.shape
    if padding_mask.device.type != "cpu":  # measuring lengths would stall a GPU
        order = torch.arange(n_cells, device=padding_mask.device)
        return order, [(order, n_most)]
    n_tokens, order = (~padding_mask).sum(1).sort()
    longest = n_tokens[GROUP_SIZE - 1 :: GROUP_SIZE].tolist() + n_tokens[-1:].tolist()
    return order, [(rows, max(1, n)) for rows, n in zip(order.split(GROUP_SIZE), longest, strict=False)]


def attend_rows(
    gene_ids: Tensor, values: Tensor, gene_scores: Tensor, value_scores: Tensor, contents: Tensor
) -> Tensor:
    """Return the attention ``(B, Q, D)`` of Q queries to tokens, from scores ``(rows, Q)`` by gene and by bin."""
    scores = F.embedding(gene_ids, gene_scores) + F.embedding(values, value_scores)
    return scores.softmax(1).transpose(1, 2) @ F.embedding(gene_ids, contents)
