"""Calibration against SciPy: temperature, probabilities, threshold, margin and second best."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import norm

from celler.inference._calibration import (
    TEMPERATURE_SPREAD,
    TYPICAL_TEMPERATURE,
    Decision,
    fit_temperature,
    margin,
    second_best,
)
from celler.inference._labels import Question, label
from celler.inference._outputs import Outputs, Propagation
from celler.labels import LabelTree

NAMES = ("B", "NK", "T")


def sample(rng, logits) -> np.ndarray:
    """Labels drawn from the softmax of ``logits``."""
    return (softmax(logits, axis=1).cumsum(1) < rng.random((len(logits), 1))).sum(1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_fit_temperature_recovers_a_known_one(rng, temperature):
    calibrated = rng.normal(scale=2.0, size=(20_000, 5))
    fitted = fit_temperature(calibrated * temperature, sample(rng, calibrated))
    assert fitted == pytest.approx(temperature, rel=0.05)


def test_fit_temperature_is_the_best_of_a_grid(rng):
    """The likelihood of the cells, equal in sum for each class, times SciPy's log-normal density of the typical one."""
    logits = rng.normal(scale=3.0, size=(60, 4)).astype(np.float32)
    labels = sample(rng, logits / 2)
    grid = np.geomspace(0.2, 5, 2001)
    weights = 1 / np.array([(labels == label).sum() for label in labels])
    weights *= 60 / weights.sum()
    likely = [weights @ np.log(softmax(logits / t, axis=1)[np.arange(60), labels]) for t in grid]
    density = norm.logpdf(np.log(grid), np.log(TYPICAL_TEMPERATURE), TEMPERATURE_SPREAD)
    best = grid[np.argmax(likely + density)]
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=2e-3)


def test_fit_temperature_stays_in_its_bounds(rng):
    logits = rng.normal(size=(20_000, 3)) * 4
    assert fit_temperature(logits / 100, logits.argmax(1)) == pytest.approx(0.2, rel=1e-3)
    assert fit_temperature(logits, logits.argmin(1)) == pytest.approx(5.0, rel=1e-3)


def test_fit_temperature_of_few_cells(rng):
    logits = rng.normal(scale=6.0, size=(2000, 3))  # of calibrated logits times 3
    labels = sample(rng, logits / 3)
    fitted = [fit_temperature(logits[:n], labels[:n]) for n in (0, 5, 2000)]
    assert fitted[0] == TYPICAL_TEMPERATURE
    assert TYPICAL_TEMPERATURE / 2 < fitted[1] < 3 < fitted[2] * 1.1


def test_probabilities_match_scipys_softmax(rng):
    logits = (rng.normal(size=(6, 4)) * 50).astype(np.float32)
    actual = Decision(temperature=2.0).probabilities(logits)
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, softmax(logits.astype(float) / 2, axis=1), rtol=1e-12)
    np.testing.assert_allclose(actual.sum(1), 1)


def test_probabilities_of_candidates(rng):
    logits, candidates = rng.normal(size=(6, 4)), np.array([0, 3])
    before = logits.copy()
    actual = Decision(1.5).probabilities(logits, candidates)
    np.testing.assert_allclose(actual[:, candidates], softmax(logits[:, candidates] / 1.5, axis=1))
    assert not actual[:, [1, 2]].any()
    np.testing.assert_array_equal(logits, before)
    only = Decision().probabilities(logits, np.array([2]))
    np.testing.assert_array_equal(only, np.eye(4)[[2] * 6])


def names_of(probabilities, threshold, unknown_label="?"):
    """Labels of cells with these probabilities."""
    logits, propagation = np.log(probabilities), Propagation(probabilities, 0, len(probabilities), 0.5)
    outputs = Outputs(logits, logits, np.ones(len(logits), bool), propagation=propagation)
    question = Question(threshold=threshold, unknown_label=unknown_label)
    return label(outputs, Decision(), LabelTree(NAMES), question).names


def test_label_with_a_threshold():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5], [0.1, 0.5, 0.4]])
    assert names_of(probabilities, None).tolist() == ["B", "T", "NK"]
    labels = names_of(probabilities, 0.6, "a rather long name")
    assert labels.tolist() == ["B", "a rather long name", "a rather long name"]
    assert labels.dtype.kind == "U"
    assert names_of(probabilities, 0.5).tolist() == ["B", "T", "NK"], "0.5 is not below"
    assert names_of(probabilities, 0.0).tolist() == ["B", "T", "NK"]
    assert names_of(probabilities, 1.0).tolist() == ["?"] * 3
    assert names_of(probabilities[:0], 0.5).tolist() == []


@pytest.mark.parametrize("threshold", [-0.1, 1.1, np.nan])
def test_question_with_a_bad_threshold(threshold):
    with pytest.raises(ValueError, match=f"threshold={threshold} was given; a probability"):
        Question(threshold=threshold).check(LabelTree(NAMES))


def test_margin_is_best_less_second(rng):
    probabilities = rng.dirichlet(np.ones(5), size=40)
    probabilities[0] = 0.2  # all tied
    ordered = np.sort(probabilities, axis=1)
    np.testing.assert_allclose(margin(probabilities), ordered[:, -1] - ordered[:, -2])
    assert margin(probabilities)[0] == 0
    np.testing.assert_array_equal(margin(np.ones((3, 1))), [1, 1, 1])
    assert margin(probabilities[:0]).shape == (0,)


def test_second_best_matches_sorting(rng):
    probabilities = softmax(rng.normal(size=(30, 3)), axis=1)
    expected = [NAMES[np.argsort(row)[-2]] for row in probabilities]
    np.testing.assert_array_equal(second_best(probabilities, NAMES), expected)
    np.testing.assert_array_equal(second_best(np.full((1, 3), 1 / 3), NAMES), ["NK"])
