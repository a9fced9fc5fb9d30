"""Open set: how much more a cell resembles a type that a model's tissue lacks than any type it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from celler.inference._novelty import exceeded_by

#: Weight of the resemblance to the tissue's own types alone, for cells that resemble no type at all.
OWN_WEIGHT = 0.25
#: Largest shift of a query's scores that is undone, in standard deviations: half of a query may be unknown.
MAX_SHIFT = 1.0


@dataclass(frozen=True)
class OpenSet:
    r"""Novelty among named types, standardised by pseudo-cells of the tissue's own types.

    With :math:`c_i` the largest cosine of a cell's embedding to a type of the tissue, and :math:`c_o` that to a type of
    other tissues that is none of the tissue's, the raw score is :math:`c_o - c_i - c_i / 4`. Where there are no others,
    for all tissues together, :math:`c_o` is the same for every cell.

    Parameters
    ----------
    inside, outside
        Vectors of length 1 of the tissue's types ``(K, D)`` and of the others ``(T, D)``.
    names
        Names of the others ``(T,)``.
    location, spread
        Mean and standard deviation of the raw score of the pseudo-cells.
    known
        Their sorted scores ``(n,)``.
    """

    inside: np.ndarray
    outside: np.ndarray
    names: tuple[str, ...]
    location: float = 0.0
    spread: float = 1.0
    known: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def score(self, embedding: np.ndarray) -> np.ndarray:
        """Return the score of each cell ``(N,)``; pseudo-cells of the tissue's types have mean 0 and deviation 1."""
        own, other = self._cosines(embedding)
        raw = other.max(axis=1, initial=-1.0) - (1 + OWN_WEIGHT) * own.max(axis=1)
        return np.asarray((raw - self.location) / self.spread)

    def threshold(self, false_alarm_rate: float) -> float:
        """Return the score that the share ``false_alarm_rate`` of the pseudo-cells exceeds."""
        return exceeded_by(self.known, false_alarm_rate)

    def shift(self, scores: np.ndarray) -> float:
        """Return by how much a query's typical cell is more novel than a typical pseudo-cell, at most ``MAX_SHIFT``."""
        if not len(scores):
            return 0.0
        return float(np.clip(np.median(scores) - np.median(self.known), 0, MAX_SHIFT))

    def resembled(self, embedding: np.ndarray) -> Sequence[str]:
        """Name the types of other tissues that these cells resemble, the most frequent first."""
        if not self.names:
            return []
        best = self._cosines(embedding)[1].argmax(axis=1)
        return [self.names[code] for code in np.argsort(-np.bincount(best), kind="stable")[: len(np.unique(best))]]

    def fitted(self, embedding: np.ndarray) -> OpenSet:
        """Return the same, standardised by the embedding ``(n, D)`` of pseudo-cells of the tissue's types."""
        raw = OpenSet(self.inside, self.outside, self.names).score(embedding)
        location, spread = float(raw.mean()), max(float(raw.std()), 1e-6)
        known = np.sort((raw - location) / spread).astype(np.float32)
        return OpenSet(self.inside, self.outside, self.names, location, spread, known)

    def to_plain(self) -> dict[str, Any]:
        """Return arrays and plain values by name, for a checkpoint."""
        return vars(self) | {"names": list(self.names)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> OpenSet:
        """Restore what :meth:`to_plain` returned."""
        return cls(**plain | {"names": tuple(plain["names"])})

    def _cosines(self, embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosines of cells to the types of the tissue and to the others."""
        lengths = np.linalg.norm(embedding, axis=1, keepdims=True)
        direction = embedding / np.maximum(lengths, 1e-12)
        return direction @ self.inside.T, direction @ self.outside.T
