"""Shift: gene-wise differences of a query from the reference that all cell types share, and how to undo them."""

from __future__ import annotations

import numpy as np

from celler.data._profile import Profile

#: Counts per 10,000 added to both means: a gene that is hardly there says nothing of a shift.
PSEUDO_COUNT = 0.02
#: Variance, over cell types, of the logarithm of a gene's ratio around the one they share.
HETEROGENEITY = 0.25
#: Share of a shift, on the scale of logarithms, that is undone: all of it would raise the noise of genes that
#: the query hardly catches.
STRENGTH = 0.5
#: A gene is divided or multiplied by this at most.
MAX_FACTOR = 4.0
#: Types with fewer cells, in the reference or expected in the query, are not asked.
MIN_CELLS = 5


def shift_factors(reference: Profile, query: Profile) -> np.ndarray:
    r"""Factors ``(G,)`` by which the query's genes are to be multiplied; 1 where no shift is seen.

    Within each class the logarithm of reference over query mean is compared, so that a query of another
    composition is no shift. The classes' ratios are averaged with weights :math:`w_{kg}`, the inverse of their
    sampling variance plus ``HETEROGENEITY``, and shrunk by the variance :math:`\tau^2` they have beyond chance:

    .. math:: r_g = \frac{\sum_k w_{kg}\, \rho_{kg}}{\sum_k w_{kg}}, \qquad
        \log f_g = \tfrac{1}{2}\, \frac{\tau^2}{\tau^2 + 1 / \sum_k w_{kg}}\, r_g .

    Where the ratios scatter no more than their variances say, :math:`\tau = 0` and nothing is changed.
    """
    of_reference, of_query = reference.mean + PSEUDO_COUNT, query.mean + PSEUDO_COUNT
    n_reference, n_query = reference.n_cells[:, None], query.n_cells[:, None]
    variance = reference.dispersion * (
        1 / (np.maximum(n_reference, 1) * of_reference) + 1 / (np.maximum(n_query, 1) * of_query)
    )
    is_asked = (n_reference >= MIN_CELLS) & (n_query >= MIN_CELLS)
    is_asked = is_asked & ~np.isnan(reference.mean)
    weights = np.where(is_asked, 1 / (variance + HETEROGENEITY), 0)
    precision = np.maximum(
        weights.sum(axis=0), 1e-9
    )  # next to nothing is known where no class is asked
    if not is_asked.any():
        return np.ones(len(precision))
    log_ratio = np.where(is_asked, np.log(of_reference / of_query), 0)
    ratio = (weights * log_ratio).sum(axis=0) / precision
    trust = is_asked.any(axis=0) / (1 / precision + 0.1)
    tau2 = max(0.0, float((trust * (ratio**2 - 1 / precision)).sum() / trust.sum()))
    bound = np.log(MAX_FACTOR)
    return np.exp(np.clip(STRENGTH * ratio * tau2 / (tau2 + 1 / precision), -bound, bound))
