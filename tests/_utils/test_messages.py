"""Warnings point at the user's line; a missing column is reported with the closest one."""

import pandas as pd
import pytest
from toy import QUICK, SMALL, celler_warning, cells, fit, trained

import celler as cl
from celler._utils._messages import agreed, closest, column, counted, listed, similar
from celler.model import Celler


def test_warn_points_at_the_call():
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


def test_column_with_a_missing_column():
    obs = pd.DataFrame({"cell_type": ["a"], "donor": ["b"], 3: ["c"]})
    assert column(obs, "donor", "batch_key") is not None
    message = r"labels_key='celltype' is not a column of adata\.obs\. Closest: 'cell_type'\. "
    with pytest.raises(KeyError, match=message + r"Columns: \['cell_type', 'donor', '3'\]"):
        column(obs, "celltype", "labels_key")
    with pytest.raises(KeyError, match=r"batch_key='zzz' is not a column of adata\.obs\. Columns"):
        column(obs, "zzz", "batch_key")
    with pytest.raises(KeyError, match=r"gene_key='x' is not a column of adata\.var\. Columns"):
        column(obs, "x", "gene_key", "adata.var")


@pytest.mark.parametrize(
    ("name", "names", "expected"),
    [("Bcell", ["T cell", "B cell"], " Closest: 'B cell'."), ("B", ["T"], ""), (3, [], "")],
)
def test_closest_with_names_near_and_far(name, names, expected):
    assert closest(name, names) == expected


def test_column_with_many_columns_lists_thirty():
    obs = pd.DataFrame(columns=[f"c{i}" for i in range(1100)])
    with pytest.raises(KeyError, match=r"Closest: 'c0'\. Columns: \['c0', .*'c29'\] and 1,070 more\."):
        column(obs, "C0", "key")


def test_similar_ignores_case_and_orders_by_likeness():
    assert similar("ms4a1", ["CD3E", "MS4A6", "MS4A1"], n=2) == ["MS4A1", "MS4A6"]
    assert similar("x", ["CD3E"]) == []


def test_listed_counts_what_it_leaves_out():
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert listed([]) == "none"


@pytest.mark.parametrize(
    ("words", "one"),
    {
        "labelled cells have": "labelled cell has",
        "classes": "class",
        "extra ones are": "extra one is",
        "labelled cells express": "labelled cell expresses",
        "they are": "it is",
        "others stay as they are": "other stays as it is",
    }.items(),
)
def test_counted_and_agreed_with_one_and_many(words, one):
    assert counted(1, words) == f"1 {one}"
    assert counted(0, words) == f"0 {words}"
    assert counted(1200, words) == f"1,200 {words}"
    assert (agreed(1, words), agreed(2, words)) == (one, words)
