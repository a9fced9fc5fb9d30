"""Training: it learns, stops, repeats itself to the bit, and every option changes something."""

import inspect
import logging

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from toy import QUICK, SMALL, assert_equal_frames, cells, fit, trained, truth

from celler.data._loader import TokenLoader
from celler.data._sources import InMemoryCells
from celler.losses import DEFAULT, HDM, RIDE, BalancedSoftmax, CrossEntropy, Focal, GInf
from celler.model import Celler
from celler.model._train import schedule


def log_values(adata) -> np.ndarray:
    counts = adata.X.toarray()
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def macro_f1(adata, labels) -> float:
    return f1_score(truth(adata), labels, average="macro")


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: weights.clone() for name, weights in model.module.state_dict().items()}


# ---- learning ----


def test_learns_as_well_as_logistic_regression():
    reference, query = cells(600), cells(600, seed=1)
    model = fit(reference, max_epochs=25, refit=None)
    baseline = LogisticRegression(class_weight="balanced", max_iter=1000)
    baseline.fit(log_values(reference), truth(reference))
    expected = macro_f1(query, baseline.predict(log_values(query)))
    actual = macro_f1(query, model.predict(query))
    assert 0.75 < expected < 0.98  # neither hopeless nor trivial
    assert actual > expected - 0.03


def test_labels_without_signal_are_not_learned(rng):
    reference, query = cells(), cells(seed=1)
    reference.obs["cell_type"] = rng.permutation(truth(reference))
    assert macro_f1(query, fit(reference).predict(query)) < 0.45


@pytest.mark.parametrize(
    "network",
    [{"encoder": "transformer"}, {"head": "vgg"}, {"evidence": False}],
    ids=["transformer", "vgg", "no evidence"],
)
def test_the_papers_parts_learn_too(network):
    reference, query = cells(depth=0.6), cells(depth=0.6, seed=1)
    network = {"d_model": 32, "dropout_rate": 0.0} | network
    model = fit(reference, network=network, max_epochs=12, batch_size=32, learning_rate=1e-2)
    assert macro_f1(query, model.predict(query)) > 0.75


def test_the_linear_expert_is_left_out_when_told():
    names = set(fit(cells(), network={"evidence": False}, max_epochs=1).module.state_dict())
    assert not any("evidence" in name for name in names)
    assert any("evidence" in name for name in trained().module.state_dict())


# ---- curves, split and counts ----


def test_history_has_one_row_per_epoch():
    history = fit(cells(), max_epochs=4, early_stopping=False).history
    assert list(history.index) == [0, 1, 2, 3]
    assert history.index.name == "epoch"
    assert {"train_loss", "validation_loss", "validation_macro_f1"} <= set(history.columns)
    assert np.isfinite(history.to_numpy()).all()
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    assert history["validation_macro_f1"].between(0, 1).all()


def test_history_is_none_before_training():
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    model = Celler(adata)
    assert model.history is None
    assert not model.is_trained


def test_without_validation_cells_there_are_no_validation_curves():
    model = fit(cells(), train_size=1.0, replay=None)
    assert list(model.history.columns) == ["train_loss"]
    assert len(model.validation_indices) == 0
    assert len(model.train_indices) == 300


ASTRAY = {
    "network": {"encoder": "latent"}, "max_epochs": 40, "learning_rate": 100.0, "batch_size": 1000,
    "loss": HDM(), "replay": None,
}  # fmt: skip


@pytest.mark.parametrize(("early_stopping", "n_epochs"), [(True, 21), (False, 40)])
def test_early_stopping_after_half_of_the_epochs(monkeypatch, early_stopping, n_epochs):
    scores = iter([0.9] + [0.1] * 40)
    monkeypatch.setattr(
        "celler.training._plan.macro_f1_with_error",
        lambda *_: (torch.tensor(next(scores)), torch.tensor(0.01)),
    )
    history = fit(cells(60), max_epochs=40, early_stopping=early_stopping).history
    assert len(history) == n_epochs


def test_the_weights_are_those_of_the_last_good_epoch():
    adata = cells()
    model = fit(adata, **ASTRAY)
    score = model.history["validation_macro_f1"]
    is_good = score >= score.cummax() - model.history["validation_macro_f1_error"]
    held_out = adata[model.validation_indices]
    expected = score[np.flatnonzero(is_good)[-1]]
    assert macro_f1(held_out, model.predict(held_out)) == pytest.approx(expected)
    assert expected > score.iloc[-1]


@pytest.mark.parametrize("n_steps", [1, 2, 3, 10, 20])
def test_any_number_of_steps(n_steps):
    model = fit(cells(60), max_epochs=n_steps, batch_size=1000, train_size=1.0)
    assert len(model.history) == n_steps


def test_the_split_is_disjoint_stratified_and_complete():
    adata = cells()
    model = fit(adata, train_size=0.8)
    train, validation = model.train_indices, model.validation_indices
    np.testing.assert_array_equal(np.sort(np.r_[train, validation]), np.arange(300))
    sizes, held_out = (
        pd.Series(truth(adata)[rows]).value_counts() for rows in (slice(None), validation)
    )
    for name, size in sizes.items():
        assert abs(held_out[name] - 0.2 * size) <= 0.5


def test_train_and_validation_sizes_leave_the_rest_out():
    model = fit(cells(), train_size=0.5, validation_size=0.2)
    assert abs(len(model.train_indices) - 150) <= 2
    assert abs(len(model.validation_indices) - 60) <= 2


def test_class_counts_are_those_of_the_training_cells():
    adata = cells()
    model = fit(adata)
    expected = pd.Series(truth(adata)[model.train_indices]).value_counts().sort_index()
    np.testing.assert_array_equal(model.class_counts_, expected)
    np.testing.assert_array_equal(model.classes_, expected.index)


def test_refit_trains_on_all_labelled_cells():
    adata = cells()
    model = fit(adata, refit=True)
    np.testing.assert_array_equal(model.train_indices, np.arange(300))
    assert model.class_counts_.sum() == 300
    assert 0 < len(model.validation_indices) < 60
    assert not model.predict(soft=True).equals(fit(cells(), refit=False).predict(soft=True))


def test_the_number_of_epochs_falls_with_the_number_of_labelled_cells():
    def epochs(n_labelled):
        labels = np.repeat([0, -1], [n_labelled, 100])
        return schedule(InMemoryCells(sparse.csr_matrix((len(labels), 1)), labels), None, 32)[0]

    assert epochs(60) >= epochs(5_000) > epochs(100_000) >= epochs(1_000_000) >= 1
    history = fit(cells(60), max_epochs=None, early_stopping=False).history
    assert len(history) == epochs(60)


# ---- no dead options ----


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
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORK_OPTIONS)
def test_every_network_option_changes_something(name, plain):
    model = fit(cells(), network={name: NETWORK_OPTIONS[name]})
    assert not model.predict(cells(seed=1), soft=True).equals(plain)


@pytest.mark.parametrize("name", TRAIN_OPTIONS)
def test_every_training_option_changes_something(name, plain):
    model = fit(cells(), **{name: TRAIN_OPTIONS[name]})
    assert not model.predict(cells(seed=1), soft=True).equals(plain)


def test_every_option_has_been_tried():
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


def test_progress_is_shown_unless_told_not_to(capsys):
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
def test_every_loss_gives_another_model(loss, plain):
    assert not fit(cells(), loss=loss).predict(cells(seed=1), soft=True).equals(plain)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_every_loss_learns(loss):
    reference, query = cells(depth=0.6), cells(depth=0.6, seed=1)
    assert macro_f1(query, fit(reference, loss=loss, max_epochs=10).predict(query)) > 0.9


def test_the_default_loss_is_hdm(plain):
    assert_equal_frames(fit(cells(), loss=DEFAULT).predict(cells(seed=1), soft=True), plain)


def test_a_callable_may_be_the_loss():
    def loss(logits, labels, class_counts, generator):
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    own, ours = (fit(cells(), loss=each).predict(soft=True) for each in (loss, CrossEntropy()))
    assert_equal_frames(own, ours)


def test_the_dropout_rate_is_also_that_of_the_genes(monkeypatch):
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
        fit(cells(), network={"dropout_rate": rate}, max_epochs=1, batch_size=1000)
        (train, *validation), (all_genes, *held_out) = n_read, n_there
        assert train / all_genes == pytest.approx(1 - rate, abs=0.05)
        assert validation == held_out


def test_cpu_can_be_asked_for(plain):
    model = fit(cells(), accelerator="cpu", devices=1)
    assert model.device == torch.device("cpu")


# ---- seeds and random state ----


def test_the_same_seed_gives_the_same_model_to_the_bit(plain):
    again = fit(cells())
    query = cells(seed=1)
    assert_equal_frames(again.predict(query, soft=True), plain)
    np.testing.assert_array_equal(
        again.predict(query), plain.columns[plain.to_numpy().argmax(axis=1)]
    )


def test_the_global_random_state_neither_matters_nor_changes(plain):
    np.random.seed(5)  # noqa: NPY002  the global state is the point
    torch.manual_seed(5)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    model = fit(cells())
    probabilities = model.predict(cells(seed=1), soft=True)
    after = np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
    np.testing.assert_array_equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert_equal_frames(probabilities, plain)


def test_predicting_twice_gives_the_same():
    query = cells(seed=1)
    assert_equal_frames(trained().predict(query, soft=True), trained().predict(query, soft=True))


def test_training_again_continues():
    model = fit(cells(), train_size=1.0)
    before = weights_of(model)
    model.train(**QUICK | {"max_epochs": 1, "learning_rate": 1e-6, "train_size": 1.0})
    assert all(
        torch.allclose(now, before[name], atol=1e-4) for name, now in weights_of(model).items()
    )
    assert any(not torch.equal(now, before[name]) for name, now in weights_of(model).items())


def test_a_failed_training_leaves_a_trained_model_as_it_was():
    model = fit(cells())
    before = model.predict(cells(seed=1), soft=True)
    with pytest.raises(ValueError, match="max_epochs=0"):
        model.train(max_epochs=0)
    assert_equal_frames(model.predict(cells(seed=1), soft=True), before)


# ---- what it is not told, and what it says ----


def test_the_classifier_does_not_see_the_batch():
    query = cells(seed=1)
    with_batch = fit(cells(), {"batch_key": "donor"}).predict(query, soft=True)
    assert_equal_frames(with_batch, fit(cells()).predict(query, soft=True))


def test_repr_says_what_it_is_what_it_learned_from_and_what_to_do_next():
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    model = Celler(adata, **SMALL)
    assert repr(model).startswith("Celler, not trained: 4 classes, 80 genes")
    assert "model.train()" in repr(model)
    model.train(**QUICK, seed=3)
    text = repr(model)
    sizes = adata.obs["cell_type"].iloc[model.train_indices_].value_counts()
    assert text.startswith("Celler, trained: 4 classes, 80 genes")
    assert f"{sizes.sum()} labelled, {sizes.max()} to {sizes.min()} a class" in text
    assert "5 epochs, seed 3" in text
    labels = np.asarray(adata.obs["cell_type"].iloc[model.validation_indices_], dtype=str)
    predicted = model.predict(indices=model.validation_indices_)
    score = f1_score(labels, predicted, average="macro")
    assert f"macro-F1 {score:.3f} on {len(labels)} held-out cells" in text
    assert "model.predict(adata)" in text
    assert model.summary_string.startswith(text)


def test_without_validation_the_repr_has_no_score():
    assert "held-out" not in repr(fit(cells(), train_size=1.0, max_epochs=1))


@pytest.mark.parametrize(("level", "is_shown"), [(logging.INFO, True), (logging.ERROR, False)])
def test_the_progress_bar_follows_the_verbosity_of_scvi(level, is_shown, capfd):
    before = scvi.settings.verbosity
    scvi.settings.verbosity = level
    try:
        fit(cells(), max_epochs=1, show_progress=True)
    finally:
        scvi.settings.verbosity = before
    assert ("Training" in capfd.readouterr().err) == is_shown
