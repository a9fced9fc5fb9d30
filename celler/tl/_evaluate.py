"""Evaluation: how well predicted labels agree with given ones, class by class and in sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._messages import warn
from celler.metrics import expected_calibration_error, per_class, summary
from celler.tl._columns import label_column, listed, share_column, table_of

if TYPE_CHECKING:
    from anndata import AnnData


class Pair(NamedTuple):
    """Labels as text ``(n,)`` of the cells that have both; ``rows (n,)`` is where these cells are."""

    truth: np.ndarray
    prediction: np.ndarray
    rows: np.ndarray


def read_pair(
    data: AnnData | pd.DataFrame,
    truth_key: str,
    prediction_key: str,
    notes: list[str],
    arguments: tuple[str, str] = ("truth_key", "prediction_key"),
) -> Pair:
    """Both labels of every cell that has both; how many are left out goes to ``notes``."""
    truth = label_column(data, truth_key, arguments[0])
    prediction = label_column(data, prediction_key, arguments[1])
    rows = np.flatnonzero((truth.codes >= 0) & (prediction.codes >= 0))
    if not len(rows):
        raise ValueError(
            f"No cell has a label in both {truth_key!r} and {prediction_key!r}; pass columns of the "
            "same cells."
        )
    if len(rows) < len(truth):
        notes.append(
            f"Left out {len(truth) - len(rows):,} of {len(truth):,} cells, no label in {truth_key!r} "
            f"or {prediction_key!r}."
        )
    return Pair(np.asarray(truth[rows], dtype=str), np.asarray(prediction[rows], dtype=str), rows)


def read_parents(
    data: AnnData | pd.DataFrame, parents: Mapping[str, str] | pd.Series | str, cells: Pair
) -> dict[str, str]:
    """Parent of every class of the truth: from a mapping, or from a column with the cells' parents."""
    classes = np.unique(cells.truth)
    if isinstance(parents, Mapping | pd.Series):
        parent_of = {str(name): str(parent) for name, parent in parents.items()}
        missing = [name for name in classes if name not in parent_of]
        if missing:
            raise ValueError(
                f"parents has no parent for {listed(missing)}; name one for each class."
            )
        return parent_of
    column = label_column(data, parents, "parents")[cells.rows]
    pairs = pd.DataFrame({"class": cells.truth, "parent": np.asarray(column, dtype=object)})
    distinct = pairs.dropna().drop_duplicates()
    n_parents = distinct["class"].value_counts().reindex(classes, fill_value=0)
    if (n_parents != 1).any():
        name = n_parents.index[n_parents != 1][0]
        found = sorted(distinct.loc[distinct["class"] == name, "parent"])
        raise ValueError(
            f"parents={parents!r} gives class {name!r} {listed(found)} as parents; each class needs "
            "exactly one. Correct the column, or pass a mapping."
        )
    return dict(zip(distinct["class"], distinct["parent"], strict=True))


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
