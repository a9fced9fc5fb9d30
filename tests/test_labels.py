"""Labels: every kind of obs column, the tree's errors, and roll-up worked by hand."""

import numpy as np
import pandas as pd
import pytest

from celler.labels import LabelTree, as_strings, indices_of

UNKNOWN = "Unknown"

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
def test_every_kind_of_column_becomes_text(values, expected):
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
def test_floats_are_refused(values):
    with pytest.raises(ValueError, match=r"adata\.obs\['score'\] holds numbers with a decimal"):
        as_strings(pd.Series(values), "score", UNKNOWN)


def test_the_advice_for_floats_works():
    obs = pd.DataFrame({"key": [1.0, 2.0, np.nan]})
    obs["key"] = obs["key"].astype("Int64").astype("string")
    assert as_strings(obs["key"], "key", UNKNOWN).tolist() == ["1", "2", UNKNOWN]


# ---- the tree ----

LABELS = np.array(["T", "B", UNKNOWN, "NK", "T", "B"], dtype=object)
PARENTS = np.array(["lymph T/NK", "lymph B", "x", "lymph T/NK", UNKNOWN, "lymph B"], dtype=object)


def test_classes_are_sorted_and_the_unlabelled_are_none():
    tree = LabelTree.from_labels(LABELS, UNKNOWN)
    assert tree == LabelTree(("B", "NK", "T"))
    assert tree.levels == {"class": ("B", "NK", "T")}
    np.testing.assert_array_equal(tree.encode(LABELS), [2, 0, -1, 1, 2, 0])
    np.testing.assert_array_equal(tree.encode(np.array(["new", "NK"], dtype=object)), [-1, 1])
    assert LabelTree.from_labels(np.array([UNKNOWN] * 3, dtype=object), UNKNOWN).classes == ()


def test_unused_categories_are_not_classes():
    obs = pd.Series(pd.Categorical(["b", "a"], ["c", "b", "a"]))
    assert LabelTree.from_labels(as_strings(obs, "key", UNKNOWN), UNKNOWN).classes == ("a", "b")


def test_each_class_has_its_parent():
    """A cell without a parent takes nothing from a class whose other cells have one."""
    tree = LabelTree.from_labels(LABELS, UNKNOWN, PARENTS)
    assert tree.parents == ("lymph B", "lymph T/NK", "lymph T/NK")
    assert tree.levels == {"class": ("B", "NK", "T"), "parent": ("lymph B", "lymph T/NK")}


def test_two_parents_or_none_are_errors():
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
def test_a_mapping_gives_the_tree_of_the_column(kind):
    tree = LabelTree(("B", "NK", "T")).with_parents(kind(MAPPING))
    assert tree == LabelTree.from_labels(LABELS, UNKNOWN, PARENTS)
    assert tree.parent_of == {name: MAPPING[name] for name in ("B", "NK", "T")}
    assert LabelTree(("B",)).parent_of == {}


def test_names_of_classes_may_be_numbers_in_a_mapping():
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
def test_mappings_that_cannot_be(parents, error, words):
    with pytest.raises(error, match=words):
        LabelTree(("B", "NK", "T")).with_parents(parents)


def test_a_class_may_be_its_own_parent_and_that_of_others():
    mapping = {"T": "T", "NK": "T", "B": "B"}
    assert LabelTree(("B", "NK", "T")).with_parents(mapping).parents == ("B", "T", "T")


def test_parents_agree_with_the_class_that_is_given():
    tree = LabelTree(("a", "b", "c"), ("X", "Y", "Y"))
    probabilities = np.array([[0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [0.2, 0.5, 0.3]])
    expected = np.array([[0.4, 0], [0.4, 0.6], [0, 0.8]])
    is_class = np.array([True, False, True])
    np.testing.assert_allclose(tree.agreeing_parents(probabilities, is_class), expected)


def test_a_parent_is_the_sum_of_its_children():
    tree = LabelTree(("a", "b", "c", "d"), ("Z", "Y", "Z", "X"))
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0]])
    expected = np.array([[0.4, 0.2, 0.4], [0, 0, 1]])  # X, Y, Z
    np.testing.assert_allclose(tree.roll_up(probabilities, "parent"), expected)
    assert tree.roll_up(probabilities, "class") is probabilities
    assert tree.roll_up(probabilities.astype(np.float32), "parent").dtype == np.float32


def test_unknown_levels():
    with pytest.raises(
        ValueError, match=r"level='parent' was given; .*\['class'\].*parent_labels_"
    ):
        LabelTree(("a",)).roll_up(np.ones((1, 1)), "parent")
    with pytest.raises(
        ValueError, match=r"level='order' was given; there is \['class', 'parent'\]"
    ):
        LabelTree(("a",), ("A",)).roll_up(np.ones((1, 1)), "order")


# ---- candidates ----


def test_candidates_become_codes():
    classes = ("B cell", "NK", "T cell")
    np.testing.assert_array_equal(indices_of(["T cell", "B cell", "T cell"], classes), [0, 2])
    np.testing.assert_array_equal(indices_of(np.array(["NK"]), classes), [1])


def test_bad_candidates():
    classes = ("B cell", "NK", "T cell")
    with pytest.raises(TypeError, match="candidates='NK' is one string; pass a list"):
        indices_of("NK", classes)
    with pytest.raises(ValueError, match="names 'Tcell', .* Closest: 'T cell'"):
        indices_of(["NK", "Tcell"], classes)
    with pytest.raises(ValueError, match="names 'zzzz', which the model has not learned.$"):
        indices_of(["zzzz"], classes)
    with pytest.raises(ValueError, match="candidates is empty"):
        indices_of([], classes)
