"""Linear support vector machine on log1p(CP10K) of all genes: decision values, no probabilities."""

from __future__ import annotations

from anndata import AnnData
from sklearn.svm import LinearSVC

from celler.benchmark.methods import Predict
from celler.benchmark.methods.shared import fit_classifier


def fit(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """See :class:`celler.benchmark.methods.Fit`."""
    return fit_classifier(LinearSVC(C=0.1, random_state=seed), reference, labels_key)
