"""Unknown: novelty of any AnnData's cells, read in chunks, and the threshold above which they are unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from celler.model.forward import CHUNK_SIZE, Outputs
from celler.model.query import Query
from celler.novelty import MIN_CELLS, Novelty
from celler.shift import linear

if TYPE_CHECKING:
    from celler.model.celler import Celler


def fitted_novelty(self: Celler) -> Novelty:
    """The model's novelty score; raises ``RuntimeError`` where it has none."""
    if self._fitted.novelty is None:
        raise RuntimeError(
            f"this model has no novelty score: it was trained on fewer than {MIN_CELLS} labelled cells, extended by "
            "load_query_data, or saved by an earlier version of Celler. Train it again on the reference, or use "
            "threshold= on probabilities."
        )
    return self._fitted.novelty


def novelty_threshold(self: Celler, false_alarm_rate: float | None) -> float | None:
    """The novelty above which a cell is unknown, ``None`` for none."""
    return None if false_alarm_rate is None else fitted_novelty(self).threshold(false_alarm_rate)


def with_novelty(
    self: Celler, query: Query, index: np.ndarray, outputs: Outputs, threshold: float | None
) -> Outputs:
    """``outputs`` of the rows ``index (N,)`` with their novelty; NaN for a cell without counts."""
    novelty, reference = fitted_novelty(self), self._fitted.profile
    assert reference is not None
    factors = np.ones(query.n_genes) if outputs.factors is None else outputs.factors
    scores = np.full(len(index), np.nan, np.float32)
    for start in range(0, len(index), CHUNK_SIZE):
        rows = slice(start, start + CHUNK_SIZE)
        X = linear(query.values(index[rows]), is_log=query.is_log)
        X = sparse.csr_matrix(X @ sparse.diags_array(factors))
        scores[rows] = novelty.score(X, reference, query.is_shared, is_log=False)
    scores[~outputs.has_counts] = np.nan
    return replace(outputs, novelty=scores, novelty_threshold=threshold)
