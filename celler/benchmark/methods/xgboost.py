"""Gradient boosting with XGBoost's defaults on log1p(CP10K) of 2,000 variable genes."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData
from sklearn.preprocessing import LabelEncoder
from xgboost import XGBClassifier

from celler.benchmark.methods import Predict
from celler.benchmark.methods.shared import log_values, n_threads, on_genes
from celler.benchmark.methods.variable import variable_genes


def fit(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """See :class:`celler.benchmark.methods.Fit`."""
    genes, columns, encoder = reference.var_names, variable_genes(reference), LabelEncoder()
    codes = encoder.fit_transform(reference.obs[labels_key])
    model = XGBClassifier(n_jobs=n_threads(), random_state=seed)
    model.fit(log_values(reference)[:, columns], codes)

    def predict(query: AnnData) -> pd.DataFrame:
        X = on_genes(log_values(query), query.var_names, genes)[:, columns]
        return pd.DataFrame(model.predict_proba(X), query.obs_names, encoder.classes_)

    return predict
