"""New classes: their columns in the last layer of each expert are solved, and all other weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor, nn

from celler._utils._devices import autocast
from celler.data._loader import Minibatch
from celler.network._network import GeneTransformer
from celler.training._linear import L2, L2_OF_EMBEDDING, N_STEPS, expression_of

Inputs: TypeAlias = np.ndarray | sparse.csr_matrix
MIN_OWN = 5  #: held-out cells of a new class from which its margin is chosen
#: Shares of its held-out cells that a margin may cost a new class, and the share of other cells that a class may take.
COSTS, FEW_TAKEN = (0.0, 0.02, 0.05, 0.1, 0.15), 0.02


@dataclass(frozen=True)
class Expert:
    """What the last layer of an expert reads of some cells, ``inputs (n, D)``, and its ``logits (n, C)``.

    ``of_bias (n,)`` is the share of a bias that adds to a cell's logit.
    """

    inputs: Inputs
    logits: np.ndarray
    l2: float
    of_bias: np.ndarray

    def of(self, rows: np.ndarray) -> Expert:
        """Return the same of some of the cells."""
        return replace(self, inputs=self.inputs[rows], logits=self.logits[rows], of_bias=self.of_bias[rows])


def has_linear_ends(network: GeneTransformer) -> bool:
    """Whether the last layer of each expert is linear, so that its columns can be solved."""
    return all(isinstance(head, nn.Sequential) and isinstance(head[-1], nn.Linear) for head in network.heads)


@torch.no_grad()
def read_experts(network: GeneTransformer, minibatches: Iterable[Minibatch], precision: str) -> list[Expert]:
    """Read the inputs and logits of each expert for the cells of the minibatches, in their order."""
    logits, parts = [], []
    network.eval()
    with _watched(network) as inputs, network.fixed():
        for minibatch in minibatches:
            with autocast(network.device, precision):
                output = network(*(part.to(network.device) for part in minibatch.tokens))
            logits.append(output.expert_logits.float().cpu().numpy())
            parts.append(expression_of(minibatch, network.config.n_genes))
    of_all = np.concatenate(logits, axis=1)
    whole = np.ones(of_all.shape[1])
    experts = [Expert(np.concatenate(part), z, L2_OF_EMBEDDING, whole) for part, z in zip(inputs, of_all, strict=False)]
    if network.evidence is not None:
        X = sparse.vstack(parts, format="csr")
        total = torch.as_tensor(np.asarray(X.sum(axis=1)).ravel(), device=network.device)
        experts.append(Expert(X, of_all[-1], L2, network.evidence.share_of_bias(total).cpu().numpy()))
    return experts


def solve_columns(
    expert: Expert, is_new: np.ndarray, labels: np.ndarray, importance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    r"""Return weights ``(D, K)`` and biases ``(K,)`` of the new classes, ``is_new (C,)``, of an expert.

    A logistic regression in which the logits of the other classes are fixed: the minimum over the columns of the new
    ones of :math:`\tfrac{\lambda}{2} \lVert W \rVert^2 - \sum_i w_i \log p_i`. Here :math:`p_i` is the probability of
    the label of cell i where it is new, and else of all classes that are not. ``labels (n,)`` are codes of classes,
    :math:`w` is ``importance (n,)``.
    """
    X, codes = expert.inputs, np.flatnonzero(is_new)
    (n_cells, n_inputs), n_new = X.shape, len(codes)
    column = np.full(len(is_new), -1)
    column[codes] = np.arange(n_new)
    own = column[labels]
    of_new, old = np.flatnonzero(own >= 0), logsumexp(expert.logits[:, ~is_new].astype(np.float64), axis=1)
    transposed = X.T if isinstance(X, np.ndarray) else X.T.tocsr()
    center, of_bias = np.asarray(X.mean(axis=0), np.float64).ravel(), expert.of_bias.astype(np.float64)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(n_inputs + 1, n_new)
        weight, bias = parameters[:-1], parameters[-1]
        z = X @ weight + np.outer(of_bias, bias - center @ weight)
        total = np.logaddexp(old, logsumexp(z, axis=1))
        of_label = old.copy()
        of_label[of_new] = z[of_new, own[of_new]]
        p = np.exp(z - total[:, None])
        p[of_new, own[of_new]] -= 1
        p *= importance[:, None]
        slope = of_bias @ p
        of_weight = transposed @ p - np.outer(center, slope) + expert.l2 * weight
        penalty = expert.l2 / 2 * np.square(weight).sum()
        return (importance @ (total - of_label) + penalty) / n_cells, np.vstack([of_weight, slope]).ravel() / n_cells

    start = np.zeros((n_inputs + 1) * n_new)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": N_STEPS})
    parameters = found.x.reshape(n_inputs + 1, n_new)
    return parameters[:-1], parameters[-1] - center @ parameters[:-1]


def with_columns(expert: Expert, is_new: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Expert:
    """Return the expert with the logits that these columns give."""
    logits = expert.logits.copy()
    logits[:, is_new] = expert.inputs @ weight + np.outer(expert.of_bias, bias)
    return replace(expert, logits=logits)


def margin_of(own: np.ndarray, others: np.ndarray, unlabelled: np.ndarray) -> tuple[float, float]:
    """Return the margin of a new class, and the share of other cells that it takes without one.

    All are held-out gaps: the logit of the class less the highest other, of its own cells, of others and of unlabelled
    ones. Twice as many of these are taken for its own as have a gap above its median. The margin is the lowest with
    which it takes few others, among those that cost it few of its own.
    """
    n_others = len(others) + len(unlabelled)
    if len(own) < MIN_OWN or not n_others:
        return 0.0, 0.0
    hidden = 2 * (unlabelled >= np.median(own)).sum()

    def taken(margin: float) -> float:
        of_unlabelled = (unlabelled > margin).sum() - hidden * (own > margin).mean()
        return float((others > margin).sum() + max(of_unlabelled, 0)) / n_others

    margins = [0.0, *np.maximum(0, np.quantile(own, COSTS, method="lower"))]
    few = [margin for margin in margins if taken(margin) <= FEW_TAKEN]
    return float(few[0] if few else min(margins, key=taken)), taken(0.0)


@torch.no_grad()
def write_columns(network: GeneTransformer, is_new: np.ndarray, columns: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write the columns ``(D, K)`` and biases ``(K,)`` of each expert to the network."""
    codes = torch.as_tensor(np.flatnonzero(is_new), device=network.device)
    as_tensor: dict[str, Any] = {"dtype": torch.float32, "device": network.device}
    heads: list[Any] = network.heads
    for head, (weight, bias) in zip(heads, columns, strict=False):
        linear = head[-1]
        linear.weight[codes] = torch.as_tensor(weight.T, **as_tensor)
        linear.bias[codes] = torch.as_tensor(bias, **as_tensor)
    if network.evidence is not None:
        weight, bias = columns[-1]
        network.evidence.weight[:, codes] = torch.as_tensor(weight, **as_tensor)
        network.evidence.bias[codes] = torch.as_tensor(bias, **as_tensor)


@contextmanager
def _watched(network: GeneTransformer) -> Iterator[list[list[np.ndarray]]]:
    """Collect, in the block, what the last layer of each head reads."""
    heads: list[Any] = network.heads
    found: list[list[np.ndarray]] = [[] for _ in heads]

    def watch(place: list[np.ndarray]) -> Any:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            place.append(inputs[0].float().cpu().numpy())

        return keep

    hooks = [head[-1].register_forward_hook(watch(place)) for head, place in zip(heads, found, strict=True)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
