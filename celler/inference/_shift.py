"""Shift: correction of gene-wise scale differences between query and reference that all cell types share."""

from __future__ import annotations

import numpy as np

from celler.data._profile import Profile

PSEUDO_COUNT = 0.02  #: counts per 10,000 added to both means, so that a gene with few counts has a ratio near 1
HETEROGENEITY = 0.25  #: variance, between cell types, of the log ratio of a gene around their common ratio
#: Share of a log ratio that is corrected; a full correction would amplify the noise of genes that the query
#: hardly detects.
STRENGTH = 0.5
MAX_FACTOR = 4.0  #: largest factor, and its inverse the smallest
MIN_CELLS = 5  #: types with fewer cells, in the reference or expected in the query, are not compared


def shift_size(reference: Profile, query: Profile) -> float:
    r"""Return the shift of a query in one number, :math:`\tau` of :func:`shift_factors` in units of log2; 0 is none."""
    ratio, precision, is_compared = _common_ratio(reference, query)
    return float(np.sqrt(_beyond_chance(ratio, precision, is_compared)) / np.log(2))


def shift_factors(reference: Profile, query: Profile) -> np.ndarray:
    r"""Return factors ``(G,)`` for the genes of a query; 1 where no shift is detected.

    The log ratio :math:`\rho_{kg}` of reference to query mean is taken within each class, so that a query of another
    composition is no shift. The classes' ratios are averaged with weights :math:`w_{kg}`, the inverse of their
    sampling variance plus ``HETEROGENEITY``, and shrunk by their variance :math:`\tau^2` beyond chance:

    .. math:: r_g = \frac{\sum_k w_{kg}\, \rho_{kg}}{\sum_k w_{kg}}, \qquad
        \log f_g = \tfrac{1}{2}\, \frac{\tau^2}{\tau^2 + 1 / \sum_k w_{kg}}\, r_g .

    Ratios that scatter no more than chance give :math:`\tau = 0` and factors of 1.
    """
    ratio, precision, is_compared = _common_ratio(reference, query)
    tau2, bound = _beyond_chance(ratio, precision, is_compared), np.log(MAX_FACTOR)
    return np.exp(np.clip(STRENGTH * ratio * tau2 / (tau2 + 1 / precision), -bound, bound))


def _common_ratio(reference: Profile, query: Profile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each gene's common log ratio ``(G,)``, its precision ``(G,)`` and whether a class compares it ``(G,)``."""
    of_reference, of_query = reference.mean + PSEUDO_COUNT, query.mean + PSEUDO_COUNT
    n_reference, n_query = reference.n_cells[:, None], query.n_cells[:, None]
    variance = reference.dispersion * (
        1 / (np.maximum(n_reference, 1) * of_reference) + 1 / (np.maximum(n_query, 1) * of_query)
    )
    is_compared = (n_reference >= MIN_CELLS) & (n_query >= MIN_CELLS) & ~np.isnan(reference.mean)
    weights = np.where(is_compared, 1 / (variance + HETEROGENEITY), 0)
    precision = np.maximum(weights.sum(axis=0), 1e-9)  # not 0 where no class is compared
    log_ratio = np.where(is_compared, np.log(of_reference / of_query), 0)
    return (weights * log_ratio).sum(axis=0) / precision, precision, is_compared.any(axis=0)


def _beyond_chance(ratio: np.ndarray, precision: np.ndarray, is_compared: np.ndarray) -> float:
    """Variance over genes of the log ratio beyond chance; 0 where no class is compared."""
    if not is_compared.any():
        return 0.0
    trust = is_compared / (1 / precision + 0.1)
    return max(0.0, float((trust * (ratio**2 - 1 / precision)).sum() / trust.sum()))
