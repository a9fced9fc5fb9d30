"""Epochs over a store: every cell once, blocks of bounded size, ranks that share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celler.atlas import _source as epochs

QUICK = settings(max_examples=60, deadline=None)
SEEDS = st.integers(0, 1000)
NONE = np.empty(0, np.int64)


def minibatches(index, batch_size, seed=0, again=NONE, rank=0, n_ranks=1) -> list[np.ndarray]:
    """Rows of each minibatch of a rank's epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "rank_and_size", lambda: (rank, n_ranks))
        rng = np.random.default_rng(seed)
        blocks = list(epochs.epoch(index, batch_size, rng, again))
        found = [block.index[part] for block in blocks for part in block.minibatches]
        assert len(found) == epochs.n_minibatches(len(index), batch_size)
    assert max(len(block.index) for block in blocks) <= epochs.BLOCK_ROWS + 2 * len(again) + 8
    return found


@QUICK
@given(st.integers(1, 30_000), st.integers(1, 300), SEEDS)
def test_an_epoch_has_every_cell_once(n, batch_size, seed):
    index = np.sort(np.random.default_rng(seed).choice(4 * n, n, replace=False))
    found = minibatches(index, batch_size, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), index)
    sizes = [len(part) for part in found]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@QUICK
@given(st.integers(1, 5), st.integers(1, 20), st.data(), SEEDS)
def test_ranks_share_an_epoch_in_equally_many_minibatches(n_ranks, batch_size, data, seed):
    n = data.draw(st.integers(1, 2000))
    again = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=20))), np.int64)
    ranks = [minibatches(np.arange(n), batch_size, seed, again, r, n_ranks) for r in range(n_ranks)]
    assert len({len(part) for part in ranks}) == 1
    found = [part for rank in ranks for part in rank]
    assert min(map(len, found)) >= 1, "every rank has cells in every step"
    visited, counts = np.unique(np.concatenate(found), return_counts=True)
    np.testing.assert_array_equal(visited, np.arange(n))
    if n >= len(found):  # otherwise some come twice, to give every rank one
        np.testing.assert_array_equal(counts, 1 + np.isin(visited, again))
        sizes = [len(part) for part in found]
        assert max(sizes) - min(sizes) <= 2


def test_cells_of_one_run_are_spread_over_the_minibatches_of_a_block():
    found = minibatches(np.arange(6000), 100)
    runs_of = [len(np.unique(part // epochs.CHUNK_ROWS)) for part in found]
    assert min(runs_of) >= 3, "of 12 runs"
    n_sorted = sum((np.diff(part) > 0).all() for part in found)
    assert n_sorted == 0


def test_a_seed_makes_the_epoch():
    one, same, other = (np.concatenate(minibatches(np.arange(900), 32, s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
