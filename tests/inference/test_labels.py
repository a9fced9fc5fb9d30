"""Labels of outputs: levels, thresholds, candidates and back-off, worked from the probabilities."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, special
from toy import assert_close, assert_equal_frames, cells, fit, soft, trained, truth

import celler as cl

PARENTS = {"type 0": "A", "type 1": "A", "type 2": "B", "type 3": "type 3", "another": "C"}


@pytest.fixture
def query():
    return cells(80, seed=3)


def both_levels(query) -> tuple[pd.DataFrame, pd.DataFrame]:
    return soft(query), soft(query, level="parent")


@pytest.mark.parametrize("threshold", [0.4, 0.8, None, 0.95])
def test_predict_with_backoff(query, threshold):
    classes, parents = both_levels(query)
    least = 0.7 if threshold is None else threshold
    expected = np.select(
        [classes.max(axis=1) >= least, parents.max(axis=1) >= least],
        [classes.idxmax(axis=1), parents.idxmax(axis=1)],
        "?",
    )
    labels = trained().predict(query, backoff=True, threshold=threshold, unknown_label="?")
    np.testing.assert_array_equal(labels, expected)
    if threshold == 0.8:  # between the least and the most certain cells
        assert {"type", "lineage", "?"} <= {label.split()[0] for label in labels}
    trained().annotate(query, backoff=True, threshold=threshold, unknown_label="?")
    np.testing.assert_array_equal(query.obs["celler"].astype(str), labels)
    level = {"type": "class", "lineage": "parent", "?": "unknown"}
    assert list(query.obs["celler_level"]) == [level[label.split()[0]] for label in labels]
    assert query.uns["celler"]["threshold"] == least


def test_predict_with_backoff_at_no_threshold(query):
    labels = trained().predict(query, backoff=True, threshold=0.0)
    np.testing.assert_array_equal(labels, trained().predict(query))
    assert set(trained().predict(query, backoff=True, threshold=1.0)) == {"Unknown"}


def test_predict_with_backoff_and_candidates(query):
    chosen = ["type 0", "type 1"]
    labels = trained().predict(query, backoff=True, threshold=0.65, candidates=chosen)
    assert set(labels) == {"lineage 0", *chosen}


def test_annotate_with_a_parent_named_like_a_class():
    """Of a parent called "type 1" that holds type 0 and type 1 the level says what is meant."""
    parents = PARENTS | {"type 0": "type 1", "type 1": "type 1"}
    query = cells(200, seed=2, depth=0.1)
    model = fit(cells(), {"parents": parents}, max_epochs=8)
    model.annotate(query, backoff=True, threshold=0.5)
    classes = model.predict(query, soft=True)
    is_named = (query.obs["celler"] == "type 1").to_numpy()
    is_class = (query.obs["celler_level"] == "class").to_numpy()
    assert (is_named & is_class).any()
    assert (is_named & ~is_class).any()
    np.testing.assert_array_equal(is_named & is_class, classes["type 1"] >= 0.5)
    assert list(query.obs["celler"].cat.categories[:4]) == list(model.classes_)


def test_annotate_of_a_cell_without_counts(query):
    query.X = sparse.diags_array(np.arange(80) > 0, dtype=np.float32).tocsr() @ query.X
    with pytest.warns(UserWarning, match="1 cell has no counts"):
        trained().annotate(query, backoff=True, threshold=0.0)
    row = query.obs.iloc[0]
    assert list(row[["celler", "celler_parent", "celler_level"]]) == [
        "Unknown",
        "Unknown",
        "unknown",
    ]


@pytest.mark.parametrize("threshold", [None, 0.3, 0.45, 0.8])
@pytest.mark.parametrize("backoff", [False, True])
def test_annotate_never_contradicts_the_parent(query, threshold, backoff):
    trained().annotate(query, threshold=threshold, backoff=backoff)
    parent_of, names = trained().parents_, query.obs["celler"].astype(str)
    is_given = names != "Unknown"
    parents = query.obs["celler_parent"].astype(str)
    np.testing.assert_array_equal(parents[is_given], [parent_of.get(n, n) for n in names[is_given]])
    sums = soft(query, level="parent")
    column = sums.columns.get_indexer(parents[is_given])
    expected = sums.to_numpy()[np.flatnonzero(is_given), column]
    np.testing.assert_allclose(query.obs["celler_parent_confidence"][is_given], expected)


def test_predict_has_levels_that_would_contradict():
    classes, parents = both_levels(cells(200, seed=2, depth=0.1))
    assert (classes.idxmax(axis=1).map(trained().parents_) != parents.idxmax(axis=1)).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"soft": True, "backoff": True}, "soft=True gives the probabilities of one level"),
        ({"level": "parent", "backoff": True}, "level='parent' was given. Leave one"),
        ({"threshold": 1.5, "backoff": True}, r"threshold=1\.5 was given"),
    ],
)
def test_predict_with_backoff_and_bad_options(query, options, words):
    with pytest.raises(ValueError, match=words):
        trained().predict(query, **options)


def test_predict_with_backoff_without_parents(query):
    model = fit(cells(), max_epochs=1)
    for label in (model.predict, model.annotate):
        with pytest.raises(ValueError, match="backoff=True needs parents, and the model has none"):
            label(query, backoff=True)


def test_annotate_of_novel_cells_with_backoff(query):
    is_novel = trained().predict(query, false_alarm_rate=0.5) == "Unknown"
    assert 0 < is_novel.sum() < 80
    trained().annotate(query, backoff=True, threshold=0.0, false_alarm_rate=0.5)
    np.testing.assert_array_equal(query.obs["celler_level"] == "unknown", is_novel)
    np.testing.assert_array_equal(query.obs["celler_parent"] == "Unknown", is_novel)


def test_predict_returns_the_most_probable_class(query):
    probabilities, labels = soft(query), trained().predict(query)
    assert labels.dtype.kind == "U"
    np.testing.assert_array_equal(labels, probabilities.idxmax(axis=1))
    assert list(probabilities.columns) == sorted(probabilities.columns) == list(trained().classes_)
    pd.testing.assert_index_equal(probabilities.index, query.obs_names)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    assert (labels == truth(query)).mean() > 0.7


def test_predict_with_level_parent(query):
    parents, children = soft(query, level="parent"), soft(query)
    assert list(parents.columns) == ["lineage 0", "lineage 1"]
    np.testing.assert_allclose(parents["lineage 0"], children["type 0"] + children["type 1"])
    np.testing.assert_allclose(parents["lineage 1"], children["type 2"] + children["type 3"])
    labels = trained().predict(query, level="parent")
    np.testing.assert_array_equal(labels, parents.idxmax(axis=1))
    assert_equal_frames(soft(query, level="class"), children)


def test_predict_with_candidates(query):
    chosen = soft(query, candidates=["type 3", "type 1"])
    expected = soft(query)[["type 1", "type 3"]]
    assert (chosen[["type 0", "type 2"]] == 0).all(axis=None)
    np.testing.assert_allclose(chosen[["type 1", "type 3"]], expected.div(expected.sum(axis=1), axis=0), rtol=1e-9)
    assert set(trained().predict(query, candidates=["type 2"])) == {"type 2"}
    parents = soft(query, candidates=["type 3", "type 1"], level="parent")
    np.testing.assert_allclose(parents["lineage 1"], chosen["type 3"])


def test_predict_with_threshold(query):
    confidence = soft(query).max(axis=1)
    threshold = float(confidence.median())
    labels = trained().predict(query, threshold=threshold, unknown_label="?")
    np.testing.assert_array_equal(labels == "?", confidence < threshold)
    assert set(trained().predict(query, threshold=1.0)) == {"Unknown"}
    np.testing.assert_array_equal(trained().predict(query, threshold=0.0), trained().predict(query))


@pytest.fixture(scope="module")
def model() -> cl.model.Celler:
    return fit(cells(), {"batch_key": "donor"})


def soft_of(model, query):
    return model.predict(query, soft=True)


def test_predict_soft_in_the_order_of_the_cells(model, query):
    probabilities = soft_of(model, query)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert list(probabilities.index) == list(query.obs_names)
    part = probabilities.iloc[[9, 3]]
    assert_close(model.predict(query, indices=[9, 3], soft=True), part)


def test_predict_applies_one_softmax_to_logits(model, query):
    seen = []
    hook = model.module.register_forward_hook(lambda *given: seen.append(given[-1].logits[:1]))
    rows = [soft_of(model, query[[i]]).to_numpy()[0] for i in range(20)]
    hook.remove()
    logits = torch.cat(seen).double().numpy()
    assert logits.shape == (20, 4)
    assert not np.allclose(logits.sum(axis=1), 1)
    # One softmax over one temperature: the log-odds are a multiple of the differences of logits.
    log_odds = np.log(rows) - np.log(rows).mean(axis=1, keepdims=True)
    logits -= logits.mean(axis=1, keepdims=True)
    inverse = (log_odds * logits).sum() / (logits**2).sum()
    np.testing.assert_allclose(special.softmax(inverse * logits, axis=1), rows, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 0.5}, "which threshold cannot change; leave it out"),
        ({"threshold": 0.0}, "which threshold cannot change; leave it out"),
        ({"false_alarm_rate": 0.1}, "which false_alarm_rate cannot change; leave it out"),
        ({"unknown_label": "?"}, "which unknown_label cannot change; leave it out"),
        ({"threshold": 0.5, "unknown_label": "?"}, "threshold and unknown_label .*leave them out"),
    ],
)
def test_predict_soft_with_options_of_labels(query, options, words):
    with pytest.raises(ValueError, match=f"soft=True gives the probabilities of one level.*{words}"):
        trained().predict(query, soft=True, **options)
