"""Random forest of 300 trees on log1p(CP10K) of all genes."""

from __future__ import annotations

from anndata import AnnData
from sklearn.ensemble import RandomForestClassifier

from celler.benchmark.methods import Predict
from celler.benchmark.methods.shared import fit_classifier, n_threads


def fit(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """See :class:`celler.benchmark.methods.Fit`."""
    model = RandomForestClassifier(n_estimators=300, n_jobs=n_threads(), random_state=seed)
    return fit_classifier(model, reference, labels_key)
