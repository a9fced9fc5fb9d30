"""Metrics: arrays in, numbers out; scikit-learn's where it has the metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from celler._utils._check import checked

__all__ = ["calibration_bins", "expected_calibration_error", "frequency_groups", "per_class", "summary"]


@checked
def per_class(truth: np.ndarray, prediction: np.ndarray, reference_counts: Mapping[str, int]) -> pd.DataFrame:
    """Compute precision, recall and F1 of each class of the truth.

    Parameters
    ----------
    truth, prediction
        Labels ``(n,)``.
    reference_counts
        Cells of each class in the reference.

    Returns
    -------
    pandas.DataFrame
        A row per class, the largest in the reference first, with ``reference_cells``, ``query_cells``,
        ``precision``, ``recall``, ``f1`` and ``frequency`` (head, medium or tail).

    Examples
    --------
    >>> counts = reference.obs["cell_type"].value_counts()
    >>> cl.metrics.per_class(query.obs["cell_type"], model.predict(query), counts)
    """
    classes = sorted(set(truth), key=lambda name: (-reference_counts.get(name, 0), name))
    precision, recall, f1, support = precision_recall_fscore_support(truth, prediction, labels=classes, zero_division=0)
    groups = frequency_groups(reference_counts)
    return pd.DataFrame(
        {
            "reference_cells": [reference_counts.get(name, 0) for name in classes],
            "query_cells": support,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "frequency": [groups.get(name, "tail") for name in classes],
        },
        index=pd.Index(classes, name="class"),
    )


@checked
def frequency_groups(reference_counts: Mapping[str, int]) -> dict[str, str]:
    """Divide classes into head, medium and tail.

    Parameters
    ----------
    reference_counts
        Cells of each class in the reference.

    Returns
    -------
    dict
        ``"tail"`` for classes of fewer than max(20, 2 %) cells, ``"head"`` from 10 % on, else ``"medium"``.
    """
    total = sum(reference_counts.values())

    def group(count: int) -> str:
        if count < max(20, 0.02 * total):
            return "tail"
        return "head" if count >= 0.1 * total else "medium"

    return {name: group(count) for name, count in reference_counts.items()}


@checked
def summary(
    truth: np.ndarray, prediction: np.ndarray, reference_counts: Mapping[str, int], classes: Sequence[str] | None = None
) -> dict[str, float]:
    """Compute accuracy, means over classes, and means of head, medium and tail classes.

    Parameters
    ----------
    truth, prediction
        Labels ``(n,)``.
    reference_counts
        Cells of each class in the reference.
    classes
        Classes of the macro and weighted means. ``None`` is those of truth and prediction, scikit-learn's default.

    Returns
    -------
    dict
        ``accuracy``; ``macro_*`` and ``weighted_*`` of ``f1``, ``precision`` and ``recall``; mean ``f1_*`` and
        ``recall_*`` of the head, medium and tail classes of the truth, NaN for a group without classes.
    """
    result = {"accuracy": float(accuracy_score(truth, prediction))}
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, prediction, labels=classes, average=average, zero_division=0
        )
        scores = {"f1": f1, "precision": precision, "recall": recall}
        result |= {f"{average}_{name}": float(score) for name, score in scores.items()}
    table = per_class(truth, prediction, reference_counts)
    for group in ("head", "medium", "tail"):
        rows = table[table["frequency"] == group]
        result |= {f"{name}_{group}": float(rows[name].mean()) for name in ("f1", "recall")}
    return result


@checked
def expected_calibration_error(confidence: np.ndarray, is_correct: np.ndarray, n_bins: int = 15) -> float:
    """Compute the mean distance of confidence and accuracy over equal-width bins, weighted by cells.

    Parameters
    ----------
    confidence
        Probability of the predicted label ``(n,)``.
    is_correct
        Whether the label is right ``(n,)``.
    n_bins
        Number of bins.
    """
    bins = calibration_bins(confidence, is_correct, n_bins)
    gap = (bins["confidence"] - bins["accuracy"]).abs()
    return float((gap * bins["n_cells"]).sum() / bins["n_cells"].sum())


@checked
def calibration_bins(confidence: np.ndarray, is_correct: np.ndarray, n_bins: int = 15) -> pd.DataFrame:
    """Average confidence and accuracy in equal-width bins of the confidence.

    Parameters
    ----------
    confidence
        Probability of the predicted label ``(n,)``.
    is_correct
        Whether the label is right ``(n,)``.
    n_bins
        Number of bins.

    Returns
    -------
    pandas.DataFrame
        Mean ``confidence``, mean ``accuracy`` and ``n_cells`` of each bin with cells. The index is the number
        of the bin, from 0; a confidence of 1 is in the last.
    """
    cells = pd.DataFrame({"confidence": confidence, "accuracy": is_correct}, dtype=float)
    number = np.clip((cells["confidence"] * n_bins).astype(int), 0, n_bins - 1)
    by_bin = cells.groupby(number.rename("bin"))
    return by_bin.mean().assign(n_cells=by_bin.size())
