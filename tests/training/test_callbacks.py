"""Callbacks: which weights are kept, the progress bar, and resuming bit by bit."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import toy
from torch import nn
from training_cases import config, loader, network

from celler.training._callbacks import BestWeights, EachEpoch, kept_epoch
from celler.training._run import fit


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
def test_best_weights_are_the_latest_within_an_error(scores, errors, kept):
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


def test_kept_epoch_is_the_one_that_best_weights_keep(rng):
    scores, errors = rng.random((20, 30)), 0.3 * rng.random((20, 30))
    for run, spread in zip(scores, errors, strict=True):
        best = BestWeights(nn.Linear(1, 1), patience=None)
        for epoch, (score, error) in enumerate(zip(run, spread, strict=True)):
            metrics = {"validation_macro_f1": score, "validation_macro_f1_error": error}
            best.on_validation_end(trainer_at(epoch, metrics), None)
        assert kept_epoch(run, spread) == best.n_epochs - 1


def test_best_weights_of_a_loss():
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
def test_best_weights_after_another_stop(monitor):
    trainer = trainer_at(0, {monitor: 0.5}, should_stop=True)
    BestWeights(nn.Linear(1, 1), 10, monitor).on_validation_end(trainer, None)
    assert trainer.should_stop


def test_progress_bar_ends_on_the_kept_epoch(cells, capsys):
    curves = fit(network(), *cells, config(show_progress=True), title="Refitting")
    shown = capsys.readouterr()
    last = shown.err.split("\r")[-1]
    assert "Refitting: 100%" in last
    assert "9/9" in last
    score, error = (np.array(curves[f"validation_macro_f1{name}"]) for name in ("", "_error"))
    kept = kept_epoch(score, error)
    assert f"kept epoch={kept + 1} of 3, macro_f1={score[kept]:.3f}" in last
    assert ", epoch=" not in last
    assert shown.out == ""
    fit(network(), *cells, config())
    assert capsys.readouterr() == ("", "")


def test_progress_bar_without_validation(cells, capsys):
    fit(network(), cells[0], None, cells[2], config(show_progress=True))
    assert "epoch=3/3]" in capsys.readouterr().err.split("\r")[-1]


def test_progress_bar_after_an_error(cells, capsys):
    minibatch = next(iter(cells[0]))
    broken = loader([minibatch._replace(labels=minibatch.labels + 100)])
    with pytest.raises((IndexError, RuntimeError)):
        fit(network(), broken, None, cells[2], config(show_progress=True))
    assert capsys.readouterr().err.endswith("\n")


SETUP = {"labels_key": "cell_type"}


HOW = {"max_epochs": 6, "batch_size": 64, "show_progress": False, "accelerator": "cpu"}


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def whole():
    return toy.fit(toy.cells(400), SETUP, **HOW, refit=False)


def stop_after(monkeypatch, n_epochs):
    """Raise when an epoch more has begun, as if the process had been killed."""
    from celler.training._plan import TrainingPlan

    step = TrainingPlan.training_step

    def stopping(self, group, i):
        if self.trainer.current_epoch == n_epochs:
            step(self, group[:2], i)
            raise Stopped
        return step(self, group, i)

    monkeypatch.setattr(TrainingPlan, "training_step", stopping)


def test_each_epoch_resumes_to_the_same_model(whole, tmp_path, monkeypatch):
    adata, path = toy.cells(400), tmp_path / "last.ckpt"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            toy.fit(adata, SETUP, **HOW, refit=False, ckpt_path=path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    resumed = toy.fit(adata, SETUP, **HOW, refit=False, ckpt_path=path)
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    pd.testing.assert_frame_equal(resumed.hard_cells_, whole.hard_cells_)
    for name, weights in whole.module.state_dict().items():
        np.testing.assert_array_equal(resumed.module.state_dict()[name], weights)
    # Complete by now: nothing is left to train.
    again = toy.fit(adata, SETUP, **HOW, refit=False, ckpt_path=path)
    pd.testing.assert_frame_equal(again.history, whole.history)
    np.testing.assert_array_equal(again.predict(), whole.predict())
    with pytest.raises(ValueError, match="belongs to a training with other seed; repeat that call"):
        toy.fit(adata, SETUP, **HOW, refit=False, ckpt_path=path, seed=1)


def test_each_epoch_of_a_refit(tmp_path):
    how = HOW | {"max_epochs": 2, "refit": True}
    one = toy.fit(toy.cells(300), SETUP, **how, ckpt_path=tmp_path / "last.ckpt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.refit"]
    (tmp_path / "last.ckpt.refit").unlink()
    other = toy.fit(toy.cells(300), SETUP, **how, ckpt_path=tmp_path / "last.ckpt")
    np.testing.assert_array_equal(one.predict(soft=True), other.predict(soft=True))


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("", IsADirectoryError, "name a file in it"),
        ("no/last.ckpt", FileNotFoundError, "make .*no"),
    ],
)
def test_each_epoch_with_a_bad_path(tmp_path, path, error, message):
    with pytest.raises(error, match=message):
        toy.fit(toy.cells(100), SETUP, **HOW, ckpt_path=tmp_path / path)


def test_each_epoch_with_the_masked_task(tmp_path):
    with pytest.raises(ValueError, match="masked_weight cannot be resumed yet"):
        toy.fit(toy.cells(100), SETUP, **HOW, masked_weight=1.0, ckpt_path=tmp_path / "last.ckpt")


def test_each_epoch_without_a_path(monkeypatch):
    monkeypatch.setattr(EachEpoch, "__init__", lambda *_: pytest.fail("a file would be written"))
    toy.fit(toy.cells(100), SETUP, **(HOW | {"max_epochs": 1}))
