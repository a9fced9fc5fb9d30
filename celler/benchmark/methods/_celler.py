"""Celler with its defaults, without the pretrained base, and with ``propagate``."""

from __future__ import annotations

from functools import partial
from typing import Literal

from anndata import AnnData

from celler.benchmark.methods._registry import Predict
from celler.model import Celler


def celler(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train Celler, which never sees the query before it labels it."""
    return partial(_train(reference, labels_key, seed).predict, soft=True)


def celler_transductive(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train Celler; its probabilities are spread over the cells of query and reference."""
    return partial(_train(reference, labels_key, seed).predict, soft=True, propagate=True)


def celler_additive(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """Train Celler without the pretrained base: it knows the reference alone, as the other methods do."""
    return partial(_train(reference, labels_key, seed, "additive").predict, soft=True)


def _train(reference: AnnData, labels_key: str, seed: int, encoder: Literal["additive"] | None = None) -> Celler:
    Celler.setup_anndata(reference, labels_key=labels_key)
    model = Celler(reference, encoder=encoder)
    model.train(seed=seed, show_progress=False)
    return model
