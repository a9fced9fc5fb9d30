"""The linear experts: scikit-learn's solution, cross-fitting, and the class prior that labels use."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from scipy import sparse
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from toy import cells, fit
from training_cases import N_CLASSES, N_GENES, network, toy_minibatches

from celler.data._tokenizer import Tokenizer
from celler.losses import DEFAULT
from celler.model import Celler
from celler.training import _linear
from celler.training._linear import (
    L2,
    L2_OF_EMBEDDING,
    best_prior,
    cross_fitted,
    expression,
    logistic_regression,
    solve_experts,
    thinned,
)


def minibatches_and_labels():
    train, _, _ = toy_minibatches()
    return train, np.concatenate([minibatch.labels.numpy() for minibatch in train])


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


def test_solve_experts_matches_sklearn():
    """The head of a frozen encoder, on the standardized embedding: its logits are the solution's."""
    train, labels = minibatches_and_labels()
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(len(labels), 8)) * np.logspace(-1, 1, 8) + rng.normal(size=(N_CLASSES, 8))[labels] + 5
    model = network(encoder="base", head="linear").eval()
    given = torch.as_tensor(embedding, dtype=torch.float32)
    model.standardize.measure(given)
    solve_experts(model, lambda _: train, given.__getitem__, np.arange(len(labels)), labels, 0.0, seed=0)
    X = (embedding - embedding.mean(0)) / embedding.std(0)
    fitted = LogisticRegression(C=1 / L2_OF_EMBEDDING, class_weight="balanced", tol=1e-8, max_iter=10_000)
    with torch.no_grad():
        actual = model.head(model.standardize(given)).log_softmax(1)
    expected = fitted.fit(X, labels).predict_log_proba(X)
    np.testing.assert_allclose(actual, expected, rtol=0.02, atol=0.03)


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
    for designs in ([(X, L2)], [(X, L2), (X.toarray(), L2_OF_EMBEDDING)]):
        assert abs((cross_fitted(designs, codes, 3, rng).argmax(axis=1) == codes).mean() - 1 / 3) < 0.08


def overlapping(rng, n_common=2000, n_rare=100, distance=2.0):
    """Balanced logits and labels of two classes, normal with sd 1 on a line."""
    codes = np.repeat([0, 1], [n_common, n_rare])
    x = rng.normal(distance * codes)
    return np.stack([-((x - distance * k) ** 2) / 2 for k in (0, 1)], axis=1), codes


def test_best_prior_of_overlapping_classes_uses_the_prior(rng):
    """Bayes' rule has the power 1; with a share of it accuracy rises and macro-F1 does too."""
    logits, codes = overlapping(rng)
    counts = np.bincount(codes)
    found = best_prior(logits, codes, counts, rng)
    assert found >= 0.25
    log_prior = np.log(counts / counts.sum())
    labels = [(logits + share * log_prior).argmax(1) for share in (0, found)]
    accuracies = [(label == codes).mean() for label in labels]
    scores = [f1_score(codes, label, average="macro") for label in labels]
    assert accuracies[1] > accuracies[0] + 0.03
    assert scores[1] > scores[0]


def test_best_prior_does_not_pay_for_accuracy_with_macro_f1(rng):
    """Half of many small classes lies where a common one does: accuracy would give them up."""
    n_rare, n_classes = 20, 11
    codes = np.repeat(np.arange(n_classes), [3000] + [n_rare] * 10)
    logits = np.full((len(codes), n_classes), -20.0)
    logits[np.arange(len(codes)), codes] = 0
    rng.shuffle(near := np.flatnonzero(codes > 0))
    near = near[:100]
    logits[near, 0] = -1.0  # a share of 0.25 of the prior, log(150) = 5, turns them over
    common = rng.permutation(3000)[:150]
    logits[common, rng.integers(1, n_classes, 150)] = 0.2  # and these back
    counts = np.bincount(codes)
    assert best_prior(logits, codes, counts, rng) <= 0.125


def test_best_prior_of_clear_classes_is_balanced(rng):
    logits, codes = overlapping(rng, distance=20.0)
    found = best_prior(logits, codes, np.bincount(codes), rng)
    assert found == pytest.approx(_linear.FEW_PRIOR * 800**3 / (2100**3 + 800**3))  # what few cells show counts less


def test_best_prior_counts_the_cells_that_were_thinned(rng):
    """A hundred cells of the common class stand for ten thousand: its frequency speaks for it then."""
    logits, codes = overlapping(rng, n_common=100)
    equal, unequal = (best_prior(logits, codes, np.array([n, 100]), rng) for n in (100, 10_000))
    assert equal == pytest.approx(_linear.FEW_PRIOR * 800**3 / (200**3 + 800**3))
    assert unequal >= equal + 0.25 * 200**3 / (200**3 + 800**3)


@pytest.mark.parametrize("class_prior", [None, 0.75, -0.25])
def test_solve_experts_adds_the_prior_to_all_biases(monkeypatch, class_prior):
    """Chosen where it is not given; weights and differences between the biases of the experts stay."""
    train, labels = minibatches_and_labels()
    monkeypatch.setattr(_linear, "best_prior", lambda *_: 0.5)
    found = []
    for share in (0.0, class_prior):
        model = network(encoder="base", head="linear")
        embedding = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(0))
        model.standardize.measure(embedding)
        rows = np.arange(len(labels))
        used = solve_experts(model, lambda _: train, embedding.__getitem__, rows, labels, share, seed=0)
        assert used == (0.5 if share is None else share)
        found.append([model.evidence, model.head[-1]])
    counts = np.bincount(labels)
    expected = used * np.log(counts / counts.sum())
    for plain, adjusted in zip(*found, strict=True):
        assert torch.equal(plain.weight, adjusted.weight)
        difference = (adjusted.bias - plain.bias).detach().numpy()
        np.testing.assert_allclose(difference, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_members", [1, 3])
def test_solve_experts_averages_the_prior_over_as_many_folds_as_members(monkeypatch, n_members):
    """Each with other folds, since these move the prior of few cells more than initial weights do."""
    train, labels = minibatches_and_labels()
    priors, seen = iter([-0.6, 0.0, 0.3]), []

    def best_prior(logits, *_):
        seen.append(logits)
        return next(priors)

    monkeypatch.setattr(_linear, "best_prior", best_prior)
    rows = np.arange(len(labels))
    used = solve_experts(network(n_members=n_members), lambda _: train, None, rows, labels, None, seed=0)
    assert used == pytest.approx({1: -0.6, 3: -0.1}[n_members])
    assert len(seen) == n_members
    assert n_members == 1 or not np.array_equal(seen[0], seen[1])


def test_solve_experts_of_many_cells_reads_only_those_it_solves_for(monkeypatch):
    train, labels = minibatches_and_labels()
    tokens = [minibatch.tokens for minibatch in train]
    X = expression(train, N_GENES)
    asked = []

    def read(rows):
        asked.append(rows)
        parts = [[part[rows[rows // 80 == k] % 80] for part in each] for k, each in enumerate(tokens)]
        return [_linear.Minibatch(type(tokens[0])(*part), None, None) for part in parts]

    solved = []

    def watched(X, codes, *others):
        solved.append((X, codes))
        return logistic_regression(X, codes, *others)

    monkeypatch.setattr(_linear, "best_prior", lambda *_: 1.0)
    monkeypatch.setattr(_linear, "logistic_regression", watched)
    monkeypatch.setattr(_linear, "MAX_CELLS", 100)
    monkeypatch.setattr(_linear, "MAX_PRODUCTS", X.nnz * N_CLASSES * 50 / 240)
    solve_experts(network(), read, None, np.arange(240), labels, None, seed=0)
    (counted, rows), (of_solution, codes) = asked, solved[-1]
    assert len(counted) <= 100  # whose expressed genes say how many cells can be solved for
    assert 40 < len(rows) < 60
    assert np.array_equal(codes, labels[rows])
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


@pytest.mark.parametrize(("class_prior", "power"), [("balanced", 0), ("reference", 1), (0.5, 0.5), (-0.25, -0.25)])
def test_train_uses_the_class_prior_that_is_given(class_prior, power):
    model = fit(cells(300), class_prior=class_prior)
    assert f"class prior {power:g}" in repr(model)
    balanced = model if power == 0 else fit(cells(300), class_prior=0.0)
    counts = balanced.class_counts_
    difference = model.module.evidence.bias - balanced.module.evidence.bias
    expected = power * np.log(counts / counts.sum())
    np.testing.assert_allclose(difference.detach().numpy(), expected, atol=1e-4)


def test_class_prior_of_the_reference_gives_fewer_labels_to_rare_classes():
    query = cells(600, seed=1)
    X = np.random.default_rng(0).poisson(0.15, query.shape)  # nearly nothing to go by
    query.X = sparse.csr_matrix(X.astype(np.float32) + (X.sum(1, keepdims=True) == 0))
    rare = []
    for class_prior in (-0.5, "balanced", "reference"):
        model = fit(cells(600), class_prior=class_prior)
        rare.append((model.predict(query, correct_shift=False) == model.classes_[model.class_counts_.argmin()]).mean())
    assert rare[0] > rare[1] > rare[2]


def test_train_refuses_class_prior_beside_a_loss():
    adata = cells(100)
    Celler.setup_anndata(adata, labels_key="cell_type")
    with pytest.raises(ValueError, match="Leave one of them out"):
        Celler(adata).train(1, class_prior="balanced", loss=DEFAULT)


def test_trained_biases_do_not_decide_for_cells_of_few_counts():
    """Types differ in the number of genes that they express; the reference has fifty times the counts of the query."""
    rng = np.random.default_rng(0)
    rates = np.tile(rng.gamma(0.5, 1.0, 400), (3, 1))
    for k, of_class in enumerate(rates):
        of_class[60 * k : 60 * k + 60] *= 3
    rates[2] **= 1.06
    codes = np.repeat([0, 1, 2], 60)

    def cells_with(depth: float) -> ad.AnnData:
        X = rng.poisson(depth * (rates / rates.sum(axis=1, keepdims=True))[codes]).astype(np.float32)
        obs = pd.DataFrame({"cell_type": codes.astype(str)}, index=[f"cell {i}" for i in range(len(codes))])
        return ad.AnnData(sparse.csr_matrix(X), obs, pd.DataFrame(index=[f"gene {g}" for g in range(400)]))

    reference, query = cells_with(3000), cells_with(60)
    Celler.setup_anndata(reference, labels_key="cell_type")
    model = Celler(reference)
    model.train(max_epochs=1, refit=False, show_progress=False)
    evidence, truth = model.module.evidence, query.obs["cell_type"].to_numpy()
    X = log_values(query)
    total = torch.as_tensor(np.asarray(X.sum(axis=1)).ravel())
    logits = X @ evidence.weight.detach().numpy()
    bias = evidence.bias.detach().numpy()
    share = evidence.share_of_bias(total).numpy()[:, None]
    assert share.max() < 0.5
    faded, whole = (((logits + part * bias).argmax(axis=1).astype(str) == truth).mean() for part in (share, 1.0))
    assert faded > whole + 0.05
    of_reference = np.asarray(log_values(reference).sum(axis=1)).ravel()[model.train_indices]
    assert float(evidence.enough) == pytest.approx(np.quantile(of_reference, 0.05), rel=1e-5)
