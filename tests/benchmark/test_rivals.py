"""Rivals: equations in float64 NumPy, scikit-learn's weights, and laws."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

from celler.benchmark._rivals import (
    ClassWeighted,
    HeldOut,
    HierarchicalCrossEntropy,
    LogitAdjustment,
    PairwiseCorrection,
)
from celler.losses import CrossEntropy


def never() -> HeldOut:
    raise AssertionError("no held-out logits are needed")


def test_logit_adjustment_matches_the_equation(rng):
    logits, counts = rng.normal(size=(6, 3)), np.array([90, 9, 1])
    odds = softmax(logits, axis=1) / np.sqrt([0.9, 0.09, 0.01])
    adjusted = softmax(LogitAdjustment(0.5)(logits, counts, never), axis=1)
    np.testing.assert_allclose(adjusted, odds / odds.sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(LogitAdjustment(0)(logits, counts, never), logits)


def test_class_weighted_matches_scikit_learn(rng):
    labels = rng.permutation(np.repeat([0, 1, 2], [20, 7, 3]))
    logits = rng.normal(size=(30, 3))
    loss = ClassWeighted()(*map(torch.as_tensor, (logits, labels, np.bincount(labels))))
    expected = log_loss(labels, softmax(logits, 1), sample_weight=compute_sample_weight("balanced", labels))
    np.testing.assert_allclose(loss.mean(), expected)


PARENTS = ((0, 0, 1, 1), (0, 0, 0, 1))


def test_hierarchical_cross_entropy_sums_probabilities(rng):
    logits, labels, counts = rng.normal(size=(5, 4)), np.array([0, 1, 2, 3, 2]), np.ones(4)
    p = softmax(logits, axis=1)
    expected = -np.log(p[np.arange(5), labels])
    for level in map(np.array, PARENTS):
        expected -= [np.log(p[i, level == level[label]].sum()) for i, label in enumerate(labels)]
    arguments = [torch.as_tensor(part) for part in (logits, labels, counts)]
    np.testing.assert_allclose(HierarchicalCrossEntropy(PARENTS)(*arguments), expected)
    np.testing.assert_allclose(HierarchicalCrossEntropy()(*arguments), CrossEntropy()(*arguments))
    one_node = HierarchicalCrossEntropy(((0, 0, 0, 0),))(*arguments)
    np.testing.assert_allclose(one_node, CrossEntropy()(*arguments), atol=1e-12)
    loss = HierarchicalCrossEntropy(PARENTS)
    assert torch.autograd.gradcheck(lambda z: loss(z, *arguments[1:]), arguments[0].requires_grad_())


def test_hierarchical_cross_entropy_of_columns():
    obs = pd.DataFrame({"type": ["b", "a", "c", "a"], "parent": ["x", "y", "x", "y"]})
    loss = HierarchicalCrossEntropy().of(obs, "type", ["parent", "not there"])
    assert loss.ancestors == ((1, 0, 0),), "classes a, b, c; parents x, y"


@pytest.fixture
def biased(rng):
    """Logits in which the third class is 3 too low, and their labels."""
    codes = rng.choice(4, size=300, p=[0.6, 0.2, 0.1, 0.1])
    logits = rng.normal(size=(300, 4)) + 3 * np.eye(4)[codes]
    return HeldOut(logits - [0, 0, 3, 0], codes)


def test_pairwise_correction_finds_a_bias(biased):
    counts = np.bincount(biased.codes)
    scores = PairwiseCorrection(n_top=3)(biased.logits, counts, lambda: biased)
    is_third = biased.codes == 2
    before, after = (part[is_third].argmax(1) == 2 for part in (biased.logits, scores))
    assert after.mean() > before.mean() + 0.3
    assert (np.isfinite(scores).sum(1) == 3).all()
    top = np.argsort(-biased.logits, 1)[:, :3]
    assert np.isfinite(np.take_along_axis(scores, top, 1)).all()
    stiff = PairwiseCorrection(n_top=4, l2=1e9)(biased.logits, counts, lambda: biased)
    np.testing.assert_allclose(stiff, biased.logits, atol=1e-4)


def test_pairwise_correction_matches_the_equation(biased):
    """The correction of every cell by loops, and the weights by a search without gradients."""
    counts = np.bincount(biased.codes)
    log_counts = np.log(counts)

    def score(weights: np.ndarray, z: np.ndarray) -> np.ndarray:
        rank = np.argsort(np.argsort(-z))
        r = z + weights[:4]
        for y in range(4):
            for j in range(4):
                phi = [z[y] - z[j], rank[j] - rank[y], log_counts[y] - log_counts[j]]
                r[y] += (weights[4:] @ phi) / 3
        return r

    def loss(weights: np.ndarray) -> float:
        scores = np.array([score(weights, z) for z in biased.logits[:60]])
        nll = -log_softmax(scores, axis=1)[np.arange(60), biased.codes[:60]]
        weight = compute_sample_weight("balanced", biased.codes[:60])
        return float((weight * nll).sum() + weights @ weights / 2)

    part = HeldOut(biased.logits[:60], biased.codes[:60])
    expected = minimize(loss, np.zeros(7), method="BFGS", options={"gtol": 1e-4}).x
    scores = PairwiseCorrection(n_top=4)(biased.logits[60:70], counts, lambda: part)
    np.testing.assert_allclose(scores, [score(expected, z) for z in biased.logits[60:70]], atol=5e-3)
