"""Celler with its defaults, alone and with ``propagate``."""

from __future__ import annotations

from functools import partial

from anndata import AnnData

from celler.benchmark.methods._registry import Predict
from celler.model import Celler


def celler(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train Celler, which never sees the query before it labels it."""
    return partial(_train(reference, labels_key, seed).predict, soft=True)


def celler_transductive(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train Celler; its probabilities are spread over the cells of query and reference."""
    return partial(_train(reference, labels_key, seed).predict, soft=True, propagate=True)


def _train(reference: AnnData, labels_key: str, seed: int) -> Celler:
    Celler.setup_anndata(reference, labels_key=labels_key)
    model = Celler(reference)
    model.train(seed=seed, show_progress=False)
    return model
