"""Classifiers of log1p(CP10K): scikit-learn's and XGBoost's, on all genes or on variable ones."""

from __future__ import annotations

import os
import warnings
from typing import Any

import joblib
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, normalize
from sklearn.svm import LinearSVC

from celler.benchmark.methods._registry import Predict

# scanpy and xgboost are imported where they are used: other methods need not wait for them.


def logreg(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train a balanced logistic regression on all genes."""
    model = LogisticRegression(class_weight="balanced", max_iter=1000, random_state=seed)
    return _fit(model, reference, labels_key)


def linear_svm(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train a linear support vector machine on all genes: decision values, no probabilities."""
    return _fit(LinearSVC(C=0.1, random_state=seed), reference, labels_key)


def random_forest(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train a random forest of 300 trees on all genes."""
    model = RandomForestClassifier(n_estimators=300, n_jobs=_n_threads(), random_state=seed)
    return _fit(model, reference, labels_key)


def knn(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Find the 15 nearest neighbours in 50 principal components of 2,000 variable genes."""
    columns = variable_genes(reference)
    n_components = min(50, reference.n_obs - 1, len(columns) - 1)
    model = make_pipeline(
        PCA(n_components, svd_solver="arpack", random_state=seed),
        KNeighborsClassifier(min(15, reference.n_obs), n_jobs=_n_threads()),
    )
    return _fit(model, reference, labels_key, columns)


def xgboost(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train gradient boosting with XGBoost's defaults on 2,000 variable genes."""
    from xgboost import XGBClassifier

    encoder = LabelEncoder().fit(reference.obs[labels_key])
    reference.obs["code"] = encoder.transform(reference.obs[labels_key])
    model = XGBClassifier(n_jobs=_n_threads(), random_state=seed)
    predict = _fit(model, reference, "code", variable_genes(reference))
    return lambda query: predict(query).set_axis(encoder.classes_, axis=1)


def mlp(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train a multilayer perceptron with the layers, genes and training of ACTINN (Ma and Pellegrini 2020)."""
    n_minibatch = min(128, reference.n_obs)
    model = MLPClassifier(
        (100, 50, 25), alpha=0.005, batch_size=n_minibatch, learning_rate_init=1e-4, max_iter=50, random_state=seed
    )
    return _fit(model, reference, labels_key, _central(log_values(reference)))


def log_values(adata: AnnData) -> sparse.csr_matrix:
    """Return log1p(CP10K) ``(n_obs, n_vars)`` of counts, and logarithms unchanged."""
    if adata.uns["kind"] in ("log1p", "log2"):
        return adata.X
    # In float32, not by the package's float64 function: this memory is measured as the method's.
    return (normalize(adata.X, norm="l1") * np.float32(1e4)).log1p()


def on_genes(X: sparse.csr_matrix, names: pd.Index, genes: pd.Index) -> sparse.csr_matrix:
    """Return ``X (n_obs, names)`` as ``(n_obs, genes)``, zero for genes that ``names`` lacks."""
    place = genes.get_indexer(names)
    padded = sparse.csr_matrix((X.data, place[X.indices], X.indptr), (X.shape[0], len(genes)))
    padded.sort_indices()
    return padded


def variable_genes(adata: AnnData, n_genes: int = 2000) -> np.ndarray:
    """Return the columns of the most variable genes by scanpy's default; all columns if there are no more."""
    import scanpy as sc

    if adata.n_vars <= n_genes:
        return np.arange(adata.n_vars)
    log = AnnData(log_values(adata), var=pd.DataFrame(index=adata.var_names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sc.pp.highly_variable_genes(log, n_top_genes=n_genes, inplace=False)
    return np.flatnonzero(found["highly_variable"])


def _fit(model: Any, reference: AnnData, labels_key: str, columns: np.ndarray | slice = slice(None)) -> Predict:
    """Train a classifier on the log values of ``columns``, by default of all genes."""
    genes = reference.var_names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is part of the method
        model.fit(log_values(reference)[:, columns], reference.obs[labels_key].to_numpy())

    def predict(query: AnnData) -> pd.DataFrame:
        X = on_genes(log_values(query), query.var_names, genes)[:, columns]
        scores = model.predict_proba(X) if hasattr(model, "predict_proba") else model.decision_function(X)
        if scores.ndim == 1:  # of two classes, scikit-learn scores the second
            scores = np.column_stack([-scores, scores])
        return pd.DataFrame(scores, query.obs_names, model.classes_)

    return predict


def _central(X: sparse.csr_matrix) -> np.ndarray:
    """Return the expressed columns without the 1 % at either end of the sum and of the coefficient of variation."""
    sums = np.asarray(X.sum(axis=0)).ravel()
    variance = np.asarray(X.power(2).mean(axis=0)).ravel() - (sums / X.shape[0]) ** 2
    columns = np.flatnonzero(sums)
    for values in (sums, np.sqrt(variance.clip(0)) / np.maximum(sums, 1e-12)):
        low, high = np.percentile(values[columns], (1, 99))
        columns = columns[(values[columns] >= low) & (values[columns] <= high)]
    return columns


def _n_threads() -> int:
    """Return the threads for a method: OMP_NUM_THREADS, else the available cores."""
    return int(os.environ.get("OMP_NUM_THREADS", joblib.cpu_count()))
