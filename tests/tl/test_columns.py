"""Columns as labels and as probabilities."""

import numpy as np
import pandas as pd
import pytest

from celler.tl._columns import in_natural_order, label_column, note_unlabelled, share_column, with_closest

TABLE = pd.DataFrame(
    {
        "label": pd.Categorical(["b", None, "a"], ["c", "b", "a"]),
        "number": [2.0, np.nan, 1.0],
        "score": [0.5, np.nan, 1.0],
        "none": [None, None, None],
    }
)


def test_label_column_keeps_the_order_and_drops_unused_categories():
    labels = label_column(TABLE, "label", "key")
    assert labels.categories.tolist() == ["b", "a"]
    assert labels.codes.tolist() == [0, -1, 1]
    assert label_column(TABLE, "number", "key").categories.tolist() == ["1", "2"]


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("score", ValueError, "key='score' holds numbers such as 0.5; a column of labels"),
        ("none", ValueError, r"No cell has a label in the table\['none'\]"),
        ("lable", KeyError, "key='lable' is not a column of the table. Closest: 'label'"),
    ],
)
def test_label_column_with_what_is_no_label(key, error, message):
    with pytest.raises(error, match=message):
        label_column(TABLE, key, "key")


def test_label_column_of_no_table():
    with pytest.raises(TypeError, match="a list was given; an AnnData or a pandas.DataFrame"):
        label_column([], "label", "key")


def test_note_unlabelled_names_the_number_left_out():
    notes = []
    note_unlabelled(label_column(TABLE, "label", "key"), "label", notes)
    assert notes == ["Left out 1 of 3 cells, no label in 'label'."]


def test_share_column_is_between_0_and_1():
    np.testing.assert_array_equal(share_column(TABLE, "score", "key"), [0.5, np.nan, 1])
    with pytest.raises(ValueError, match="key='number' holds 2; probabilities from 0 to 1"):
        share_column(TABLE, "number", "key")
    with pytest.raises(ValueError, match="a column of numbers is needed"):
        share_column(TABLE, "label", "key")


def test_with_closest_names_up_to_two():
    assert with_closest("CD8", ["CD8A", "CD8B", "CD3E"]) in (
        "CD8 (closest: CD8A or CD8B)", "CD8 (closest: CD8B or CD8A)"
    )  # fmt: skip
    assert with_closest("x", ["CD8A"]) == "x"


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "2", "a"], ["2", "10", "a"]),
        (["T 1", "T 10", "T 2"], ["T 1", "T 2", "T 10"]),
        (["c", "10", "2"], ["c", "10", "2"]),
        (["B cell", "CD14+ Mono", "CD4 T"], ["B cell", "CD4 T", "CD14+ Mono"]),
    ],
)
def test_in_natural_order_keeps_an_order_of_the_user(names, ordered):
    labels = pd.Categorical(names[::-1], names)
    found = in_natural_order(labels)
    assert list(found.categories) == ordered
    assert list(found) == list(labels)
