"""Logistic regression, balanced, on log1p(CP10K) of all genes."""

from __future__ import annotations

from anndata import AnnData
from sklearn.linear_model import LogisticRegression

from celler.benchmark.methods import Predict
from celler.benchmark.methods.shared import fit_classifier


def fit(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """See :class:`celler.benchmark.methods.Fit`."""
    model = LogisticRegression(class_weight="balanced", max_iter=1000, random_state=seed)
    return fit_classifier(model, reference, labels_key)
