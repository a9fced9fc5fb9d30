"""Celler with its defaults, trained with the cells of the query beside the reference, without labels."""

from __future__ import annotations

from functools import partial

import anndata
from anndata import AnnData

from celler.benchmark.methods import Predict
from celler.model import Celler


def fit(reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
    """See :class:`celler.benchmark.methods.Fit`."""
    query = query.copy()
    query.obs[labels_key] = "Unknown"
    # Genes that the query lacks become zeros, which in a sparse matrix are no tokens.
    both = anndata.concat([reference, query], join="outer", fill_value=0, index_unique="-")
    Celler.setup_anndata(both, labels_key=labels_key, unlabeled_category="Unknown")
    model = Celler(both)
    model.train(seed=seed, show_progress=False)
    return partial(model.predict, soft=True)
