"""Celler with its defaults, its probabilities spread over the query's cells and the reference's labelled ones."""

from __future__ import annotations

from functools import partial

from anndata import AnnData

from celler.benchmark.methods import Predict
from celler.model import Celler


def fit(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """See :class:`celler.benchmark.methods.Fit`."""
    Celler.setup_anndata(reference, labels_key=labels_key)
    model = Celler(reference)
    model.train(seed=seed, show_progress=False)
    return partial(model.predict, soft=True, propagate=True)
