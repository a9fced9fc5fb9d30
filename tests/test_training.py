"""Training: metrics against scikit-learn, the choice of weights on scripted scores, and fit on toy cells."""

import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from sklearn.metrics import f1_score, recall_score
from torch import nn
from torch.utils.data import DataLoader

from celler import training
from celler.datasets import toy_long_tail
from celler.losses import HDM, CrossEntropy, GInf
from celler.network import NetworkConfig, build_network
from celler.tokenizer import Tokenizer
from celler.training import (
    BestWeights,
    TrainingConfig,
    TrainingPlan,
    autocast,
    choose_device,
    choose_precision,
    fit,
    macro_f1_with_error,
    validation_logits,
)

N_GENES, N_CLASSES = 40, 4


@pytest.fixture(scope="module")
def cells():
    """Minibatches of 80 cells of four types, 240 for training and 160 for validation."""
    adata = toy_long_tail(400, N_GENES, N_CLASSES, imbalance=4, seed=0)
    labels = adata.obs["cell_type"].cat.codes.to_numpy().astype(np.int64)
    minibatches = []
    for start in range(0, 400, 80):
        tokens = Tokenizer()(adata.X[start : start + 80], np.arange(N_GENES, dtype=np.int32))
        minibatches.append((tokens, torch.as_tensor(labels[start : start + 80])))
    return loader(minibatches[:3]), loader(minibatches[3:]), np.bincount(labels[:240])


def loader(minibatches) -> DataLoader:
    """A plain list would mean several loaders to Lightning."""
    return DataLoader(minibatches, batch_size=None)


def network(seed=0, **options):
    sizes = {"n_genes": N_GENES, "n_classes": N_CLASSES, "d_model": 8, "n_heads": 2, "n_latents": 2}
    return build_network(NetworkConfig(**sizes | options), seed)


def config(**options) -> TrainingConfig:
    return TrainingConfig(**{"max_epochs": 3, "batch_size": 80, "show_progress": False} | options)


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
    macro_f1, error = macro_f1_with_error(torch.as_tensor(logits), torch.as_tensor(labels))
    options = {"labels": present, "average": None, "zero_division": 0}
    assert macro_f1.item() == pytest.approx(f1_score(labels, prediction, **options).mean())
    support = np.array([(labels == j).sum() for j in present])
    recall = (recall_score(labels, prediction, **options) * support + 1) / (support + 2)
    variance = recall * (1 - recall) / (support + 2)
    assert error.item() == pytest.approx(np.sqrt(variance.sum()) / len(present))


def test_one_right_cell_is_not_certain():
    """One cell a class, both right: (1 + 1) / (1 + 2) each, variance 2/27, error √(4/27) / 2."""
    macro_f1, error = macro_f1_with_error(torch.eye(2), torch.tensor([0, 1]))
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
        best.on_validation_end(SimpleNamespace(callback_metrics=metrics, current_epoch=epoch), None)
    assert best.state["weight"].item() == kept
    assert best.n_epochs == kept + 1


def script(monkeypatch, model, scores) -> list[dict[str, torch.Tensor]]:
    """Let validation report ``scores`` one by one; returns the weights it was asked about."""
    seen = []

    def scripted(logits, labels):
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
        ({"max_epochs": 15}, 7),  # best in the second epoch, five more without progress
        ({"max_epochs": 30}, 9),  # a quarter of what was planned, when that is more
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


@pytest.mark.parametrize("loss", [HDM(n_hard=2), GInf(0.5), CrossEntropy()], ids=str)
def test_a_step_is_the_sum_of_the_experts_losses_and_the_l2_term(cells, loss, monkeypatch):
    train, _, counts = cells
    tokens, labels = minibatch = next(iter(train))
    model = network().eval()
    nn.init.normal_(model.evidence.weight, generator=torch.Generator().manual_seed(1))
    plan = TrainingPlan(model, counts, config(loss=loss, evidence_l2=3.0, seed=7))
    monkeypatch.setattr(plan, "log", lambda *_, **__: None)
    generator, expected = torch.Generator().manual_seed(7), 0.0
    for logits in model(*tokens).expert_logits.detach().numpy():
        arguments = logits.astype(float), labels.numpy()
        if isinstance(loss, CrossEntropy):
            expected += reference.cross_entropy(*arguments).mean()
            continue
        noise = torch.randn(logits.shape, generator=generator).numpy()
        if isinstance(loss, HDM):
            losses = reference.hdm(*arguments, counts, noise, loss.base.amplitude, 2)
        else:
            losses = reference.ginf(*arguments, counts, noise, loss.amplitude)
        expected += losses.mean()
    table = model.evidence.weight.detach().numpy().astype(float)
    expected += 3.0 * (table**2).sum() / (2 * counts.sum())
    assert plan.training_step(minibatch, 0).item() == pytest.approx(expected, rel=1e-5)


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
    tokens, labels = next(iter(cells[0]))
    broken = loader([(tokens, labels + 100)])
    with pytest.raises((IndexError, RuntimeError)):
        fit(network(), broken, None, cells[2], config(show_progress=True))
    assert capsys.readouterr().err.endswith("\n")


def test_validation_logits_are_those_of_each_minibatch(cells):
    model = network().eval()
    logits, labels = validation_logits(model, cells[1], "float32")
    expected = [model(*tokens).logits.detach().numpy() for tokens, _ in cells[1]]
    np.testing.assert_array_equal(logits, np.concatenate(expected))
    np.testing.assert_array_equal(labels, torch.cat([codes for _, codes in cells[1]]))
    coarse, _ = validation_logits(model, cells[1], "bfloat16")
    assert coarse.dtype == np.float32
    np.testing.assert_allclose(coarse, logits, atol=0.1)
    assert not np.array_equal(coarse, logits)


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


# ---- device and precision ----


def test_precision_by_hardware(monkeypatch):
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    for has_it, expected in ((True, "bfloat16"), (False, "float32")):
        features = {"amx-bf16": has_it, "avx512bf16": True}
        monkeypatch.setattr(training.binding, "get_host_cpu_features", lambda f=features: f)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_it=has_it: has_it)
        assert choose_precision("auto", cpu) == expected
        assert choose_precision("auto", cuda) == expected
        assert choose_precision("auto", mps) == "float32"
        for given in ("float32", "bfloat16"):
            assert choose_precision(given, cpu) == given
    with pytest.raises(ValueError, match="precision='16' was given; choose 'auto', 'float32' or"):
        choose_precision("16", cpu)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(cpu, precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_devices_on_a_machine_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for devices in ("auto", 1, "1", [0]):
        assert (
            choose_device("auto", devices) == choose_device("cpu", devices) == torch.device("cpu")
        )
    for accelerator in ("gpu", "cuda", "mps", "tpu"):
        message = rf"accelerator='{accelerator}' is not available here; there is \['cpu'\]\."
        with pytest.raises(ValueError, match=message):
            choose_device(accelerator)
    for devices in (2, "4", 0, -1, [1], [0, 0], [], [-1]):
        with pytest.raises(ValueError, match=r"devices=.* one device: 'auto', 1, or \[i\]"):
            choose_device("cpu", devices)


def test_devices_on_a_machine_with_two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == choose_device("gpu", 1) == torch.device("cuda", 0)
    assert choose_device("cuda", [1]) == torch.device("cuda", 1)
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"devices=\[2\] was given; .* one of \[0, 1\]"):
        choose_device("gpu", [2])
    with pytest.raises(ValueError, match=r"'mps' is not available here; there is \['cpu', 'gpu'\]"):
        choose_device("mps")


def test_devices_on_a_mac(monkeypatch):
    """Only on request: 'auto' means a CUDA GPU or the processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    assert choose_device("auto") == torch.device("cpu")


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
