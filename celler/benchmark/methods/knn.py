"""The 15 nearest neighbours in 50 principal components of 2,000 variable genes."""

from __future__ import annotations

from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from celler.benchmark.methods import Predict
from celler.benchmark.methods.shared import fit_classifier, n_threads
from celler.benchmark.methods.variable import variable_genes


def fit(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """See :class:`celler.benchmark.methods.Fit`."""
    columns = variable_genes(reference)
    n_components = min(50, reference.n_obs - 1, len(columns) - 1)
    model = make_pipeline(
        PCA(n_components, svd_solver="arpack", random_state=seed),
        KNeighborsClassifier(min(15, reference.n_obs), n_jobs=n_threads()),
    )
    return fit_classifier(model, reference, labels_key, columns)
