"""Neighborhood: the novelty of a cell is averaged with that of the most similar cells of its query."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from sklearn.neighbors import NearestNeighbors

N_NEIGHBORS = 10  #: most neighbours of a cell
N_CELLS = 2000  #: most cells among which neighbours are found; the search takes a fifth of a call with novelty
CELLS_PER_NEIGHBOR = 20  #: fewest cells of the query for each neighbour, so that these are of the same type
WEIGHT = 2 / 3  #: of the neighbours in the average
#: By how much, in standard deviations, an average may be below a cell's own novelty: neighbours of the few cells of a
#: rare unknown type are of known types. Without this bound a quarter to a third fewer single cells are found.
MAX_LOSS = 1.0


@dataclass(frozen=True)
class Neighborhood:
    """Cells of a query among which the neighbours of a cell are found, with their novelty.

    Parameters
    ----------
    points, content, scores
        Coordinates ``(n, k)``, content and own novelty ``(n,)`` of the cells.
    mixed
        Their averages with their neighbours ``(n,)``.
    """

    points: np.ndarray
    content: np.ndarray
    scores: np.ndarray
    mixed: np.ndarray

    def score(self, points: np.ndarray, content: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the averaged novelty ``(N,)`` of cells with own ``scores (N,)``, as it ranks among the cells here.

        An average scatters less than its parts, by how much depends on the cells that are unknown. So it gets the own
        novelty of the same rank: as many cells are beyond any bound as before, but others.
        """
        return self._ranked(_mixed(self, points, content, scores))

    def own_scores(self) -> np.ndarray:
        """:meth:`score` of the cells here ``(n,)``, without another search."""
        return self._ranked(self.mixed)

    def _ranked(self, mixed: np.ndarray) -> np.ndarray:
        """Own novelty of the same rank as averages ``mixed (N,)``; beyond the ends as far beyond."""
        averages, own = np.sort(self.mixed), np.sort(self.scores)
        beyond = np.minimum(mixed - averages[0], 0) + np.maximum(mixed - averages[-1], 0)
        return np.asarray(np.interp(mixed, averages, own) + beyond)


def neighborhood(points: np.ndarray, content: np.ndarray, scores: np.ndarray) -> Neighborhood | None:
    """Return the neighbourhood of cells with ``points (n, k)`` and own ``scores (n,)``; ``None`` for few cells."""
    if len(scores) < CELLS_PER_NEIGHBOR:
        return None
    alone = Neighborhood(points, content, scores, np.empty(0))
    return replace(alone, mixed=_mixed(alone, points, content, scores))


def _mixed(among: Neighborhood, points: np.ndarray, content: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average ``(N,)`` of own novelty and that of the nearest cells, or the own less ``MAX_LOSS`` if that is more.

    The cell itself is left out of the nearest by its ``content``.
    """
    if not len(scores):
        return scores
    n_neighbors = min(N_NEIGHBORS, len(among.scores) // CELLS_PER_NEIGHBOR)
    search = NearestNeighbors(n_neighbors=n_neighbors + 1, algorithm="brute").fit(among.points)
    nearest = search.kneighbors(points, return_distance=False)
    is_other = among.content[nearest] != content[:, None]
    is_other &= np.cumsum(is_other, axis=1) <= n_neighbors
    # Sorted, so that a sum is the same whatever the order of equally near cells.
    found = np.sort(np.where(is_other, among.scores[nearest], 0.0), axis=1).sum(axis=1)
    n_found = is_other.sum(axis=1)
    around = np.divide(found, n_found, out=scores.astype(np.float64), where=n_found > 0)
    return np.maximum((1 - WEIGHT) * scores + WEIGHT * around, scores - MAX_LOSS)
