"""Label columns of every kind, the tree and its errors, roll-up by hand, and parents from an ontology."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from celler.labels._tree import LabelTree, as_strings, indices_of

UNKNOWN = "Unknown"
FILE = Path(__file__).parents[1] / "data" / "cells.obo"
TERMS = ["CL:0000084", "CL:0000623", "CL:0000236", "CL:0000576"]  # T, NK, B, monocyte

# ---- columns ----


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b cell/é", "a", "b cell/é"], ["b cell/é", "a", "b cell/é"]),
        ([10, 9, 10], ["10", "9", "10"]),
        ([True, False, True], ["True", "False", "True"]),
        (["a", None, np.nan], ["a", UNKNOWN, UNKNOWN]),
        (["a", pd.NA, 7], ["a", UNKNOWN, "7"]),
        (pd.array([1, None, 2], dtype="Int64"), ["1", UNKNOWN, "2"]),
        (pd.array(["x", None, "y"], dtype="string"), ["x", UNKNOWN, "y"]),
        (pd.array(["x", "y", "x"], dtype="str"), ["x", "y", "x"]),
        (pd.Categorical(["a", None, "b"], ["unused", "b", "a"]), ["a", UNKNOWN, "b"]),
        (pd.Categorical([2, 1, 2], [3, 2, 1]), ["2", "1", "2"]),
        ([None, None, None], [UNKNOWN] * 3),
        ([], []),
    ],
)
def test_as_strings_with_every_kind_of_column(values, expected):
    obs = pd.Series(values)
    before = obs.copy()
    labels = as_strings(obs, "key", UNKNOWN)
    assert labels.dtype == object
    assert labels.tolist() == expected
    assert all(type(label) is str for label in labels)
    pd.testing.assert_series_equal(obs, before)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0, np.nan],
        np.array([0.5, 1.5, 2.5], np.float32),
        pd.Categorical([1.5, 2.5, 1.5]),
        ["a", 0.5, "b"],
        pd.array([0.5, None, 1.5], dtype="Float64"),
    ],
)
def test_as_strings_with_floats(values):
    with pytest.raises(ValueError, match=r"adata\.obs\['score'\] holds numbers with a decimal"):
        as_strings(pd.Series(values), "score", UNKNOWN)


def test_as_strings_after_its_advice_for_floats():
    obs = pd.DataFrame({"key": [1.0, 2.0, np.nan]})
    obs["key"] = obs["key"].astype("Int64").astype("string")
    assert as_strings(obs["key"], "key", UNKNOWN).tolist() == ["1", "2", UNKNOWN]


# ---- the tree ----

LABELS = np.array(["T", "B", UNKNOWN, "NK", "T", "B"], dtype=object)
PARENTS = np.array(["lymph T/NK", "lymph B", "x", "lymph T/NK", UNKNOWN, "lymph B"], dtype=object)


def test_from_labels_sorts_classes_without_unlabelled():
    tree = LabelTree.from_labels(LABELS, UNKNOWN)
    assert tree == LabelTree(("B", "NK", "T"))
    assert tree.levels == {"class": ("B", "NK", "T")}
    np.testing.assert_array_equal(tree.encode(LABELS), [2, 0, -1, 1, 2, 0])
    np.testing.assert_array_equal(tree.encode(np.array(["new", "NK"], dtype=object)), [-1, 1])
    assert LabelTree.from_labels(np.array([UNKNOWN] * 3, dtype=object), UNKNOWN).classes == ()


def test_from_labels_with_unused_categories():
    obs = pd.Series(pd.Categorical(["b", "a"], ["c", "b", "a"]))
    assert LabelTree.from_labels(as_strings(obs, "key", UNKNOWN), UNKNOWN).classes == ("a", "b")


def test_from_labels_with_parents():
    """A cell without a parent takes nothing from a class whose other cells have one."""
    tree = LabelTree.from_labels(LABELS, UNKNOWN, PARENTS)
    assert tree.parents == ("lymph B", "lymph T/NK", "lymph T/NK")
    assert tree.levels == {"class": ("B", "NK", "T"), "parent": ("lymph B", "lymph T/NK")}


def test_from_labels_with_two_parents_or_none():
    two = PARENTS.copy()
    two[4] = "other"
    with pytest.raises(ValueError, match=r"'T' the parents \['lymph T/NK', 'other'\]"):
        LabelTree.from_labels(LABELS, UNKNOWN, two)
    none = PARENTS.copy()
    none[3] = UNKNOWN
    with pytest.raises(ValueError, match="'NK' no parent; each class needs exactly one"):
        LabelTree.from_labels(LABELS, UNKNOWN, none)


MAPPING = {"T": "lymph T/NK", "NK": "lymph T/NK", "B": "lymph B", "not here": "x"}


@pytest.mark.parametrize(
    "kind",
    [dict, pd.Series, lambda m: LabelTree(tuple(m), tuple(m.values()))],
    ids=["dict", "Series", "LabelTree"],
)
def test_with_parents_of_a_mapping_equals_the_column(kind):
    tree = LabelTree(("B", "NK", "T")).with_parents(kind(MAPPING))
    assert tree == LabelTree.from_labels(LABELS, UNKNOWN, PARENTS)
    assert tree.parent_of == {name: MAPPING[name] for name in ("B", "NK", "T")}
    assert LabelTree(("B",)).parent_of == {}


def test_with_parents_with_numbers_as_names():
    assert LabelTree(("1", "2")).with_parents({1: 10, 2: 20}).parents == ("10", "20")


@pytest.mark.parametrize(
    ("parents", "error", "words"),
    [
        ({"B": "l", "NK": "l"}, ValueError, r"no entry for 1 of 3 classes: 'T'\. Name a parent"),
        (
            {"B": "l", "nk": "l", "T ": "l"},
            ValueError,
            r"2 of 3 classes: 'NK'\..* 'T'\. Closest: 'T '",
        ),
        (
            MAPPING | {"T": ["a", "b"]},
            ValueError,
            r"class 'T' the parents \['a', 'b'\]; .*exactly one",
        ),
        (pd.Series(["a", "b"], ["T", "T"]), ValueError, r"class 'T' the parents \['a', 'b'\]"),
        (MAPPING | {"T": None}, ValueError, "class 'T' no parent"),
        (MAPPING | {"T": "NK", "NK": "T"}, ValueError, "in a cycle: 'NK' -> 'T' -> 'NK'"),
        (
            MAPPING | {"T": "NK"},
            ValueError,
            "'NK' is the parent of 'T' and a class too, whose parent is",
        ),
        ("parent_type", TypeError, "a str; .* is named by parent_labels_key"),
        (["a", "b", "c"], TypeError, r"a list; a dict or Series .* is needed\.$"),
        (LabelTree(("B",)), ValueError, "a LabelTree without parents"),
    ],
)
def test_with_parents_with_wrong_mappings(parents, error, words):
    with pytest.raises(error, match=words):
        LabelTree(("B", "NK", "T")).with_parents(parents)


def test_with_parents_with_a_class_that_is_a_parent():
    mapping = {"T": "T", "NK": "T", "B": "B"}
    assert LabelTree(("B", "NK", "T")).with_parents(mapping).parents == ("B", "T", "T")


def test_agreeing_parents_keeps_the_parent_of_the_class():
    tree = LabelTree(("a", "b", "c"), ("X", "Y", "Y"))
    probabilities = np.array([[0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [0.2, 0.5, 0.3]])
    expected = np.array([[0.4, 0], [0.4, 0.6], [0, 0.8]])
    is_class = np.array([True, False, True])
    np.testing.assert_allclose(tree.agreeing_parents(probabilities, is_class), expected)


def test_roll_up_sums_children():
    tree = LabelTree(("a", "b", "c", "d"), ("Z", "Y", "Z", "X"))
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0]])
    expected = np.array([[0.4, 0.2, 0.4], [0, 0, 1]])  # X, Y, Z
    np.testing.assert_allclose(tree.roll_up(probabilities, "parent"), expected)
    assert tree.roll_up(probabilities, "class") is probabilities
    assert tree.roll_up(probabilities.astype(np.float32), "parent").dtype == np.float32


def test_roll_up_with_an_unknown_level():
    with pytest.raises(ValueError, match=r"level='parent' was given; .*\['class'\].*parent_labels_"):
        LabelTree(("a",)).roll_up(np.ones((1, 1)), "parent")
    with pytest.raises(ValueError, match=r"level='order' was given; there is \['class', 'parent'\]"):
        LabelTree(("a",), ("A",)).roll_up(np.ones((1, 1)), "order")


# ---- candidates ----


def test_indices_of_candidates():
    classes = ("B cell", "NK", "T cell")
    np.testing.assert_array_equal(indices_of(["T cell", "B cell", "T cell"], classes), [0, 2])
    np.testing.assert_array_equal(indices_of(np.array(["NK"]), classes), [1])


def test_indices_of_wrong_candidates():
    classes = ("B cell", "NK", "T cell")
    with pytest.raises(TypeError, match="candidates='NK' is one string; pass a list"):
        indices_of("NK", classes)
    with pytest.raises(ValueError, match="names 'Tcell', .* Closest: 'T cell'"):
        indices_of(["NK", "Tcell"], classes)
    with pytest.raises(ValueError, match="names 'zzzz', which the model has not learned.$"):
        indices_of(["zzzz"], classes)
    with pytest.raises(ValueError, match="candidates is empty"):
        indices_of([], classes)


# ---- trees ----


def test_from_obo_takes_the_nearest_parent():
    labels = ["monocyte", "NK cell", "CL:0000624", "T cell", "B cell"]
    tree = LabelTree.from_obo(FILE, labels, parents=TERMS)
    assert tree.parent_of == {
        "B cell": "B cell",
        "CL:0000624": "T cell",
        "NK cell": "natural killer cell",
        "T cell": "T cell",
        "monocyte": "monocyte",
    }
    assert list(tree.classes) == sorted(labels)
    nested = LabelTree.from_obo(FILE, labels, parents=["leukocyte", "lymphocyte", "T lymphocyte"])
    assert list(nested.parents) == ["lymphocyte", "T cell", "lymphocyte", "T cell", "leukocyte"]


def test_from_obo_without_parents_takes_the_term_above():
    """T cell is a lymphocyte and a leukocyte, says the file, and a lymphocyte is one too."""
    tree = LabelTree.from_obo(FILE, ["T cell", "B cell", "monocyte"])
    assert tree.parents == ("lymphocyte", "lymphocyte", "leukocyte")


@pytest.mark.parametrize(
    "kind",
    [
        list,
        np.array,
        pd.Series,
        pd.Categorical,
        pd.Index,
        lambda names: dict(zip(names, names, strict=True)),
    ],
)
def test_from_obo_with_labels_of_any_type(kind):
    tree = LabelTree.from_obo(FILE, kind(["T cell", "B cell", "T cell"]), parents=TERMS)
    assert tree == LabelTree(("B cell", "T cell"), ("B cell", "T cell"))


def test_from_obo_skips_missing_labels():
    labels = pd.Series(["T cell", None, "not yet", np.nan])
    tree = LabelTree.from_obo(FILE, labels, parents=TERMS, unlabeled_category="not yet")
    assert tree.classes == ("T cell",)


def test_from_obo_with_a_mapping_to_terms():
    tree = LabelTree.from_obo(FILE, {"CD4 T": "CL:0000624", "B": "b cell"}, parents=TERMS)
    assert tree.parent_of == {"B": "B cell", "CD4 T": "T cell"}


@pytest.mark.parametrize(
    ("labels", "parents", "error", "words"),
    [
        (
            ["mature NK T cell"],
            TERMS,
            ValueError,
            r"kind of T cell \(.*84\) and of natural killer cell",
        ),
        (
            ["mature NK T cell"],
            None,
            ValueError,
            r"T cell \(.*killer cell.*Choose one with parents=",
        ),
        (
            ["B cell"],
            TERMS[:1],
            ValueError,
            r"'B cell' is under none of the parents; .* lymphocyte \(",
        ),
        (["cell"], None, ValueError, "'cell' is under none"),
        (
            ["Bcell", "T cell", "x9"],
            None,
            ValueError,
            r"'Bcell' .*Closest: 'B cell'\. 'x9' .*\{label: term\}",
        ),
        (["B cell"], ["lymphocytes"], ValueError, "'lymphocytes' .* Closest: 'lymphocyte'.$"),
        (["B cell"], [], ValueError, "parents is empty"),
        ([], None, ValueError, "labels is empty"),
        ("B cell", None, TypeError, "labels='B cell' is one string; pass a list"),
        (["B cell"], "lymphocyte", TypeError, "parents='lymphocyte' is one string"),
        (
            ["lymphocyte", "T cell"],
            None,
            ValueError,
            "'lymphocyte' is the parent of 'T cell' and a class",
        ),
    ],
)
def test_from_obo_with_labels_or_parents_that_cannot_be(labels, parents, error, words):
    with pytest.raises(error, match=words):
        LabelTree.from_obo(FILE, labels, parents)


def test_from_obo_with_the_term_itself_as_parent():
    tree = LabelTree.from_obo(FILE, ["mature NK T cell"], [*TERMS, "mature NK T cell"])
    assert tree.parents == ("mature NK T cell",)


# ---- the Cell Ontology ----


def test_from_cell_ontology_finds_names_as_people_write_them():
    tree = LabelTree.from_cell_ontology(["CD4 T", "B cells", "NK", "CD14+ Monocytes"], ["lymphocyte", "monocyte"])
    assert tree.parent_of == {
        "B cells": "lymphocyte",
        "CD14+ Monocytes": "monocyte",
        "CD4 T": "lymphocyte",
        "NK": "lymphocyte",
    }


def test_from_cell_ontology_agrees_with_a_file_of_it():
    """The excerpt in tests/data was written by hand from the Cell Ontology."""
    labels = ["B cell", "CD4-positive, alpha-beta T cell", "T cell", "monocyte"]
    assert LabelTree.from_cell_ontology(labels, TERMS) == LabelTree.from_obo(FILE, labels, TERMS)


def test_from_cell_ontology_with_a_mapping_and_missing_labels():
    tree = LabelTree.from_cell_ontology({"my T": "CL:0000084"}, ["lymphocyte"])
    assert tree.parent_of == {"my T": "lymphocyte"}
    labels = pd.Series(["monocites", None, "?"])
    with pytest.raises(ValueError, match=r"^'monocites' is no id, name, .*Closest: monocyte \(CL:0000576\)"):
        LabelTree.from_cell_ontology(labels, ["leukocyte"], unlabeled_category="?")


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (["alpha"], ValueError, r"'alpha' may be pancreatic A cell \(CL:0000171\) or .*pass one of these ids"),
        (["no such thing"], ValueError, "short name of the Cell Ontology.*pass labels as a mapping"),
        (["hepatocyte"], ValueError, "'hepatocyte' is under none of the parents"),
        ("T cell", TypeError, "labels='T cell' is one string"),
    ],
)
def test_from_cell_ontology_with_labels_that_cannot_be(labels, error, words):
    with pytest.raises(error, match=words):
        LabelTree.from_cell_ontology(labels, ["lymphocyte"])
