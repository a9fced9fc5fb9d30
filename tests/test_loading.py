"""Splits and minibatches: their laws over any labels, sizes and seeds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from celler.data import _samplers, _sources
from celler.data._loader import TokenLoader, grouped
from celler.data._samplers import OrderedSampler, ShuffledSampler, split
from celler.data._sources import InMemoryCells
from celler.data._tokenizer import Tokenizer
from celler.mining import HardCells, Replay

QUICK = settings(max_examples=100, deadline=None)
LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(np.array)
SEEDS = st.integers(0, 1000)


# ---- split ----


@QUICK
@given(LABELS, st.floats(0.05, 1.0), SEEDS)
def test_a_split_covers_every_cell_once(labels, train_size, seed):
    train, validation = split(labels, train_size=train_size, validation_size=None, seed=seed)
    np.testing.assert_array_equal(np.sort(np.r_[train, validation]), np.arange(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()


@QUICK
@given(LABELS, st.floats(0.05, 0.99), SEEDS)
def test_a_class_of_three_is_validated_and_every_class_is_trained(labels, train_size, seed):
    train, validation = split(labels, train_size=train_size, validation_size=None, seed=seed)
    for label, n in zip(*np.unique(labels, return_counts=True), strict=True):
        n_validation = (labels[validation] == label).sum()
        assert (n_validation >= 1) == (n >= 3)
        assert (labels[train] == label).sum() >= 1
        if n >= 3:
            assert n_validation == np.clip(round((1 - train_size) * n), 1, n - 1)


@QUICK
@given(LABELS, st.floats(0.05, 0.6), st.floats(0.0, 0.4), SEEDS)
def test_both_sizes_are_shares_of_each_class(labels, train_size, validation_size, seed):
    train, validation = split(
        labels, train_size=train_size, validation_size=validation_size, seed=seed
    )
    assert not set(train) & set(validation)
    for label, n in zip(*np.unique(labels, return_counts=True), strict=True):
        n_train, n_validation = ((labels[part] == label).sum() for part in (train, validation))
        assert n_train >= 1
        if n >= 3 and validation_size > 0:
            assert n_validation == max(1, round(validation_size * n))
        else:
            assert n_validation == 0
        assert abs(n_train - train_size * n) <= 1


def test_all_cells_in_training():
    train, validation = split(np.zeros(9), train_size=1.0, validation_size=None, seed=0)
    assert (len(train), len(validation)) == (9, 0)
    assert validation.dtype == train.dtype == np.int64


def test_the_seed_makes_the_split():
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    one, same, other = (
        split(labels, train_size=0.8, validation_size=None, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one[1], same[1])
    assert set(one[1]) != set(other[1])
    drawn = np.concatenate(
        [split(labels, train_size=0.8, validation_size=None, seed=s)[1] for s in range(60)]
    )
    assert set(drawn) == set(range(100)), "any cell may be drawn"


@pytest.mark.parametrize(
    ("train_size", "validation_size"),
    [(0, None), (1.1, None), (-0.5, None), (0.9, 0.2), (0.9, -0.1), (0.5, 1.0)],
)
def test_impossible_sizes(train_size, validation_size):
    message = f"train_size={train_size} and validation_size={validation_size} were given"
    with pytest.raises(ValueError, match=message):
        split(np.zeros(9), train_size=train_size, validation_size=validation_size, seed=0)


# ---- source and minibatches ----


def test_a_block_holds_the_rows_asked_for(rng):
    X, labels = rng.poisson(1.0, (9, 4)), rng.integers(-1, 3, size=9)
    source, index = InMemoryCells(sparse.csr_matrix(X), labels), np.array([4, 0, 4])
    block = source[index]
    assert len(source) == 9
    assert source.n_labelled == np.isin(labels, [0, 1, 2]).sum() < 9
    assert sparse.isspmatrix_csr(block.X)
    np.testing.assert_array_equal(block.X[block.rows].toarray(), X[index])
    np.testing.assert_array_equal(block.labels, labels[index])
    np.testing.assert_array_equal(block.index, index)


@QUICK
@given(st.lists(st.integers(0, 9999), min_size=1, max_size=90, unique=True),
       st.integers(1, 100), SEEDS)  # fmt: skip
def test_an_epoch_visits_each_cell_once(cells, batch_size, seed):
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
def test_shuffled_minibatches_are_equal_to_one_cell(n, batch_size):
    sizes = [len(part) for part in ShuffledSampler(np.arange(n), batch_size, 0)]
    assert max(sizes) - min(sizes) <= 1


def test_each_epoch_is_another_order_and_the_seed_makes_them_all():
    def epochs(seed):
        sampler = ShuffledSampler(np.arange(50), 8, seed)
        return [np.concatenate(list(sampler)).tolist() for _ in range(3)]

    first, second, third = epochs(0)
    assert first != second != third != first
    assert epochs(0) == [first, second, third]
    assert first not in epochs(1)
    assert sorted(first) == list(range(50)) != first


# ---- replayed cells and ranks ----


def replaying(cells) -> HardCells:
    """Hard cells that an epoch left behind."""
    hard = HardCells(Replay(), np.array([90]))
    hard.replayed = np.array(cells, dtype=np.int64)
    return hard


@QUICK
@given(st.integers(1, 90), st.integers(1, 100), st.data())
def test_replayed_cells_come_twice_in_as_many_minibatches(n, batch_size, data):
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


def test_the_passes_of_a_replayed_cell_are_shuffled_apart():
    sampler = ShuffledSampler(np.arange(900), 10, 0, replaying(range(0, 900, 10)))
    grouped = sum(len(part) - len(set(part)) for _ in range(5) for part in sampler)
    assert 0 < grouped < 20, "about one of 90 in each of five epochs"


@QUICK
@given(st.integers(1, 5), st.integers(2, 20), st.data(), SEEDS)
def test_ranks_share_an_epoch_in_equally_many_minibatches(n_ranks, batch_size, data, seed):
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


def test_grouped_blocks_share_a_matrix_and_the_first_groups_are_small():
    source = InMemoryCells(sparse.csr_matrix(np.eye(70)), np.zeros(70, np.int64))
    blocks = [source[np.arange(k, k + 2)] for k in range(0, 70, 2)]
    groups = list(grouped(blocks, n_cells=16))
    assert [len(group) for group in groups] == [1, 2, 4, 8, 8, 8, 4]
    assert [id(block) for group in groups for block in group] == [id(block) for block in blocks]
    other = InMemoryCells(source.X.copy(), source.labels)
    mixed = [source[np.arange(2)], other[np.arange(2)], other[np.arange(2)]]
    assert [len(group) for group in grouped(mixed)] == [1, 2]


def test_minibatches_for_a_gpu_are_pinned_as_one(rng, monkeypatch):
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda part: pinned.append(part) or part.clone()
    )
    X = sparse.csr_matrix(rng.poisson(1.0, size=(12, 5)), dtype=np.float32)
    source, rows = InMemoryCells(X, np.arange(12)), np.arange(12)
    on_cpu, on_gpu = (
        TokenLoader(
            source, Tokenizer(), ShuffledSampler(rows, 4, 0), False, device=torch.device(device)
        )
        for device in ("cpu", "cuda")
    )
    plain, moved = (list(loader) for loader in (on_cpu, on_gpu))
    assert len(pinned) == 2 * 6  # a group of one minibatch and one of two
    for one, other in zip(plain, moved, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
