"""Training: metrics against scikit-learn, the choice of weights on scripted scores, and fit on toy cells."""

import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loss_cases import EVERY, NOISY, Problem, expected
from sklearn.metrics import f1_score, recall_score
from torch import nn
from torch.utils.data import DataLoader

from celler.data._loader import Minibatch
from celler.data._tokenizer import TokenBatch, Tokenizer
from celler.datasets import toy_long_tail
from celler.losses import HDM, RIDE, CrossEntropy
from celler.mining import HardCells, Replay
from celler.network._config import NetworkConfig
from celler.network._network import build_network
from celler.training import _plan as training
from celler.training._callbacks import BestWeights
from celler.training._plan import TrainingConfig, TrainingPlan, confusion_of, macro_f1_with_error
from celler.training._run import fit, validation_logits

N_GENES, N_CLASSES = 40, 4


@pytest.fixture(scope="module")
def cells():
    """Minibatches of 80 cells of four types, 240 for training and 160 for validation."""
    adata = toy_long_tail(400, N_GENES, N_CLASSES, imbalance=4, seed=0)
    labels = adata.obs["cell_type"].cat.codes.to_numpy().astype(np.int64)
    minibatches = []
    for start in range(0, 400, 80):
        tokens = Tokenizer()(adata.X[start : start + 80], np.arange(N_GENES, dtype=np.int32))
        index = torch.arange(start, start + 80)
        minibatches.append(Minibatch(tokens, torch.as_tensor(labels)[index], index))
    return loader(minibatches[:3]), loader(minibatches[3:]), np.bincount(labels[:240])


def loader(minibatches) -> DataLoader:
    """A plain list would mean several loaders to Lightning."""
    return DataLoader(minibatches, batch_size=None)


def network(seed=0, **options):
    sizes = {"n_genes": N_GENES, "n_classes": N_CLASSES, "d_model": 8, "n_heads": 2, "n_latents": 2}
    return build_network(NetworkConfig(**sizes | options), seed)


def config(**options) -> TrainingConfig:
    return TrainingConfig(**{"max_epochs": 3, "batch_size": 80, "show_progress": False} | options)


@pytest.mark.parametrize("embedding", [None, torch.zeros(80, 2)])
def test_a_minibatch_goes_to_a_device_with_all_its_parts(cells, embedding):
    moved = next(iter(cells[0]))._replace(embedding=embedding).to(torch.device("meta"))
    parts = [*moved.tokens, moved.labels, moved.source_index]
    parts += [] if moved.embedding is None else [moved.embedding]
    assert {part.device.type for part in parts} == {"meta"}
    assert (moved.embedding is None) == (embedding is None)
    assert isinstance(moved.tokens, TokenBatch)


def assert_same_weights(one, other):
    for name, weights in one.items():
        assert torch.equal(weights, other[name]), name


# ---- macro-F1 and its error ----


def test_macro_f1_is_sklearns_over_the_classes_present(rng):
    """Seven classes, of which two have no cell; one of them is predicted all the same."""
    labels = rng.choice([0, 1, 2, 4, 5], size=60)
    logits = rng.normal(size=(60, 7))
    logits[np.arange(60), labels] += 1.5
    prediction, present = logits.argmax(1), np.unique(labels)
    macro_f1, error = macro_f1_with_error(
        confusion_of(torch.as_tensor(logits), torch.as_tensor(labels))
    )
    options = {"labels": present, "average": None, "zero_division": 0}
    assert macro_f1.item() == pytest.approx(f1_score(labels, prediction, **options).mean())
    support = np.array([(labels == j).sum() for j in present])
    recall = (recall_score(labels, prediction, **options) * support + 1) / (support + 2)
    variance = recall * (1 - recall) / (support + 2)
    assert error.item() == pytest.approx(np.sqrt(variance.sum()) / len(present))


def test_one_right_cell_is_not_certain():
    """One cell a class, both right: (1 + 1) / (1 + 2) each, variance 2/27, error √(4/27) / 2."""
    macro_f1, error = macro_f1_with_error(torch.eye(2))
    assert macro_f1.item() == 1
    assert error.item() == pytest.approx(np.sqrt(4 / 27) / 2)


# ---- which weights are kept ----


@pytest.mark.parametrize(
    ("scores", "errors", "kept"),
    [
        ([0.5, 0.8, 0.7], [0.0, 0.0, 0.0], 1),
        ([0.5, 0.8, 0.8], [0.0, 0.0, 0.0], 2),
        ([0.5, 0.8, 0.76, 0.74], [0.05] * 4, 2),
        ([0.9, 0.2, 0.3, 0.1], [0.05] * 4, 0),
        ([0.5, 0.9, 0.8, 0.6], [0.01, 0.01, 0.2, 0.2], 2),
        ([0.0, 0.0], [0.0, 0.0], 1),
    ],
)
def test_the_latest_epoch_within_an_error_of_the_best(scores, errors, kept):
    model = nn.Linear(1, 1)
    best = BestWeights(model, patience=None)
    for epoch, (score, error) in enumerate(zip(scores, errors, strict=True)):
        nn.init.constant_(model.weight, epoch)
        metrics = {"validation_macro_f1": score, "validation_macro_f1_error": error}
        best.on_validation_end(trainer_at(epoch, metrics), None)
    assert best.state["weight"].item() == kept
    assert best.n_epochs == kept + 1


def trainer_at(epoch, metrics, should_stop=False) -> SimpleNamespace:
    return SimpleNamespace(callback_metrics=metrics, current_epoch=epoch, should_stop=should_stop)


def test_best_weights_of_a_loss_are_those_of_the_lowest():
    model = nn.Linear(1, 1)
    best, stopped = BestWeights(model, 2, "validation_loss"), []
    for epoch, loss in enumerate([0.9, 0.5, float("nan"), 0.6, 0.4]):
        nn.init.constant_(model.weight, epoch)
        trainer = trainer_at(epoch, {"validation_loss": loss})
        best.on_validation_end(trainer, None)
        stopped.append(trainer.should_stop)
        if epoch == 3:
            assert best.state["weight"].item() == 1
    assert best.state["weight"].item() == 4
    assert stopped == [False, False, False, True, False]


@pytest.mark.parametrize("monitor", ["validation_macro_f1", "validation_loss"])
def test_best_weights_leaves_the_stop_that_another_callback_asked_for(monitor):
    trainer = trainer_at(0, {monitor: 0.5}, should_stop=True)
    BestWeights(nn.Linear(1, 1), 10, monitor).on_validation_end(trainer, None)
    assert trainer.should_stop


def script(monkeypatch, model, scores) -> list[dict[str, torch.Tensor]]:
    """Let validation report ``scores`` one by one; returns the weights it was asked about."""
    seen = []

    def scripted(confusion):
        seen.append({name: w.clone() for name, w in model.state_dict().items()})
        return torch.tensor(scores[len(seen) - 1]), torch.tensor(0.0)

    monkeypatch.setattr(training, "macro_f1_with_error", scripted)
    return seen


def test_fit_leaves_the_weights_of_the_best_epoch(cells, monkeypatch):
    model = network()
    seen = script(monkeypatch, model, [0.1, 0.6, 0.3, 0.2])
    history = fit(model, *cells, config(max_epochs=4))
    assert_same_weights(model.state_dict(), seen[1])
    assert not torch.equal(seen[1]["encoder.gene"], seen[3]["encoder.gene"])
    assert history["validation_macro_f1"] == pytest.approx([0.1, 0.6, 0.3, 0.2])


@pytest.mark.parametrize(
    ("options", "n_epochs"),
    [
        ({"max_epochs": 15}, 12),  # best in the second epoch, ten more without progress
        ({"max_epochs": 30}, 17),  # half of what was planned, when that is more
        ({"max_epochs": 15, "early_stopping": False}, 15),
    ],
)
def test_early_stopping_after_epochs_without_progress(cells, monkeypatch, options, n_epochs):
    model = network()
    seen = script(monkeypatch, model, [0.5, 0.6] + [0.55] * 28)
    history = fit(model, *cells, config(**options))
    assert len(seen) == n_epochs
    assert {len(curve) for curve in history.values()} == {n_epochs}
    assert_same_weights(model.state_dict(), seen[1])


# ---- the step ----


def plan_of(loss, cells, monkeypatch, hard_cells=None, **options) -> TrainingPlan:
    """A plan for a network whose two experts differ, out of the hands of a trainer."""
    model = network().eval()
    nn.init.normal_(model.evidence.weight, generator=torch.Generator().manual_seed(1))
    plan = TrainingPlan(model, cells[2], config(loss=loss, seed=7, **options), hard_cells)
    monkeypatch.setattr(plan, "log", lambda *_, **__: None)
    return plan


@pytest.mark.parametrize("loss", EVERY, ids=str)
def test_a_step_is_the_sum_of_the_experts_losses_and_the_l2_term(cells, loss, monkeypatch):
    """Noise is drawn for all experts at once, so that each has its own."""
    minibatch = next(iter(cells[0]))
    plan = plan_of(loss, cells, monkeypatch, evidence_l2=3.0)
    logits = plan.network(*minibatch.tokens).expert_logits.detach().double().numpy()
    labels, n_experts = minibatch.labels.numpy(), len(logits)
    noise = torch.randn(n_experts * 80, 4, generator=torch.Generator().manual_seed(7)).numpy()
    if loss.joins_experts:
        wanted = expected(loss, Problem(logits, labels, cells[2]))
    else:
        wanted = sum(
            expected(loss, Problem(logits[[e]], labels, cells[2]), noise[80 * e : 80 * (e + 1)])
            for e in range(n_experts)
        )
    table = plan.network.evidence.weight.detach().numpy().astype(float)
    penalty = 3.0 * (table**2).sum() / (2 * cells[2].sum())
    actual = plan.training_step(minibatch, 0).item()
    assert actual == pytest.approx(wanted.mean() + penalty, rel=1e-5)
    again = plan.training_step(minibatch, 0).item()
    assert (again == actual) == (loss not in NOISY), "each step draws anew"


def test_a_callable_is_a_loss_too(cells, monkeypatch):
    """It is called once, with the logits of one expert after the other."""
    shapes = []

    def loss(logits, labels, class_counts, generator):
        shapes.append((*logits.shape, *labels.shape, *class_counts.shape))
        return CrossEntropy()(logits, labels, class_counts)

    minibatch = next(iter(cells[0]))
    values = [
        plan_of(each, cells, monkeypatch).training_step(minibatch, 0)
        for each in (loss, CrossEntropy())
    ]
    assert torch.equal(*values)
    assert shapes == [(160, 4, 160, 4)]


def test_a_step_shows_the_cells_to_the_replay(cells, monkeypatch):
    """The index in the source, the labels and the logits that the network predicts with."""
    minibatch = list(cells[0])[1]
    hard = HardCells(Replay(n_per_class=100, max_share=1.0), cells[2])
    plan = plan_of(CrossEntropy(), cells, monkeypatch, hard)
    plan.training_step(minibatch, 0)
    hard.choose()
    logits = plan.network(*minibatch.tokens).logits
    prediction, labels = logits.argmax(1).numpy(), minibatch.labels.numpy()
    is_wrong = prediction != labels
    assert 0 < is_wrong.sum() < 80
    found = np.sort(hard.found, order="index")
    np.testing.assert_array_equal(found["index"], 80 + np.flatnonzero(is_wrong))
    np.testing.assert_array_equal(found["label"], labels[is_wrong])
    np.testing.assert_array_equal(found["prediction"], prediction[is_wrong])
    confidence = logits.softmax(1).amax(1).detach().numpy()[is_wrong]
    np.testing.assert_allclose(np.exp(found["log_probability"]), confidence, rtol=1e-5)


# ---- fit ----


@pytest.mark.parametrize("options", [{}, {"encoder": "transformer", "head": "vgg"}], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fit_learns_separable_cells(cells, precision, options):
    model = network(**options)
    curves = fit(model, *cells, config(max_epochs=12, learning_rate=0.02, precision=precision))
    logits, labels = validation_logits(model, cells[1], "float32")
    assert f1_score(labels, logits.argmax(1), average="macro") > 0.85
    assert curves["train_loss"][-1] < 0.8 * curves["train_loss"][0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert {len(curve) for curve in curves.values()} == {12}
    assert set(curves) >= {"train_loss", "validation_loss", "validation_macro_f1"}


def test_the_seed_makes_the_weights_and_global_states_are_left_alone(cells):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda")
    levels = [logging.getLogger(name).level for name in names]
    weights, all_curves = [], []
    for seed in (1, 1, 2):
        model = network()
        all_curves.append(fit(model, *cells, config(seed=seed)))
        weights.append(model.state_dict())
        torch.rand(1)  # whatever the user draws between two trainings does not matter
        states = (torch.get_rng_state(), *states[1:])
        fit(network(), *cells, config(max_epochs=1))
        assert torch.equal(torch.get_rng_state(), states[0])
    assert_same_weights(weights[0], weights[1])
    assert all_curves[0] == all_curves[1]
    assert not torch.equal(weights[0]["encoder.gene"], weights[2]["encoder.gene"])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]
    assert [logging.getLogger(name).level for name in names] == levels


def test_without_validation_the_last_weights_stay(cells):
    train, _, counts = cells
    model = network()
    history = fit(model, train, None, counts, config())
    assert list(history) == ["train_loss"]
    assert len(history["train_loss"]) == 3
    assert not torch.equal(model.encoder.gene, network().encoder.gene)


def test_the_progress_bar_shows_epoch_and_macro_f1(cells, capsys):
    curves = fit(network(), *cells, config(show_progress=True), title="Refitting")
    shown = capsys.readouterr()
    last = shown.err.split("\r")[-1]
    assert "Refitting: 100%" in last
    assert "9/9" in last
    assert "epoch=3/3" in last
    assert f"macro_f1={curves['validation_macro_f1'][-1]:.3f}" in last
    assert shown.out == ""
    fit(network(), *cells, config())
    assert capsys.readouterr() == ("", "")


def test_the_progress_bar_is_closed_when_training_fails(cells, capsys):
    minibatch = next(iter(cells[0]))
    broken = loader([minibatch._replace(labels=minibatch.labels + 100)])
    with pytest.raises((IndexError, RuntimeError)):
        fit(network(), broken, None, cells[2], config(show_progress=True))
    assert capsys.readouterr().err.endswith("\n")


def test_validation_logits_are_those_of_each_minibatch(cells):
    model = network().eval()
    logits, labels = validation_logits(model, cells[1], "float32")
    wanted = [model(*part.tokens).logits.detach().numpy() for part in cells[1]]
    np.testing.assert_array_equal(logits, np.concatenate(wanted))
    np.testing.assert_array_equal(labels, torch.cat([part.labels for part in cells[1]]))
    coarse, _ = validation_logits(model, cells[1], "bfloat16")
    assert coarse.dtype == np.float32
    np.testing.assert_allclose(coarse, logits, atol=0.1)
    assert not np.array_equal(coarse, logits)


def test_curves_of_the_replay_are_those_of_the_epoch_in_which_it_happened(cells, monkeypatch):
    """The first epoch replays nothing, each later one what was chosen at the end of the one before."""
    hard, chosen = HardCells(Replay(n_per_class=5, max_share=0.1), cells[2]), []
    choose = HardCells.choose

    def noting(self):
        choose(self)
        chosen.append(len(self.replayed))

    monkeypatch.setattr(HardCells, "choose", noting)
    curves = fit(network(), *cells, config(), hard_cells=hard)
    shares = [0, *(n / 240 for n in chosen[:-1])]
    assert curves["replayed_share"] == pytest.approx(shares)
    assert max(shares) > 0
    by_class = np.array([curves[f"replayed_{j}"] for j in range(N_CLASSES)])
    np.testing.assert_allclose(by_class.sum(axis=0) / 240, shares)
    assert not any("replayed" in name for name in fit(network(), *cells, config()))


@pytest.mark.parametrize("loss", [RIDE(), HDM(base=RIDE())], ids=str)
def test_ride_needs_two_experts(cells, loss):
    fit(network(), *cells, config(max_epochs=1, loss=loss))
    with pytest.raises(ValueError, match=r"logits of shape \(1, 80, 4\) were given; RIDE compares"):
        fit(network(use_evidence=False), *cells, config(loss=loss))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, "max_epochs=0 was given; at least 1"),
        ({"batch_size": 0}, "batch_size=0 was given; at least 1"),
        ({"token_dropout": 1.0}, "token_dropout=1.0 was given"),
        ({"token_dropout": -0.1}, "token_dropout=-0.1 was given"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 was given; it must be above 0"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"replay": 5},
            r"replay=5 was given; pass a celler\.mining\.Replay, or None for no replay",
        ),
        ({"replay": Replay}, r"replay=<class .* pass a celler\.mining\.Replay"),
        ({"loss": "hdm"}, r"loss='hdm' was given; pass one of celler\.losses, such as HDM\(\)"),
        ({"loss": 3}, "loss=3 was given"),
    ],
)
def test_settings_of_the_wrong_kind(options, message):
    with pytest.raises(TypeError, match=message):
        config(**options)


# ---- threads ----


def test_small_minibatches_use_one_thread_and_give_the_others_back(cells):
    seen, before = set(), torch.get_num_threads()

    def loss(*arguments):
        seen.add(torch.get_num_threads())
        return CrossEntropy()(*arguments)

    torch.set_num_threads(2)
    try:
        fit(network(), *cells, config(max_epochs=1, loss=loss))
        assert seen == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
