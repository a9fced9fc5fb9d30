"""Atlas head: a linear layer that names pseudo-cells of atlases' types, solved for the genes at hand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from celler.data._pseudo_cells import CellProfiles, PseudoCellLoader, Simulation, draw_counts
from celler.data._tokenizer import TARGET_SUM
from celler.network._encoders import BaseEncoder

#: Pseudo-cells of a type, and values of all of them at most.
OF_TYPE, MIN_OF_TYPE, MAX_CELLS, MAX_VALUES = 200, 10, 10_000, 6e7
DEPTH = (300.0, 8000.0)  #: counts of a pseudo-cell
BLOCK = 512  #: pseudo-cells drawn at once
L2, N_STEPS = 0.1, 80  #: penalty of the weights, and steps of L-BFGS


class DrawnCells(NamedTuple):
    """Pseudo-cells: codes of their types ``(n,)`` and embedding ``(n, D)``."""

    types: np.ndarray
    embedding: Tensor


@torch.no_grad()
def draw_cells_of(profiles: CellProfiles, encoder: BaseEncoder, seed: int) -> DrawnCells:
    """Draw cells of each type and embed them, in all genes of ``profiles``, which are those of the encoder."""
    n_types, n_genes = profiles.share.shape
    n_of_type = int(np.clip(min(MAX_CELLS, MAX_VALUES / n_genes) / n_types, MIN_OF_TYPE, OF_TYPE))
    rng, genes = np.random.default_rng(seed), np.arange(n_genes)
    types = rng.permutation(np.repeat(np.arange(n_types), n_of_type))
    loader = PseudoCellLoader(profiles, Simulation(depth=DEPTH), 1, BLOCK, 0.0, seed, panel=genes)
    kept, embedding = [], []
    for block in np.split(types, range(BLOCK, len(types), BLOCK)):
        drawn = draw_counts(loader, block, genes, rng)
        has_counts = drawn.any(axis=1)
        drawn = drawn[has_counts]
        expression = np.log1p(drawn * (TARGET_SUM / drawn.sum(1, keepdims=True)))
        embedding.append(encoder.embed_panel(torch.from_numpy(genes), torch.from_numpy(expression)))
        kept.append(block[has_counts])
    return DrawnCells(np.concatenate(kept), torch.cat(embedding))


def solve_atlas_head(cells: DrawnCells, may_be: np.ndarray, n_alike: np.ndarray) -> tuple[Tensor, Tensor]:
    r"""Return weights ``(C, D)`` and biases ``(C,)`` that name pseudo-cells by the direction of their embedding.

    An atlas may name a type more broadly than the classes: ``may_be (K, C)`` says which classes a type may be, and the
    loss of a cell is :math:`-\log \sum_{c} p_c` over these. ``n_alike (K,)`` types share the weight of one.
    """
    X = F.normalize(cells.embedding, dim=1)
    is_open = torch.from_numpy(may_be)[torch.from_numpy(cells.types)]
    importance = torch.from_numpy((1 / n_alike)[cells.types].astype(np.float32))
    importance /= importance.mean()
    weight = torch.zeros(may_be.shape[1], X.shape[1], requires_grad=True)
    bias = torch.zeros(may_be.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=N_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        log_p = F.log_softmax(X @ weight.T + bias, dim=1)
        of_cell = -log_p.masked_fill(~is_open, -1e9).logsumexp(1)
        total: Tensor = (importance * of_cell).mean() + L2 / 2 * weight.square().sum() / len(X)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
