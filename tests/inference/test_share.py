"""Share: agreement of neighbours by hand, and the encoder's share between its bounds."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.neighbors import NearestNeighbors

from celler.inference._share import HALFWAY, LEAST, MIN_CELLS, MOST, N_NEIGHBORS, SCALE, agreement, share_of_query


def test_agreement_by_hand():
    """Five cells of two labels: 1 + 2 + 0 + 1 + 1 of ten neighbours have the cell's own."""
    labels = np.array([0, 0, 1, 1, 0])
    neighbor = np.array([[1, 2], [0, 4], [0, 1], [2, 4], [3, 0]])
    assert agreement(labels, neighbor) == 0.5
    assert agreement(np.zeros(5), neighbor) == 1.0
    assert agreement(np.arange(5), neighbor) == 0.0


@pytest.fixture
def points(rng) -> np.ndarray:
    """Three clusters of forty cells."""
    return rng.normal(size=(120, 5)) + 20 * np.repeat(np.eye(3, 5), 40, axis=0)


CLUSTERS = np.repeat(np.arange(3), 40)


def mixed(share: float, seed: int = 0) -> np.ndarray:
    """Labels of the clusters, of which a share is drawn at random."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(120) < share, rng.integers(3, size=120), CLUSTERS)


def test_share_of_query_follows_the_difference_of_agreements(points):
    """A logistic curve of it, with agreements counted pair by pair in scikit-learn's graph."""
    graph = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(points).kneighbors_graph().toarray() > 0
    np.fill_diagonal(graph, False)
    for encoder, own in ((0.1, 0.0), (0.0, 0.1), (0.2, 0.15), (0.0, 0.0)):
        labels = mixed(encoder, 1), mixed(own, 2)
        agreed = [((each[:, None] == each) & graph).sum() / graph.sum() for each in labels]
        difference = agreed[0] - agreed[1]
        expected = LEAST + (MOST - LEAST) * expit((difference - HALFWAY) / SCALE)
        assert share_of_query(*labels, points) == pytest.approx(expected, rel=1e-9)


def test_share_of_query_grows_with_the_encoders_agreement(points):
    own = mixed(0.3, 5)
    shares = [share_of_query(mixed(noise), own, points) for noise in (1.0, 0.5, 0.4, 0.3, 0.2, 0.0)]
    assert (np.diff(shares) > 0).all()
    assert LEAST <= shares[0] < LEAST + 0.01
    assert MOST - 0.01 < shares[-1] <= MOST
    others = [share_of_query(own, mixed(noise), points) for noise in (1.0, 0.5, 0.4, 0.3, 0.2, 0.0)]
    assert (np.diff(others) < 0).all()


def test_share_of_query_of_extreme_labels(points):
    """All alike against all at random: within the bounds, and finite."""
    every, none = np.zeros(120, int), np.arange(120)
    assert share_of_query(every, none, points) == pytest.approx(MOST)
    assert share_of_query(none, every, points) == pytest.approx(LEAST)
    equal = share_of_query(every, every, np.zeros((120, 1)))
    assert equal == share_of_query(CLUSTERS, CLUSTERS, points)


def test_share_of_query_ignores_the_names_of_labels(points):
    one, own = mixed(0.2), mixed(0.25, 3)
    renamed = np.array([2, 0, 1])
    assert share_of_query(renamed[one], renamed[own], points) == share_of_query(one, own, points)


def test_a_query_has_more_cells_than_neighbors():
    assert 0 < LEAST < MOST < 1
    assert MIN_CELLS > N_NEIGHBORS
