"""Linear experts: exact solutions of balanced logistic regressions, and the margin of rare classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize
from torch import Tensor

from celler.data._loader import Minibatch
from celler.network._network import GeneTransformer
from celler.training._plan import confusion_of, macro_f1_with_error

#: 1 / C of scikit-learn's logistic regression, on expression and on a standardized embedding.
L2, L2_OF_EMBEDDING = 10.0, 30.0
#: Cells that are read at most, and most products of expressed values and classes: one solution takes a few seconds.
MAX_CELLS, MAX_PRODUCTS = 10_000, 1e8
N_STEPS = 100  #: of L-BFGS
N_FOLDS = 3
#: Shares of the log prior that may be taken off the balanced solution.
MARGINS = (0.0, 0.25, 0.5, 0.75, 1.0)


def solve_evidence(
    network: GeneTransformer,
    read: Callable[[np.ndarray], Iterable[Minibatch]],
    rows: np.ndarray,
    labels: np.ndarray,
    seed: int,
) -> float:
    r"""Solve the evidence table of ``network`` for the cells ``rows`` and return its margin.

    ``labels (n_cells,)`` are those of all cells. Where types overlap, the balanced solution :math:`z` has corrected the
    prior :math:`\pi`; where they are clear, a rare type gains from a margin, :math:`z - \tau \log \pi`. Cross-fitted
    predictions of all cells choose :math:`\tau`.
    """
    assert network.evidence is not None
    n_classes, rng = network.config.n_classes, np.random.default_rng(seed)
    counts = np.bincount(labels[rows], minlength=n_classes).clip(min=1)
    rows = rows[thinned(labels[rows], MAX_CELLS, rng)]
    X = expression(read(rows), network.config.n_genes)
    kept = thinned(labels[rows], int(len(rows) * MAX_PRODUCTS / max(1, X.nnz * n_classes)), rng)
    X, codes = X[kept], labels[rows[kept]]
    margin = best_margin(cross_fitted(X, codes, n_classes, rng), codes, counts)
    weight, bias = logistic_regression(X, codes, n_classes)
    with torch.no_grad():
        network.evidence.weight.copy_(torch.from_numpy(weight))
        network.evidence.bias.copy_(torch.from_numpy(bias - margin * np.log(counts / counts.sum())))
    return margin


def solve_head(network: GeneTransformer, embedding: Tensor, codes: np.ndarray) -> None:
    """Solve the linear head of a frozen encoder for cells with this ``embedding (n, D)`` and labels ``codes (n,)``."""
    assert network.standardize is not None
    with torch.no_grad():
        X = network.standardize(embedding.to(network.device)).cpu().numpy()
        weight, bias = logistic_regression(X, codes, network.config.n_classes, L2_OF_EMBEDDING)
        head: Any = network.head
        linear = head[-1]
        linear.weight.copy_(torch.from_numpy(weight.T))
        linear.bias.copy_(torch.from_numpy(bias))


def thinned(codes: np.ndarray, n_most: int, rng: np.random.Generator) -> np.ndarray:
    """Return sorted positions of at most ``n_most`` cells, or one of each class; large classes give cells first."""
    if len(codes) <= n_most:
        return np.arange(len(codes))
    classes, sizes = np.unique(codes, return_counts=True)
    left, cap = n_most, 0
    for n_before, size in enumerate(np.sort(sizes)):
        cap = max(1, left // (len(sizes) - n_before))
        if size > cap:
            break
        left -= size
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(codes == code))[:cap] for code in classes]))


def expression(minibatches: Iterable[Minibatch], n_genes: int) -> sparse.csr_matrix:
    """Return the expression of the minibatches' tokens ``(n, n_genes)``."""
    blocks = []
    for minibatch in minibatches:
        tokens = minibatch.tokens
        is_token = ~tokens.padding_mask
        ends = np.concatenate([[0], np.cumsum(is_token.sum(1).numpy())])
        values, genes = tokens.expression[is_token].numpy(), tokens.gene_ids[is_token].numpy()
        blocks.append(sparse.csr_matrix((values, genes, ends), (len(ends) - 1, n_genes)))
    return sparse.vstack(blocks, format="csr")


def logistic_regression(
    X: sparse.csr_matrix | np.ndarray, codes: np.ndarray, n_classes: int, l2: float = L2
) -> tuple[np.ndarray, np.ndarray]:
    r"""Return weights ``(G, C)`` and biases ``(C,)`` of a logistic regression in which all classes weigh the same.

    The minimum of :math:`\tfrac{\lambda}{2} \lVert W \rVert^2 - \sum_i \tfrac{n}{C N_{y_i}} \log p_{i y_i}`, with
    :math:`\lambda` = ``l2``.
    """
    n_cells, n_genes = X.shape
    transposed, cells = X.T if isinstance(X, np.ndarray) else X.T.tocsr(), np.arange(n_cells)
    counts = np.bincount(codes, minlength=n_classes).clip(min=1)
    importance = (n_cells / (n_classes * counts))[codes].astype(np.float32)
    # Centred genes need a third of the steps; as the bias is free, the solution is the same.
    center = np.asarray(X.mean(axis=0), np.float32).ravel()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(n_genes + 1, n_classes).astype(np.float32)
        weight, bias = parameters[:-1], parameters[-1]
        p = X @ weight + (bias - center @ weight)
        p -= p.max(axis=1, keepdims=True)
        of_label = p[cells, codes].copy()
        np.exp(p, out=p)
        total = p.sum(axis=1)
        nll = importance @ (np.log(total) - of_label)
        p /= total[:, None]
        p[cells, codes] -= 1
        p *= importance[:, None]
        of_bias = p.sum(axis=0)
        of_weight = transposed @ p - np.outer(center, of_bias) + l2 * weight
        gradient = np.vstack([of_weight, of_bias]).ravel().astype(np.float64)
        penalty = l2 / 2 * np.square(weight, dtype=np.float64).sum()
        return float(nll + penalty) / n_cells, gradient / n_cells

    start = np.zeros((n_genes + 1) * n_classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": N_STEPS, "gtol": 1e-4})
    parameters = found.x.reshape(n_genes + 1, n_classes)
    return parameters[:-1], parameters[-1] - center @ parameters[:-1]


def cross_fitted(X: sparse.csr_matrix, codes: np.ndarray, n_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return logits ``(n, C)`` of each cell by a regression on the other folds."""
    fold = np.empty(len(codes), np.int64)
    for code in np.unique(codes):
        cells = rng.permutation(np.flatnonzero(codes == code))
        fold[cells] = np.arange(len(cells)) % N_FOLDS
    logits = np.zeros((len(codes), n_classes))
    for k in np.unique(fold):
        rest, part = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        weight, bias = logistic_regression(X[rest], codes[rest], n_classes)
        logits[part] = X[part] @ weight + bias
    return logits


def best_margin(logits: np.ndarray, codes: np.ndarray, class_counts: np.ndarray) -> float:
    """Return the share of the log prior without which ``logits (n, C)`` have the highest macro-F1 plus accuracy.

    The cells ``codes (n,)`` stand for ``class_counts (C,)`` cells. The smallest share where several are best.
    """
    drawn = np.bincount(codes, minlength=len(class_counts)).clip(min=1)
    of_class = torch.from_numpy(class_counts / drawn)[:, None]
    log_prior, labels = np.log(class_counts), torch.from_numpy(codes.astype(np.int64))

    def score(margin: float) -> float:
        confusion: Tensor = confusion_of(torch.from_numpy(logits - margin * log_prior), labels) * of_class
        accuracy = confusion.diagonal().sum() / confusion.sum()
        return float(macro_f1_with_error(confusion)[0] + accuracy)

    return max(MARGINS, key=score)
