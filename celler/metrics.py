"""Metrics: arrays in, numbers out; where scikit-learn has the metric, it is the one used."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

__all__ = ["expected_calibration_error", "frequency_groups", "per_class", "summary"]


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
    truth: np.ndarray, prediction: np.ndarray, reference_counts: Mapping[str, int]
) -> dict[str, float]:
    """``accuracy``, ``macro_f1``, and mean ``f1_*`` and ``recall_*`` of head, medium and tail classes.

    Macro-F1 is scikit-learn's, over the classes in the truth or the prediction. A group without a
    class is NaN.
    """
    table = per_class(truth, prediction, reference_counts)
    result = {
        "accuracy": float(accuracy_score(truth, prediction)),
        "macro_f1": float(f1_score(truth, prediction, average="macro", zero_division=0)),
    }
    for group in ("head", "medium", "tail"):
        rows = table[table["frequency"] == group]
        result[f"f1_{group}"], result[f"recall_{group}"] = rows["f1"].mean(), rows["recall"].mean()
    return result


def expected_calibration_error(
    confidence: np.ndarray, is_correct: np.ndarray, n_bins: int = 15
) -> float:
    """Mean distance between confidence and accuracy over equal-width bins, weighted by their cells."""
    bins = np.clip((np.asarray(confidence) * n_bins).astype(int), 0, n_bins - 1)
    gap = np.bincount(
        bins, weights=np.asarray(confidence) - np.asarray(is_correct), minlength=n_bins
    )
    return float(np.abs(gap).sum() / len(bins))
