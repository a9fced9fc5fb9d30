"""Losses against the papers' equations in float64 NumPy, their gradients, extremes and refusals."""

import dataclasses

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from loss_cases import EVERY, Problem, compute, expected, generator, problems

from celler.losses import HDM, RIDE, BalancedSoftmax, CrossEntropy, Focal, GInf

QUICK = settings(max_examples=30, deadline=None)
MORE = [HDM(n_hard=3, base=GInf(1.0, -0.2, 0.5)), HDM(base=RIDE(0.5, 2.0, 0.0)), Focal(0.0)]


@pytest.fixture
def problem(rng):
    counts = np.geomspace(1e4, 3, 9).round()
    return Problem(rng.normal(size=(3, 7, 9)), rng.integers(9, size=7), counts)


# ---- values and gradients ----


@pytest.mark.parametrize("loss", [*EVERY, *MORE], ids=str)
@QUICK
@given(problem=problems())
def test_losses_match_their_equations(loss, problem):
    np.testing.assert_allclose(compute(loss, problem), expected(loss, problem), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", EVERY, ids=str)
def test_losses_have_the_gradients_of_finite_differences(loss, problem):
    small = Problem(problem.logits[:2, :3], problem.labels[:3], problem.counts)
    logits, labels, counts = map(torch.as_tensor, small.suit(loss))
    loss(logits.requires_grad_(), labels, counts, generator()).sum().backward()
    numeric = reference.finite_differences(lambda shifted: expected(loss, small._replace(logits=shifted)), small.logits)
    numeric = numeric if loss.joins_experts else numeric[0]
    np.testing.assert_allclose(logits.grad, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", EVERY, ids=str)
def test_losses_pass_gradcheck(loss, problem):
    logits, labels, counts = map(torch.as_tensor, problem.suit(loss))
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, counts, generator()), logits.requires_grad_())


# ---- cells worked by hand ----


def test_ginf_and_hdm_by_hand():
    """Logits 0, classes of 8, 4 and 2 cells, the last true: log(14 / 2), then log(10 / 2) of its set."""
    problem = Problem(np.array([[[0.0, -1e-9, 0.0]]]), np.array([2]), np.array([8.0, 4.0, 2.0]))
    for plain in (GInf(amplitude=0), BalancedSoftmax()):
        np.testing.assert_allclose(compute(plain, problem), [np.log(7)])
        loss = compute(HDM(n_hard=1, base=plain), problem)
        np.testing.assert_allclose(loss, [np.log(7) + np.log(5)])
    inflated = compute(GInf(amplitude=0.5, mean=1, std=0), problem)
    np.testing.assert_allclose(inflated, [np.log(8 + 4 * 2**0.5 + 2 * 2) - np.log(2 * 2)])


def test_focal_by_hand():
    """Probability 3/4: (1/4)² log(4/3) and √(1/4) log(4/3)."""
    problem = Problem(np.log([[[1.0, 3.0]]]), np.array([1]), np.array([5.0, 1.0]))
    np.testing.assert_allclose(compute(Focal(), problem), [np.log(4 / 3) / 16])
    np.testing.assert_allclose(compute(Focal(gamma=0.5), problem), [np.log(4 / 3) / 2])


def test_ride_by_hand():
    """Probabilities (3/4, 1/4) and (1/4, 3/4): either divergence is log(3) / 2 at temperature 1."""
    problem = Problem(np.log([[[3.0, 1.0]], [[1.0, 3.0]]]), np.array([0]), np.array([6.0, 2.0]))
    both = np.log(4 / 3) + np.log(4)
    np.testing.assert_allclose(compute(RIDE(0.2, balance=0), problem), [both - 0.2 * np.log(3)])
    # At temperature 1/2 the odds are 9 to 1, and a divergence is (9 − 1) / 10 · log 9.
    loss = compute(RIDE(0.2, temperature=0.5, balance=0), problem)
    np.testing.assert_allclose(loss, [both - 0.2 * 2 * 0.8 * np.log(9)])
    # ψ is 6/4 and 2/4, the temperatures 1 and 1/3: odds of 3 to 1 and of 1 to 27.
    p, q = np.array([3 / 4, 1 / 4]), np.array([1 / 28, 27 / 28])
    divergence = (p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()
    np.testing.assert_allclose(compute(RIDE(0.2, balance=1), problem), [both - 0.2 * divergence])


# ---- extremes ----


def extreme(dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two experts, one cell each sure and unsure, and counts from 1 to 1e8."""
    logits = torch.tensor([[1e4, -1e4, 0.0, 1.0], [-1e4, 1e4, 1e4, -1e4]], dtype=dtype)
    return torch.stack([logits, logits.flip(1)]), torch.tensor([1.0, 1e8, 1e4, 7.0])


@pytest.mark.parametrize("labels", [[1, 0], [0, 1], [2, 3]], ids=str)
@pytest.mark.parametrize("is_autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", EVERY, ids=str)
def test_losses_with_extreme_logits_and_counts(loss, dtype, is_autocast, labels):
    logits, counts = extreme(dtype)
    z = (logits if loss.joins_experts else logits[0]).clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        values = loss(z, torch.tensor(labels), counts, generator())
    values.sum().backward()
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert z.grad.isfinite().all()
    assert z.grad.dtype == dtype
    assert loss.joins_experts or (values >= 0).all()


@pytest.mark.parametrize("loss", [x for x in EVERY if "smoothing=0.1" not in str(x)], ids=str)
def test_losses_with_a_cell_of_probability_one(loss):
    """And has no gradient; every expert agrees on it."""
    logits = torch.tensor([[[1e4, -1e4, 0.0]]] * 2, requires_grad=True)
    z = logits if loss.joins_experts else logits[0]
    value = loss(z, torch.tensor([0]), torch.tensor([1.0, 1e8, 5.0]), generator())
    value.sum().backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", EVERY, ids=str)
def test_losses_with_half_precision_logits(loss, problem):
    """Also under autocast: equal to the float64 loss of the rounded logits, float32 noise added."""
    rounded = torch.as_tensor(problem.suit(loss).logits).bfloat16()
    labels, counts = map(torch.as_tensor, problem[1:])
    noise = torch.randn(rounded.shape, generator=generator(), dtype=torch.float32).numpy()
    wide = problem._replace(logits=torch.as_tensor(problem.logits).bfloat16().double().numpy())
    wanted = expected(loss, wide, noise)
    for is_autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            actual = loss(rounded, labels, counts, generator())
        assert actual.dtype == torch.float32
        np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=2e-6)


# ---- what is refused ----


@pytest.mark.parametrize("count", [0.0, -1.0])
@pytest.mark.parametrize("loss", [*EVERY, GInf(amplitude=0)], ids=str)
def test_losses_with_a_class_without_cells(loss, count):
    logits, counts = torch.zeros(2, 2, 3), torch.tensor([5.0, count, 1.0])
    with pytest.raises(ValueError, match=r"class_counts is 0 or less for class \[1\]"):
        loss(logits if loss.joins_experts else logits[0], torch.tensor([0, 2]), counts)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (CrossEntropy, {"label_smoothing": 1.0}, "label_smoothing=1.0 was given; .* at least 0 and below 1"),
        (CrossEntropy, {"label_smoothing": -0.1}, "label_smoothing=-0.1 was given"),
        (Focal, {"gamma": -0.5}, "gamma=-0.5 was given; .* of at least 0"),
        (RIDE, {"diversity": -1.0}, "diversity=-1.0 was given; .* of at least 0"),
        (RIDE, {"temperature": 0.0}, "temperature=0.0 was given; .* above 0"),
        (RIDE, {"balance": 1.1}, "balance=1.1 was given; .* between 0 and 1"),
        (RIDE, {"balance": -0.1}, "balance=-0.1 was given"),
        (GInf, {"amplitude": -1.0}, "amplitude=-1.0 was given; .* of at least 0"),
        (GInf, {"std": -1.0}, "std=-1.0 was given; .* of at least 0"),
        (HDM, {"n_hard": 0}, "n_hard=0 was given; a whole number of at least 1"),
    ],
)  # fmt: skip
def test_losses_with_options_out_of_range(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize("base", [HDM(), int, "ginf", None], ids=str)
def test_hdm_with_a_wrong_base(base):
    with pytest.raises(TypeError, match=r"base=.* was given.*; one of celler.losses other than"):
        HDM(base=base)


@pytest.mark.parametrize("loss", [RIDE(), HDM(base=RIDE())], ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (1, 5, 3)], ids=str)
def test_ride_without_experts(loss, shape):
    counts, message = torch.tensor([2.0, 1, 1]), "RIDE compares experts and needs .* two of them"
    with pytest.raises(ValueError, match=message) as error:
        loss(torch.zeros(shape), torch.zeros(5, dtype=torch.long), counts)
    assert str(shape) in str(error.value)


def test_losses_are_frozen_and_comparable():
    assert HDM() == HDM(n_hard=None, base=GInf(0.1, 0.0, 1.0))
    assert HDM() != HDM(n_hard=3)
    assert HDM() != HDM(base=BalancedSoftmax())
    assert RIDE(0.5) == RIDE(diversity=0.5) != RIDE(0.6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        GInf().amplitude = 1.0


def test_joins_experts_of_each_loss():
    joining = [loss for loss in EVERY if loss.joins_experts]
    assert {type(getattr(loss, "base", loss)) for loss in joining} == {RIDE}
    assert len(joining) == 4
