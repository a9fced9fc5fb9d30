"""Hard-cell replay: worked by hand, against a slow reference over random epochs, and on two processes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mining_cases import CHILD, Slow, outcomes

from celler.mining import LISTED, N_WAITING, PASS, HardCells, Replay, tallied


def logits_of(passes, n_classes: int) -> torch.Tensor:
    """Logits ``(B, C)`` with which each pass predicts its class with its probability.

    A pass is (index, label, prediction, probability). One other class gets all that is left and the
    rest nothing: equal probabilities are then equal to the bit, whatever the classes.
    """
    logits = torch.full((len(passes), n_classes), -torch.inf)
    for row, (_, _, prediction, probability) in zip(logits, passes, strict=True):
        row[prediction], row[(prediction + 1) % n_classes] = (
            np.log(probability / (1 - probability)),
            0,
        )
    return logits


def watch(hard: HardCells, *minibatches) -> None:
    """An epoch of minibatches of passes, and the choice at its end."""
    for passes in minibatches:
        index, labels = (torch.tensor([p[i] for p in passes]) for i in (0, 1))
        hard.watch(index, labels, logits_of(passes, len(hard.class_counts)))
    hard.choose()


def hard_cells(counts=(10, 6, 4), **options) -> HardCells:
    return HardCells(Replay(**{"max_share": 0.1} | options), np.array(counts))


def cells_found(hard: HardCells) -> list[tuple[int, int, int]]:
    return [tuple(row)[:3] for row in hard.found.tolist()]


# ---- worked by hand ----


def test_choose_by_hand():
    """Three classes; two cells for each predicted class; at most 4 of the 20 training cells."""
    hard = hard_cells(n_per_class=2, max_share=0.2)
    watch(
        hard,
        [(0, 0, 1, 0.9), (1, 0, 1, 0.8), (3, 0, 0, 0.99), (2, 0, 1, 0.8)],
        [(10, 1, 0, 0.7), (11, 1, 2, 0.6), (16, 2, 0, 0.95), (12, 1, 1, 0.55)],
    )
    # To class 1 went cells 0, 1 and 2: of the tied ones the lower index.
    assert cells_found(hard) == [(16, 2, 0), (10, 1, 0), (0, 0, 1), (1, 0, 1), (11, 1, 2)]
    np.testing.assert_allclose(np.exp(hard.found["log_probability"]), [0.95, 0.7, 0.9, 0.8, 0.6], rtol=1e-6)
    # Each class's surest: 16, 0 and 11. One place is left, for the surer of 10 and 1.
    assert sorted(hard.replayed) == [0, 1, 11, 16]
    assert hard.replayed.dtype == np.int64
    expected = {"replayed_share": 0.2, "replayed_0": 2.0, "replayed_1": 1.0, "replayed_2": 1.0}
    assert hard.report() == pytest.approx(expected)
    assert hard.n_failed(np.array([0, 1, 11, 16])).tolist() == [0] * 4, "not replayed so far"


def test_choose_without_errors():
    hard = hard_cells()
    watch(hard, [(0, 0, 1, 0.9)])
    assert hard.replayed.tolist() == [0]
    watch(hard, [(0, 0, 0, 0.9), (1, 0, 0, 0.9)], [(0, 0, 0, 0.6)])
    assert len(hard.replayed) == len(hard.found) == 0
    assert hard.report() == {"replayed_share": 0, **{f"replayed_{j}": 0 for j in range(3)}}
    hard.choose()  # an epoch of no minibatch at all
    assert len(hard.replayed) == len(hard.found) == 0


def test_replayed_before_the_first_epoch():
    hard = hard_cells()
    assert len(hard.replayed) == len(hard.found) == 0
    assert hard.report() == {"replayed_share": 0, **{f"replayed_{j}": 0 for j in range(3)}}
    assert hard.n_failed(np.array([3, 4])).tolist() == [0, 0]
    assert hard.n_failed(np.array([], int)).tolist() == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["right first", "wrong first"])
@pytest.mark.parametrize("is_one_minibatch", [True, False])
def test_choose_with_one_wrong_pass_of_several(order, is_one_minibatch):
    """A replayed cell has two passes; the one that was right takes nothing back."""
    hard = hard_cells()
    watch(hard, [(7, 0, 2, 0.9)])
    passes = [[(7, 0, 0, 0.8), (7, 0, 1, 0.6)][i] for i in order]
    watch(hard, passes) if is_one_minibatch else watch(hard, *([one] for one in passes))
    assert cells_found(hard) == [(7, 0, 1)]
    assert hard.replayed.tolist() == [7]
    assert hard.n_failed(np.array([7])).tolist() == [1]


def test_choose_with_two_wrong_passes_of_a_cell():
    """With the surer probability where they agree on the class, for either class where they do not."""
    hard = hard_cells(n_per_class=2, max_share=1.0)
    watch(hard, [(7, 0, 1, 0.6), (7, 0, 1, 0.9), (8, 0, 1, 0.7), (9, 0, 1, 0.65), (7, 0, 2, 0.55)])
    assert cells_found(hard) == [(7, 0, 1), (8, 0, 1), (7, 0, 2)]
    np.testing.assert_allclose(np.exp(hard.found["log_probability"]), [0.9, 0.7, 0.55], rtol=1e-6)
    assert sorted(hard.replayed) == [7, 8]
    assert hard.report()["replayed_0"] == 2


def test_choose_with_a_cell_wrong_in_two_classes():
    hard = hard_cells(max_share=0.15)
    watch(hard, [(7, 0, 1, 0.9), (7, 0, 2, 0.8), (8, 0, 1, 0.7), (9, 0, 2, 0.6), (5, 0, 1, 0.55)])
    assert sorted(hard.replayed) == [7, 8, 9]


def test_choose_with_a_common_error_leaves_room_for_rare_classes():
    """Fifteen cells surely taken for class 0, one each less surely for 1 and 2, and five places."""
    hard = hard_cells((80, 10, 10), max_share=0.05)
    common = [(i, 1, 0, 0.99 - i / 1000) for i in range(15)]
    watch(hard, [*common, (50, 0, 1, 0.55), (60, 0, 2, 0.55)])
    assert sorted(hard.replayed) == [0, 1, 2, 50, 60]
    assert len(hard.found) == 17


@pytest.mark.parametrize(("n_cells", "max_share", "n_most"), [(20, 0.1, 2), (20, 0.99, 19), (9, 0.1, 0)])
def test_choose_rounds_the_cap_down(n_cells, max_share, n_most):
    hard = hard_cells((n_cells - 1, 1), max_share=max_share)
    watch(hard, [(i, 0, 1, 0.9) for i in range(n_cells)])
    assert len(hard.replayed) == n_most


# ---- the guard ----


def test_choose_with_patience():
    """Cell 1 with patience 2; cell 2 is wrong once a while and never leaves."""
    hard = hard_cells(patience=2, max_share=1.0)
    story = [
        # is 1 wrong, is 2 wrong -> replayed next, n_failed of 1 and 2
        (True, True, [1, 2], [0, 0]),
        (True, True, [1, 2], [1, 1]),
        (True, False, [], [2, 0]),  # two replays in a row did not help cell 1
        (True, True, [2], [3, 0]),  # it stays away while it is wrong
        (True, True, [2], [4, 1]),
        (False, False, [], [0, 0]),  # right once
        (True, True, [1, 2], [0, 0]),  # and back
        (True, False, [1], [1, 0]),
        (True, False, [], [2, 0]),
    ]
    for is_wrong_1, is_wrong_2, replayed, n_failed in story:
        watch(hard, [(1, 0, int(is_wrong_1), 0.9), (2, 0, 2 * int(is_wrong_2), 0.9)])
        assert sorted(hard.replayed) == replayed
        assert hard.n_failed(np.array([1, 2])).tolist() == n_failed
        assert (1 in hard.found["index"]) == is_wrong_1, "also while it is not replayed"


def test_choose_with_a_cell_that_leaves():
    hard = hard_cells(n_per_class=1, patience=1)
    passes = [(4, 0, 1, 0.9), (5, 0, 1, 0.8), (6, 0, 1, 0.7)]
    chosen = []
    for _ in range(4):
        watch(hard, passes)
        chosen.append(hard.replayed.tolist())
        assert cells_found(hard) == [(4, 0, 1)]
    assert chosen == [[4], [5], [6], []]
    assert hard.n_failed(np.array([4, 5, 6])).tolist() == [3, 2, 1]


def test_n_failed_after_an_epoch_without_replay():
    """Cell 5 is wrong throughout but surpassed by cell 4 in the second epoch."""
    hard = hard_cells(n_per_class=1, patience=2)
    watch(hard, [(5, 0, 1, 0.9)])
    watch(hard, [(5, 0, 1, 0.8), (4, 0, 1, 0.9)])
    assert hard.n_failed(np.array([4, 5])).tolist() == [0, 1]
    watch(hard, [(5, 0, 1, 0.9), (4, 0, 1, 0.8)])
    assert hard.n_failed(np.array([4, 5])).tolist() == [1, 0]
    assert hard.replayed.tolist() == [5]


# ---- against the slow reference ----


@st.composite
def epochs(draw):
    """Options and, for each of some epochs, a seed of outcomes and the size of its minibatches."""
    options = {
        "n_per_class": draw(st.integers(1, 4)),
        "max_share": draw(st.sampled_from([0.05, 0.2, 0.5, 1.0])),
        "patience": draw(st.integers(1, 3)),
    }
    sizes = draw(st.lists(st.integers(1, 50), min_size=1, max_size=7))
    return options, sizes, draw(st.integers(0, 2**32 - 1))


@settings(max_examples=60, deadline=None)
@given(epochs())
def test_choose_equals_the_slow_reference(problem):
    """Few levels of probability, so that many passes tie; the same cells are wrong again and again."""
    options, sizes, seed = problem
    rng = np.random.default_rng(seed)
    n_cells, n_classes = 40, 4
    labels = rng.integers(n_classes, size=n_cells)
    difficulty = rng.choice([0.05, 0.5, 0.95], size=n_cells)
    counts = np.bincount(labels, minlength=n_classes)
    hard, slow = HardCells(Replay(**{"max_share": 0.1} | options), counts), Slow(labels, **options)
    for size in sizes:
        passes = []
        for cell in rng.permutation([*range(n_cells), *hard.replayed]):
            is_wrong = rng.random() < difficulty[cell]
            prediction = rng.integers(n_classes) if is_wrong else labels[cell]
            passes.append((cell, labels[cell], prediction, rng.choice([0.6, 0.7, 0.8])))
        watch(hard, *(passes[i : i + size] for i in range(0, len(passes), size)))
        slow.end_of_epoch(passes)
        assert cells_found(hard) == slow.found
        assert sorted(hard.replayed) == sorted(slow.replayed)
        assert len(hard.replayed) <= options["max_share"] * n_cells
        assert hard.n_failed(np.arange(n_cells)).tolist() == slow.n_failed
        report = hard.report()
        assert report.pop("replayed_share") == pytest.approx(len(slow.replayed) / n_cells)
        wanted = np.bincount(labels[slow.replayed], minlength=n_classes)
        assert list(report.values()) == wanted.tolist()


# ---- watching ----


def test_watch_with_more_minibatches_than_may_wait():
    """Their cells are all found, the first and the last among them."""
    n_cells = 2 * N_WAITING + 5
    passes = [(i, 0, 1, 0.9) for i in range(n_cells)]
    one_by_one, at_once = (hard_cells((n_cells, 1), n_per_class=1000) for _ in range(2))
    watch(one_by_one, *([one] for one in passes))
    watch(at_once, passes)
    assert one_by_one.found["index"].tolist() == list(range(n_cells))
    np.testing.assert_array_equal(one_by_one.found, at_once.found)
    np.testing.assert_array_equal(one_by_one.replayed, at_once.replayed)


def test_watch_with_an_index_beyond_32_bits():
    """Neither the index nor the choice is bounded by the memory a table of all cells would take."""
    large = 2**40
    hard = hard_cells(patience=1)
    for _ in range(2):
        watch(hard, [(large, 0, 1, 0.9), (2**31, 0, 1, 0.8), (5, 0, 0, 0.9)])
        np.testing.assert_array_equal(hard.found["index"], [large, 2**31])
    assert len(hard.replayed) == 0
    assert hard.n_failed(np.array([large, 2**31, 0])).tolist() == [1, 1, 0]


def test_found_holds_softmax_probabilities(rng):
    """Of float64 logits and of the bfloat16 ones that autocast gives."""
    logits = 3 * rng.normal(size=(30, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (logits.argmax(1) + 1) % 5
    hard = hard_cells((6,) * 5, n_per_class=30, max_share=1.0)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
        z = torch.as_tensor(logits).to(dtype).requires_grad_()
        hard.watch(torch.arange(30), torch.as_tensor(labels), z)
        hard.choose()
        found = hard.found
        np.testing.assert_allclose(np.exp(found["log_probability"]), p.max(axis=1)[found["index"]], rtol=tolerance)
        if dtype == torch.float64:
            np.testing.assert_array_equal(found["label"], labels[found["index"]])
            np.testing.assert_array_equal(found["prediction"], logits.argmax(1)[found["index"]])
            assert len(found) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_per_class": 0}, "n_per_class=0 was given; a whole number of at least 1"),
        ({"patience": 0}, "patience=0 was given; a whole number of at least 1"),
        ({"max_share": 0.0}, "max_share=0.0 was given; a finite number above 0 and at most 1"),
        ({"max_share": 1.5}, "max_share=1.5 was given"),
    ],
)
def test_replay_with_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Replay(**{"max_share": 0.1} | options)


# ---- two processes ----


def test_choose_with_two_ranks_equals_one_process(tmp_path):
    """Real processes on torch.distributed, whose passes of one cell may differ."""
    n_ranks, n_epochs, n_cells, batch_size = 2, 4, 53, 8
    arguments = n_ranks, n_epochs, n_cells, batch_size
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, *map(str, (tmp_path, rank, *arguments))])
        for rank in range(n_ranks)
    ]
    assert [child.wait(timeout=120) for child in children] == [0] * n_ranks
    ranks = [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(n_ranks)]
    alone = HardCells(Replay(n_per_class=3, max_share=0.2, patience=2), np.full(4, n_cells / 4))
    n_replayed = []
    for epoch in range(n_epochs):
        seen = {}
        for name in ("cells", "sizes", "replayed", "found", "n_failed"):
            seen[name] = [rank[f"{name} {epoch}"] for rank in ranks]
        visited = np.sort(np.concatenate(seen["cells"]))
        np.testing.assert_array_equal(visited, np.sort(np.r_[np.arange(n_cells), alone.replayed]))
        assert [len(sizes) for sizes in seen["sizes"]] == [4, 4]  # 53 cells in 2 · 4 parts of 8
        assert np.ptp(np.concatenate(seen["sizes"])) <= 1
        for rank, cells in enumerate(seen["cells"]):
            alone.watch(*outcomes(cells, rank, epoch))
        alone.choose()
        for rank in range(n_ranks):
            np.testing.assert_array_equal(seen["replayed"][rank], alone.replayed)
            np.testing.assert_array_equal(seen["found"][rank], alone.found)
            np.testing.assert_array_equal(seen["n_failed"][rank], alone.n_failed(np.arange(n_cells)))
        n_replayed.append(len(alone.replayed))
    assert min(n_replayed) > 0
    assert alone.n_failed(np.arange(n_cells)).max() >= 2


def test_listed_counts_epochs_and_keeps_the_most_probable():
    """Two epochs by hand: a cell twice in the list of one class, once in that of another."""

    def found(*passes) -> np.ndarray:
        return np.array(list(passes), PASS)

    listed = tallied(np.empty(0, LISTED), found((7, 0, 1, -0.5), (4, 0, 1, -0.1), (7, 0, 2, -0.3)))
    assert listed["n_epochs"].tolist() == [1, 1, 1]
    listed = tallied(listed, found((7, 0, 1, -0.2), (9, 1, 2, -0.4)))
    rows = [(7, 1, 2), (4, 1, 1), (7, 2, 1), (9, 2, 1)]
    columns = ["index", "prediction", "n_epochs"]
    assert sorted(listed[columns].tolist()) == sorted(rows)
    of_seven = listed[(listed["index"] == 7) & (listed["prediction"] == 1)]
    assert of_seven["log_probability"] == np.float32(-0.2)
    assert len(tallied(np.empty(0, LISTED), found())) == 0
