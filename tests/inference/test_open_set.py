"""Open set: scores by hand, their bounds, and a model of all tissues, which has no others."""

import numpy as np
import pytest

from celler.inference._open_set import MAX_SHIFT, OpenSet

SHAPE = 12


def directions(rng, n):
    vectors = rng.normal(size=(n, SHAPE)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def open_set(rng):
    return OpenSet(directions(rng, 4), directions(rng, 3), ("x", "y", "z"))


@pytest.fixture
def cells(rng):
    return 5 * rng.normal(size=(60, SHAPE)).astype(np.float32)


def cosine(one, other):
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def test_score_by_hand(open_set, cells):
    expected = []
    for cell in cells.astype(float):
        own = max(cosine(cell, vector) for vector in open_set.inside.astype(float))
        other = max(cosine(cell, vector) for vector in open_set.outside.astype(float))
        expected.append(other - own - own / 4)
    np.testing.assert_allclose(open_set.score(cells), expected, rtol=1e-4, atol=1e-5)


def test_score_does_not_depend_on_length(open_set, cells):
    np.testing.assert_allclose(open_set.score(cells * 7), open_set.score(cells), atol=1e-5)
    assert np.isfinite(open_set.score(np.zeros((1, SHAPE), np.float32))).all()


def test_fitted_standardises(open_set, cells):
    fitted, raw = open_set.fitted(cells), open_set.score(cells).astype(float)
    expected = (raw - raw.mean()) / raw.std()
    np.testing.assert_allclose(fitted.score(cells), expected, atol=1e-4)
    np.testing.assert_allclose(fitted.known, np.sort(expected), atol=1e-4)
    # Fitting again is fitting once.
    np.testing.assert_allclose(fitted.fitted(cells).known, fitted.known, atol=1e-5)


def test_fitted_to_equal_cells(open_set):
    fitted = open_set.fitted(np.ones((5, SHAPE), np.float32))
    assert np.isfinite(fitted.known).all()


def test_score_without_other_types_is_that_of_the_own(rng, cells):
    alone = OpenSet(directions(rng, 4), np.empty((0, SHAPE), np.float32), ()).fitted(cells)
    own = np.array([max(cosine(cell, v) for v in alone.inside.astype(float)) for cell in cells.astype(float)])
    np.testing.assert_allclose(alone.score(cells), -(own - own.mean()) / own.std(), atol=1e-4)
    assert list(alone.resembled(cells)) == []


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
def test_threshold_is_exceeded_by_the_rate(open_set, cells, rate):
    fitted = open_set.fitted(cells)
    assert fitted.threshold(rate) == pytest.approx(np.quantile(fitted.known, 1 - rate))
    assert np.mean(fitted.known > fitted.threshold(rate)) <= rate + 1 / len(cells)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5])
def test_threshold_out_of_range(open_set, cells, rate):
    with pytest.raises(ValueError, match=f"false_alarm_rate={rate} was given; a share between 0 and 1"):
        open_set.fitted(cells).threshold(rate)


def test_shift_is_bounded(open_set, cells):
    fitted = open_set.fitted(cells)
    middle = float(np.median(fitted.known))
    assert fitted.shift(fitted.known + 0.3) == pytest.approx(0.3, abs=1e-5)
    assert fitted.shift(fitted.known + 40) == MAX_SHIFT
    assert fitted.shift(fitted.known - 3) == 0
    assert fitted.shift(np.array([middle + 0.5])) == pytest.approx(0.5, abs=1e-5)
    assert fitted.shift(np.empty(0)) == 0


def test_resembled_names_the_most_frequent_first(open_set):
    cells = open_set.outside[[2, 1, 2, 2, 1, 0]]
    assert list(open_set.resembled(cells)) == ["z", "y", "x"]
    assert list(open_set.resembled(cells[:2])) == ["y", "z"]


def test_plain_round_trip(open_set, cells):
    fitted = open_set.fitted(cells)
    found = OpenSet.from_plain(fitted.to_plain())
    assert found.names == fitted.names
    np.testing.assert_array_equal(found.score(cells), fitted.score(cells))
    np.testing.assert_array_equal(found.known, fitted.known)
