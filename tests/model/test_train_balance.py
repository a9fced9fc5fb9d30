"""train(class_balance=...): minibatches show rare classes more often, and nothing else changes."""

import numpy as np
import pandas as pd
import pytest
from toy import QUICK, SMALL, cells, fit, stopped_in

from celler.data._samplers import ShuffledSampler
from celler.losses import DEFAULT
from celler.mining import HardCells
from celler.model import Celler
from celler.training._plan import TrainingPlan


@pytest.fixture
def epochs(monkeypatch):
    """Rows of the minibatches of each epoch that a training shows."""
    shown, first = [], ShuffledSampler.__iter__

    def noted(self):
        shown.append([])
        for rows in first(self):
            shown[-1].append(rows)
            yield rows

    monkeypatch.setattr(ShuffledSampler, "__iter__", noted)
    return shown


def codes_of(model, adata) -> np.ndarray:
    return pd.Categorical(adata.obs["cell_type"], categories=model.classes_).codes


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_train_with_class_balance_draws_by_the_power_law(epochs, balance):
    adata = cells()
    model = fit(adata, class_balance=balance, replay=None, train_size=1.0)
    codes = codes_of(model, adata)
    counts = np.bincount(codes)
    share = counts ** (1 - balance)
    assert len(epochs) == QUICK["max_epochs"]
    for epoch in epochs:
        rows = np.concatenate(epoch)
        assert len(epoch) == -(-len(codes) // QUICK["batch_size"])
        assert len(rows) == len(codes)
        np.testing.assert_allclose(np.bincount(codes[rows]), len(codes) * share / share.sum(), atol=1)
    np.testing.assert_array_equal(model.class_counts_, counts)


@pytest.mark.parametrize("loss", [None, DEFAULT])
def test_train_with_class_balance_counts_distinct_cells(monkeypatch, loss):
    told, first = [], TrainingPlan.__init__

    def noted(self, network, class_counts, config, *args):
        told.append((np.asarray(class_counts), config.class_balance))
        first(self, network, class_counts, config, *args)

    monkeypatch.setattr(TrainingPlan, "__init__", noted)
    adata = cells()
    model = fit(adata, class_balance=1.0, loss=loss, max_epochs=1)
    ((counts, balance),) = told
    assert balance == 1.0
    np.testing.assert_array_equal(counts, np.bincount(codes_of(model, adata)[model.train_indices_]))
    np.testing.assert_array_equal(model.class_counts_, counts)


def test_train_with_class_balance_repeats_itself_and_changes_labels():
    adata, query = cells(), cells(seed=1)
    plain, one, same, other = (
        fit(adata.copy(), n_members=2, **options).predict(query, soft=True)
        for options in ({}, {"class_balance": 1.0}, {"class_balance": 1.0}, {"class_balance": 1.0, "seed": 1})
    )
    pd.testing.assert_frame_equal(one, same, check_exact=True)
    assert not one.equals(plain)
    assert not one.equals(other)


def test_train_with_class_balance_replays_hard_cells(epochs, monkeypatch):
    chosen, first = [], HardCells.choose

    def noted(self):
        first(self)
        chosen.append(self.replayed)

    monkeypatch.setattr(HardCells, "choose", noted)
    adata = cells(600)
    model = fit(adata, class_balance=1.0, train_size=1.0)
    codes = codes_of(model, adata)
    assert len(chosen[0]), "the first epoch has errors"
    for replayed, epoch in zip(chosen, epochs[1:], strict=False):
        rows = np.concatenate(epoch)
        assert len(rows) == len(codes) + len(replayed)
        own = np.bincount(codes[rows]) - np.bincount(codes[replayed], minlength=4)
        assert np.ptp(own) <= 1


def test_train_with_class_balance_resumes(epochs, tmp_path):
    adata, how = cells(), {"class_balance": 0.5, "ckpt_path": tmp_path / "last.ckpt"}
    whole = fit(adata.copy(), class_balance=0.5)
    wanted = [np.concatenate(epoch) for epoch in epochs]
    with stopped_in(2):
        fit(adata.copy(), **how)
    with pytest.raises(ValueError, match="class_balance"):
        fit(adata.copy(), **how | {"class_balance": 0.0})
    epochs.clear()
    resumed = fit(adata.copy(), **how)
    for rows, epoch in zip(wanted[2:], epochs, strict=True):
        np.testing.assert_array_equal(np.concatenate(epoch), rows)
    pd.testing.assert_frame_equal(resumed.history, whole.history)


@pytest.mark.filterwarnings("ignore:.*(are not of the new types|take cells of others):UserWarning")
def test_train_with_class_balance_of_new_classes():
    """They are solved from all cells at once, so that no option of minibatches could change them."""
    adata = cells(400)
    rare = adata.obs["cell_type"].astype(str).value_counts().index[-1]
    is_new = (adata.obs["cell_type"] == rare).to_numpy()
    model = Celler.load_query_data(adata[is_new].copy(), fit(adata[~is_new].copy()), extend_labels=True)
    with pytest.raises(ValueError, match=r"class_balance=0\.5 .* Leave it out, or give a loss"):
        model.train(class_balance=0.5, **QUICK)
    model.train(class_balance=0.5, loss=DEFAULT, **QUICK)
    assert model.is_trained


@pytest.mark.parametrize("balance", [-0.1, 1.5, float("nan"), "high"])
def test_train_with_a_bad_class_balance(balance):
    adata = cells(60)
    Celler.setup_anndata(adata, labels_key="cell_type")
    with pytest.raises((ValueError, TypeError), match="class_balance="):
        Celler(adata, **SMALL).train(1, class_balance=balance)
