"""The paper's equations in float64 NumPy and SciPy, slow and plain: what celler is compared with."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from scipy.special import logsumexp


def rank_bins(values: np.ndarray, n_bins: int) -> np.ndarray:
    """scGPT's bins of one cell's non-zero ``values``: the number of quantile edges <= each value.

    ``np.quantile`` on fractions: in floating point an edge that is exactly a value can come out
    one rounding above it, and the bin one too low.
    """
    exact = np.array([Fraction(float(value)) for value in values], dtype=object)
    edges = [np.quantile(exact, Fraction(j, n_bins - 2)) for j in range(n_bins - 1)]
    return np.array([sum(edge <= value for edge in edges) for value in exact], dtype=int)


def tokens(
    row: np.ndarray,
    gene_map: np.ndarray,
    n_bins: int,
    *,
    is_log: bool = False,
    target_sum: float = 1e4,
    max_genes: int | None = None,
) -> dict[int, tuple[int, float]]:
    """Gene -> (bin, ``log1p`` of the value per ``target_sum``) of one dense row ``(n_vars,)``."""
    genes = np.flatnonzero((row > 0) & (gene_map >= 0))
    values = row[genes].astype(np.float64)
    if not len(genes):
        return {}
    linear = np.expm1(values) if is_log else values
    expression = np.log1p(linear * target_sum / linear.sum())
    bins = rank_bins(values, n_bins)
    found = {int(gene_map[g]): (int(b), e) for g, b, e in zip(genes, bins, expression, strict=True)}
    by_value = sorted(zip(-values, gene_map[genes], strict=True))
    return {int(gene): found[int(gene)] for _, gene in by_value[:max_genes]}


def cross_entropy(
    logits: np.ndarray, labels: np.ndarray, label_smoothing: float = 0.0
) -> np.ndarray:
    """``−Σ_j q_j log softmax(z)_j`` with q the smoothed target, ``(B, C)``, ``(B,)`` -> ``(B,)``."""
    n_classes = logits.shape[1]
    target = (1 - label_smoothing) * np.eye(n_classes)[labels] + label_smoothing / n_classes
    return -(target * (logits - logsumexp(logits, axis=1, keepdims=True))).sum(axis=1)


def balanced_softmax(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``−log(N_y exp(z_y) / Σ_k N_k exp(z_k))``."""
    own = np.arange(len(labels)), labels
    return logsumexp(logits, axis=1, b=counts) - np.log(counts)[labels] - logits[own]


def inflate(logits: np.ndarray, counts: np.ndarray, noise: np.ndarray, amplitude: float):
    """``z' = z + a Δ I`` with ``Δ_j = log N_max − log N_j`` and ``noise (B, C)`` the draw of I."""
    return logits + amplitude * (np.log(counts.max()) - np.log(counts)) * noise


def ginf(
    logits: np.ndarray, labels: np.ndarray, counts: np.ndarray, noise: np.ndarray, amplitude: float
) -> np.ndarray:
    """Equations 4 to 7: balanced softmax of the inflated logits."""
    return balanced_softmax(inflate(logits, counts, noise, amplitude), labels, counts)


def hdm(
    logits: np.ndarray,
    labels: np.ndarray,
    counts: np.ndarray,
    noise: np.ndarray,
    amplitude: float,
    n_hard: int,
) -> np.ndarray:
    """Equations 8 to 10, GInf + HDM: the second term's sum runs over the set Ω alone."""
    inflated = inflate(logits, counts, noise, amplitude)
    losses = ginf(logits, labels, counts, noise, amplitude)
    for i, y in enumerate(labels):
        others = [j for j in np.argsort(-logits[i], kind="stable") if j != y]
        omega = [y, *others[:n_hard]]
        denominator = logsumexp(inflated[i, omega], b=counts[omega])
        losses[i] -= np.log(counts[y]) + inflated[i, y] - denominator
    return losses


def finite_differences(
    loss: Callable[[np.ndarray], np.ndarray], logits: np.ndarray, step: float = 1e-5
) -> np.ndarray:
    """Gradient ``(B, C)`` of the summed ``loss`` by central differences."""
    gradient = np.empty_like(logits)
    for place in np.ndindex(*logits.shape):
        above, below = logits.copy(), logits.copy()
        above[place] += step
        below[place] -= step
        gradient[place] = (loss(above).sum() - loss(below).sum()) / (2 * step)
    return gradient
