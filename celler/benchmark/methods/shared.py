"""What several methods share: log values, genes in order, and scikit-learn's classifiers."""

from __future__ import annotations

import os
import warnings
from typing import Any

import joblib
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from celler.benchmark.methods import Predict


def log_values(adata: AnnData) -> sparse.csr_matrix:
    """log1p(CP10K) ``(n_obs, n_vars)`` of counts; logarithms stay as they are."""
    X = adata.X
    if adata.uns["kind"] in ("log1p", "log2"):
        return X
    sums = np.asarray(X.sum(axis=1)).ravel()
    factors = np.divide(1e4, sums, out=np.zeros_like(sums), where=sums > 0)
    return sparse.csr_matrix(sparse.diags(factors) @ X).log1p().astype(np.float32)


def on_genes(X: sparse.csr_matrix, names: pd.Index, genes: pd.Index) -> sparse.csr_matrix:
    """``X (n_obs, names)`` as ``(n_obs, genes)``, zero for genes that are not among ``names``."""
    place = genes.get_indexer(names)
    padded = sparse.csr_matrix((X.data, place[X.indices], X.indptr), (X.shape[0], len(genes)))
    padded.sort_indices()
    return padded


def fit_classifier(
    model: Any, reference: AnnData, labels_key: str, columns: np.ndarray | slice = slice(None)
) -> Predict:
    """A scikit-learn classifier of log values; ``columns`` of the reference's genes, all by default."""
    genes = reference.var_names
    with warnings.catch_warnings():
        # The number of steps is part of the recipe.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(log_values(reference)[:, columns], reference.obs[labels_key].to_numpy())

    def predict(query: AnnData) -> pd.DataFrame:
        X = on_genes(log_values(query), query.var_names, genes)[:, columns]
        has_probabilities = hasattr(model, "predict_proba")
        scores = model.predict_proba(X) if has_probabilities else model.decision_function(X)
        if scores.ndim == 1:  # of two classes, scikit-learn scores the second
            scores = np.column_stack([-scores, scores])
        return pd.DataFrame(scores, query.obs_names, model.classes_)

    return predict


def n_threads() -> int:
    """Threads that a method may use: those that OpenMP is given, else the cores that are allowed."""
    return int(os.environ.get("OMP_NUM_THREADS", joblib.cpu_count()))
