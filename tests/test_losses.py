"""Losses against the paper's equations in float64 NumPy, their gradients, laws and extremes."""

import dataclasses

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celler.losses import HDM, CrossEntropy, GInf

QUICK = settings(max_examples=40, deadline=None)
EVERY = [CrossEntropy(), CrossEntropy(0.1), GInf(), GInf(0.3, 0.5, 2.0), HDM(), HDM(n_hard=2)]


@st.composite
def problems(draw):
    """Logits, labels and class counts of 1 to 6 cells and 2 to 12 classes."""
    n_cells, n_classes = draw(st.integers(1, 6)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = draw(st.lists(st.integers(1, 10**8), min_size=n_classes, max_size=n_classes))
    logits = rng.normal(size=(n_cells, n_classes)) * draw(st.sampled_from([0.1, 1.0, 10.0]))
    return logits, rng.integers(n_classes, size=n_cells), np.array(counts, float)


@pytest.fixture
def problem(rng):
    return rng.normal(size=(7, 9)), rng.integers(9, size=7), np.geomspace(1e4, 3, 9).round()


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(base: GInf, shape: tuple[int, int], seed=0) -> np.ndarray:
    """The draw of I that ``base`` makes with :func:`generator`."""
    normal = torch.randn(shape, generator=generator(seed), dtype=torch.float64).numpy()
    return base.mean + base.std * normal


def compute(loss, logits, labels, counts, seed=0) -> np.ndarray:
    return loss(*map(torch.as_tensor, (logits, labels, counts)), generator(seed)).numpy()


def expected(loss, logits, labels, counts) -> np.ndarray:
    """The same loss by the reference."""
    if isinstance(loss, CrossEntropy):
        return reference.cross_entropy(logits, labels, loss.label_smoothing)
    base = loss.base if isinstance(loss, HDM) else loss
    noise = draw(base, logits.shape)
    if isinstance(loss, GInf):
        return reference.ginf(logits, labels, counts, noise, base.amplitude)
    n_hard = loss.n_hard or min(20, max(1, round(0.3 * logits.shape[1])))
    return reference.hdm(logits, labels, counts, noise, base.amplitude, n_hard)


# ---- values and gradients ----


@pytest.mark.parametrize("loss", [*EVERY, HDM(n_hard=3, base=GInf(1.0, -0.2, 0.5))], ids=str)
@QUICK
@given(problem=problems())
def test_values_match_the_equations(loss, problem):
    np.testing.assert_allclose(
        compute(loss, *problem), expected(loss, *problem), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("loss", EVERY, ids=str)
def test_gradients_match_finite_differences(loss, problem):
    logits, labels, counts = problem
    z = torch.as_tensor(logits).requires_grad_()
    loss(z, torch.as_tensor(labels), torch.as_tensor(counts), generator()).sum().backward()
    numeric = reference.finite_differences(
        lambda shifted: expected(loss, shifted, labels, counts), logits
    )
    np.testing.assert_allclose(z.grad, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", EVERY, ids=str)
def test_gradcheck(loss, problem):
    logits, labels, counts = map(torch.as_tensor, problem)
    assert torch.autograd.gradcheck(
        lambda z: loss(z, labels, counts, generator()), logits.requires_grad_()
    )


def test_a_cell_worked_by_hand():
    """Logits 0, classes of 8, 4 and 2 cells, the last true: log(14 / 2), then log(10 / 2) of its set."""
    logits, counts = np.array([[0.0, -1e-9, 0.0]]), np.array([8.0, 4.0, 2.0])
    labels = np.array([2])
    plain = GInf(amplitude=0)
    np.testing.assert_allclose(compute(plain, logits, labels, counts), [np.log(7)])
    loss = compute(HDM(n_hard=1, base=plain), logits, labels, counts)
    np.testing.assert_allclose(loss, [np.log(7) + np.log(5)])
    inflated = compute(GInf(amplitude=0.5, mean=1, std=0), logits, labels, counts)
    np.testing.assert_allclose(inflated, [np.log(8 + 4 * 2**0.5 + 2 * 2) - np.log(2 * 2)])


# ---- laws ----


@QUICK
@given(problems(), st.integers(1, 10**8), st.floats(0, 3), st.floats(0, 3))
def test_equal_counts_are_cross_entropy_whatever_the_noise(problem, count, amplitude, std):
    logits, labels, counts = problem
    equal = np.full_like(counts, count)
    np.testing.assert_allclose(
        compute(GInf(amplitude, 0.5, std), logits, labels, equal),
        reference.cross_entropy(logits, labels),
        rtol=1e-9,
        atol=1e-9,
    )


@QUICK
@given(problems())
def test_without_amplitude_it_is_the_balanced_softmax(problem):
    for base in (GInf(amplitude=0), GInf(mean=0, std=0)):
        np.testing.assert_allclose(
            compute(base, *problem), reference.balanced_softmax(*problem), rtol=1e-9, atol=1e-9
        )


@QUICK
@given(problems(), st.sampled_from([(1.0, 1.0), (0.5, 2.0), (0.1, 10.0)]))
def test_a_fixed_inflation_of_one_cancels_the_prior(problem, strengths):
    logits, labels, counts = problem
    amplitude, mean = strengths
    np.testing.assert_allclose(
        compute(GInf(amplitude, mean, std=0), logits, labels, counts),
        reference.cross_entropy(logits, labels),
        rtol=1e-8,
        atol=1e-8,
    )


@pytest.mark.parametrize("loss", EVERY, ids=str)
@QUICK
@given(problem=problems(), shift=st.floats(-100, 100))
def test_a_constant_added_to_the_logits_changes_nothing(loss, problem, shift):
    logits, *rest = problem
    np.testing.assert_allclose(
        compute(loss, logits + shift, *rest), compute(loss, logits, *rest), atol=1e-8
    )


@QUICK
@given(problems(), st.integers(0, 3))
def test_hdm_over_every_class_is_twice_ginf(problem, n_more):
    n_classes = problem[0].shape[1]
    np.testing.assert_allclose(
        compute(HDM(n_hard=n_classes - 1 + n_more), *problem),
        2 * compute(GInf(), *problem),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("n_hard", [1, 3, None])
def test_the_hard_set_is_the_target_and_the_highest_others(rng, n_hard):
    logits = rng.normal(size=(40, 9))
    for labels in (logits.argmin(1), logits.argmax(1), rng.integers(9, size=40)):
        chosen = HDM(n_hard=n_hard).hard_classes(*map(torch.as_tensor, (logits, labels))).numpy()
        for i, y in enumerate(labels):
            hardest = [j for j in np.argsort(-logits[i]) if j != y][: n_hard or 3]
            assert chosen[i, 0] == y
            assert chosen[i, 1:].tolist() == hardest


@pytest.mark.parametrize(
    ("n_classes", "n_hard"), [(2, 1), (3, 1), (5, 2), (10, 3), (60, 18), (67, 20), (500, 20)]
)
def test_default_number_of_hard_classes(n_classes, n_hard):
    """min(20, max(1, round(0.3 C))), and the target."""
    logits = torch.zeros(1, n_classes)
    assert HDM().hard_classes(logits, torch.tensor([0])).shape == (1, n_hard + 1)


def test_the_set_is_chosen_without_noise(problem):
    """Noise large enough to reorder the classes: the reference, which sorts plain logits, agrees."""
    loss = HDM(n_hard=1, base=GInf(amplitude=5.0))
    np.testing.assert_allclose(compute(loss, *problem), expected(loss, *problem), rtol=1e-9)


# ---- the draw ----


def test_the_generator_fixes_the_draw(problem):
    before = torch.get_rng_state()
    for loss in (GInf(), HDM()):
        same = [compute(loss, *problem, seed=3) for _ in range(2)]
        np.testing.assert_array_equal(*same)
        assert not np.allclose(same[0], compute(loss, *problem, seed=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_drawn_per_cell_and_class_with_its_mean_and_deviation():
    """One cell of two classes, twenty thousand times: z'_1 − z'_0 = a Δ I recovers I's moments."""
    n = 20_000
    logits, counts = torch.zeros(n, 2, dtype=torch.float64), torch.tensor([np.e**2, 1.0]).double()
    inflated = GInf(amplitude=0.5, mean=0.3, std=2.0).inflate(logits, counts, generator())
    assert torch.allclose(inflated[:, 0], torch.full((n,), 2.0).double()), "none in the largest"
    drawn = inflated[:, 1] / (0.5 * 2)
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.08)
    assert drawn.std().item() == pytest.approx(2.0, abs=0.06)


# ---- extremes ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", EVERY, ids=str)
def test_extreme_logits_and_counts_stay_finite(loss, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0, 1.0], [-1e4, 1e4, 1e4, -1e4]], dtype=dtype)
    counts = torch.tensor([1.0, 1e8, 1e4, 7.0])
    for labels in (torch.tensor([1, 0]), torch.tensor([0, 1])):
        z = logits.clone().requires_grad_()
        values = loss(z, labels, counts, generator())
        values.sum().backward()
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert z.grad.isfinite().all()
        assert (values >= 0).all()


@pytest.mark.parametrize("loss", EVERY, ids=str)
def test_half_precision_logits_are_computed_in_float32(loss, problem):
    """Also under autocast: equal to the float64 loss of the rounded logits."""
    logits, labels, counts = problem
    rounded = torch.as_tensor(logits).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(rounded, torch.as_tensor(labels), torch.as_tensor(counts), generator())
    base = dataclasses.replace(getattr(loss, "base", loss))
    if isinstance(base, GInf):  # the noise is drawn in the precision of the computation
        noise = torch.randn(logits.shape, generator=generator(), dtype=torch.float32).numpy()
        noise = base.mean + base.std * noise
        arguments = (rounded.double().numpy(), labels, counts, noise, base.amplitude)
        if isinstance(loss, HDM):
            wanted = reference.hdm(*arguments, loss.n_hard or 3)
        else:
            wanted = reference.ginf(*arguments)
    else:
        wanted = expected(loss, rounded.double().numpy(), labels, counts)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual, wanted, rtol=2e-5)


# ---- what is refused ----


@pytest.mark.parametrize("loss", [GInf(), GInf(amplitude=0), HDM()], ids=str)
def test_a_class_without_cells_is_named(loss):
    with pytest.raises(ValueError, match=r"class_counts is 0 or less for class \[1\]"):
        loss(torch.zeros(2, 3), torch.tensor([0, 2]), torch.tensor([5.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (CrossEntropy, {"label_smoothing": 1.0}, "label_smoothing=1.0 was given"),
        (CrossEntropy, {"label_smoothing": -0.1}, "label_smoothing=-0.1 was given"),
        (GInf, {"amplitude": -1.0}, "amplitude=-1.0 and std=1.0 were given"),
        (GInf, {"std": -1.0}, "amplitude=0.1 and std=-1.0 were given"),
        (HDM, {"n_hard": 0}, "n_hard=0 was given; at least 1"),
    ],
)
def test_options_out_of_range(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_losses_are_frozen_and_comparable():
    assert HDM() == HDM(n_hard=None, base=GInf(0.1, 0.0, 1.0))
    assert HDM() != HDM(n_hard=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        GInf().amplitude = 1.0
