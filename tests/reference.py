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


def cross_entropy(logits: np.ndarray, labels: np.ndarray, label_smoothing: float = 0.0) -> np.ndarray:
    """``−Σ_j q_j log softmax(z)_j`` with q the smoothed target, ``(B, C)``, ``(B,)`` -> ``(B,)``."""
    n_classes = logits.shape[1]
    target = (1 - label_smoothing) * np.eye(n_classes)[labels] + label_smoothing / n_classes
    return -(target * log_softmax(logits)).sum(axis=1)


def focal(logits: np.ndarray, labels: np.ndarray, gamma: float) -> np.ndarray:
    """``−(1 − p_y)^γ log p_y``."""
    log_p = log_softmax(logits)[np.arange(len(labels)), labels]
    return -((1 - np.exp(log_p)) ** gamma) * log_p


def balanced_softmax(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``−log(N_y exp(z_y) / Σ_k N_k exp(z_k))``."""
    own = np.arange(len(labels)), labels
    return logsumexp(logits, axis=1, b=counts) - np.log(counts)[labels] - logits[own]


def ride(
    logits: np.ndarray,
    labels: np.ndarray,
    counts: np.ndarray,
    diversity: float,
    temperature: float,
    balance: float,
) -> np.ndarray:
    """Of ``logits (E, B, C)``: ``Σ_e (−log softmax(z^e)_y − λ / (E − 1) Σ_{f≠e} KL(p^e ‖ p^f))``.

    ``p^e = softmax(z^e / T)``, ``T_j = α ψ_j / max ψ`` and ``ψ_j = γ C N_j / Σ N + 1 − γ``.
    """
    n_experts, n_cells, n_classes = logits.shape
    psi = [balance * n_classes * n / sum(counts) + 1 - balance for n in counts]
    T = np.array([temperature * p / max(psi) for p in psi])
    losses = np.zeros(n_cells)
    for i in range(n_cells):
        for e in range(n_experts):
            losses[i] -= log_softmax(logits[e, i])[labels[i]]
            for f in range(n_experts):
                if f != e:
                    log_p, log_q = log_softmax(logits[e, i] / T), log_softmax(logits[f, i] / T)
                    divergence = sum(np.exp(log_p) * (log_p - log_q))
                    losses[i] -= diversity / (n_experts - 1) * divergence
    return losses


def inflate(logits: np.ndarray, counts: np.ndarray, noise: np.ndarray, amplitude: float):
    """``z' = z + a Δ I`` with ``Δ_j = log N_max − log N_j`` and ``noise (B, C)`` the draw of I.

    Equations 4 to 7, GInf, are the balanced softmax of these.
    """
    return logits + amplitude * (np.log(counts.max()) - np.log(counts)) * noise


def hdm(
    base: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    logits: np.ndarray,
    inflated: np.ndarray,
    labels: np.ndarray,
    counts: np.ndarray,
    n_hard: int,
) -> np.ndarray:
    """Equations 8 to 10: ``base`` of all classes plus ``base`` of those in Ω, both of the ``inflated``.

    The plain ``logits (B, C)``, or the mean of ``(E, B, C)``, say which classes are in Ω.
    """
    losses = base(inflated, labels, counts)
    for i, y in enumerate(labels):
        by = logits[i] if logits.ndim == 2 else logits[:, i].mean(axis=0)
        others = [j for j in np.argsort(-by, kind="stable") if j != y]
        omega = [y, *others[:n_hard]]
        losses[i] += base(inflated[..., [i], :][..., omega], np.array([0]), counts[omega])[0]
    return losses


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    return logits - logsumexp(logits, axis=-1, keepdims=True)


def finite_differences(loss: Callable[[np.ndarray], np.ndarray], logits: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Gradient, ``(B, C)`` or ``(E, B, C)``, of the summed ``loss`` by central differences."""
    gradient = np.empty_like(logits)
    for place in np.ndindex(*logits.shape):
        above, below = logits.copy(), logits.copy()
        above[place] += step
        below[place] -= step
        gradient[place] = (loss(above).sum() - loss(below).sum()) / (2 * step)
    return gradient
