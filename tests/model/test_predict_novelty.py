"""Novelty in the model: left-out classes, false alarms, storage and missing genes."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score
from toy import assert_unchanged, cells, fit, snapshot, trained, truth

from celler.model import Celler


def log_cp10k(X) -> np.ndarray:
    counts = X.toarray().astype(float)
    return np.log1p(counts * 1e4 / counts.sum(1, keepdims=True))


def novel_and_known() -> tuple[Celler, ad.AnnData, np.ndarray]:
    """A model without the second class, cells it has not seen, and which of them are of that class."""
    reference, query = cells(1200, seed=0), cells(800, seed=1)
    left_out = np.unique(truth(reference))[1]
    return (
        fit(reference[truth(reference) != left_out].copy(), max_epochs=1),
        query,
        truth(query) == left_out,
    )


@pytest.fixture(scope="module")
def case():
    return novel_and_known()


def test_get_novelty_of_a_left_out_class(case):
    model, query, is_novel = case
    assert roc_auc_score(is_novel, model.get_novelty(query)) > 0.9


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_predict_with_a_false_alarm_rate(case, rate):
    model, query, is_novel = case
    labels = model.predict(query, false_alarm_rate=rate)
    n_alarms, n_known = (labels[~is_novel] == "Unknown").sum(), (~is_novel).sum()
    assert n_alarms / n_known < 2 * rate
    alone = model.predict(query[~is_novel].copy(), false_alarm_rate=rate)  # unknown cells take the place of alarms
    assert rate / 3 < (alone == "Unknown").mean() < 2 * rate
    assert (labels[is_novel] == "Unknown").mean() > 2 * rate


def test_predict_with_rate_and_threshold(case):
    model, query, _ = case
    by_novelty = model.predict(query, false_alarm_rate=0.1, unknown_label="not in the reference")
    both = model.predict(query, false_alarm_rate=0.1, threshold=0.9)
    by_probability = model.predict(query, threshold=0.9)
    expected = (by_novelty == "not in the reference") | (by_probability == "Unknown")
    np.testing.assert_array_equal(both == "Unknown", expected)


def test_get_novelty_in_any_order_and_storage(case, rng):
    model, query, _ = case
    expected = model.get_novelty(query)
    mixed = query[:, rng.permutation(query.n_vars)].copy()
    np.testing.assert_allclose(model.get_novelty(mixed), expected, atol=1e-4)
    for convert in (sparse.csc_matrix, lambda X: X.toarray()):
        stored = query.copy()
        stored.X = convert(query.X)
        np.testing.assert_allclose(model.get_novelty(stored), expected, atol=1e-4)


def test_get_novelty_of_counts_or_logarithms(case):
    model, query, _ = case
    log = query.copy()
    log.X = sparse.csr_matrix(log_cp10k(query.X))
    own = [model.get_novelty(cells_of, correct_shift=False) for cells_of in (log, query)]
    np.testing.assert_allclose(*own, atol=1e-3)
    # Cells whose averages with their neighbours are nearly equal may exchange their ranks.
    np.testing.assert_allclose(model.get_novelty(log), model.get_novelty(query), atol=0.02)


def test_get_novelty_of_indices_and_after_loading(case, tmp_path):
    model, query, _ = case
    expected = model.get_novelty(query)
    np.testing.assert_allclose(model.get_novelty(query, [5, 3]), expected[[5, 3]], atol=1e-5)
    model.save(tmp_path)
    np.testing.assert_array_equal(Celler.load(tmp_path).get_novelty(query), expected)


def test_get_novelty_with_missing_genes(case, rng):
    model, query, is_novel = case
    with pytest.warns(UserWarning, match="genes"):
        scores = model.get_novelty(query[:, np.sort(rng.permutation(80)[:68])].copy())
    is_left = ~np.isnan(scores)  # some cells lose all their counts
    assert is_left.mean() > 0.9
    assert roc_auc_score(is_novel[is_left], scores[is_left]) > 0.8
    assert np.median(scores[is_left & ~is_novel]) == pytest.approx(0, abs=1)


def test_annotate_writes_novelty():
    query = cells(50, seed=3)
    trained().annotate(query, false_alarm_rate=0.2)
    np.testing.assert_array_equal(query.obs["celler_novelty"], trained().get_novelty(query))
    limit = query.uns["celler"]["novelty_threshold"]
    is_unknown = query.obs["celler"].astype(str) == "Unknown"
    np.testing.assert_array_equal(is_unknown, query.obs["celler_novelty"] > limit)
    soft = trained().predict(query, soft=True)
    second = soft.apply(lambda row: row.sort_values().index[-2], axis=1)
    np.testing.assert_array_equal(query.obs["celler_second"].astype(str), second)


def test_get_novelty_without_counts():
    query = cells(20, seed=3)
    counts = query.X.toarray()
    counts[4] = 0
    query.X = sparse.csr_matrix(counts)
    before = snapshot(query)
    with pytest.warns(UserWarning, match="1 cell has no counts"):
        novelty = trained().get_novelty(query)
    assert np.isnan(novelty).nonzero()[0].tolist() == [4]
    assert_unchanged(query, before)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5, float("nan")])
def test_predict_with_a_bad_false_alarm_rate(rate):
    with pytest.raises(ValueError, match=r"false_alarm_rate=.* between 0 and 1"):
        trained().predict(cells(5), false_alarm_rate=rate)


def test_get_novelty_of_a_model_without_it(tmp_path):
    trained().save(tmp_path)
    model, query = Celler.load(tmp_path), cells(10, seed=1)
    model._become(model._state.with_fitted(replace(model._state.fitted, novelty=None)))
    model.annotate(query)
    assert "celler_novelty" not in query.obs
    for call in (model.get_novelty, lambda q: model.predict(q, false_alarm_rate=0.1)):
        with pytest.raises(RuntimeError, match="no novelty score.*Train it again"):
            call(query)
