"""A user's script under mypy --strict: the hints of the public API, as they look from outside."""

from typing import assert_type

import anndata as ad
import numpy as np
import pandas as pd

import celler as cl
from celler.model import Celler


def annotate(reference: ad.AnnData, query: ad.AnnData) -> pd.DataFrame:
    Celler.setup_anndata(reference, labels_key="cell_type", layer="counts")
    model = cl.model.Celler(reference, d_model=32)
    assert_type(model, Celler)
    model.train(max_epochs=3, loss=cl.losses.HDM(base=cl.losses.GInf(mean=-5.0)), replay=None)
    assert_type(model.train(seed=1), None)
    assert_type(model.classes_, np.ndarray)
    assert_type(model.get_latent_representation(query), np.ndarray)
    assert_type(Celler.load("model"), Celler)
    assert_type(Celler.from_pretrained("scgpt", reference, freeze_encoder=True), Celler)
    model.annotate(query, key_added="celler")
    result = cl.tl.evaluate(query, "cell_type", "celler")
    assert_type(result, cl.tl.Evaluation)
    model.train(max_epoch=3)  # type: ignore[call-arg]
    model.predict(query, soft="yes")  # type: ignore[arg-type]
    cl.pl.confusion(query, "cell_type", "celler", figsze=(3, 3))  # type: ignore[call-arg]
    return result.per_class
