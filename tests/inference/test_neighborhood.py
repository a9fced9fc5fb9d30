"""Neighborhood: averages over neighbours against SciPy, ranks, and what a cell's novelty may depend on."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from celler.inference._neighborhood import CELLS_PER_NEIGHBOR, MAX_LOSS, N_NEIGHBORS, WEIGHT, neighborhood


@pytest.fixture
def query(rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates, content and own novelty of cells, half of which are of a novel type."""
    is_novel = np.arange(400) % 2 == 1
    points = rng.normal(size=(400, 5)) + 3 * is_novel[:, None]
    return points.astype(np.float32), rng.permutation(400).astype(np.uint64), rng.normal(is_novel, 1)


def averages(points, content, scores, of_points, of_content, of_scores) -> np.ndarray:
    """The averages by all distances."""
    distance = np.where(content[:, None] == of_content, np.inf, cdist(points, of_points))
    nearest = np.argsort(distance, axis=1)[:, : min(N_NEIGHBORS, len(of_scores) // CELLS_PER_NEIGHBOR)]
    return np.maximum((1 - WEIGHT) * scores + WEIGHT * of_scores[nearest].mean(axis=1), scores - MAX_LOSS)


@pytest.mark.parametrize("n_cells", [400, 100, 20])
def test_score_matches_averages_over_all_distances(query, n_cells):
    among, others = tuple(part[:n_cells] for part in query), tuple(part[-50:] for part in query)
    found = neighborhood(*among)
    expected, of_others = averages(*among, *among), averages(*others, *among)
    np.testing.assert_allclose(found.mixed, expected)
    np.testing.assert_array_equal(found.own_scores(), found.score(*among))
    order = np.argsort(expected)
    np.testing.assert_allclose(found.score(*among)[order], np.sort(among[2]))  # own novelty of the same rank
    inside = (of_others > expected.min()) & (of_others < expected.max())
    mapped = np.interp(of_others, np.sort(expected), np.sort(among[2]))
    np.testing.assert_allclose(found.score(*others)[inside], mapped[inside])
    far = found.score(others[0][:1], others[1][:1], np.array([99.0]))
    assert 97 < far <= 99  # a single cell that is far stays so


def test_score_of_parts_and_of_other_orders(query):
    whole, order = neighborhood(*query), np.random.default_rng(1).permutation(400)
    scores = whole.score(*query)
    parts = [whole.score(*(part[rows] for part in query)) for rows in (slice(0, 1), slice(1, 399), slice(399, 400))]
    np.testing.assert_array_equal(np.concatenate(parts), scores)
    turned = neighborhood(*(part[order] for part in query))
    np.testing.assert_array_equal(turned.score(*query), scores)
    assert not len(whole.score(*(part[:0] for part in query)))


def test_score_finds_novel_cells_better(query):
    scores, is_novel = neighborhood(*query).score(*query), np.arange(400) % 2 == 1
    wrong = lambda values: (values[is_novel][:, None] < values[~is_novel]).mean()
    assert wrong(scores) < 0.5 * wrong(query[2])
    np.testing.assert_allclose(np.sort(scores), np.sort(query[2]))  # as many beyond any bound


def test_neighborhood_of_few_or_equal_cells(query):
    assert neighborhood(*(part[: CELLS_PER_NEIGHBOR - 1] for part in query)) is None
    points, content, scores = np.zeros((40, 3), np.float32), np.zeros(40, np.uint64), np.full(40, 0.5)
    np.testing.assert_array_equal(neighborhood(points, content, scores).score(points, content, scores), scores)
