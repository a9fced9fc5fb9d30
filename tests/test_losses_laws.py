"""Laws of the losses: what they have in common, where one becomes another, and where noise comes in."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import BASES, EVERY, NOISY, QUIET, Problem, compute, expected, generator, problems
from scipy.stats import entropy

from celler.losses import HDM, RIDE, BalancedSoftmax, CrossEntropy, Focal, GInf

QUICK = settings(max_examples=30, deadline=None)


@pytest.fixture
def problem(rng):
    counts = np.geomspace(1e4, 3, 9).round()
    return Problem(rng.normal(size=(3, 7, 9)), rng.integers(9, size=7), counts)


def cross_entropy(problem: Problem) -> np.ndarray:
    """Of the first expert, by the reference."""
    return reference.cross_entropy(problem.logits[0], problem.labels)


def cross_entropies(problem: Problem) -> np.ndarray:
    """Sum over the experts, by the reference."""
    return sum(reference.cross_entropy(logits, problem.labels) for logits in problem.logits)


def with_counts(problem: Problem, count: float) -> Problem:
    return problem._replace(counts=np.full_like(problem.counts, count))


def assert_close(actual, desired) -> None:
    np.testing.assert_allclose(actual, desired, rtol=1e-8, atol=1e-8)


# ---- where one loss becomes another ----


@QUICK
@given(problems(), st.integers(1, 10**8), st.floats(0, 3), st.floats(0, 3))
def test_ginf_with_equal_counts_is_cross_entropy(problem, count, amplitude, std):
    equal = with_counts(problem, count)
    for loss in (GInf(amplitude, 0.5, std), BalancedSoftmax()):
        assert_close(compute(loss, equal), cross_entropy(problem))


@QUICK
@given(problems())
def test_ginf_without_amplitude_is_the_balanced_softmax(problem):
    wanted = reference.balanced_softmax(problem.logits[0], *problem[1:])
    for loss in (GInf(amplitude=0), GInf(mean=0, std=0), BalancedSoftmax()):
        assert_close(compute(loss, problem), wanted)


@QUICK
@given(problems(), st.sampled_from([(1.0, 1.0), (0.5, 2.0), (0.1, 10.0)]))
def test_ginf_with_a_fixed_inflation_of_one_is_cross_entropy(problem, strengths):
    amplitude, mean = strengths
    assert_close(compute(GInf(amplitude, mean, std=0), problem), cross_entropy(problem))


@QUICK
@given(problems())
def test_focal_without_gamma_is_cross_entropy(problem):
    for loss in (Focal(gamma=0), CrossEntropy()):
        assert_close(compute(loss, problem), cross_entropy(problem))


@QUICK
@given(problems(), st.integers(0, 3))
def test_hdm_with_every_class_is_twice_the_base(problem, n_more):
    for base in BASES:
        loss = HDM(n_hard=len(problem.counts) - 1 + n_more, base=base)
        assert_close(compute(loss, problem), 2 * compute(base, problem))


@QUICK
@given(problems())
def test_ride_without_diversity_is_a_sum_of_cross_entropies(problem):
    assert_close(compute(RIDE(diversity=0), problem), cross_entropies(problem))


@QUICK
@given(problems(), st.floats(0, 5), st.floats(0.2, 5), st.floats(0, 0.9))
def test_ride_with_equal_experts_gives_no_reward(problem, diversity, temperature, balance):
    same = problem._replace(logits=np.broadcast_to(problem.logits[0], problem.logits.shape).copy())
    loss = compute(RIDE(diversity, temperature, balance), same)
    assert_close(loss, len(problem.logits) * cross_entropy(problem))


@QUICK
@given(problems(), st.floats(0.2, 5), st.floats(0, 1))
def test_ride_rewards_scipys_relative_entropies(problem, temperature, balance):
    """Where all classes have one temperature: without balance, or with equal counts."""
    p = torch.as_tensor(problem.logits / temperature).softmax(-1).numpy()
    pairs = sum(entropy(p[e], p[f], axis=1) for e in range(len(p)) for f in range(len(p)) if e != f)
    wanted = cross_entropies(problem) - 0.3 / (len(p) - 1) * pairs
    np.testing.assert_allclose(compute(RIDE(0.3, temperature, balance=0), problem), wanted, rtol=1e-7, atol=1e-7)
    alike = compute(RIDE(0.3, temperature, balance), with_counts(problem, 7))
    np.testing.assert_allclose(alike, wanted, rtol=1e-7, atol=1e-7)


# ---- what changes nothing ----


@pytest.mark.parametrize("loss", EVERY, ids=str)
@QUICK
@given(problem=problems(), shift=st.floats(-100, 100))
def test_losses_with_a_constant_added_to_the_logits(loss, problem, shift):
    """But in RIDE, whose class-wise temperatures divide the constant too, only with equal counts."""
    if loss.joins_experts:
        problem = with_counts(problem, 3)
    moved = problem._replace(logits=problem.logits + shift)
    assert_close(compute(loss, moved), compute(loss, problem))


@pytest.mark.parametrize("loss", QUIET, ids=str)
@QUICK
@given(problem=problems(), seed=st.integers(0, 99))
def test_losses_with_classes_and_experts_reordered(loss, problem, seed):
    """Of the experts only where they are joined; noise is drawn in the order of the classes."""
    rng = np.random.default_rng(seed)
    n_experts, _, n_classes = problem.logits.shape
    classes, experts = rng.permutation(n_classes), rng.permutation(n_experts)
    logits = problem.logits[experts] if loss.joins_experts else problem.logits
    shuffled = Problem(logits[:, :, classes], classes.argsort()[problem.labels], problem.counts[classes])
    assert_close(compute(loss, shuffled), compute(loss, problem))


@pytest.mark.parametrize("loss", QUIET, ids=str)
def test_losses_of_a_cell_in_any_minibatch(loss, problem):
    alone = [
        compute(loss, Problem(problem.logits[:, [i]], problem.labels[[i]], problem.counts))
        for i in range(len(problem.labels))
    ]
    assert_close(np.concatenate(alone), compute(loss, problem))


@pytest.mark.parametrize("loss", EVERY, ids=str)
@pytest.mark.parametrize("factor", [2, 1000])
def test_losses_with_counts_multiplied(loss, problem, factor):
    larger = problem._replace(counts=problem.counts * factor)
    assert_close(compute(loss, larger), compute(loss, problem))


# ---- what does change it ----


@pytest.mark.parametrize(
    "loss",
    [
        BalancedSoftmax(),
        GInf(),
        RIDE(),
        *(HDM(base=b) for b in (BalancedSoftmax(), GInf(), RIDE())),
    ],
    ids=str,
)
def test_losses_with_other_class_sizes(loss, problem):
    assert not np.allclose(compute(loss, problem), compute(loss, with_counts(problem, 5)))


@pytest.mark.parametrize(
    "options",
    [
        (Focal(1.0), Focal(2.0)),
        (CrossEntropy(0.0), CrossEntropy(0.2)),
        (RIDE(diversity=0.1), RIDE(diversity=0.2)),
        (RIDE(temperature=1.0), RIDE(temperature=2.0)),
        (RIDE(balance=0.0), RIDE(balance=0.5)),
        (GInf(amplitude=0.1), GInf(amplitude=0.2)),
        (GInf(mean=0.0), GInf(mean=1.0)),
        (GInf(std=1.0), GInf(std=2.0)),
        (HDM(n_hard=1), HDM(n_hard=2)),
        *((HDM(base=base), base) for base in BASES),
    ],
    ids=str,
)
def test_losses_with_every_option_changed(options, problem):
    one, other = (compute(loss, problem) for loss in options)
    assert not np.allclose(one, other)


def test_focal_with_a_confident_cell(problem):
    """The share of cross-entropy that is left is (1 − p)^γ, smaller the surer the cell."""
    nll = cross_entropy(problem)
    left = compute(Focal(gamma=2), problem) / nll
    np.testing.assert_array_equal(left.argsort(), nll.argsort())
    assert ((left > 0) & (left < 1)).all()


# ---- the hard set ----


@pytest.mark.parametrize("n_hard", [1, 3, None])
def test_hard_classes_are_the_target_and_the_highest_others(rng, n_hard):
    logits = rng.normal(size=(40, 9))
    for labels in (logits.argmin(1), logits.argmax(1), rng.integers(9, size=40)):
        chosen = HDM(n_hard=n_hard).hard_classes(*map(torch.as_tensor, (logits, labels))).numpy()
        for i, y in enumerate(labels):
            hardest = [j for j in np.argsort(-logits[i]) if j != y][: n_hard or 3]
            assert chosen[i, 0] == y
            assert chosen[i, 1:].tolist() == hardest


@pytest.mark.parametrize("lowest", [-1e4, -1e30, -np.inf])
def test_hard_classes_with_a_low_target(lowest):
    logits = torch.tensor([[0.0, lowest, 1.0, 2.0]])
    chosen = HDM(n_hard=2).hard_classes(logits, torch.tensor([1]))
    assert chosen.tolist() == [[1, 3, 2]]


@pytest.mark.parametrize(("n_classes", "n_hard"), [(2, 1), (3, 1), (5, 2), (10, 3), (60, 18), (67, 20), (500, 20)])
def test_hard_classes_by_default(n_classes, n_hard):
    """min(20, max(1, round(0.3 C))), and the target."""
    logits = torch.zeros(1, n_classes)
    assert HDM().hard_classes(logits, torch.tensor([0])).shape == (1, n_hard + 1)


def test_hdm_chooses_its_set_without_noise(problem):
    """Noise large enough to reorder the classes: the reference, which sorts plain logits, agrees."""
    loss = HDM(n_hard=1, base=GInf(amplitude=5.0))
    np.testing.assert_allclose(compute(loss, problem), expected(loss, problem), rtol=1e-9)


def test_hdm_chooses_its_set_without_the_prior():
    """Class 1 is the hardest by its logit, class 2 with the prior."""
    problem = Problem(np.array([[[0.0, 1.0, 0.0]]]), np.array([0]), np.array([1.0, 1.0, 1e6]))
    second = compute(HDM(n_hard=1, base=BalancedSoftmax()), problem) - compute(BalancedSoftmax(), problem)
    np.testing.assert_allclose(second, [np.log(1 + np.e)])


def test_hdm_with_experts_chooses_by_their_mean():
    """Each expert has a favourite of its own; the mean's is another class."""
    logits = np.array([[[0.0, 5.0, 4.0, -9.0]], [[0.0, -9.0, 4.0, 5.0]]])
    problem = Problem(logits, np.array([0]), np.ones(4))
    base = RIDE(diversity=0)
    second = compute(HDM(n_hard=1, base=base), problem) - compute(base, problem)
    np.testing.assert_allclose(second, [2 * np.log(1 + np.exp(4))])


# ---- the draw ----


@pytest.mark.parametrize("loss", NOISY, ids=str)
def test_losses_with_the_same_generator(loss, problem):
    before = torch.get_rng_state()
    same = [compute(loss, problem, seed=3) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.allclose(same[0], compute(loss, problem, seed=4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("loss", [*QUIET, GInf(amplitude=0), HDM(base=GInf(amplitude=0))], ids=str)
def test_losses_without_amplitude_draw_nothing(loss, problem):
    arguments = tuple(map(torch.as_tensor, problem.suit(loss)))
    own, before = generator(), torch.get_rng_state()
    with_generator, without = loss(*arguments, own), loss(*arguments)
    assert torch.equal(with_generator, without)
    assert torch.equal(own.get_state(), generator().get_state())
    assert torch.equal(torch.get_rng_state(), before)


def test_hdm_shares_one_draw_between_its_terms(problem):
    own, other = generator(), generator()
    arguments = tuple(map(torch.as_tensor, problem.suit(GInf())))
    HDM()(*arguments, own)
    GInf()(*arguments, other)
    assert torch.equal(own.get_state(), other.get_state())


def test_ginf_draws_per_cell_and_class_with_mean_and_std():
    """One cell of two classes, twenty thousand times: z'_1 − z'_0 = a Δ I recovers I's moments."""
    n = 20_000
    logits, counts = torch.zeros(n, 2, dtype=torch.float64), torch.tensor([np.e**2, 1.0]).double()
    shifted = GInf(amplitude=0.5, mean=0.3, std=2.0).shift(logits, counts, generator())
    assert torch.allclose(shifted[:, 0], torch.full((n,), 2.0).double()), "none in the largest"
    drawn = shifted[:, 1] / (0.5 * 2)
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.08)
    assert drawn.std().item() == pytest.approx(2.0, abs=0.06)
