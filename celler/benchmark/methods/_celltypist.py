"""CellTypist, trained with its defaults on log1p(CP10K) of all genes (Domínguez Conde et al. 2022)."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from typing import Any
from unittest import mock

import numpy as np
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from celler.benchmark.methods._registry import Predict
from celler.benchmark.methods._sklearn import log_values

# Importing celltypist makes a folder for downloads, by default in the user's home, and silences warnings.
os.environ.setdefault("CELLTYPIST_FOLDER", os.path.join(tempfile.gettempdir(), "celltypist"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import celltypist as package


class OneAgainstRest(LogisticRegression):
    """scikit-learn's logistic regression with the ``multi_class="ovr"`` that 1.8 removed."""

    def __init__(self, multi_class: str = "ovr", n_jobs: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.options = options

    def fit(self, X: np.ndarray, y: np.ndarray) -> OneAgainstRest:
        each = OneVsRestClassifier(LogisticRegression(**self.options)).fit(X, y)
        self.classes_ = each.classes_
        self.coef_ = np.vstack([model.coef_ for model in each.estimators_])
        self.intercept_ = np.concatenate([model.intercept_ for model in each.estimators_])
        return self


def celltypist(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train CellTypist's classifier of all genes."""
    # CellTypist 1.7 passes multi_class; one against rest with the same solver is the same model.
    module = sys.modules["celltypist.train"]  # `package.train` is a function
    with mock.patch.object(module, "LogisticRegression", OneAgainstRest):
        # Unchecked, logarithms may be of any scale.
        labels = reference.obs[labels_key].to_numpy()
        model = package.train(_log_cells(reference), labels, check_expression=False, random_state=seed)
    return lambda query: package.annotate(_log_cells(query), model=model).probability_matrix


def _log_cells(adata: AnnData) -> AnnData:
    return AnnData(log_values(adata), obs=adata.obs[[]], var=adata.var[[]])
