"""Bad input: the error names what was given, what was expected and what to do, and nothing is changed."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy import QUICK, SMALL, assert_unchanged, celler_warning, cells, fit, snapshot, trained

from celler.losses import HDM, RIDE
from celler.model import Celler


def with_value(value):
    def change(adata):
        adata.X.data[5] = value

    return change


def with_obs(name, values):
    def change(adata):
        adata.obs[name] = values(adata)

    return change


def scale(adata):
    adata.layers["counts"] = adata.X.copy()
    X = adata.X.toarray()
    adata.X = (X - X.mean(axis=0)) / (X.std(axis=0) + 1)


def keep_raw_only(adata):
    adata.raw = adata.copy()
    adata.X = -adata.X


def repeat_a_gene(adata):
    adata.var_names = [*adata.var_names[:-1], "gene 0"]


def no_change(adata):
    pass


def nested_in_two(adata):
    adata.obs["parent"] = np.where(np.arange(adata.n_obs) % 2, "p", "q")


def no_parent(adata):
    adata.obs["parent"] = adata.obs["parent_type"].astype(object)
    adata.obs.loc[adata.obs["cell_type"] == "type 2", "parent"] = np.nan


#: name: (what happens to the AnnData, arguments of setup_anndata, error, what its message says)
SETUP = {
    "no such column": (
        no_change, {"labels_key": "celltype"}, KeyError,
        ["labels_key='celltype' is not a column of adata.obs", "Closest: 'cell_type'", "'donor'"],
    ),
    "no such column, nothing like it": (
        no_change, {"labels_key": "zzz"}, KeyError, ["labels_key='zzz'", "Columns: ['cell_type'"],
    ),
    "no such batch column": (
        no_change, {"batch_key": "donors"}, KeyError, ["batch_key='donors'", "Closest: 'donor'"],
    ),
    "no such parent column": (
        no_change, {"parent_labels_key": "parent"}, KeyError,
        ["parent_labels_key='parent'", "Closest: 'parent_type'"],
    ),
    "no such gene column": (no_change, {"gene_key": "symbol"}, KeyError, ["gene_key='symbol'", "adata.var"]),
    "no such layer": (scale, {"layer": "count"}, KeyError, ["layer='count'", "adata.layers", "['counts']"]),
    "all missing": (
        with_obs("k", lambda adata: np.full(adata.n_obs, None)), {"labels_key": "k"}, ValueError,
        ["all 200 cells of adata.obs['k'] are unlabelled", "labels_key"],
    ),
    "all unlabelled": (
        with_obs("k", lambda adata: "?"), {"labels_key": "k", "unlabeled_category": "?"}, ValueError,
        ["all 200 cells", "'?'", "labels_key"],
    ),
    "float labels": (
        with_obs("k", lambda adata: np.arange(adata.n_obs) % 3 + 0.5), {"labels_key": "k"}, ValueError,
        ["adata.obs['k']", "decimal point", "0.5", "text, categories or integers", "astype"],
    ),
    "missing batch": (
        with_obs("k", lambda adata: [None, *["a"] * (adata.n_obs - 1)]), {"batch_key": "k"}, ValueError,
        ["batch_key='k' has 1 missing", "batch_key=None"],
    ),
    "two parents": (
        nested_in_two, {"parent_labels_key": "parent"}, ValueError,
        ["class 'type 0' the parents ['p', 'q']", "exactly one"],
    ),
    "no parent": (
        no_parent, {"parent_labels_key": "parent"}, ValueError, ["class 'type 2' no parent"],
    ),
    "negative": (with_value(-3), {}, ValueError, ["adata.X holds the value -3", "scaled", "Counts or log1p"]),
    "NaN": (with_value(np.nan), {}, ValueError, ["adata.X holds the value nan", "Counts or log1p"]),
    "infinite": (with_value(np.inf), {}, ValueError, ["adata.X holds the value inf", "Counts or log1p"]),
    "negative infinite": (with_value(-np.inf), {}, ValueError, ["the value -inf"]),
    "scaled, counts in a layer": (scale, {}, ValueError, ["adata.X", "scaled", "pass layer='counts'"]),
    "scaled, counts in raw": (keep_raw_only, {}, ValueError, ["scaled", "adata.raw.to_adata()"]),
    "duplicate genes": (
        repeat_a_gene, {}, ValueError, ["'gene 0'", "more than once", "var_names_make_unique"],
    ),
}  # fmt: skip


def assert_says(error, words):
    message = str(error.value)
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    assert "/celler/" not in message


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("case", SETUP)
def test_setup(case):
    change, arguments, kind, words = SETUP[case]
    adata = cells(200)
    change(adata)
    before = snapshot(adata)
    with pytest.raises(kind) as error:
        Celler.setup_anndata(adata, **({"labels_key": "cell_type"} | arguments))
    assert_says(error, words)
    assert_unchanged(adata, before)


def test_a_failed_setup_leaves_an_earlier_one_in_place():
    adata = cells(200)
    model = fit(adata, max_epochs=1)
    before = snapshot(adata)
    with pytest.raises(KeyError):
        Celler.setup_anndata(adata, "nothing")
    assert_unchanged(adata, before)
    assert len(model.predict()) == 200


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_anndata(shape):
    adata = ad.AnnData(sparse.csr_matrix(shape, dtype=np.float32))
    adata.obs["cell_type"] = pd.Categorical(["a"] * shape[0])
    words = f"adata has {shape[0]} cells and {shape[1]} genes; both are needed"
    with pytest.raises(ValueError, match=words):
        Celler.setup_anndata(adata, "cell_type")


def test_anndata_without_x():
    adata = ad.AnnData(obs=pd.DataFrame({"cell_type": ["a", "b"]}, index=["0", "1"]), shape=(2, 3))
    with pytest.raises(ValueError, match=r"adata\.X is None; .*layer="):
        Celler.setup_anndata(adata, "cell_type")


def test_a_view_is_not_registered():
    adata = cells(200)
    before = snapshot(adata)
    with pytest.raises(ValueError, match=r"view.*adata = adata\.copy\(\)"):
        Celler.setup_anndata(adata[:100], "cell_type")
    assert_unchanged(adata, before)


def test_an_anndata_that_was_not_set_up():
    with pytest.raises(ValueError, match="setup_anndata"):
        Celler(cells(200))
    with pytest.raises(AttributeError, match="does not support scvi-tools' setup_annbatch"):
        Celler.setup_annbatch(None)


# ---- training ----


def one_class(adata):
    adata.obs["cell_type"] = "only"


def empty_cells(adata):
    X = adata.X.toarray()
    X[[3, 8]] = 0
    adata.X = sparse.csr_matrix(X)


#: name: (what happens to the AnnData, arguments of train, what the message says)
TRAINING = {
    "one class": (one_class, {}, ["1 class", "['only']", "two", "labels_key"]),
    "cells without counts": (
        empty_cells, {}, ["2 labelled cells have no counts", "sc.pp.filter_cells(adata, min_counts=1)"],
    ),
    "no epochs": (no_change, {"max_epochs": 0}, ["max_epochs=0 was given", "at least 1"]),
    "negative epochs": (no_change, {"max_epochs": -2}, ["max_epochs=-2 was given"]),
    "batch_size": (no_change, {"batch_size": 0}, ["batch_size=0 was given", "at least 1"]),
    "learning_rate": (no_change, {"learning_rate": 0.0}, ["learning_rate=0.0", "above 0"]),
    "train_size": (no_change, {"train_size": 1.2}, ["train_size=1.2", "train_size <= 1"]),
    "sizes": (
        no_change, {"train_size": 0.9, "validation_size": 0.2},
        ["train_size=0.9", "validation_size=0.2", "at most 1"],
    ),
    "accelerator": (no_change, {"accelerator": "tpu"}, ["accelerator='tpu'", "'cpu'", "'auto'"]),
    "no such device": (no_change, {"accelerator": "cpu", "devices": [7]}, ["devices=[7]", "[0]"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAINING)
def test_training(case):
    change, arguments, words = TRAINING[case]
    adata = cells(200)
    change(adata)
    Celler.setup_anndata(adata, "cell_type")
    before, model = snapshot(adata), Celler(adata, **SMALL)
    with pytest.raises(ValueError) as error:
        model.train(**QUICK | arguments)
    assert_says(error, words)
    assert_unchanged(adata, before)
    assert not model.is_trained


#: arguments of train: what the message says
WRONG_KIND = {
    "replay": (5, ["replay=5 was given", "pass a celler.mining.Replay, or None"]),
    "loss": ("hdm", ["loss='hdm' was given", "pass one of celler.losses, such as HDM()"]),
}


@pytest.mark.parametrize("name", WRONG_KIND)
def test_training_with_an_argument_of_the_wrong_kind(name):
    value, words = WRONG_KIND[name]
    adata = cells(60)
    Celler.setup_anndata(adata, "cell_type")
    before, model = snapshot(adata), Celler(adata, **SMALL)
    with pytest.raises(TypeError) as error:
        model.train(**QUICK | {name: value})
    assert_says(error, words)
    assert_unchanged(adata, before)
    assert not model.is_trained


@pytest.mark.parametrize("loss", [RIDE(), HDM(base=RIDE())], ids=str)
def test_ride_of_one_expert(loss):
    adata = cells(60)
    Celler.setup_anndata(adata, "cell_type")
    model = Celler(adata, **SMALL, evidence=False)
    with pytest.raises(ValueError) as error:
        model.train(**QUICK | {"loss": loss})
    assert_says(error, ["logits of shape (1, ", "RIDE compares experts", "two of them or more"])
    assert not model.is_trained


def test_no_labels_at_all():
    adata = cells(200)
    Celler.setup_anndata(adata)
    with pytest.raises(ValueError, match=r"0 class.*two classes.*labels_key"):
        Celler(adata, **SMALL).train(**QUICK)


def test_a_class_with_one_cell_is_trained_on_with_a_warning():
    adata = cells(200)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.iloc[7, 0] = "single"
    Celler.setup_anndata(adata, "cell_type")
    model = Celler(adata, **SMALL)
    with pytest.warns(UserWarning, match=r"fewer than 3 labelled cells: \{'single': 1\}") as caught:
        model.train(**QUICK)
    assert celler_warning(caught).filename == __file__
    assert 7 in model.train_indices
    assert "single" in model.predict(soft=True).columns


def test_a_batch_size_larger_than_the_data_is_one_minibatch():
    whole, larger = (fit(cells(200), batch_size=size, train_size=1.0) for size in (200, 100_000))
    pd.testing.assert_frame_equal(larger.predict(soft=True), whole.predict(soft=True))


#: arguments of Celler: what the message says
NETWORK = {
    "encoder": ("cnn", ["encoder='cnn'", "'additive'", "'latent'", "'transformer'"]),
    "head": ("linear", ["head='linear'", "'mlp'", "'vgg'"]),
    "n_layers": (0, ["n_layers=0", "at least 1"]),
    "d_model": (0, ["d_model=0", "at least 1"]),
    "n_heads": (5, ["d_model=64", "n_heads=5", "take d_model=65"]),
    "dropout_rate": (1.0, ["dropout_rate=1.0", "< 1"]),
    "max_genes": (0, ["max_genes=0", "at least 1"]),
    "n_bins": (2, ["n_bins=2", "3 to 256"]),
    "precision": ("float16", ["precision='float16'", "'auto'", "'bfloat16'"]),
}


@pytest.mark.parametrize("name", NETWORK)
def test_network(name):
    value, words = NETWORK[name]
    adata = cells(200)
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(ValueError) as error:
        Celler(adata, **{name: value})
    assert_says(error, words)


def test_sizes_of_attention_ask_for_attention():
    adata = cells(200)
    Celler.setup_anndata(adata, "cell_type")
    for size in ({"n_layers": 2}, {"n_heads": 2}, {"n_latents": 4}, {"n_bins": 10}):
        assert Celler(adata, **size).module.config.encoder == "latent"
        with pytest.raises(ValueError) as error:
            Celler(adata, encoder="additive", **size)
        assert_says(error, [next(iter(size)), "'additive'", "no attention", "'latent'"])


# ---- prediction ----


@pytest.mark.parametrize(
    "method", ["predict", "annotate", "get_latent_representation"], ids=lambda name: name
)
def test_an_untrained_model_says_so(method):
    adata = cells(200)
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(RuntimeError, match=r"not trained; call train\(\) first"):
        getattr(Celler(adata, **SMALL), method)()


def rename_genes(adata):
    adata.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]


#: name: (what happens to the query, arguments of predict, error, what the message says)
PREDICTION = {
    "none of the genes": (
        rename_genes, {}, ValueError, ["only 0 of the model's 80 genes", "'gene 0'", "'ENSG0'", "var_names"],
    ),
    "duplicate genes": (repeat_a_gene, {}, ValueError, ["'gene 0'", "query", "more than once"]),
    "negative": (with_value(-3), {}, ValueError, ["holds the value -3", "scaled"]),
    "NaN": (with_value(np.nan), {}, ValueError, ["the value nan"]),
    "infinite": (with_value(np.inf), {}, ValueError, ["the value inf"]),
    "scaled": (scale, {}, ValueError, ["adata.X", "scaled", "pass layer='counts'"]),
    "level": (no_change, {"level": "family"}, ValueError, ["level='family'", "['class', 'parent']"]),
    "candidates": (
        no_change, {"candidates": ["type1"]}, ValueError, ["'type1'", "Closest: 'type 1'"],
    ),
    "no candidates": (no_change, {"candidates": []}, ValueError, ["candidates is empty", "None"]),
    "candidates as text": (no_change, {"candidates": "type 1"}, TypeError, ["'type 1'", "list"]),
    "threshold": (no_change, {"threshold": 50}, ValueError, ["threshold=50", "between 0 and 1"]),
    "batch_size": (no_change, {"batch_size": 0}, ValueError, ["batch_size=0", "at least 1"]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("case", PREDICTION)
def test_prediction(case):
    change, arguments, kind, words = PREDICTION[case]
    query = cells(60, seed=1)
    change(query)
    before = snapshot(query)
    with pytest.raises(kind) as error:
        trained().predict(query, **arguments)
    assert_says(error, words)
    assert_unchanged(query, before)


def test_arguments_are_checked_before_the_cells_are_read(monkeypatch):
    monkeypatch.setattr(
        "celler.model._forward.network_outputs", lambda *_, **__: pytest.fail("too late")
    )
    for arguments in ({"level": "x"}, {"threshold": 2}, {"candidates": ["x"]}):
        with pytest.raises(
            ValueError, match=re.escape(str(next(iter(arguments.values()))).strip("[]"))
        ):
            trained().predict(cells(60, seed=1), **arguments)


def test_a_bad_value_in_a_cell_that_was_not_probed_is_named(monkeypatch):
    monkeypatch.setattr("celler.data._expression.N_PROBED", 2)
    query = cells(60, seed=1)
    query.X = query.X.toarray()
    query.X[17, 4] = -1
    with pytest.raises(
        ValueError, match=rf"the value -1 \(cell '{query.obs_names[17]}'\); .*scaled"
    ):
        trained().predict(query)
    before = snapshot(query)
    with pytest.raises(ValueError, match="the value -1"):
        trained().annotate(query)
    assert_unchanged(query, before)


def test_a_file_name_is_no_anndata():
    with pytest.raises(TypeError, match="a str was given; an AnnData is needed"):
        trained().predict("query.h5ad")
    with pytest.raises(TypeError, match="AnnData"):
        Celler.setup_anndata("reference.h5ad", "cell_type")
