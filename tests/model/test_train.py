"""train: it learns, repeats itself to the bit, every option changes something, bad input is named."""

import inspect
import logging
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import threadpoolctl
import torch
from bad_input_cases import assert_says, no_change
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from toy import (
    QUICK,
    SMALL,
    assert_equal_frames,
    assert_unchanged,
    celler_warning,
    cells,
    fit,
    snapshot,
    truth,
)

import celler as cl
from celler.data._loader import TokenLoader
from celler.data._sources import InMemoryCells
from celler.losses import DEFAULT, HDM, RIDE, BalancedSoftmax, CrossEntropy, Focal, GInf
from celler.model import Celler
from celler.model._train import schedule


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
    "train_size": (no_change, {"train_size": 1.2}, ["train_size=1.2", "above 0 and at most 1"]),
    "sizes": (
        no_change, {"train_size": 0.9, "validation_size": 0.2},
        ["train_size=0.9", "validation_size=0.2", "at most 1"],
    ),
    "accelerator": (no_change, {"accelerator": "tpu"}, ["accelerator='tpu'", "'cpu'", "'auto'"]),
    "no such device": (no_change, {"accelerator": "cpu", "devices": [7]}, ["devices=[7]", "[0]"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAINING)
def test_train_with_bad_input(case):
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
    "replay": (5, ["replay=5 was given", "a celler.mining.Replay, or None"]),
    "loss": ("hdm", ["loss='hdm' was given", "one of celler.losses, such as HDM()"]),
}


@pytest.mark.parametrize("name", WRONG_KIND)
def test_train_with_an_argument_of_the_wrong_type(name):
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
def test_train_with_ride_and_one_expert(loss):
    adata = cells(60)
    Celler.setup_anndata(adata, "cell_type")
    model = Celler(adata, **SMALL, evidence=False)
    with pytest.raises(ValueError) as error:
        model.train(**QUICK | {"loss": loss})
    assert_says(error, ["logits of shape (1, ", "RIDE compares experts", "two of them or more"])
    assert not model.is_trained


def test_train_without_labels():
    adata = cells(200)
    Celler.setup_anndata(adata)
    with pytest.raises(ValueError, match=r"0 class.*two classes.*labels_key"):
        Celler(adata, **SMALL).train(**QUICK)


def test_train_with_a_class_of_one_cell():
    adata = cells(200)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.iloc[7, 0] = "single"
    Celler.setup_anndata(adata, "cell_type")
    model = Celler(adata, **SMALL)
    with pytest.warns(UserWarning, match=r"fewer than 3 labelled cells: 'single' \(1\)\.") as caught:
        model.train(**QUICK)
    assert celler_warning(caught).filename == __file__
    assert 7 in model.train_indices
    assert "single" in model.predict(soft=True).columns


def test_train_with_a_batch_size_larger_than_the_data():
    whole, larger = (fit(cells(200), batch_size=size, train_size=1.0) for size in (200, 100_000))
    pd.testing.assert_frame_equal(larger.predict(soft=True), whole.predict(soft=True))


def log_values(adata) -> np.ndarray:
    counts = adata.X.toarray()
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def macro_f1(adata, labels) -> float:
    return f1_score(truth(adata), labels, average="macro")


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: weights.clone() for name, weights in model.module.state_dict().items()}


def test_train_learns_as_well_as_logistic_regression():
    reference, query = cells(600), cells(600, seed=1)
    model = fit(reference, max_epochs=25, refit=None)
    baseline = LogisticRegression(class_weight="balanced", max_iter=1000)
    baseline.fit(log_values(reference), truth(reference))
    expected = macro_f1(query, baseline.predict(log_values(query)))
    actual = macro_f1(query, model.predict(query))
    assert 0.75 < expected < 0.98  # neither hopeless nor trivial
    assert actual > expected - 0.03


def test_train_on_labels_without_signal(rng):
    reference, query = cells(), cells(seed=1)
    reference.obs["cell_type"] = rng.permutation(truth(reference))
    assert macro_f1(query, fit(reference).predict(query)) < 0.45


@pytest.mark.parametrize(
    "network",
    [{"encoder": "transformer"}, {"head": "vgg"}, {"evidence": False}],
    ids=["transformer", "vgg", "no evidence"],
)
def test_train_of_the_papers_network(network):
    reference, query = cells(depth=0.6), cells(depth=0.6, seed=1)
    network = {"d_model": 32, "dropout_rate": 0.0} | network
    model = fit(reference, network=network, max_epochs=12, batch_size=32, learning_rate=1e-2)
    assert macro_f1(query, model.predict(query)) > 0.75


def scheduled(n_labelled, batch_size=None, batch_size_of_few=128):
    """Epochs and cells per minibatch."""
    labels = np.repeat([0, -1], [n_labelled, 100])
    source = InMemoryCells(sparse.csr_matrix((len(labels), 1)), labels)
    return schedule(source, None, batch_size, batch_size_of_few)


def test_schedule_falls_with_the_number_of_cells():
    n_epochs, batch_sizes = zip(*map(scheduled, (60, 5_000, 100_000, 1_000_000)), strict=True)
    assert n_epochs[0] >= n_epochs[1] > n_epochs[2] >= n_epochs[3] >= 1
    assert set(batch_sizes) == {128}
    history = fit(cells(60), max_epochs=None, early_stopping=False).history
    assert len(history) == n_epochs[0]


def test_schedule_of_attention_has_small_minibatches_up_to_10_000_cells():
    assert [scheduled(n, None, 32)[1] for n in (60, 10_000, 10_001)] == [32, 32, 128]


@pytest.fixture(scope="module")
def plain():
    """Probabilities with every option at its default, on cells and in the model of this file."""
    return fit(cells()).predict(cells(seed=1), soft=True)


NETWORK_OPTIONS = {
    "encoder": "transformer", "head": "vgg", "n_layers": 2, "d_model": 32, "n_heads": 2,
    "n_latents": 4, "dropout_rate": 0.1, "evidence": False, "max_genes": 5, "n_bins": 10,
    "precision": "bfloat16",
}  # fmt: skip


TRAIN_OPTIONS = {
    "masked_weight": 1.0,
    "max_epochs": 3, "train_size": 0.7, "validation_size": 0.05, "batch_size": 50,
    "loss": CrossEntropy(), "learning_rate": 1e-3, "replay": None, "refit": True, "seed": 1,
    "class_prior": "reference", "class_balance": 1.0, "n_members": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORK_OPTIONS)
def test_train_with_every_network_option(name, plain):
    model = fit(cells(), network={name: NETWORK_OPTIONS[name]})
    assert not model.predict(cells(seed=1), soft=True).equals(plain)


@pytest.mark.parametrize("name", TRAIN_OPTIONS)
def test_train_with_every_option(name, plain):
    model = fit(cells(), **{name: TRAIN_OPTIONS[name]})
    assert not model.predict(cells(seed=1), soft=True).equals(plain)


def test_train_options_are_all_tried():
    """A new option of the constructor or of train() needs a line above."""
    elsewhere = {
        "self",
        "adata",
        "registry",
        "accelerator",
        "devices",
        "early_stopping",
        "show_progress",
        "datamodule",
        "ckpt_path",
    }
    for function, options in ((Celler.__init__, NETWORK_OPTIONS), (Celler.train, TRAIN_OPTIONS)):
        assert set(inspect.signature(function).parameters) - elsewhere == set(options)


def test_train_with_and_without_progress(capsys):
    fit(cells(60), max_epochs=1)
    assert capsys.readouterr().err == ""
    fit(cells(60), max_epochs=1, show_progress=True)
    shown = capsys.readouterr().err
    assert "Training" in shown
    assert "macro_f1" in shown


LOSSES = [
    CrossEntropy(), Focal(), BalancedSoftmax(), GInf(), RIDE(), HDM(n_hard=3), HDM(base=RIDE()),
]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_train_with_every_loss_gives_another_model(loss, plain):
    assert not fit(cells(), loss=loss).predict(cells(seed=1), soft=True).equals(plain)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_train_with_every_loss_learns(loss):
    reference, query = cells(depth=0.6), cells(depth=0.6, seed=1)
    assert macro_f1(query, fit(reference, loss=loss, max_epochs=10).predict(query)) > 0.9


def test_train_with_a_given_loss_trains_the_evidence_table(plain):
    """As the default without its linear solution: see test_linear.py."""
    model = fit(cells(), loss=DEFAULT)
    assert all(weights.requires_grad for weights in model.module.evidence.parameters())
    assert not model.predict(cells(seed=1), soft=True).equals(plain)


def test_train_again_with_a_given_loss_trains_the_evidence_table():
    model = fit(cells())
    before = weights_of(model)["evidence.weight"]
    model.train(**QUICK, loss=DEFAULT)
    assert not torch.equal(weights_of(model)["evidence.weight"], before)


def test_train_with_a_callable_as_loss():
    def loss(logits, labels, class_counts, generator):
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    own, ours = (fit(cells(), loss=each).predict(soft=True) for each in (loss, CrossEntropy()))
    assert_equal_frames(own, ours)


def test_train_drops_genes_at_the_dropout_rate(monkeypatch):
    """In training; validation reads whole cells."""
    n_read, n_there = [], []

    tokenized = TokenLoader._tokenized

    def counting(self, blocks, number):
        found = tokenized(self, blocks, number)
        n_read.append((~found[0].flat.padding_mask).sum().item())
        n_there.append(sum(block.X[block.rows].nnz for block in blocks))
        return found

    monkeypatch.setattr(TokenLoader, "_tokenized", counting)
    for rate in (0.0, 0.6):
        n_read.clear(), n_there.clear()
        # The default reads all cells whole once more, for the evidence table.
        fit(cells(), network={"dropout_rate": rate}, max_epochs=1, batch_size=1000, loss=DEFAULT)
        (train, *validation), (all_genes, *held_out) = n_read, n_there
        assert train / all_genes == pytest.approx(1 - rate, abs=0.05)
        assert validation == held_out


def test_train_on_the_cpu(plain):
    model = fit(cells(), accelerator="cpu", devices=1)
    assert model.device == torch.device("cpu")


def test_train_with_the_same_seed(plain):
    again = fit(cells())
    query = cells(seed=1)
    assert_equal_frames(again.predict(query, soft=True), plain)
    np.testing.assert_array_equal(again.predict(query), plain.columns[plain.to_numpy().argmax(axis=1)])


def test_train_leaves_the_global_random_state(plain):
    np.random.seed(5)  # noqa: NPY002  the global state is the point
    torch.manual_seed(5)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    model = fit(cells())
    probabilities = model.predict(cells(seed=1), soft=True)
    after = np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
    np.testing.assert_array_equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert_equal_frames(probabilities, plain)


def test_train_again_continues():
    model = fit(cells(), train_size=1.0)
    before = weights_of(model)
    model.train(**QUICK | {"max_epochs": 1, "learning_rate": 1e-6, "train_size": 1.0})
    assert all(torch.allclose(now, before[name], atol=1e-4) for name, now in weights_of(model).items())
    assert any(not torch.equal(now, before[name]) for name, now in weights_of(model).items())


def test_train_that_fails_keeps_the_model():
    model = fit(cells())
    before = model.predict(cells(seed=1), soft=True)
    with pytest.raises(ValueError, match="max_epochs=0"):
        model.train(max_epochs=0)
    assert_equal_frames(model.predict(cells(seed=1), soft=True), before)


def test_train_ignores_the_batch():
    query = cells(seed=1)
    with_batch = fit(cells(), {"batch_key": "donor"}).predict(query, soft=True)
    assert_equal_frames(with_batch, fit(cells()).predict(query, soft=True))


@pytest.mark.parametrize(("level", "is_shown"), [(logging.INFO, True), (logging.ERROR, False)])
def test_train_follows_the_verbosity_of_scvi(level, is_shown, capfd):
    before = scvi.settings.verbosity
    scvi.settings.verbosity = level
    try:
        fit(cells(), max_epochs=1, show_progress=True)
    finally:
        scvi.settings.verbosity = before
    assert ("Training" in capfd.readouterr().err) == is_shown


@pytest.mark.parametrize("missing", ["Unknown", np.nan, None, "not yet"])
def test_train_with_unlabelled_cells(missing):
    adata = cells()
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[::5] = missing
    adata.obs["cell_type"] = labels
    category = "not yet" if missing == "not yet" else "Unknown"
    model = fit(adata, {"unlabeled_category": category}, max_epochs=8)
    used = np.r_[model.train_indices, model.validation_indices]
    np.testing.assert_array_equal(np.sort(used), np.flatnonzero(np.arange(300) % 5))
    np.testing.assert_array_equal(model.classes_, ["type 0", "type 1", "type 2", "type 3"])
    unlabelled = adata[::5]
    assert f1_score(truth(cells())[::5], model.predict(unlabelled), average="micro") > 0.7


def test_train_ignores_unlabelled_cells():
    """The model is that of the labelled cells alone, to the bit."""
    adata = cells()
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[200:] = np.nan
    adata.obs["cell_type"] = labels
    alone, query = cells()[:200].copy(), cells(seed=1)
    assert_equal_frames(fit(adata).predict(query, soft=True), fit(alone).predict(query, soft=True))


def test_train_with_empty_unlabelled_cells():
    adata = cells()
    adata.X = sparse.diags_array(np.arange(adata.n_obs) > 0, dtype=np.float32).tocsr() @ adata.X
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.iloc[0, 0] = np.nan
    fit(adata, max_epochs=1)


@pytest.fixture(scope="module")
def model() -> cl.model.Celler:
    return fit(cells(), {"batch_key": "donor"})


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


def soft_of(model, query):
    return model.predict(query, soft=True)


def test_train_with_a_class_of_one_cell_stays_finite(query):
    reference = cells()
    labels = reference.obs["cell_type"].astype(str).to_numpy()
    labels[0] = "single"
    reference.obs["cell_type"] = labels
    with pytest.warns(UserWarning, match="fewer than 3 labelled cells"):
        model = fit(reference)
    assert np.isfinite(soft_of(model, query)).all(axis=None)
    assert np.isfinite(model.history["train_loss"]).all()


def test_train_in_bfloat16(query):
    model = fit(cells(), network={"precision": "bfloat16"})
    assert np.isfinite(model.history["train_loss"]).all()
    assert np.mean(model.predict(query) == truth(query)) > 0.8


def test_train_validates_by_default(model):
    assert model.history["validation_macro_f1"].notna().all()
    assert "elbo_validation" not in model.history


@pytest.mark.filterwarnings("ignore:classes with fewer than 3")
def test_train_with_one_labelled_cell_of_each_class():
    """No cell is left to choose the class prior by: SciPy took the mean of nothing."""
    adata = cells(120)
    labels = adata.obs["cell_type"].astype(str)
    adata.obs["cell_type"] = labels.where(~labels.duplicated(), "Unknown")
    model = fit(adata, max_epochs=1)
    assert (model.class_counts_ == 1).all()
    assert len(set(model.predict())) > 1


@pytest.mark.parametrize(("name", "where"), [("train", "fit_network"), ("predict", "forward")])
def test_products_of_matrices_have_one_thread(monkeypatch, name, where):
    """With more they fight with torch's threads for the cores: training took three times as long."""
    module = sys.modules[f"celler.model._{name}"]
    inner, found = getattr(module, where), []

    def spied(*args, **kwargs):
        libraries = threadpoolctl.threadpool_info()
        found.extend(each["num_threads"] for each in libraries if each["user_api"] == "blas")
        return inner(*args, **kwargs)

    adata = cells(60)
    Celler.setup_anndata(adata, labels_key="cell_type")
    model = Celler(adata, **SMALL)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        model.train(**QUICK)
        monkeypatch.setattr(module, where, spied)
        getattr(model, name)(**(QUICK if name == "train" else {}))
    assert set(found) == {1}
