"""The run: fit on toy cells, its seed, threads and validation logits."""

import logging
import random

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from training_cases import N_CLASSES, config, network

from celler.losses import HDM, RIDE, CrossEntropy
from celler.mining import HardCells, Replay
from celler.training import _plan as training
from celler.training import _run as run
from celler.training._run import fit, validation_logits


def assert_same_weights(one, other):
    for name, weights in one.items():
        assert torch.equal(weights, other[name]), name


def script(monkeypatch, model, scores) -> list[dict[str, torch.Tensor]]:
    """Let validation report ``scores`` one by one; returns the weights it was asked about."""
    seen = []

    def scripted(confusion):
        seen.append({name: w.clone() for name, w in model.state_dict().items()})
        return torch.tensor(scores[len(seen) - 1]), torch.tensor(0.0)

    monkeypatch.setattr(training, "macro_f1_with_error", scripted)
    return seen


def test_fit_in_groups_of_steps_equals_single_steps(cells, monkeypatch):
    fitted = []
    for n_together in (1, 3, 8):
        monkeypatch.setattr(run, "STEPS_TOGETHER", n_together)
        model = network()
        fitted.append((fit(model, *cells, config(max_epochs=3)), model.state_dict()))
    for history, weights in fitted[1:]:
        assert history == fitted[0][0]
        assert_same_weights(weights, fitted[0][1])


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
def test_fit_stops_early(cells, monkeypatch, options, n_epochs):
    model = network()
    seen = script(monkeypatch, model, [0.5, 0.6] + [0.55] * 28)
    history = fit(model, *cells, config(**options))
    assert len(seen) == n_epochs
    assert {len(curve) for curve in history.values()} == {n_epochs}
    assert_same_weights(model.state_dict(), seen[1])


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


def test_fit_depends_on_the_seed_alone(cells):
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


def test_fit_without_validation(cells):
    train, _, counts = cells
    model = network()
    history = fit(model, train, None, counts, config())
    assert list(history) == ["train_loss"]
    assert len(history["train_loss"]) == 3
    assert not torch.equal(model.encoder.gene, network().encoder.gene)


def test_validation_logits_of_each_minibatch(cells):
    model = network().eval()
    logits, labels = validation_logits(model, cells[1], "float32")
    wanted = [model(*part.tokens).logits.detach().numpy() for part in cells[1]]
    np.testing.assert_array_equal(logits, np.concatenate(wanted))
    np.testing.assert_array_equal(labels, torch.cat([part.labels for part in cells[1]]))
    coarse, _ = validation_logits(model, cells[1], "bfloat16")
    assert coarse.dtype == np.float32
    np.testing.assert_allclose(coarse, logits, atol=0.1)
    assert not np.array_equal(coarse, logits)


def test_fit_curves_of_the_replay(cells, monkeypatch):
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
def test_fit_with_ride_and_one_expert(cells, loss):
    fit(network(), *cells, config(max_epochs=1, loss=loss))
    with pytest.raises(ValueError, match=r"logits of shape \(1, 80, 4\) were given; RIDE compares"):
        fit(network(use_evidence=False), *cells, config(loss=loss))


def test_fit_uses_one_thread_for_small_minibatches(cells):
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
