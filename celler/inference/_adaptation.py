"""Adaptation: what the cells of a query say together, before any of them gets a label."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from celler.inference._neighborhood import Neighborhood

MIN_CELLS = 10  #: cells predicted to be of a class, from which the class says how novel the query's known cells are
#: Quantile at which scores are compared: below the median, as unknown cells of a class lie above its known ones.
QUANTILE = 0.3
#: Largest location of a query's known cells, in standard deviations: a query may hold nothing but unknown types.
MAX_LOCATION = 1.25
MAX_BETWEEN = 0.5  #: largest deviation between classes that counts for the spread


@dataclass(frozen=True)
class QueryNovelty:
    """Scores of a query's known cells: ``location`` and ``spread`` beside those of the reference around ``centre``.

    Scores are averaged with those of the cells ``around``; ``None`` for few cells or none.
    """

    centre: float = 0.0
    location: float = 0.0
    spread: float = 1.0
    around: Neighborhood | None = field(default=None, repr=False)

    def standardise(self, scores: np.ndarray) -> np.ndarray:
        """Return ``scores (N,)`` on the scale of the reference's own cells."""
        if (self.location, self.spread) == (0.0, 1.0):
            return scores
        return np.asarray(self.centre + (scores - self.centre - self.location) / self.spread)


@dataclass(frozen=True)
class Adaptation:
    """What a query's cells say together, from up to 5,000 of them; :meth:`celler.model.Celler.adapt` returns it.

    Attributes
    ----------
    factors
        What the expression of each gene is multiplied by ``(n_genes,)`` to undo the shift; ``None`` for no shift.
    encoder_share
        Weight of a pretrained encoder in the logits; ``None`` for that of the model.
    shift
        Distance of the query from the reference: the standard deviation over genes of the log2 ratio of their means
        within types, beyond chance.
    novelty
        How novel the query's known cells seem.
    expected_accuracy
        Mean confidence, an estimate of the share of right labels; ``None`` without cells.
    n_cells
        Cells that this was estimated from.
    """

    factors: np.ndarray | None = None
    encoder_share: float | None = None
    shift: float = 0.0
    novelty: QueryNovelty = field(default_factory=QueryNovelty)
    expected_accuracy: float | None = None
    n_cells: int = 0

    def __repr__(self) -> str:
        if self.expected_accuracy is None:
            return "Adaptation to no cells"
        return (
            f"Adaptation to a query, from {self.n_cells:,} cells: shift {self.shift:.2f} (standard deviation of log2 "
            f"ratios of genes), expected accuracy {self.expected_accuracy:.2f}, novelty of known cells "
            f"{self.novelty.location:+.2f}"
        )


def query_novelty(known: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> QueryNovelty:
    """Return how novel the known cells of a query seem, beside the reference's ``known (n,)`` scores.

    ``scores (N,)`` and predicted ``labels (N,)`` may be those of many unknown cells: these crowd into some classes, and
    there at the high scores. So the lower third of each class is compared, and the median over classes is taken, a
    class of n cells with the weight of the square root of n. The spread grows with the deviation between classes.
    """
    centre, typical = float(np.median(known)), float(np.quantile(known, QUANTILE))
    groups = [scores[labels == label] for label in np.unique(labels)]
    groups = [group for group in groups if len(group) >= MIN_CELLS]
    if not groups:
        return QueryNovelty(centre)
    locations = np.array([np.quantile(group, QUANTILE) for group in groups]) - typical
    weights = np.sqrt([len(group) for group in groups])
    location = _weighted_median(locations, weights)
    between = min(1.4826 * _weighted_median(np.abs(locations - location), weights), MAX_BETWEEN)
    return QueryNovelty(centre, float(np.clip(location, -MAX_LOCATION, MAX_LOCATION)), float(np.hypot(1, between)))


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
