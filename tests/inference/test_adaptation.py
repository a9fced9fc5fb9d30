"""How novel a query's known cells seem: recovered from simulated scores with unknown cells among them."""

import numpy as np
import pytest

from celler.inference._adaptation import MAX_LOCATION, Adaptation, QueryNovelty, query_novelty


def scores(rng, n_unknown: int, location: float, n_classes: int = 6, n_of_class: int = 300):
    """Scores and predicted classes: unknown cells, two deviations higher, crowd into the first class."""
    labels = np.concatenate([np.repeat(np.arange(n_classes), n_of_class), np.zeros(n_unknown, int)])
    known = rng.normal(location, 1, n_classes * n_of_class)
    return np.concatenate([known, rng.normal(location + 2, 1, n_unknown)]), labels


@pytest.mark.parametrize("n_unknown", [0, 200, 1500])
@pytest.mark.parametrize("location", [-0.5, 0.0, 0.9])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_query_novelty_holds_the_rate(rng, n_unknown, location, rate):
    known = np.sort(rng.normal(size=2000))
    found, labels = scores(rng, n_unknown, location)
    standard = query_novelty(known, found, labels).standardise(found)
    alarms = (standard[:1800] > np.quantile(known, 1 - rate)).mean()
    assert rate / 3 < alarms < 2 * rate
    if n_unknown:
        assert (standard[1800:] > np.quantile(known, 0.95)).mean() > 0.4


def test_query_novelty_is_that_of_the_typical_class(rng):
    """Known classes that are far from typical raise the spread, not the location."""
    known = np.sort(rng.normal(size=2000))
    found, labels = scores(rng, 0, 0.5)
    even = query_novelty(known, found, labels)
    found += np.array([-0.4, -0.2, 0, 0, 0.2, 0.4])[labels]
    uneven = query_novelty(known, found, labels)
    assert even.location == pytest.approx(0.5, abs=0.1)
    assert uneven.location == pytest.approx(0.5, abs=0.15)
    assert 1 <= even.spread < uneven.spread < 1.12


def test_query_novelty_of_few_or_far_cells(rng):
    known = np.sort(rng.normal(size=500))
    few = query_novelty(known, np.full(9, 5.0), np.zeros(9, int))
    np.testing.assert_array_equal(few.standardise(np.arange(3.0)), np.arange(3.0))
    far = query_novelty(known, rng.normal(6, 1, 300), np.zeros(300, int))
    assert far.location == MAX_LOCATION
    assert query_novelty(known, np.empty(0), np.empty(0, int)).location == 0


def test_standardise_worked_by_hand():
    found = QueryNovelty(centre=-0.1, location=0.9, spread=2.0).standardise(np.array([0.8, 2.8]))
    np.testing.assert_allclose(found, [-0.1, 0.9])


def test_adaptation_in_words():
    shown = repr(Adaptation(shift=0.77, expected_accuracy=0.95, n_cells=1430, novelty=QueryNovelty(0, 0.7)))
    assert "1,430 cells" in shown
    assert "shift 0.77" in shown
    assert "expected accuracy 0.95" in shown
    assert "+0.70" in shown
    assert repr(Adaptation()) == "Adaptation to no cells"
