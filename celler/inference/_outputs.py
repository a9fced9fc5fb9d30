"""Outputs: what the network says of each cell, before it becomes a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Propagation:
    """probabilities: ``(N, C)``, after they were spread over the neighbours with the weight ``neighbor_weight``.

    n_labelled: labelled cells that were held at their labels. n_cells: cells that were not.
    """

    probabilities: np.ndarray
    n_labelled: int
    n_cells: int
    neighbor_weight: float


@dataclass(frozen=True)
class Outputs:
    """logits: ``(N, C)``. embedding: ``(N, D)``. has_counts: ``(N,)``, False for a cell without any.

    factors: ``(n_genes,)``, by which each gene's expression was multiplied, ``None`` where there were none.
    novelty: ``(N,)``, where it was asked for. novelty_threshold: cells above it are unknown, ``None`` for none.
    propagation: probabilities that take the place of those of the logits, where it was asked for.
    """

    logits: np.ndarray
    embedding: np.ndarray
    has_counts: np.ndarray
    factors: np.ndarray | None = None
    novelty: np.ndarray | None = None
    novelty_threshold: float | None = None
    propagation: Propagation | None = None

    @property
    def is_unknown(self) -> np.ndarray:
        """Cells ``(N,)`` that get no label whatever their probabilities: without counts, or too novel."""
        if self.novelty is None or self.novelty_threshold is None:
            return ~self.has_counts
        return ~self.has_counts | (self.novelty > self.novelty_threshold)

    @property
    def shift(self) -> float:
        """Standard deviation over genes of the log2 factors that were applied, 0 where there were none."""
        return 0.0 if self.factors is None else float(np.log2(self.factors).std())
