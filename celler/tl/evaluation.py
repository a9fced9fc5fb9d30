"""Evaluation: how well predicted labels agree with given ones, class by class and in sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from celler.door import suggest_keywords, warn
from celler.metrics import expected_calibration_error, per_class, summary
from celler.tl.columns import share_column, table_of
from celler.tl.pairs import Pair, read_pair, read_parents


class Evaluation(NamedTuple):
    """How well predictions agree with the truth.

    summary: one number per metric, see :func:`celler.metrics.summary`. With rejected cells
        ``rejected_share`` too, with backed-off ones ``backed_off_share``, with a confidence ``ece``, with
        parents ``parent_*`` metrics.
    per_class: one row per class of the truth, see :func:`celler.metrics.per_class`.
    per_parent: the same for the parents; None without.
    """

    summary: dict[str, float]
    per_class: pd.DataFrame
    per_parent: pd.DataFrame | None = None


@suggest_keywords
def evaluate(
    adata: AnnData | pd.DataFrame,
    truth: str,
    prediction: str,
    *,
    reference_counts: Mapping[str, int] | pd.Series | None = None,
    parents: Mapping[str, str] | pd.Series | str | None = None,
    confidence: str | None = None,
    unknown_label: str = "Unknown",
) -> Evaluation:
    """Compare predicted labels with the truth; where scikit-learn has the metric it is the one used.

    Cells without a truth or a prediction are left out with a warning. Those predicted as
    ``unknown_label`` were rejected: they count as missed, but "Unknown" is not one more class with an
    F1 of zero, unless it is in the truth.

    adata: the cells, or a table with the columns named here, such as ``adata.obs``.
    reference_counts: cells of each class that were learned from, by which classes are head, medium or
        tail: ``reference.obs["cell_type"].value_counts()``. None = counts of the truth.
    parents: parent by class, or a column of obs that holds the parent of each cell's true class. A
        predicted class without a parent is its own. A cell that is predicted as a parent was backed off:
        it counts as missed among the classes and as what it is among the parents. None = no parent level.
    confidence: column with the probability of the predicted label, for the calibration error; None =
        ``<prediction>_confidence`` if there is one. Missing ones do not count.
    """
    notes: list[str] = []
    cells = read_pair(adata, truth, prediction, notes, arguments=("truth", "prediction"))
    if notes:
        warn(" ".join(notes))
    counts = pd.Series(cells.truth).value_counts() if reference_counts is None else reference_counts
    counts = {str(name): int(count) for name, count in dict(counts).items()}
    is_rejected = (cells.prediction == unknown_label) & (unknown_label not in set(cells.truth))
    parent_of = {} if parents is None else read_parents(adata, parents, cells)
    is_parent = np.isin(
        cells.prediction, list(set(parent_of.values()) - {*parent_of, *cells.truth})
    )
    scores, table = _compare(cells.truth, cells.prediction, counts, is_rejected | is_parent)
    for name, is_so in (("rejected_share", is_rejected), ("backed_off_share", is_parent)):
        if is_so.any():
            scores[name] = float(is_so.mean())
    scores |= _calibration(adata, prediction, confidence, cells, ~is_rejected & ~is_parent)
    if parents is None:
        return Evaluation(scores, table)
    parent_scores, parent_table = _compare_parents(cells, parent_of, counts, is_rejected)
    return Evaluation(scores | parent_scores, table, parent_table)


def _compare_parents(
    cells: Pair, parent_of: Mapping[str, str], counts: Mapping[str, int], is_rejected: np.ndarray
) -> tuple[dict[str, float], pd.DataFrame]:
    """The metrics of the parents, their names led by ``parent_``."""
    parent_counts: dict[str, int] = {}
    for name, count in counts.items():
        parent = parent_of.get(name, name)
        parent_counts[parent] = parent_counts.get(parent, 0) + count
    truth, prediction = (
        np.array([parent_of.get(name, name) for name in labels])
        for labels in (cells.truth, cells.prediction)
    )
    scores, table = _compare(truth, prediction, parent_counts, is_rejected)
    return {f"parent_{name}": score for name, score in scores.items()}, table


def _compare(
    truth: np.ndarray, prediction: np.ndarray, counts: Mapping[str, int], is_rejected: np.ndarray
) -> tuple[dict[str, float], pd.DataFrame]:
    """The metrics of one level; what rejected cells are called is no class."""
    classes = sorted({*truth, *prediction[~is_rejected]})
    return summary(truth, prediction, counts, classes), per_class(truth, prediction, counts)


def _calibration(
    data: AnnData | pd.DataFrame,
    prediction: str,
    confidence: str | None,
    cells: Pair,
    is_labelled: np.ndarray,
) -> dict[str, float]:
    """The calibration error of the cells with a label and a confidence, if there are any."""
    key = f"{prediction}_confidence" if confidence is None else confidence
    if confidence is None and key not in table_of(data)[0].columns:
        return {}
    shares = share_column(data, key, "confidence")[cells.rows]
    counted = is_labelled & ~np.isnan(shares)
    if not counted.any():
        return {}
    is_correct = (cells.truth == cells.prediction)[counted]
    return {"ece": expected_calibration_error(shares[counted], is_correct)}
