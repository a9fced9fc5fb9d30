"""Levels: parents from every source, labels of both levels, and back-off worked from the probabilities."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy import assert_equal_frames, assert_unchanged, cells, fit, snapshot, soft, trained

from celler.labels import LabelTree
from celler.model import Celler

PARENTS = {"type 0": "A", "type 1": "A", "type 2": "B", "type 3": "type 3", "another": "C"}


@pytest.fixture
def query():
    return cells(80, seed=3)


def both_levels(query) -> tuple[pd.DataFrame, pd.DataFrame]:
    return soft(query), soft(query, level="parent")


# ---- where parents come from ----


@pytest.mark.parametrize(
    "kind",
    [dict, pd.Series, lambda m: LabelTree(tuple(m), tuple(m.values()))],
    ids=["dict", "Series", "LabelTree"],
)
def test_a_mapping_does_what_the_column_does(kind, query):
    adata = cells()
    adata.obs["given"] = adata.obs["cell_type"].astype(str).map(PARENTS)
    by_column = fit(adata, {"parent_labels_key": "given"}, max_epochs=1)
    by_mapping = fit(cells(), {"parents": kind(PARENTS)}, max_epochs=1)
    assert (
        by_mapping.parents_
        == by_column.parents_
        == {name: PARENTS[name] for name in by_column.classes_}
    )
    expected = by_column.predict(query, soft=True, level="parent")
    assert_equal_frames(by_mapping.predict(query, soft=True, level="parent"), expected)


def test_an_ontology_gives_the_parents(query):
    adata = cells()
    names = {"type 0": "T cell", "type 1": "NK cell", "type 2": "B cell", "type 3": "monocyte"}
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(names)
    path = Path(__file__).parent / "data" / "cells.obo"
    tree = LabelTree.from_obo(path, adata.obs["cell_type"], ["lymphocyte", "monocyte"])
    model = fit(adata, {"parents": tree}, max_epochs=1)
    classes, parents = (
        model.predict(query, soft=True, level=level) for level in ("class", "parent")
    )
    np.testing.assert_allclose(parents["lymphocyte"], 1 - classes["monocyte"])


def test_the_mapping_is_saved(query, tmp_path):
    model = fit(cells(), {"parents": PARENTS}, max_epochs=1)
    model.save(tmp_path)
    loaded = Celler.load(tmp_path)
    assert loaded.parents_ == model.parents_
    for options in ({"soft": True, "level": "parent"}, {"backoff": True}):
        actual, expected = (np.asarray(m.predict(query, **options)) for m in (loaded, model))
        np.testing.assert_array_equal(actual, expected)
    loaded.save(tmp_path / "again")


def test_a_model_without_parents_has_none():
    assert fit(cells(), max_epochs=1).parents_ == {}


@pytest.mark.parametrize(
    ("setup", "error", "words"),
    [
        ({"parents": {"type 0": "A"}}, ValueError, "no entry for 3 of 4 classes: 'type 1'"),
        (
            {"parents": PARENTS | {"type 3": "type 2"}},
            ValueError,
            "'type 2' is the parent of 'type 3' and",
        ),
        ({"parents": "parent_type"}, TypeError, "named by parent_labels_key"),
        (
            {"parents": PARENTS, "parent_labels_key": "parent_type"},
            ValueError,
            "both parent_labels_key='parent_type' and parents were given",
        ),
    ],
)
def test_parents_that_cannot_be_leave_the_reference_alone(setup, error, words):
    adata = cells()
    before = snapshot(adata)
    with pytest.raises(error, match=words):
        Celler.setup_anndata(adata, labels_key="cell_type", **setup)
    assert_unchanged(adata, before)


def test_a_column_where_levels_contradict_is_refused():
    adata = cells()
    adata.obs["p"] = adata.obs["cell_type"].astype(str).map(PARENTS | {"type 3": "type 2"})
    with pytest.raises(ValueError, match="'type 2' is the parent of 'type 3' and a class too"):
        Celler.setup_anndata(adata, labels_key="cell_type", parent_labels_key="p")


# ---- back-off ----


@pytest.mark.parametrize("threshold", [0.4, 0.52, None, 0.95])
def test_back_off_is_the_class_else_the_parent_else_unknown(query, threshold):
    classes, parents = both_levels(query)
    least = 0.7 if threshold is None else threshold
    expected = np.select(
        [classes.max(axis=1) >= least, parents.max(axis=1) >= least],
        [classes.idxmax(axis=1), parents.idxmax(axis=1)],
        "?",
    )
    labels = trained().predict(query, backoff=True, threshold=threshold, unknown_label="?")
    np.testing.assert_array_equal(labels, expected)
    if threshold == 0.52:  # the toy is unsure: its best probability is 0.53
        assert {"type", "lineage", "?"} <= {label.split()[0] for label in labels}
    trained().annotate(query, backoff=True, threshold=threshold, unknown_label="?")
    np.testing.assert_array_equal(query.obs["celler"].astype(str), labels)
    level = {"type": "class", "lineage": "parent", "?": "unknown"}
    assert list(query.obs["celler_level"]) == [level[label.split()[0]] for label in labels]
    assert query.uns["celler"]["threshold"] == least


def test_back_off_at_no_threshold_is_the_class(query):
    labels = trained().predict(query, backoff=True, threshold=0.0)
    np.testing.assert_array_equal(labels, trained().predict(query))
    assert set(trained().predict(query, backoff=True, threshold=1.0)) == {"Unknown"}


def test_back_off_is_of_the_candidates(query):
    chosen = ["type 0", "type 1"]
    labels = trained().predict(query, backoff=True, threshold=0.65, candidates=chosen)
    assert set(labels) == {"lineage 0", *chosen}


def test_a_parent_with_the_name_of_a_class_is_told_apart(query):
    """Of a parent called "type 1" that holds type 0 and type 1 the level says what is meant."""
    parents = PARENTS | {"type 0": "type 1", "type 1": "type 1"}
    model = fit(cells(), {"parents": parents}, max_epochs=8)
    model.annotate(query, backoff=True, threshold=0.5)
    classes = model.predict(query, soft=True)
    is_named = (query.obs["celler"] == "type 1").to_numpy()
    is_class = (query.obs["celler_level"] == "class").to_numpy()
    assert (is_named & is_class).any()
    assert (is_named & ~is_class).any()
    np.testing.assert_array_equal(is_named & is_class, classes["type 1"] >= 0.5)
    assert list(query.obs["celler"].cat.categories[:4]) == list(model.classes_)


def test_a_cell_without_counts_has_no_parent_either(query):
    query.X = sparse.diags_array(np.arange(80) > 0, dtype=np.float32).tocsr() @ query.X
    with pytest.warns(UserWarning, match="1 cells have no counts"):
        trained().annotate(query, backoff=True, threshold=0.0)
    row = query.obs.iloc[0]
    assert list(row[["celler", "celler_parent", "celler_level"]]) == [
        "Unknown",
        "Unknown",
        "unknown",
    ]


@pytest.mark.parametrize("threshold", [None, 0.3, 0.45, 0.8])
@pytest.mark.parametrize("backoff", [False, True])
def test_annotated_levels_never_contradict(query, threshold, backoff):
    trained().annotate(query, threshold=threshold, backoff=backoff)
    parent_of, names = trained().parents_, query.obs["celler"].astype(str)
    is_given = names != "Unknown"
    parents = query.obs["celler_parent"].astype(str)
    np.testing.assert_array_equal(parents[is_given], [parent_of.get(n, n) for n in names[is_given]])
    sums = soft(query, level="parent")
    column = sums.columns.get_indexer(parents[is_given])
    expected = sums.to_numpy()[np.flatnonzero(is_given), column]
    np.testing.assert_allclose(query.obs["celler_parent_confidence"][is_given], expected)


def test_the_toy_has_cells_whose_levels_would_contradict(query):
    classes, parents = both_levels(query)
    assert (classes.idxmax(axis=1).map(trained().parents_) != parents.idxmax(axis=1)).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"soft": True, "backoff": True}, "soft=True gives the probabilities of one level"),
        ({"level": "parent", "backoff": True}, "level='parent' was given. Leave one"),
        ({"threshold": 1.5, "backoff": True}, r"threshold=1\.5 was given"),
    ],
)
def test_back_off_that_makes_no_sense(query, options, words):
    with pytest.raises(ValueError, match=words):
        trained().predict(query, **options)


def test_back_off_needs_parents(query):
    model = fit(cells(), max_epochs=1)
    for label in (model.predict, model.annotate):
        with pytest.raises(ValueError, match="backoff=True needs parents, and the model has none"):
            label(query, backoff=True)


def test_a_novel_cell_is_unknown_at_both_levels(query):
    is_novel = trained().predict(query, false_alarm_rate=0.5) == "Unknown"
    assert 0 < is_novel.sum() < 80
    trained().annotate(query, backoff=True, threshold=0.0, false_alarm_rate=0.5)
    np.testing.assert_array_equal(query.obs["celler_level"] == "unknown", is_novel)
    np.testing.assert_array_equal(query.obs["celler_parent"] == "Unknown", is_novel)
