"""Linear experts: exact solutions of balanced logistic regressions, and how much of the class prior labels use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize
from torch import Tensor

from celler.data._loader import Minibatch
from celler.network._encoders import product_with
from celler.network._network import GeneTransformer

#: 1 / C of scikit-learn's logistic regression, on expression and on a standardized embedding.
L2, L2_OF_EMBEDDING = 10.0, 30.0
#: Cells that are solved for at most, and most products of expressed values and classes: a few seconds for a solution.
MAX_CELLS, MAX_PRODUCTS = 10_000, 1e8
N_COUNTED = 256  #: cells whose expressed genes are counted, to see how many cells a solution can take
N_STEPS = 100  #: of L-BFGS
N_FOLDS = 3
#: Powers of the class frequencies in the reference that labels may be weighed by: 1 is a plain classifier, 0 treats all
#: classes alike, and below it rare ones gain.
CLASS_PRIORS = np.linspace(-0.75, 0.75, 13)
#: Standard errors of a difference that pass for chance, in macro-F1 and in accuracy.
CHANCE = (2.0, 0.5)
FEW_CELLS, FEW_PRIOR = 800, -0.4  #: with that many cells half of the class prior is this one, and more with fewer
N_RESAMPLES = 100
ENOUGH = 0.05  #: share of the cells with less expression in all than a cell needs for all of the evidence's biases


def solve_experts(
    network: GeneTransformer,
    read: Callable[[np.ndarray], Iterable[Minibatch]],
    embed: Callable[[np.ndarray], Tensor] | None,
    rows: np.ndarray,
    labels: np.ndarray,
    class_prior: float | None,
    seed: int,
) -> float:
    r"""Solve the linear experts of ``network`` for the cells ``rows`` and return the class prior that they use.

    They are the evidence table and, where ``embed`` gives embeddings of cells, the linear head of a frozen encoder.
    ``labels (n_cells,)`` are those of all cells. To the balanced solutions :math:`z` comes :math:`s \log \pi` with the
    class frequencies :math:`\pi`. Where ``class_prior``, the share :math:`s`, is ``None``, predictions of all cells by
    solutions for the others choose it, the mean over as many divisions into folds as the network has members.
    """
    assert network.evidence is not None
    n_classes, rng = network.config.n_classes, np.random.default_rng(seed)
    counts = np.bincount(labels[rows], minlength=n_classes).clip(min=1)
    rows = rows[thinned(labels[rows], MAX_CELLS, rng)]
    codes = labels[rows]
    kept = thinned(codes, int(MAX_PRODUCTS / max(1, n_expressed(read, rows) * n_classes)), rng)
    X = expression(read(rows[kept]), network.config.n_genes)
    designs: list[tuple[Any, float]] = [(X, L2)]
    if embed is not None:
        embedding = standardized(network, embed(rows))
        designs.append((embedding[kept], L2_OF_EMBEDDING))
    if class_prior is None and np.bincount(codes[kept]).max() < 2:
        class_prior = FEW_PRIOR  # one cell of each class says nothing about the others
    elif class_prior is None:
        found = [
            best_prior(cross_fitted(designs, codes[kept], n_classes, rng), codes[kept], counts, rng)
            for _ in range(network.config.n_members)
        ]
        class_prior = float(np.mean(found))
    log_prior = class_prior * np.log(counts / counts.sum())
    weight, bias = logistic_regression(X, codes[kept], n_classes)
    with torch.no_grad():
        network.evidence.weight.copy_(torch.from_numpy(weight))
        network.evidence.bias.copy_(torch.from_numpy(bias + log_prior))
        network.evidence.enough.fill_(float(np.quantile(np.asarray(X.sum(axis=1)), ENOUGH)))
        if embed is not None:
            weight, bias = logistic_regression(embedding, codes, n_classes, L2_OF_EMBEDDING)
            head: Any = network.head
            head[-1].weight.copy_(torch.from_numpy(weight.T))
            head[-1].bias.copy_(torch.from_numpy(bias + log_prior))
    return class_prior


def standardized(network: GeneTransformer, embedding: Tensor) -> np.ndarray:
    """Return what the head of ``network`` reads of ``embedding (n, D)``."""
    assert network.standardize is not None
    with torch.no_grad():
        return network.standardize(embedding.to(network.device)).cpu().numpy()


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


def n_expressed(read: Callable[[np.ndarray], Iterable[Minibatch]], rows: np.ndarray) -> float:
    """Return the mean number of expressed genes of the cells ``rows``, by some of them."""
    counted = rows[:: max(1, len(rows) // N_COUNTED)]
    return sum(int((~minibatch.tokens.padding_mask).sum()) for minibatch in read(counted)) / len(counted)


def expression(minibatches: Iterable[Minibatch], n_genes: int) -> sparse.csr_matrix:
    """Return the expression of the minibatches' tokens ``(n, n_genes)``."""
    return sparse.vstack([expression_of(minibatch, n_genes) for minibatch in minibatches], format="csr")


def expression_of(minibatch: Minibatch, n_genes: int) -> sparse.csr_matrix:
    """Return the expression of one minibatch's tokens ``(B, n_genes)``."""
    tokens = minibatch.tokens
    is_token = ~tokens.padding_mask
    ends = np.concatenate([[0], np.cumsum(is_token.sum(1).cpu().numpy())])
    values, genes = (part[is_token].cpu().numpy() for part in (tokens.expression, tokens.gene_ids))
    return sparse.csr_matrix((values, genes, ends), (len(ends) - 1, n_genes))


def logistic_regression(
    X: sparse.csr_matrix | np.ndarray, codes: np.ndarray, n_classes: int, l2: float = L2
) -> tuple[np.ndarray, np.ndarray]:
    r"""Return weights ``(G, C)`` and biases ``(C,)`` of a logistic regression in which all classes weigh the same.

    The minimum of :math:`\tfrac{\lambda}{2} \lVert W \rVert^2 - \sum_i \tfrac{n}{C N_{y_i}} \log p_{i y_i}`, with
    :math:`\lambda` = ``l2``.
    """
    n_cells, n_genes = X.shape
    times, transposed_times, cells = product_with(X), product_with(X.T), np.arange(n_cells)
    counts = np.bincount(codes, minlength=n_classes).clip(min=1)
    importance = (n_cells / (n_classes * counts))[codes].astype(np.float32)
    # Centred genes need a third of the steps; as the bias is free, the solution is the same.
    center = np.asarray(X.mean(axis=0), np.float32).ravel()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(n_genes + 1, n_classes).astype(np.float32)
        weight, bias = parameters[:-1], parameters[-1]
        p = times(weight) + (bias - center @ weight)
        p -= p.max(axis=1, keepdims=True)
        of_label = p[cells, codes].copy()
        np.exp(p, out=p)
        total = p.sum(axis=1)
        nll = importance @ (np.log(total) - of_label)
        p /= total[:, None]
        p[cells, codes] -= 1
        p *= importance[:, None]
        of_bias = p.sum(axis=0)
        of_weight = transposed_times(p) - np.outer(center, of_bias) + l2 * weight
        gradient = np.vstack([of_weight, of_bias]).ravel().astype(np.float64)
        penalty = l2 / 2 * np.square(weight, dtype=np.float64).sum()
        return float(nll + penalty) / n_cells, gradient / n_cells

    start = np.zeros((n_genes + 1) * n_classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": N_STEPS, "gtol": 1e-4})
    parameters = found.x.reshape(n_genes + 1, n_classes)
    return parameters[:-1], parameters[-1] - center @ parameters[:-1]


def cross_fitted(
    designs: Sequence[tuple[sparse.csr_matrix | np.ndarray, float]],
    codes: np.ndarray,
    n_classes: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return logits ``(n, C)`` of each cell by regressions on the other folds, the mean over the designs.

    A design is what a regression reads of the cells, ``(n, G)``, and its L2 penalty.
    """
    fold = np.empty(len(codes), np.int64)
    for code in np.unique(codes):
        cells = rng.permutation(np.flatnonzero(codes == code))
        fold[cells] = np.arange(len(cells)) % N_FOLDS
    logits = np.zeros((len(codes), n_classes))
    for k in np.unique(fold):
        rest, part = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        for X, l2 in designs:
            weight, bias = logistic_regression(X[rest], codes[rest], n_classes, l2)
            logits[part] += (X[part] @ weight + bias) / len(designs)
    return logits


def best_prior(logits: np.ndarray, codes: np.ndarray, class_counts: np.ndarray, rng: np.random.Generator) -> float:
    """Return the largest class prior as good as the best; where that may be 0 or less, the best of those.

    ``logits (n, C)`` are balanced; the cells ``codes (n,)`` stand for ``class_counts (C,)`` cells. As good is what
    differs by chance alone, over resampled cells: in macro-F1 from the highest, in accuracy from the highest of these.
    What few cells show counts less: a rare class of theirs gains from a prior below 0.
    """
    drawn = np.bincount(codes, minlength=len(class_counts)).clip(min=1)
    n_times = np.vstack([np.ones(len(codes)), rng.poisson(1.0, (N_RESAMPLES, len(codes)))])
    weights, log_prior = n_times * (class_counts / drawn)[codes], np.log(class_counts / class_counts.sum())
    labels = [(logits + share * log_prior).argmax(1) for share in CLASS_PRIORS]
    scores = np.array([[scores_of(label, codes, weight, len(class_counts)) for weight in weights] for label in labels])
    is_good = np.ones(len(labels), bool)
    for score, chance in zip(scores.transpose(2, 0, 1), CHANCE, strict=True):
        best = np.where(is_good, score[:, 0], -1).argmax()
        error = (score[:, 1:] - score[best, 1:]).std(axis=1)
        is_good &= score[:, 0] >= score[best, 0] - chance * error
    best = np.flatnonzero(is_good).max()
    if is_good[CLASS_PRIORS == 0].all():
        best = np.where(is_good & (CLASS_PRIORS <= 0), scores[:, 0].sum(axis=1) + 1e-9 * CLASS_PRIORS, -1).argmax()
    weight = len(codes) ** 3 / (len(codes) ** 3 + FEW_CELLS**3)
    return float(weight * CLASS_PRIORS[best] + (1 - weight) * FEW_PRIOR)


def scores_of(labels: np.ndarray, codes: np.ndarray, weights: np.ndarray, n_classes: int) -> tuple[float, float]:
    """Return macro-F1 over the classes that have cells, and accuracy, of cells with ``weights (n,)``."""
    is_right = labels == codes
    right = np.bincount(codes[is_right], weights[is_right], n_classes)
    n_true, n_given = (np.bincount(each, weights, n_classes) for each in (codes, labels))
    has_cells = n_true > 0
    f1 = 2 * right[has_cells] / (n_true + n_given)[has_cells]
    return float(f1.mean()), float(right.sum() / n_true.sum())
