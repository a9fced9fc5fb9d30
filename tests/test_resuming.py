"""A training that was stopped and resumed becomes what it would have become."""

import numpy as np
import pandas as pd
import pytest
import toy

from celler.training._callbacks import EachEpoch

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

    def stopping(self, minibatch, i):
        if self.trainer.current_epoch == n_epochs and i == 2:
            raise Stopped
        return step(self, minibatch, i)

    monkeypatch.setattr(TrainingPlan, "training_step", stopping)


def test_a_stopped_training_resumes_to_the_same_model(whole, tmp_path, monkeypatch):
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


def test_a_refit_has_its_own_file(tmp_path):
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
def test_a_file_that_cannot_be_written(tmp_path, path, error, message):
    with pytest.raises(error, match=message):
        toy.fit(toy.cells(100), SETUP, **HOW, ckpt_path=tmp_path / path)


def test_what_cannot_be_resumed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="masked_weight cannot be resumed yet"):
        toy.fit(toy.cells(100), SETUP, **HOW, masked_weight=1.0, ckpt_path=tmp_path / "last.ckpt")


def test_nothing_is_written_without_a_path(monkeypatch):
    monkeypatch.setattr(EachEpoch, "__init__", lambda *_: pytest.fail("a file would be written"))
    toy.fit(toy.cells(100), SETUP, **(HOW | {"max_epochs": 1}))
