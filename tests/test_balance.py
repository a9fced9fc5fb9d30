"""Balance of classes in an epoch from a store: shares, whole cells, bounds."""

import numpy as np
import pytest
import toy

from celler.atlas._source import MAX_COPIES, check_balance, drawn_rows, n_drawn

COUNTS = np.array([9000, 900, 90, 10])


@pytest.mark.parametrize("balance", [0.25, 0.5, 1.0])
def test_shares_follow_the_power_law(balance):
    counts = np.array([4000, 1000, 500, 400])
    wanted = n_drawn(counts, balance)
    assert wanted.sum() == counts.sum()
    share = counts ** (1 - balance)
    np.testing.assert_allclose(wanted, counts.sum() * share / share.sum(), atol=1)


def test_no_balance_is_every_cell_once():
    np.testing.assert_array_equal(n_drawn(COUNTS, 0.0), COUNTS)


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_no_cell_comes_more_often_than_is_allowed(balance):
    wanted = n_drawn(COUNTS, balance)
    assert wanted.sum() == COUNTS.sum()
    assert (wanted <= MAX_COPIES * COUNTS).all()
    assert (np.diff(wanted) <= 0).all()
    assert wanted[-1] == 160
    many = np.array([10**6] + [1] * 50)  # several rounds until all are within the bound
    np.testing.assert_array_equal(n_drawn(many, 1.0)[1:], MAX_COPIES)


def test_a_class_without_cells_stays_without():
    np.testing.assert_array_equal(n_drawn(np.array([30, 0, 10]), 1.0), [20, 0, 20])


def test_cells_of_a_class_come_equally_often_or_once_more(rng):
    labels = rng.permutation(np.repeat(np.arange(4), COUNTS))
    index = 3 * np.arange(len(labels))
    wanted = n_drawn(COUNTS, 0.5)
    rows = drawn_rows(index, labels, wanted, rng)
    assert (np.diff(rows) >= 0).all()
    place = np.searchsorted(index, rows)
    np.testing.assert_array_equal(index[place], rows)
    np.testing.assert_array_equal(np.bincount(labels[place]), wanted)
    copies = np.bincount(place, minlength=len(index))
    for code, n in enumerate(COUNTS):
        assert np.ptp(copies[labels == code]) <= 1
        assert copies[labels == code].sum() == wanted[code]
        assert n == (labels == code).sum()


def test_each_draw_is_another_and_a_seed_draws_the_same(rng):
    labels = np.repeat(np.arange(4), COUNTS)
    wanted = n_drawn(COUNTS, 1.0)
    one, same, other = (
        drawn_rows(np.arange(len(labels)), labels, wanted, np.random.default_rng(seed))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("balance", [-0.1, 1.5, float("nan")])
def test_a_share_that_cannot_be(balance):
    with pytest.raises(ValueError, match=r"class_balance=.*0 \(cells as often as they are\) to 1"):
        check_balance(balance)


# ---- with a store ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("annbatch")
    from store_cases import shuffled, write_store

    return write_store(tmp_path_factory.mktemp("store"), shuffled(toy.cells(1500)))


def epoch(folder, balance):
    from celler.atlas import DataModule
    from celler.atlas._source import StoreCells
    from celler.data._samplers import ShuffledSampler

    dm = DataModule(folder, labels_key="cell_type", class_balance=balance)
    source = StoreCells(dm.store, dm.labels, dm.class_balance)
    return dm, list(source.blocks(ShuffledSampler(np.arange(len(dm)), 64, 0)))


def test_an_epoch_of_a_store_mixes_the_classes_and_stays_as_long(folder):
    dm, plain = epoch(folder, 0.0)
    _, blocks = epoch(folder, 1.0)
    assert len(blocks) == len(plain)
    of_class = np.array([np.bincount(block.labels, minlength=4) for block in blocks])
    np.testing.assert_array_equal(of_class.sum(0), [375, 375, 375, 375])
    assert (of_class > 0).all(), "each minibatch has every class"
    for block in blocks[:2]:
        counts = dm.store.rows(block.index)
        np.testing.assert_array_equal(block.X[block.rows].toarray(), counts.toarray())


def test_the_loss_and_the_report_go_by_the_cells_that_there_are(folder, monkeypatch):
    from celler.atlas import DataModule
    from celler.model import Celler
    from celler.training import _plan as training

    told = []
    first = training.TrainingPlan.__init__

    def noted(self, network, class_counts, *args, **kwargs):
        told.append(np.asarray(class_counts))
        first(self, network, class_counts, *args, **kwargs)

    monkeypatch.setattr(training.TrainingPlan, "__init__", noted)
    dm = DataModule(folder, labels_key="cell_type", class_balance=1.0)
    model = Celler(registry=dm.registry, **toy.SMALL)
    model.train(datamodule=dm, **toy.QUICK)
    counts = np.bincount(dm.labels[model.train_indices_])
    assert len(told) == 1
    np.testing.assert_array_equal(told[0], counts)
    np.testing.assert_array_equal(model.class_counts_, counts)
    query = toy.cells(300, seed=1)
    assert (model.predict(query) == toy.truth(query)).mean() > 0.7


def test_a_store_refuses_a_share_that_cannot_be(folder):
    from celler.atlas import DataModule

    with pytest.raises(ValueError, match="class_balance=2"):
        DataModule(folder, labels_key="cell_type", class_balance=2)
