"""Augmentation: means of neighbours and of classes, and what an epoch shows."""

import numpy as np
import pytest
from scipy import sparse

from celler.data._augmentation import N_AVERAGED, mean_share, neighbourhoods, with_class_means
from celler.data._samplers import OrderedSampler, ShuffledSampler
from celler.data._sources import InMemoryCells, Views


@pytest.mark.parametrize("is_log", [False, True])
def test_neighbourhoods_are_means_of_the_nearest(rng, is_log):
    counts = rng.poisson(2.0, size=(30, 7)) + 1.0
    labels = np.full(30, -1)
    labels[[3, 20]] = [1, 0]
    points = rng.normal(size=(30, 2))
    X = sparse.csr_matrix(np.log1p(counts) if is_log else counts)
    views = neighbourhoods(lambda rows: X[rows], labels, points, 0.5, is_log=is_log)
    share = 1e4 * counts / counts.sum(axis=1, keepdims=True)
    for cell in (3, 20):
        distance = np.linalg.norm(points - points[cell], axis=1)
        free = [i for i in np.argsort(distance) if i not in (3, 20)][:N_AVERAGED]
        expected = share[[cell, *free]].mean(axis=0)
        actual = views.X[views.of_cell[cell, 0]].toarray().ravel()
        np.testing.assert_allclose(actual, np.log1p(expected) if is_log else expected, rtol=1e-5)
    assert (views.of_cell[labels < 0] == -1).all()


def test_neighbourhoods_of_few_cells():
    X, labels = sparse.csr_matrix(np.diag([1.0, 2.0, 3.0])), np.array([0, 1, -1])
    views = neighbourhoods(lambda rows: X[rows], labels, np.zeros((3, 1)), 0.5, is_log=False)
    np.testing.assert_allclose(views.X.toarray(), [[5e3, 0, 5e3], [0, 5e3, 5e3]])


def test_views_in_an_epoch(rng):
    own, other = (sparse.csr_matrix(rng.poisson(3.0, size=(n, 4)) + 1.0) for n in (6, 2))
    labels = np.array([0, -1, 1, 0, -1, 1])
    of_cell = np.array([[0], [-1], [1], [-1], [-1], [-1]])
    asked = np.array([0, 2, 3])
    for share, expected in ((0.0, own[asked]), (1.0, sparse.vstack([other, own[[3]]]))):
        source = InMemoryCells(own, labels, views=Views(other, of_cell, share))
        (block,) = source.blocks(ShuffledSampler(asked, 3, 0))
        order = np.argsort(block.index)
        np.testing.assert_array_equal(block.X[block.rows][order].toarray(), expected.toarray())
        np.testing.assert_array_equal(block.labels[order], labels[asked])
    (validated,) = source.blocks(OrderedSampler(asked, 3, is_shared=True))
    np.testing.assert_array_equal(validated.X[validated.rows].toarray(), own[asked].toarray())


def test_views_by_epoch_and_seed(rng):
    X = sparse.csr_matrix(np.eye(40))
    views = Views(2 * X, np.arange(40)[:, None], 0.5)
    source = InMemoryCells(X, np.zeros(40, int), views=views)

    def seen(seed, epoch):
        sampler = ShuffledSampler(np.arange(40), 10, seed)
        sampler.epoch = epoch
        blocks = source.blocks(sampler)
        return np.concatenate([block.X[block.rows].sum(axis=1).A1[np.argsort(block.index)] for block in blocks])

    np.testing.assert_array_equal(seen(1, 3), seen(1, 3))
    assert (seen(1, 3) != seen(1, 4)).any()
    assert 8 < (seen(0, 0) == 2).sum() < 32


def test_neighbourhoods_with_predicted_classes(rng):
    counts = rng.poisson(2.0, size=(7, 5)) + 1.0
    labels, found = np.array([0, 1, -1, -1, -1, -1, -1]), np.array([0, 0, 1, 0, 0, 1, 0])
    X, share = sparse.csr_matrix(counts), 1e4 * counts / counts.sum(axis=1, keepdims=True)
    views = neighbourhoods(lambda rows: X[rows], labels, counts, 0.5, is_log=False, found=found)
    for cell, members in ((0, [0, 3, 4, 6]), (1, [1, 2, 5])):
        np.testing.assert_allclose(views.X[[cell]].toarray()[0], share[members].mean(axis=0), rtol=1e-5)


def test_with_class_means_of_predicted_cells(rng):
    counts = rng.poisson(2.0, size=(9, 5)) + 1.0
    labels = np.array([0, 1, 2, -1, -1, -1, -1, -1, -1])
    found = np.array([1, 1, 1, 0, 1, 0, 1, 1, 1])
    X, share = sparse.csr_matrix(counts), 1e4 * counts / counts.sum(axis=1, keepdims=True)
    first = neighbourhoods(lambda rows: X[rows], labels, counts, 0.5, is_log=False)
    views = with_class_means(first, lambda rows: X[rows], labels, found, 0, is_log=False)
    for cell, members in ((0, [3, 5]), (1, [4, 6, 7, 8])):
        actual = views.X[views.of_cell[cell, 1]].toarray().ravel()
        np.testing.assert_allclose(actual, share[members].mean(axis=0), rtol=1e-5)
    assert views.of_cell[2, 1] == views.of_cell[2, 0] == first.of_cell[2, 0]
    assert (views.of_cell[labels < 0] == -1).all()


def test_mean_share_falls_with_the_labels():
    assert mean_share(40, 4) == 0.5
    shares = [mean_share(n, 10) for n in (10, 20, 100, 450)]
    assert shares == sorted(shares, reverse=True)
    assert mean_share(451, 10) == 0
