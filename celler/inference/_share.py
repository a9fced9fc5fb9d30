"""Share: how much a pretrained encoder may say about a query, beside what was learned from the reference."""

from __future__ import annotations

import numpy as np

from celler.inference._propagation import N_NEIGHBORS, nearest

MIN_CELLS = 100  #: cells of a query below which the share stays as it was trained
#: Difference of the agreements at which the share is halfway between the least and the most, and its scale.
HALFWAY, SCALE = 0.02, 0.03
LEAST, MOST = 0.4, 0.7


def agreement(labels: np.ndarray, neighbor: np.ndarray) -> float:
    """Return the mean share of each cell's neighbours ``(N, K)`` that have its label, of ``labels (N,)``."""
    return float((labels[neighbor] == labels[:, None]).mean())


def share_of_query(encoder: np.ndarray, own: np.ndarray, points: np.ndarray) -> float:
    """Return the encoder's share for a query, 0 to 1.

    Which expert is right does not show in its confidence, which is high where it is wrong. What follows it is how often
    nearest cells, in a space that neither expert made, get the same label: where the encoder's labels ``(N,)`` agree
    about as much as the expert's ``own (N,)``, the reference has less to say about this query than the encoder.
    ``points (N, D)`` are principal components of the query alone.
    """
    _, neighbor = nearest(points, N_NEIGHBORS)
    difference = agreement(encoder, neighbor) - agreement(own, neighbor)
    return LEAST + (MOST - LEAST) / (1 + float(np.exp((HALFWAY - difference) / SCALE)))
