"""Outputs: what the network computes for each cell, before it becomes a label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from celler.inference._adaptation import Adaptation


@dataclass(frozen=True)
class Propagation:
    """Class probabilities ``(N, C)`` spread over neighbouring cells."""

    probabilities: np.ndarray
    n_labelled: int  # cells that kept their labels
    n_cells: int  # other cells
    neighbor_weight: float  # against the cell's own probabilities


@dataclass(frozen=True)
class Outputs:
    """Outputs for N cells.

    Parameters
    ----------
    logits, embedding
        Class logits ``(N, C)`` and cell embedding ``(N, D)``; ``(N, 0)`` where it was not kept.
    has_counts
        False for a cell without counts in the model's genes ``(N,)``.
    adaptation
        What the query's cells say together.
    novelty, novelty_threshold
        Novelty of each cell ``(N,)``, where it was computed, and the bound above which a cell is unknown.
    propagation
        Probabilities that replace those of the logits.
    encoder_logits, own_logits
        Logits ``(N, C)`` of a pretrained encoder and of what was learned from the reference, where both are needed.
    member_codes, member_logits
        Best class of each member of an averaged model ``(N, M)``, and logits of what each has of its own ``(M, N, C)``,
        where they are needed.
    """

    logits: np.ndarray
    embedding: np.ndarray
    has_counts: np.ndarray
    adaptation: Adaptation = Adaptation()
    novelty: np.ndarray | None = None
    novelty_threshold: float | None = None
    propagation: Propagation | None = None
    encoder_logits: np.ndarray | None = None
    own_logits: np.ndarray | None = None
    member_codes: np.ndarray | None = None
    member_logits: np.ndarray | None = None

    @property
    def is_unknown(self) -> np.ndarray:
        """Cells without counts or too novel ``(N,)``, which get no label whatever their probabilities."""
        if self.novelty is None or self.novelty_threshold is None:
            return ~self.has_counts
        return ~self.has_counts | (self.novelty > self.novelty_threshold)

    @property
    def factors(self) -> np.ndarray | None:
        """What the expression of each gene was multiplied by ``(n_genes,)``; ``None`` for no correction."""
        return self.adaptation.factors

    @property
    def encoder_share(self) -> float | None:
        """Weight of a pretrained encoder in the logits; ``None`` for that of the model."""
        return self.adaptation.encoder_share
