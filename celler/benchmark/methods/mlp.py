"""A multilayer perceptron in the shape of ACTINN (Ma and Pellegrini 2020), its genes and its training.

The genes at either end of the totals and of the variation, 1 % each, are left out; three hidden
layers of 100, 50 and 25 units; 50 epochs of Adam at 1e-4, minibatches of 128.
"""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy import sparse
from sklearn.neural_network import MLPClassifier

from celler.benchmark.methods import Predict
from celler.benchmark.methods.shared import fit_classifier, log_values


def fit(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """See :class:`celler.benchmark.methods.Fit`."""
    model = MLPClassifier(
        (100, 50, 25),
        alpha=0.005,
        batch_size=min(128, reference.n_obs),
        learning_rate_init=1e-4,
        max_iter=50,
        random_state=seed,
    )
    return fit_classifier(model, reference, labels_key, _central(log_values(reference)))


def _central(X: sparse.csr_matrix) -> np.ndarray:
    """Columns that are expressed, without the extremes of the sum and of the coefficient of variation."""
    sums = np.asarray(X.sum(axis=0)).ravel()
    variance = np.asarray(X.power(2).mean(axis=0)).ravel() - (sums / X.shape[0]) ** 2
    columns = np.flatnonzero(sums)
    for values in (sums, np.sqrt(variance.clip(0)) / np.maximum(sums, 1e-12)):
        low, high = np.percentile(values[columns], (1, 99))
        columns = columns[(values[columns] >= low) & (values[columns] <= high)]
    return columns
