"""Explain: the genes that speak for a label, and how much each adds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from celler.data._query import TOKENS_PER_PASS, Query, token_passes
from celler.data._tokenizer import TokenBatch
from celler.inference._outputs import Outputs
from celler.model._forward import Reading, forward
from celler.model._predict import Cells
from celler.model._state import ModelState
from celler.network._network import GeneTransformer, without_member
from celler.tl._columns import label_column

Method = Literal["evidence", "gradient"]
#: Tokens of a pass with gradients, and cells of a group that gradients are taken from: a backward pass for each group.
GRADIENT_TOKENS = 2**14
GRADIENT_CELLS = 200


@dataclass(frozen=True)
class Explanation:
    """What to explain; see :meth:`celler.model.Celler.get_gene_importance` for each option."""

    groupby: str | None = None
    n_genes: int | None = 10
    method: Method = "evidence"
    per_cell: bool = False

    def check(self, state: ModelState) -> None:
        """Raise for options that contradict each other or the model."""
        if self.method not in ("evidence", "gradient"):
            raise ValueError(f"method={self.method!r} was given; 'evidence' or 'gradient' is needed.")
        if self.per_cell and self.groupby is not None:
            raise ValueError(f"per_cell=True makes every cell a group; leave out groupby={self.groupby!r}.")
        if self.method == "evidence" and state.network.evidence is None:
            raise ValueError("this model has no evidence table; pass method='gradient'.")


def gene_importance(state: ModelState, cells: Cells, wanted: Explanation, reading: Reading) -> pd.DataFrame:
    """Table of genes that speak for labels; see :meth:`celler.model.Celler.get_gene_importance`."""
    wanted.check(state)
    groups = None
    if wanted.groupby is not None:
        groups = label_column(cells.adata, wanted.groupby, "groupby")[cells.index]
    query = cells.align(state)
    outputs = forward(state, query, cells.index, reading)
    explained = _Cells(state, query, cells.index, outputs, reading.batch_size)
    if wanted.per_cell:
        return _cell_table(explained, wanted)
    if groups is None:
        groups = pd.Categorical.from_codes(explained.codes[:, -1], list(state.tree.classes))
    return _group_table(explained, wanted, groups)


@dataclass(frozen=True)
class _Cells:
    """The cells to explain, in passes of tokens as :meth:`predict` reads them."""

    state: ModelState
    query: Query
    index: np.ndarray
    outputs: Outputs
    batch_size: int | None

    @property
    def codes(self) -> np.ndarray:
        """Class codes of the runner-up and of the label ``(N, 2)``."""
        return np.argsort(self.outputs.logits, axis=1, kind="stable")[:, -2:]

    def passes(self, positions: np.ndarray, method: Method) -> Iterator[tuple[np.ndarray, TokenBatch]]:
        """Positions in ``index`` and tokens on the device, pass by pass."""
        device = self.state.network.device
        passes = token_passes(
            self.state.tokenizer,
            self.query,
            self.index[positions],
            batch_size=self.batch_size,
            factors=self.outputs.factors,
            n_tokens=GRADIENT_TOKENS if method == "gradient" else TOKENS_PER_PASS,
        )
        for rows, tokens in passes:
            yield positions[rows], TokenBatch(*(part.to(device) for part in tokens))


class _Means(NamedTuple):
    """Mean contribution of every gene in each group and in the others ``(groups, n_genes)``."""

    contribution: np.ndarray
    elsewhere: np.ndarray


def contributions(
    network: GeneTransformer,
    tokens: TokenBatch,
    targets: list[Tensor],
    method: Method,
    encoder_share: float | None = None,
) -> list[Tensor]:
    r"""Return what each token adds to weighted sums of the logits: ``(B, T)`` for each of ``targets (B, C)``.

    Gradient times input, :math:`e_t \cdot \partial z / \partial e_t` with the token's gene embedding
    :math:`e_t` and its row of the evidence table; where an encoder reads expression times embedding that is
    :math:`x_t\, \partial z / \partial x_t`, and it is defined where one reads no expression too.
    """
    gene_ids = tokens.gene_ids.long()
    if method == "evidence":
        assert network.evidence is not None
        table = network.evidence.weight.detach()
        return [
            tokens.expression * (F.embedding(gene_ids, table) @ target[:, :, None]).squeeze(2) for target in targets
        ]
    network.eval()
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    # A row of its own for every token, so that the gradient of a row is that of the token.
    rows = {
        name: weights[name][gene_ids.flatten()].requires_grad_()
        for name in weights
        if without_member(name) in ("encoder.gene", "sum.encoder.gene", "evidence.weight")
    }
    if "encoder.score" in weights:  # which tokens a latent attends to is kept
        weights["encoder.score"] = weights["encoder.score"][gene_ids.flatten()]
    own = torch.arange(gene_ids.numel(), device=gene_ids.device).view_as(gene_ids)
    output = functional_call(network, weights | rows, (own, *tokens[1:]))
    logits = (output if encoder_share is None else output._replace(encoder_share=encoder_share)).logits
    parts = []
    for target in targets:
        gradients = torch.autograd.grad(
            (logits * target).sum(), list(rows.values()), retain_graph=target is not targets[-1]
        )
        total = torch.stack([(a * b).sum(1) for a, b in zip(gradients, rows.values(), strict=True)]).sum(0)
        parts.append(total.detach().view_as(gene_ids).masked_fill(tokens.padding_mask, 0))
    return parts


def _group_table(cells: _Cells, wanted: Explanation, groups: pd.Categorical) -> pd.DataFrame:
    """Rows of all groups that have cells with counts."""
    codes = np.where(cells.outputs.has_counts, groups.codes, -1)
    present = np.unique(codes[codes >= 0])
    group_of = np.full(len(codes), -1)
    group_of[codes >= 0] = np.searchsorted(present, codes[codes >= 0])
    group_names = [str(groups.categories[code]) for code in present]
    labels = _explained(cells, group_of, group_names)
    if wanted.method == "evidence":
        means = _evidence_means(cells, group_of, labels)
    else:
        means = _gradient_means(cells, group_of, labels)
    names, classes = cells.state.genes.names.to_numpy(), np.array(cells.state.tree.classes)
    tables = []
    for k, name in enumerate(group_names):
        importance = means.contribution[k] - means.elsewhere[k]
        order = _best(importance, wanted.n_genes, means.contribution[k] > 0)
        columns = {"group": name, "gene": names[order], "importance": importance[order]}
        columns |= {"label": classes[labels[k]]}
        columns |= {part: getattr(means, part)[k, order] for part in _Means._fields}
        tables.append(pd.DataFrame(columns))
    if not tables:
        raise ValueError("no cell has both counts and a group; nothing can be explained.")
    return pd.concat(tables, ignore_index=True)


def _cell_table(cells: _Cells, wanted: Explanation) -> pd.DataFrame:
    """Rows of all cells with counts, in their order."""
    network, codes, names = cells.state.network, cells.codes, cells.state.genes.names.to_numpy()
    classes = np.array(cells.state.tree.classes)
    cell_names, tables = cells.query.adata.obs_names[cells.index], {}
    for positions, tokens in cells.passes(np.flatnonzero(cells.outputs.has_counts), wanted.method):
        second, label = torch.as_tensor(codes[positions], device=network.device).T
        target = (F.one_hot(label, len(classes)) - F.one_hot(second, len(classes))).float()
        (parts,) = contributions(network, tokens, [target], wanted.method, cells.outputs.encoder_share)
        for row, position in enumerate(positions):
            n_tokens = int((~tokens.padding_mask[row]).sum())
            importance = parts[row, :n_tokens].cpu().numpy().astype(np.float64)
            order = _best(importance, wanted.n_genes, np.ones(n_tokens, bool))
            columns = {
                "group": str(cell_names[position]),
                "gene": names[tokens.gene_ids[row, order].cpu().numpy()],
                "importance": importance[order],
                "label": classes[codes[position, 1]],
                "runner_up": classes[codes[position, 0]],
            }
            tables[position] = pd.DataFrame(columns)
    if not tables:
        raise ValueError("no cell has counts; nothing can be explained.")
    return pd.concat([tables[position] for position in sorted(tables)], ignore_index=True)


def _best(importance: np.ndarray, n_genes: int | None, is_for: np.ndarray) -> np.ndarray:
    """Genes in order of importance: all, or the best ``n_genes`` of those that speak for the label."""
    order = np.argsort(-importance, kind="stable")
    if n_genes is None:
        return order
    return order[(importance[order] > 0) & is_for[order]][:n_genes]


def _explained(cells: _Cells, group_of: np.ndarray, group_names: list[str]) -> np.ndarray:
    """Code of the class that each group is explained as ``(groups,)``."""
    classes = list(cells.state.tree.classes)
    predicted = cells.codes[:, -1]
    majority = [np.bincount(predicted[group_of == k]).argmax() for k in range(len(group_names))]
    return np.array(
        [classes.index(name) if name in classes else code for name, code in zip(group_names, majority, strict=True)],
        dtype=np.int64,
    )


def _evidence_means(cells: _Cells, group_of: np.ndarray, labels: np.ndarray) -> _Means:
    """From the groups' mean expression, since the contributions are linear in it."""
    network, n_groups = cells.state.network, len(labels)
    assert network.evidence is not None
    weight = network.evidence.weight.detach().double().cpu().numpy()
    weight = (weight - weight.mean(axis=1, keepdims=True)).T[labels]
    total = np.zeros((n_groups, weight.shape[1]))
    for positions, tokens in cells.passes(np.flatnonzero(group_of >= 0), "evidence"):
        groups = torch.as_tensor(group_of[positions], device=network.device)[:, None]
        place = groups * weight.shape[1] + tokens.gene_ids.long()
        total += _scattered(place, tokens.expression, total.size).reshape(total.shape)
    mean = total / np.bincount(group_of[group_of >= 0], minlength=n_groups)[:, None]
    others = (mean.sum(axis=0) - mean) / max(1, n_groups - 1)
    return _Means(weight * mean, weight * others)


def _gradient_means(cells: _Cells, group_of: np.ndarray, labels: np.ndarray) -> _Means:
    """From up to :data:`GRADIENT_CELLS` cells of each group, with a backward pass for each group's class."""
    network, n_groups = cells.state.network, len(labels)
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(np.flatnonzero(group_of == k))[:GRADIENT_CELLS] for k in range(n_groups)]
    n_cells, positions = np.array([len(part) for part in drawn]), np.sort(np.concatenate(drawn))
    n_genes, n_classes = network.config.n_genes, network.config.n_classes
    means = _Means(np.zeros((n_groups, n_genes)), np.zeros((n_groups, n_genes)))
    targets = torch.eye(n_classes, device=network.device)[torch.as_tensor(labels)] - 1 / n_classes
    for rows, tokens in cells.passes(positions, "gradient"):
        of_cells = [target.expand(len(rows), -1) for target in targets]
        of_groups = contributions(network, tokens, of_cells, "gradient", cells.outputs.encoder_share)
        for k, part in enumerate(of_groups):
            is_own = group_of[rows] == k
            share = 1 / n_cells[group_of[rows]]
            for mean, weight in zip(means, (share * is_own, share * ~is_own / max(1, n_groups - 1)), strict=True):
                by_cell = torch.as_tensor(weight, device=network.device)[:, None]
                mean[k] += _scattered(tokens.gene_ids.long(), part * by_cell, n_genes)
    return means


def _scattered(places: Tensor, values: Tensor, size: int) -> np.ndarray:
    """Sum of ``values`` at each of ``size`` places, float64."""
    total = torch.zeros(size, dtype=torch.float64, device=places.device)
    return total.index_add_(0, places.flatten(), values.double().flatten()).cpu().numpy()
