"""Metrics: arrays in, numbers out; where scikit-learn has the metric, it is the one used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

__all__ = [
    "calibration_bins",
    "expected_calibration_error",
    "frequency_groups",
    "per_class",
    "summary",
]


def per_class(
    truth: np.ndarray, prediction: np.ndarray, reference_counts: Mapping[str, int]
) -> pd.DataFrame:
    """Precision, recall and F1 of each class of the truth, largest reference class first.

    reference_counts: cells of each class in the reference. Columns: ``reference_cells``,
    ``query_cells``, ``precision``, ``recall``, ``f1`` and ``frequency`` (head, medium or tail).
    """
    classes = sorted(set(truth), key=lambda name: (-reference_counts.get(name, 0), name))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, prediction, labels=classes, zero_division=0
    )
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


def frequency_groups(reference_counts: Mapping[str, int]) -> dict[str, str]:
    """Each class as ``tail`` (fewer than max(20, 2 %) reference cells), ``head`` (10 % or more) or ``medium``."""
    total = sum(reference_counts.values())

    def group(count: int) -> str:
        if count < max(20, 0.02 * total):
            return "tail"
        return "head" if count >= 0.1 * total else "medium"

    return {name: group(count) for name, count in reference_counts.items()}


def summary(
    truth: np.ndarray,
    prediction: np.ndarray,
    reference_counts: Mapping[str, int],
    classes: Sequence[str] | None = None,
) -> dict[str, float]:
    """Accuracy, means over classes, and means of head, medium and tail classes.

    ``accuracy``; ``macro_*`` and ``weighted_*`` of ``f1``, ``precision`` and ``recall``; mean ``f1_*``
    and ``recall_*`` of the head, medium and tail classes of the truth. A group without a class is NaN.

    classes: those that macro and weighted means go over; None = those in the truth or the prediction,
        which is scikit-learn's default.
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


def expected_calibration_error(
    confidence: np.ndarray, is_correct: np.ndarray, n_bins: int = 15
) -> float:
    """Mean distance between confidence and accuracy over equal-width bins, weighted by their cells."""
    bins = calibration_bins(confidence, is_correct, n_bins)
    gap = (bins["confidence"] - bins["accuracy"]).abs()
    return float((gap * bins["n_cells"]).sum() / bins["n_cells"].sum())


def calibration_bins(
    confidence: np.ndarray, is_correct: np.ndarray, n_bins: int = 15
) -> pd.DataFrame:
    """Mean ``confidence``, ``accuracy`` and ``n_cells`` of each of ``n_bins`` equal-width bins with cells.

    The index is the number of the bin, from 0; a confidence of 1 is in the last.
    """
    if n_bins < 1:
        raise ValueError(f"n_bins={n_bins} was given; pass 1 or more.")
    cells = pd.DataFrame({"confidence": confidence, "accuracy": is_correct}, dtype=float)
    number = np.clip((cells["confidence"] * n_bins).astype(int), 0, n_bins - 1)
    by_bin = cells.groupby(number.rename("bin"))
    return by_bin.mean().assign(n_cells=by_bin.size())
