"""Splits and samplers: their laws over any labels, sizes and seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celler.data import _samplers, _sources
from celler.data._balance import ClassBalance
from celler.data._samplers import OrderedSampler, ShuffledSampler, split
from celler.mining import HardCells, Replay

QUICK = settings(max_examples=100, deadline=None)


LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(np.array)


SEEDS = st.integers(0, 1000)


@QUICK
@given(LABELS, st.floats(0.05, 1.0), SEEDS)
def test_split_covers_every_cell_once(labels, train_size, seed):
    train, validation = split(labels, train_size=train_size, validation_size=None, seed=seed)
    np.testing.assert_array_equal(np.sort(np.r_[train, validation]), np.arange(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()


@QUICK
@given(LABELS, st.floats(0.05, 0.99), SEEDS)
def test_split_validates_classes_of_three_cells(labels, train_size, seed):
    train, validation = split(labels, train_size=train_size, validation_size=None, seed=seed)
    for label, n in zip(*np.unique(labels, return_counts=True), strict=True):
        n_validation = (labels[validation] == label).sum()
        assert (n_validation >= 1) == (n >= 3)
        assert (labels[train] == label).sum() >= 1
        if n >= 3:
            assert n_validation == np.clip(round((1 - train_size) * n), 1, n - 1)


@QUICK
@given(LABELS, st.floats(0.05, 0.6), st.floats(0.0, 0.4), SEEDS)
def test_split_with_both_sizes(labels, train_size, validation_size, seed):
    train, validation = split(labels, train_size=train_size, validation_size=validation_size, seed=seed)
    assert not set(train) & set(validation)
    for label, n in zip(*np.unique(labels, return_counts=True), strict=True):
        n_train, n_validation = ((labels[part] == label).sum() for part in (train, validation))
        assert n_train >= 1
        if n >= 3 and validation_size > 0:
            assert n_validation == max(1, round(validation_size * n))
        else:
            assert n_validation == 0
        assert abs(n_train - train_size * n) <= 1


def test_split_without_validation():
    train, validation = split(np.zeros(9), train_size=1.0, validation_size=None, seed=0)
    assert (len(train), len(validation)) == (9, 0)
    assert validation.dtype == train.dtype == np.int64


def test_split_follows_the_seed():
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    one, same, other = (split(labels, train_size=0.8, validation_size=None, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one[1], same[1])
    assert set(one[1]) != set(other[1])
    drawn = np.concatenate([split(labels, train_size=0.8, validation_size=None, seed=s)[1] for s in range(60)])
    assert set(drawn) == set(range(100)), "any cell may be drawn"


@pytest.mark.parametrize(
    ("train_size", "validation_size"),
    [(0, None), (1.1, None), (-0.5, None), (0.9, 0.2), (0.9, -0.1), (0.5, 1.0)],
)
def test_split_with_impossible_sizes(train_size, validation_size):
    message = f"train_size={train_size} and validation_size={validation_size} were given"
    with pytest.raises(ValueError, match=message):
        split(np.zeros(9), train_size=train_size, validation_size=validation_size, seed=0)


@QUICK
@given(st.lists(st.integers(0, 9999), min_size=1, max_size=90, unique=True),
       st.integers(1, 100), SEEDS)  # fmt: skip
def test_samplers_visit_each_cell_once(cells, batch_size, seed):
    index = np.array(cells)
    for sampler in (
        ShuffledSampler(index, batch_size, seed),
        OrderedSampler(index, batch_size),
    ):
        for _ in range(2):
            minibatches = list(sampler)
            assert len(minibatches) == len(sampler) == -(-len(index) // batch_size)
            assert max(map(len, minibatches)) <= batch_size
            visited = np.concatenate(minibatches)
            np.testing.assert_array_equal(np.sort(visited), np.sort(index))
    np.testing.assert_array_equal(visited, index)  # the second sampler keeps the order


@QUICK
@given(st.integers(1, 300), st.integers(1, 100))
def test_shuffled_sampler_has_minibatches_of_equal_size(n, batch_size):
    sizes = [len(part) for part in ShuffledSampler(np.arange(n), batch_size, 0)]
    assert max(sizes) - min(sizes) <= 1


def test_shuffled_sampler_follows_the_seed():
    def epochs(seed):
        sampler = ShuffledSampler(np.arange(50), 8, seed)
        return [np.concatenate(list(sampler)).tolist() for _ in range(3)]

    first, second, third = epochs(0)
    assert first != second != third != first
    assert epochs(0) == [first, second, third]
    assert first not in epochs(1)
    assert sorted(first) == list(range(50)) != first


def replaying(cells) -> HardCells:
    """Hard cells that an epoch left behind."""
    hard = HardCells(Replay(), np.array([90]))
    hard.replayed = np.array(cells, dtype=np.int64)
    return hard


@QUICK
@given(st.integers(1, 90), st.integers(1, 100), st.data())
def test_shuffled_sampler_with_replayed_cells(n, batch_size, data):
    replayed = data.draw(st.sets(st.integers(0, n - 1)).map(sorted))
    index, hard = 7 * np.arange(n), replaying([])
    sampler = ShuffledSampler(index, batch_size, 0, hard)
    n_minibatches = len(sampler)
    plain, other = list(sampler), ShuffledSampler(index, batch_size, 0)
    assert [part.tolist() for part in plain] == [part.tolist() for part in other]
    hard.replayed = index[replayed]  # chosen at the end of the epoch, read at the start of the next
    minibatches = list(sampler)
    assert len(minibatches) == len(sampler) == n_minibatches == len(plain)
    sizes = [len(part) for part in minibatches]
    assert max(sizes) - min(sizes) <= 1
    cells, counts = np.unique(np.concatenate(minibatches), return_counts=True)
    np.testing.assert_array_equal(cells, index)
    np.testing.assert_array_equal(counts, 1 + np.isin(np.arange(n), replayed))


def test_shuffled_sampler_separates_replayed_cells():
    sampler = ShuffledSampler(np.arange(900), 10, 0, replaying(range(0, 900, 10)))
    grouped = sum(len(part) - len(set(part)) for _ in range(5) for part in sampler)
    assert 0 < grouped < 20, "about one of 90 in each of five epochs"


@pytest.mark.parametrize("n_ranks", [1, 3])
def test_shuffled_sampler_with_balance(monkeypatch, n_ranks):
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    index, parts = np.flatnonzero(np.arange(1000) % 10), []
    for rank in range(n_ranks):
        monkeypatch.setattr(_samplers, "rank_and_size", lambda rank=rank: (rank, n_ranks))
        sampler = ShuffledSampler(index, 20, 0, replaying([1, 999]), ClassBalance(labels, 1.0))
        first, second = ([rows.tolist() for rows in sampler] for _ in range(2))
        assert len(first) == len(second) == len(sampler) == len(ShuffledSampler(index, 20, 0))
        assert sorted(sum(first, [])) != sorted(sum(second, [])), "each epoch draws anew"
        parts.append(first)
    rows = np.concatenate([minibatch for part in parts for minibatch in part])
    copies = np.bincount(rows, minlength=1000) - np.bincount([1, 999], minlength=1000)
    assert copies.sum() == len(index)
    assert set(np.flatnonzero(copies)) <= set(index)
    np.testing.assert_array_equal(copies[index][labels[index] == 2], 16)  # as often as a cell may come
    of_class = np.bincount(labels, copies)
    np.testing.assert_allclose(of_class, [378, 378, 144], atol=1)


@QUICK
@given(st.integers(1, 5), st.integers(2, 20), st.data(), SEEDS)
def test_shuffled_sampler_over_ranks(n_ranks, batch_size, data, seed):
    n = data.draw(st.integers(2 * n_ranks, 90))
    replayed = data.draw(st.sets(st.integers(0, n - 1)).map(sorted))
    parts = []
    for rank in range(n_ranks):
        with pytest.MonkeyPatch.context() as patch:
            for module in (_samplers, _sources):
                patch.setattr(module, "rank_and_size", lambda rank=rank: (rank, n_ranks))
            sampler = ShuffledSampler(np.arange(n), batch_size, seed, replaying(replayed))
            parts.append(list(sampler))
            assert len(parts[-1]) == len(sampler) == -(-n // (batch_size * n_ranks))
    sizes = [len(minibatch) for part in parts for minibatch in part]
    assert max(sizes) - min(sizes) <= 1 <= min(sizes)
    visited = np.concatenate([minibatch for part in parts for minibatch in part])
    np.testing.assert_array_equal(np.sort(visited), np.sort(np.r_[np.arange(n), replayed]))
    # One process cuts the same epoch into as many minibatches, whatever the number of ranks.
    alone = np.array_split(
        np.concatenate(list(ShuffledSampler(np.arange(n), batch_size, seed, replaying(replayed)))),
        len(sizes),
    )
    dealt = [parts[i % n_ranks][i // n_ranks].tolist() for i in range(len(sizes))]
    assert dealt == [minibatch.tolist() for minibatch in alone]


def test_split_with_max_validation():
    labels = np.repeat([0, 1, 2], [9000, 900, 60])
    train, validation = split(labels, train_size=0.8, validation_size=None, seed=0, max_validation=400)
    np.testing.assert_array_equal(np.bincount(labels[validation]), [361, 50, 12])
    np.testing.assert_array_equal(np.sort(np.r_[train, validation]), np.arange(9960))
