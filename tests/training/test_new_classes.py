"""New classes: columns against scikit-learn's logistic regression, inputs against the layers that read them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from celler.data._loader import Minibatch
from celler.data._tokenizer import Tokenizer
from celler.network._config import NetworkConfig
from celler.network._network import build_network
from celler.training._new_classes import (
    Expert,
    has_linear_ends,
    margin_of,
    read_experts,
    solve_columns,
    write_columns,
)


@pytest.mark.parametrize("as_matrix", [np.asarray, sparse.csr_matrix])
def test_solve_columns_equals_scikit_learn(as_matrix, rng):
    """One old class with a fixed logit of 0, one new one: a binary logistic regression."""
    X, labels = rng.normal(size=(80, 5)), np.repeat([0, 1], [60, 20])
    X[labels == 1, 0] += 1
    importance = np.where(labels == 1, 2.0, 0.5)
    expert = Expert(as_matrix(X), np.zeros((80, 2), np.float32), 3.0, np.ones(80))
    weight, bias = solve_columns(expert, np.array([False, True]), labels, importance)
    peer = LogisticRegression(C=1 / 3, tol=1e-8).fit(X, labels, sample_weight=importance)
    np.testing.assert_allclose(weight[:, 0], peer.coef_[0], atol=2e-3)
    np.testing.assert_allclose(bias, peer.intercept_, atol=2e-3)


def test_solve_columns_counts_the_share_of_a_bias(rng):
    """Half of the bias for all cells: twice the bias, and the same logits."""
    X, labels = rng.normal(size=(80, 5)) + 1, np.repeat([0, 1], [60, 20])
    is_new, whole, importance = np.array([False, True]), np.ones(80), np.ones(80)
    expert = Expert(X, np.zeros((80, 2)), 3.0, whole)
    of_all = solve_columns(expert, is_new, labels, importance)
    of_half = solve_columns(replace(expert, of_bias=whole / 2), is_new, labels, importance)
    np.testing.assert_allclose(of_half[0], of_all[0], atol=2e-3)
    np.testing.assert_allclose(of_half[1], 2 * of_all[1], atol=5e-3)


@pytest.mark.parametrize("head", ["linear", "mlp", "vgg"])
def test_read_experts_and_write_columns(head, rng):
    config = NetworkConfig(n_genes=30, n_classes=4, d_model=16, encoder="additive", head=head)
    network = build_network(config, 0)
    network.evidence.enough.fill_(30.0)  # which no cell has
    assert has_linear_ends(network)
    X = sparse.csr_matrix(rng.poisson(1.0, (7, 30)).astype(np.float32))
    tokens = Tokenizer(n_bins=config.n_bins, max_genes=30)(X, np.arange(30, dtype=np.int32))
    minibatch = Minibatch(tokens, torch.zeros(7, dtype=torch.long), torch.arange(7), None)
    experts = read_experts(network, [minibatch], "float32")
    layers = [(network.head[-1].weight.T, network.head[-1].bias), (network.evidence.weight, network.evidence.bias)]
    for expert, (weight, bias) in zip(experts, layers, strict=True):
        expected = expert.inputs @ weight.detach().numpy() + np.outer(expert.of_bias, bias.detach().numpy())
        np.testing.assert_allclose(expert.logits, expected, atol=1e-5)
    is_new = np.array([False, True, False, True])
    columns = [(rng.normal(size=(expert.inputs.shape[1], 2)), rng.normal(size=2)) for expert in experts]
    write_columns(network, is_new, columns)
    for before, after, column in zip(experts, read_experts(network, [minibatch], "float32"), columns, strict=True):
        np.testing.assert_array_equal(after.logits[:, ~is_new], before.logits[:, ~is_new])
        expected = before.inputs @ column[0] + np.outer(before.of_bias, column[1])
        np.testing.assert_allclose(after.logits[:, is_new], expected, atol=1e-4)


def test_margin_of_by_hand():
    own, none = np.arange(1, 101) / 10, np.empty(0)
    far = np.full(90, -5.0)
    near = np.concatenate([far, np.full(10, 0.15)])
    # 2 % of 100 own cells are the lowest two: a margin of 0.2 leaves all others and costs the class one cell
    assert margin_of(own, none, near) == pytest.approx((0.2, 0.1))
    assert margin_of(own, near, none) == pytest.approx((0.2, 0.1))
    # unlabelled cells with the gaps of the class are its own
    assert margin_of(own, none, np.concatenate([far, own])) == (0, 0)
    # no margin helps: the one that leaves most
    margin, taken = margin_of(own, np.concatenate([far, own]), none)
    assert (margin, taken) == pytest.approx((1.5, 100 / 190))
    assert margin_of(own[:4], near, none) == (0, 0)
    assert margin_of(own, none, none) == (0, 0)
