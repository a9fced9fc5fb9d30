"""Warnings point at the line that called, and a dependency's options are checked by their own names."""

import pytest
from toy import QUICK, SMALL, celler_warning, cells, fit, trained

import celler as cl
from celler.model import Celler


def test_warnings_point_at_the_call():
    query = cells(seed=1)
    empty = cells(seed=1)
    empty.X.data[: empty.X.indptr[1]] = 0
    small = cells()
    small.obs["cell_type"] = small.obs["cell_type"].astype(str)
    small.obs.iloc[0, small.obs.columns.get_loc("cell_type")] = "one of its kind"
    Celler.setup_anndata(small, "cell_type")
    model = fit(cells(), max_epochs=1)
    calls = {
        "genes are in the query": lambda: model.predict(query[:, :70]),
        "no counts": lambda: trained().predict(empty),
        "fewer than 3 labelled cells": lambda: Celler(small, **SMALL).train(**QUICK),
        "Left out": lambda: cl.pl.marker_bubble(query, ["gene 1", "none"], "cell_type", show=False),
    }
    for message, call in calls.items():
        with pytest.warns(UserWarning, match=message) as caught:
            call()
        assert celler_warning(caught.list).filename == __file__
