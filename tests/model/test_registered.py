"""What a model was made of belongs to the model: other setups, changed labels, subsets and genes."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from toy import QUICK, SMALL, assert_unchanged, cells, snapshot

from celler.model import Celler

pytestmark = pytest.mark.filterwarnings("ignore:.*are not of the new types:UserWarning")

TURNED = {"type 0": "type 1", "type 1": "type 2", "type 2": "type 3", "type 3": "type 0"}
NAMED = {name: f"other {i}" for i, name in enumerate(TURNED)}


def made(adata, key="cell_type", **options) -> Celler:
    Celler.setup_anndata(adata, key, **options)
    return Celler(adata, **SMALL)


def agreement(model, adata, key) -> float:
    return float((model.predict() == adata.obs[key].to_numpy().astype(str)).mean())


@pytest.mark.parametrize("other", [TURNED, NAMED], ids=["the same names", "other names"])
@pytest.mark.parametrize("order", ["made first", "made last", "trained last"])
def test_train_on_the_labels_that_the_model_was_made_of(other, order):
    adata = cells(300, depth=0.5)
    adata.obs["other"] = adata.obs["cell_type"].astype(str).map(other)
    first = made(adata)
    second = made(adata, "other")
    models = {"cell_type": first, "other": second}
    if order == "made last":
        made(adata, None)
    for key in sorted(models, reverse=order == "trained last"):
        models[key].train(**QUICK)
    for key, model in models.items():
        assert agreement(model, adata, key) > 0.9
        assert model.classes_.tolist() == sorted(adata.obs[key].unique())


def test_train_after_another_setup_gives_the_same_bits():
    alone, adata = cells(), cells()
    expected = made(alone)
    expected.train(**QUICK)
    model = made(adata)
    adata.obs["other"] = adata.obs["cell_type"].astype(str).map(NAMED)
    made(adata, "other", unlabeled_category="other 1", layer=None)
    model.train(**QUICK)
    pd.testing.assert_frame_equal(model.predict(soft=True), expected.predict(soft=True), check_exact=True)


def test_propagate_holds_the_labels_that_the_model_was_made_of():
    adata, query = cells(), cells(60, seed=3)
    model = made(adata)
    model.train(**QUICK)
    expected = model.predict(query, propagate=True)
    adata.obs["other"] = adata.obs["cell_type"].astype(str).map(TURNED)
    made(adata, "other")
    np.testing.assert_array_equal(model.predict(query, propagate=True), expected)


def rename_type(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace({"type 0": "type zero"})


def swap_two(adata):
    labels = adata.obs["cell_type"].astype(str)
    labels.iloc[[0, 1]] = "type 0", "type 3"
    adata.obs["cell_type"] = labels


#: change: (what is changed, message where it is between setup and model, where it is between model and training)
CHANGED = {
    "a type": (rename_type, r"'cell_type'. was changed after setup_anndata", "changed after this model was made"),
    "two cells": (swap_two, "was changed after setup_anndata", r"labels? differs? \(first: cell .*setup_anndata"),
    "the column": (lambda a: a.obs.drop(columns="cell_type", inplace=True), "labels_key='cell_type'", None),
    "our column": (
        lambda a: a.obs.drop(columns="_celler_labels", inplace=True), "_celler_labels.*is gone; call Celler.setup", None
    ),
    "other genes": (lambda a: setattr(a, "var_names", a.var_names + "x"), None, "other genes than when this model"),
    "fewer genes": (lambda a: a._inplace_subset_var(np.arange(60)), None, r"20 of its 80 are gone \(first: 'gene 60'"),
    "row numbers": (lambda a: setattr(a, "var_names", [str(i) for i in range(80)]), "row numbers", "other genes than"),
    "fewer cells": (lambda a: a._inplace_subset_obs(np.arange(0, 300, 2)), None, None),
    "genes in another order": (lambda a: a._inplace_subset_var(np.arange(80)[::-1]), None, None),
    "cells in another order": (lambda a: a._inplace_subset_obs(np.arange(300)[::-1]), None, None),
    "names of cells": (lambda a: setattr(a, "obs_names", a.obs_names + "-1"), None, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_celler_of_an_anndata_that_changed_after_setup(case):
    change, message, _ = CHANGED[case]
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    change(adata)
    before = snapshot(adata)
    if message is None:
        assert Celler(adata, **SMALL).classes_.tolist() == sorted(TURNED)
    else:
        with pytest.raises((KeyError, ValueError), match=message):
            Celler(adata, **SMALL)
    assert_unchanged(adata, before)


@pytest.mark.parametrize("case", CHANGED)
def test_train_on_an_anndata_that_changed_after_the_model(case):
    change, _, message = CHANGED[case]
    adata = cells(depth=0.5)
    truth = adata.obs["cell_type"].copy()
    model = made(adata)
    change(adata)
    if message is None:
        model.train(**QUICK)
        names = adata.obs_names.str.removesuffix("-1")
        assert (model.predict(cells(depth=0.5)) == truth.to_numpy().astype(str)).mean() > 0.9
        assert (model.predict(adata) == truth[names].to_numpy().astype(str)).mean() > 0.9
    else:
        with pytest.raises(ValueError, match=message):
            model.train(**QUICK)


def test_train_after_other_cells_came():
    adata = cells()
    model = made(adata)
    adata._inplace_subset_obs(np.arange(200))
    adata.obs_names = adata.obs_names + "-1"
    with pytest.raises(ValueError, match="other cells than when this model was made of it: 200 of 200 are new"):
        model.train(**QUICK)


def test_pretrain_after_genes_changed():
    adata = cells()
    model = made(adata)
    adata.var_names = adata.var_names + "x"
    with pytest.raises(ValueError, match="other genes than when this model"):
        model.pretrain(max_epochs=1, show_progress=False)


@pytest.mark.parametrize(
    "copied",
    [lambda a: a.copy(), lambda a: a[:100].copy(), lambda a: a[:100], copy.deepcopy],
    ids=["copy", "copy of a part", "part", "deepcopy"],
)
def test_celler_of_a_copy_of_what_was_set_up(copied):
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(ValueError, match=r"a copy or a subset of the one that was set up.*setup_anndata\(adata"):
        Celler(copied(adata))


def test_celler_of_what_was_never_set_up():
    with pytest.raises(ValueError, match=r"this AnnData is not set up. Call Celler.setup_anndata\(adata"):
        Celler(cells())
    with pytest.raises(TypeError, match="adata=<DataFrame> was given, of type DataFrame; an AnnData is needed"):
        Celler(pd.DataFrame())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_train_a_copy_of_a_model(copied):
    adata = cells()
    model = copied(made(adata))
    adata.obs["cell_type"] = "changed"
    model.train(**QUICK)
    assert model.classes_.tolist() == sorted(TURNED)


def test_load_query_data_after_another_setup():
    trained, adata = made(cells()), cells(80, seed=3)
    trained.train(**QUICK)
    model = Celler.load_query_data(adata, trained, labels_key="cell_type")
    Celler.load_query_data(adata, trained, labels_key="cell_type")
    model.train(**QUICK)
    adata.var_names = adata.var_names + "x"
    model = Celler.load_query_data(cells(80, seed=3), trained, labels_key="cell_type")
    model.adata.var_names = model.adata.var_names + "x"
    with pytest.raises(ValueError, match="the genes of adata were changed after this model was made"):
        model.train(**QUICK)


def test_load_query_data_warns_of_labels_like_those_of_the_model():
    trained, adata = made(cells()), cells(80, seed=3)
    trained.train(**QUICK)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).str.title()
    with pytest.warns(UserWarning, match="'Type 0' and 'type 0'|'type 0' and 'Type 0'"):
        Celler.load_query_data(adata, trained, labels_key="cell_type", extend_labels=True)
