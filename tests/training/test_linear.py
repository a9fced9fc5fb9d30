"""The linear expert: scikit-learn's solution, cross-fitting, and the margin of rare classes."""

import numpy as np
import pytest
import scanpy as sc
import torch
from scipy import sparse
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from toy import cells, fit
from training_cases import N_CLASSES, N_GENES, network, toy_minibatches

from celler.data._tokenizer import Tokenizer
from celler.losses import DEFAULT
from celler.training import _linear
from celler.training._linear import (
    L2,
    L2_OF_EMBEDDING,
    best_margin,
    cross_fitted,
    expression,
    logistic_regression,
    solve_evidence,
    solve_head,
    thinned,
)


def log_values(adata) -> sparse.csr_matrix:
    """log1p of counts per 10,000, by scanpy."""
    adata = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata.X


def of_sklearn(X, codes) -> LogisticRegression:
    return LogisticRegression(C=1 / L2, class_weight="balanced", tol=1e-8, max_iter=10_000).fit(X, codes)


def test_logistic_regression_matches_sklearn():
    adata = cells(300)
    X, codes = log_values(adata), adata.obs["cell_type"].cat.codes.to_numpy()
    weight, bias = logistic_regression(X, codes, 4)
    expected = of_sklearn(X, codes).predict_log_proba(X)
    np.testing.assert_allclose(log_softmax(X @ weight + bias, axis=1), expected, rtol=0.01, atol=0.02)


def test_solve_head_matches_sklearn(rng):
    """On the standardized embedding; the logits of the network's head are the solution's."""
    codes = rng.permutation(np.repeat([0, 1, 2, 3], [120, 50, 20, 10]))
    embedding = rng.normal(size=(200, 8)) * np.logspace(-1, 1, 8) + 0.8 * rng.normal(size=(4, 8))[codes] + 5
    model = network(encoder="base", head="linear").eval()
    given = torch.as_tensor(embedding, dtype=torch.float32)
    model.standardize.measure(given)
    solve_head(model, given, codes)
    X = (embedding - embedding.mean(0)) / embedding.std(0)
    fitted = LogisticRegression(C=1 / L2_OF_EMBEDDING, class_weight="balanced", tol=1e-8, max_iter=10_000).fit(X, codes)
    with torch.no_grad():
        actual = model.head(model.standardize(given)).log_softmax(1)
    np.testing.assert_allclose(actual, fitted.predict_log_proba(X), rtol=0.01, atol=0.02)


def test_logistic_regression_with_an_absent_class(rng):
    X, codes = sparse.csr_matrix(rng.poisson(1.0, (60, 5)).astype(np.float32)), np.repeat([0, 2], 30)
    weight, bias = logistic_regression(X, codes, 3)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()
    assert set((X @ weight + bias).argmax(axis=1)) == {0, 2}


@pytest.mark.parametrize(
    ("n_most", "expected"), [(200, [100, 10, 3]), (30, [17, 10, 3]), (9, [3, 3, 3]), (1, [1, 1, 1]), (0, [1, 1, 1])]
)
def test_thinned_keeps_rare_classes(rng, n_most, expected):
    codes = rng.permutation(np.repeat([0, 1, 2], [100, 10, 3]))
    kept = thinned(codes, n_most, rng)
    np.testing.assert_array_equal(np.bincount(codes[kept]), expected)
    assert (np.diff(kept) > 0).all()


def test_expression_matches_scanpy():
    adata = cells(100)
    genes = np.arange(80, dtype=np.int32)
    minibatches = [Tokenizer()(adata.X[part], genes) for part in (slice(0, 70), slice(70, 100))]
    found = expression([_linear.Minibatch(each, None, None) for each in minibatches], 80)
    np.testing.assert_allclose(found.toarray(), log_values(adata).toarray(), rtol=1e-5)


def test_cross_fitted_does_not_see_the_label_of_a_cell(rng):
    X = sparse.csr_matrix(rng.normal(size=(300, 400)).astype(np.float32))
    codes = rng.integers(3, size=300)
    weight, bias = logistic_regression(X, codes, 3)
    assert ((X @ weight + bias).argmax(axis=1) == codes).mean() == 1
    assert abs((cross_fitted(X, codes, 3, rng).argmax(axis=1) == codes).mean() - 1 / 3) < 0.08


def test_best_margin_of_clear_and_of_overlapping_types():
    """Half of a rare type is just missed: a margin finds it. Where as many others are as near, it costs."""
    counts = np.array([1000, 10])
    codes = np.repeat([0, 1], counts)
    missed = np.repeat([[4.0, 0.0], [1.0, 0.5]], counts, axis=0)
    missed[1000:1005, 1] = 3
    assert best_margin(missed, codes, counts) == 0.25
    overlapping = missed.copy()
    overlapping[:500] = [1.0, 0.5]
    assert best_margin(overlapping, codes, counts) == 0


def test_best_margin_counts_the_cells_that_were_thinned():
    """Ten cells of a thousand were drawn, and one of them is near the rare type: that stands for a hundred."""
    logits = np.array([[4.0, 0.0]] * 9 + [[1.0, 0.5]] + [[1.0, 0.5]] * 5 + [[0.0, 3.0]] * 5)
    codes = np.repeat([0, 1], 10)
    assert best_margin(logits, codes, np.array([10, 10])) == 0
    assert best_margin(logits, codes, np.array([1000, 10])) == 0
    logits[9] = [4, 0]
    assert best_margin(logits, codes, np.array([1000, 10])) == 0.25


def test_solve_evidence_takes_the_margin_off_its_biases(monkeypatch):
    train, _, counts = toy_minibatches()
    labels = np.concatenate([minibatch.labels.numpy() for minibatch in train])
    found = []
    for margin in (0.0, 0.75):
        monkeypatch.setattr(_linear, "best_margin", lambda *_, margin=margin: margin)
        model = network()
        assert solve_evidence(model, lambda _: train, np.arange(len(labels)), labels, seed=0) == margin
        found.append(model.evidence)
    plain, adjusted = found
    assert torch.equal(plain.weight, adjusted.weight)
    expected = 0.75 * np.log(counts / counts.sum())
    np.testing.assert_allclose((plain.bias - adjusted.bias).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_solve_evidence_of_many_cells_reads_a_part(monkeypatch):
    train, _, _ = toy_minibatches()
    labels = np.concatenate([minibatch.labels.numpy() for minibatch in train])
    tokens = [minibatch.tokens for minibatch in train]
    X = expression(train, N_GENES)
    asked = []

    def read(rows):
        asked.append(rows)
        parts = [[part[rows[rows // 80 == k] % 80] for part in each] for k, each in enumerate(tokens)]
        return [_linear.Minibatch(type(tokens[0])(*part), None, None) for part in parts]

    solved = []

    def watched(X, codes, n_classes):
        solved.append((X, codes))
        return logistic_regression(X, codes, n_classes)

    monkeypatch.setattr(_linear, "best_margin", lambda *_: 1.0)
    monkeypatch.setattr(_linear, "logistic_regression", watched)
    monkeypatch.setattr(_linear, "MAX_CELLS", 100)
    monkeypatch.setattr(_linear, "MAX_PRODUCTS", X.nnz * N_CLASSES * 50 / 240)
    solve_evidence(network(), read, np.arange(240), labels, seed=0)
    (rows,), (of_solution, codes) = asked, solved[-1]
    assert len(rows) <= 100
    assert 40 < len(codes) < 60
    assert np.bincount(codes).min() >= min(12, np.bincount(labels).min())
    assert of_solution.shape == (len(codes), N_GENES)


def test_train_solves_the_evidence_table():
    """By default its class differences are scikit-learn's; a loss that is given trains it in its own way."""
    adata = cells(300)
    model = fit(adata)
    rows = model.train_indices
    codes = adata.obs["cell_type"].cat.codes.to_numpy()[rows]
    expected = of_sklearn(log_values(adata)[rows], codes).coef_.T
    found = model.module.evidence.weight.detach().numpy()
    np.testing.assert_allclose(found - found.mean(1, keepdims=True), expected, atol=0.01)
    trained = fit(cells(300), loss=DEFAULT).module.evidence.weight.detach().numpy()
    assert np.abs(trained - trained.mean(1, keepdims=True) - expected).max() > 0.1
