"""Marker types: which type's markers a cell expresses, whatever its label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.special import logsumexp

from celler.data._profile import Profile

N_MARKERS = 40  #: of a type at most
MIN_FOLD = 1.5  #: mean of a marker in its type over that of any other
PRIOR_CELLS = 5  #: cells of the whole reference mixed into a type
AMBIENT = 0.02  #: share of a cell's counts that come from other cells
MIN_REFERENCE = 3  #: cells of a type in the reference below which its means are no evidence
LEVEL = 0.9  #: least probability of a type by its markers
N_STEPS, TOLERANCE = 50, 1e-5  #: of the mixture's shares


@dataclass(frozen=True)
class Markers:
    """Markers of C types: ``genes (M,)`` among all, and for each its type, half, weight and ``rates (C, M)``.

    The halves split the markers of a type by rank, so that one confirms the other. A rate is a share of the counts,
    with some of the whole reference in each type; ``own (C,)`` is the share of each type's markers in its cells alone.
    """

    genes: np.ndarray
    of_type: np.ndarray
    half: np.ndarray
    weight: np.ndarray
    rates: np.ndarray
    own: np.ndarray

    @cached_property
    def is_of(self) -> sparse.csr_matrix:
        """Markers of each type ``(M, C)``."""
        n = len(self.genes)
        return sparse.csr_matrix((np.ones(n), (np.arange(n), self.of_type)), (n, len(self.rates)))

    def likelihoods(self, counts: sparse.csr_matrix, depth: np.ndarray) -> np.ndarray:
        r"""Log-likelihood of each type ``(2, n, C)`` from each half of the markers, up to a constant of the cell.

        Quasi-Poisson, with the weight :math:`w_g` of gene g its dispersion's inverse, relative to the median gene:

        .. math:: \ell_{ik} = \sum_g w_g (x_{ig} \log r_{kg} - D_i\, r_{kg}) .

        ``counts (n, M)`` are those of the markers, ``depth (n,)`` those of all genes.
        """
        parts = []
        for half in (0, 1):
            weight = self.weight * (self.half == half)
            parts.append(counts @ (weight * np.log(self.rates)).T - depth[:, None] * (self.rates @ weight))
        return np.stack(parts)

    def observed(self, counts: sparse.csr_matrix) -> np.ndarray:
        """Sum the counts of each type's markers in each cell ``(n, C)``."""
        return np.asarray((counts @ self.is_of).toarray())

    @cached_property
    def expected(self) -> np.ndarray:
        """Share of counts that markers of type j have in cells of type k ``(C of k, C of j)``."""
        return np.asarray(self.rates @ self.is_of)


def find_markers(profile: Profile, is_shared: np.ndarray) -> Markers:
    r"""Choose the markers of each type among the genes ``is_shared (G,)``.

    They are highest in it, by ``MIN_FOLD``, and have the largest :math:`r_k \log (r_k / r_j) - (r_k - r_j)` against the
    next type j: what a count tells of the two.
    """
    genes = np.flatnonzero(is_shared & ~np.isnan(profile.mean).any(axis=0))
    mean = profile.mean[:, genes].astype(np.float64)
    mean /= np.maximum(mean.sum(axis=1, keepdims=True), 1e-9)
    n_cells = profile.n_cells[:, None].astype(np.float64)
    of_all = (mean * n_cells).sum(axis=0) / max(n_cells.sum(), 1)
    rates = (mean * n_cells + PRIOR_CELLS * of_all) / (n_cells + PRIOR_CELLS)
    rates = (1 - AMBIENT) * rates + AMBIENT * of_all + 1e-7
    first = rates.argmax(axis=0)
    best, following = np.sort(rates, axis=0)[[-1, -2]]
    told = np.where(best > MIN_FOLD * following, best * np.log(best / following) - (best - following), 0)
    chosen, half = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for k in range(len(mean)):
        own = np.flatnonzero((first == k) & (told > 0))
        chosen.append(own[np.argsort(-told[own], kind="stable")][:N_MARKERS])
        half.append((np.arange(len(chosen[-1])) + k) % 2)
    found = np.concatenate(chosen)
    dispersion = profile.dispersion[genes].astype(np.float64)
    weight = np.minimum(1, np.median(dispersion) / np.maximum(dispersion[found], 1e-9)) if len(found) else np.ones(0)
    own = np.bincount(first[found], mean[first[found], found], minlength=len(mean))
    return Markers(genes[found], first[found], np.concatenate(half), weight, rates[:, found], own)


def types_of(halves: np.ndarray) -> np.ndarray:
    """Type of each cell ``(n,)`` by its likelihoods ``(2, n, C)``; -1 where the markers do not decide.

    The shares of the types among the cells are those of the likeliest mixture, so that a type that is rare needs more
    evidence. Both halves of the markers must speak for the type above any other.
    """
    total = halves.sum(axis=0)
    posterior = total + np.log(mixture(total))
    best = posterior.argmax(axis=1)
    probability = np.exp(posterior.max(axis=1) - logsumexp(posterior, axis=1))
    # without a marker of its own type a half is flat, and the first type would win
    is_confirmed = ((halves.argmax(axis=2) == best) & (np.ptp(halves, axis=2) > 0)).all(axis=0)
    return np.where((probability > LEVEL) & is_confirmed, best, -1)


def mixture(likelihoods: np.ndarray) -> np.ndarray:
    """Shares of the types ``(C,)`` that make the likelihoods ``(n, C)`` most likely, by expectation-maximisation."""
    n_cells, n_types = likelihoods.shape
    shares = np.full(n_types, 1 / n_types)
    scaled = np.exp(likelihoods - likelihoods.max(axis=1, keepdims=True))
    for _ in range(N_STEPS):
        of_cell = scaled @ shares
        found = (shares * (scaled.T @ (1 / of_cell)) + 1 / n_types) / (n_cells + 1)
        is_done = np.abs(found - shares).max() < TOLERANCE
        shares = found
        if is_done:
            break
    return shares
