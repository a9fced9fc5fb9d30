"""ClassBalance: which cells an epoch shows, and how often."""

import numpy as np
import pytest

from celler.data._balance import MAX_COPIES, ClassBalance, drawn_rows, n_drawn

COUNTS = np.array([9000, 900, 90, 10])


@pytest.mark.parametrize("balance", [0.25, 0.5, 1.0])
def test_n_drawn_follows_the_power_law(balance):
    counts = np.array([4000, 1000, 500, 400])
    wanted = n_drawn(counts, balance)
    assert wanted.sum() == counts.sum()
    share = counts ** (1 - balance)
    np.testing.assert_allclose(wanted, counts.sum() * share / share.sum(), atol=1)


def test_n_drawn_without_balance():
    np.testing.assert_array_equal(n_drawn(COUNTS, 0.0), COUNTS)


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_n_drawn_is_bounded(balance):
    wanted = n_drawn(COUNTS, balance)
    assert wanted.sum() == COUNTS.sum()
    assert (wanted <= MAX_COPIES * COUNTS).all()
    assert (np.diff(wanted) <= 0).all()
    assert wanted[-1] == 160
    many = np.array([10**6] + [1] * 50)  # several rounds until all are within the bound
    np.testing.assert_array_equal(n_drawn(many, 1.0)[1:], MAX_COPIES)


def test_n_drawn_of_a_class_without_cells():
    np.testing.assert_array_equal(n_drawn(np.array([30, 0, 10]), 1.0), [20, 0, 20])


def test_drawn_rows_repeats_cells_equally_often(rng):
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


def test_drawn_rows_follows_the_seed(rng):
    labels = np.repeat(np.arange(4), COUNTS)
    wanted = n_drawn(COUNTS, 1.0)
    one, same, other = (
        drawn_rows(np.arange(len(labels)), labels, wanted, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_drawn_with_strength_0_is_every_cell_once():
    index = np.array([1, 5, 6])
    assert ClassBalance(np.zeros(9, int), 0.0).drawn(index, np.random.default_rng(0)) is index


def test_drawn_reads_the_labels_of_the_rows():
    labels = np.array([-1, 2, -1, 2, 2, 0, -1, 2])  # class 1 has no cell, others have no label
    index = np.array([1, 3, 4, 5])
    rows = ClassBalance(labels, 1.0).drawn(index, np.random.default_rng(0))
    assert len(rows) == 4
    assert rows.tolist().count(5) == 2
    assert len(set(rows) - {5}) == 2
    assert set(rows) <= set(index)
