"""Names and labels as text, against rows worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from celler._utils._text import (
    alike,
    as_categories,
    as_names,
    count_texts,
    found_names,
    means_no_label,
    text_of,
    warn_of_labels,
    without_separators,
)

#: value: its text
TEXTS = [
    ("a", "a"), (" a ", " a "), (b"B\xc3\xa4r", "Bär"), (b"\xff", "\\xff"), (np.bytes_(b"x"), "x"), (np.str_("x"), "x"),
    (1, "1"), (1.0, "1"), (np.float32(2), "2"), (1.5, "1.5"), (True, "True"), ((1, 2), "(1, 2)"),
    (None, None), (np.nan, None), (np.float32("nan"), None), (pd.NA, None), (pd.NaT, None),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), TEXTS)
def test_text_of(value, text):
    assert text_of(value) == text
    assert text is None or type(text_of(value)) is str


#: given, name
NAMES = [
    ("CD3E", "CD3E"), (" CD3E\t", "CD3E"), ("\ufeffCD3E", "CD3E"), ("CD\u200b3E", "CD3E"), ("CD3E\xa0", "CD3E"),
    (b"CD3E", "CD3E"), ("b'CD3E'", "CD3E"), ('"CD3E"', "CD3E"), ("'CD3E'", "CD3E"), ("HLA-DRA", "HLA-DRA"), (7, "7"),
    (7.0, "7"), ("e\u0301", "é"), ("5'", "5'"), ("b'x", "b'x"),
    *((value, "") for value in [None, np.nan, pd.NA, "", " ", "nan", "NaN", "<NA>", "None", "NA", "#N/A", "\u200b"]),
]  # fmt: skip


@pytest.mark.parametrize(("given", "name"), NAMES)
def test_as_names(given, name):
    assert as_names([given, "ACTB"]).tolist() == [name, "ACTB"]
    assert as_names(pd.Index([given, "ACTB"], dtype=object)).tolist() == [name, "ACTB"]


@pytest.mark.parametrize("dtype", [object, "string", "category"])
def test_as_names_of_clean_names_are_these(dtype):
    names = pd.Index(["HLA-DRA", "ENSG00000156738.17", "Na+/K+", "1-Mar", "MT-ND1"], dtype=dtype)
    assert as_names(names).tolist() == list(names)
    assert as_names(names).dtype == object
    assert as_names(pd.Series(names)).tolist() == list(names)


def test_as_names_with_several_levels():
    with pytest.raises(TypeError, match="a MultiIndex of 2 levels; one text for each gene is needed"):
        as_names(pd.MultiIndex.from_tuples([("a", "b")]))


def test_without_separators_is_what_make_names_makes():
    given = ["HLA-DRA", "HLA_DRA", "HLA.DRA", "7SK", "A B", "Y_RNA", "β-x"]
    assert list(map(without_separators, given)) == ["HLA.DRA", "HLA.DRA", "HLA.DRA", "X7SK", "A.B", "Y.RNA", "β.x"]


def test_found_names_takes_the_only_name_that_differs_in_separators():
    names = pd.Index(["HLA.DRA", "A-B", "A_B", "CD4", "X7SK"])
    assert found_names(["HLA-DRA", "CD4", "A.B", "7SK", "NONE"], names) == {
        "HLA-DRA": "HLA.DRA", "CD4": "CD4", "7SK": "X7SK",
    }  # fmt: skip


@pytest.mark.parametrize("label", ["", " ", "nan", "NA", "None", "unknown", "Unknown", "UNKNOWN ", "no", "\ufeff"])
def test_means_no_label(label):
    assert means_no_label(label, "no")


@pytest.mark.parametrize("label", ["none", "B", "Nan cell", "unknown T", "unassigned", "No", "0", "NK", "NaNK"])
def test_means_no_label_of_labels(label):
    assert not means_no_label(label, "no")


def test_as_categories_in_their_order():
    values = pd.Series(pd.Categorical(["b", "NA", None, "a", 1], ["b", 1, "a", "NA", "unused"], ordered=True))
    found = as_categories(values, "x")
    assert found.categories.tolist() == ["b", "1", "a"]
    assert found.codes.tolist() == [0, -1, -1, 2, 1]
    assert found.ordered


def test_as_categories_that_are_one_text():
    found = as_categories(pd.Series([b"B", "B", 1, "1", 1.0], dtype=object), "x")
    assert sorted(found.categories) == ["1", "B"]
    assert found.astype(str).tolist() == ["B", "B", "1", "1", "1"]
    assert as_categories(pd.Series([1.0, np.nan, 2.0]), "x").tolist() == ["1", np.nan, "2"]


@pytest.mark.parametrize("value", [["a"], {"a": 1}, {"a"}])
def test_as_categories_of_what_is_no_label(value):
    with pytest.raises(ValueError, match=rf"column x holds values of type {type(value).__name__}; a label is text"):
        as_categories(pd.Series([value, value], dtype=object), "column x")


def test_count_texts():
    values = pd.Series(["a", "a", b"a", "b", None, 1], dtype=object)
    assert count_texts(values) == {"a": 3, "b": 1, "1": 1}


def test_alike():
    names = ["T cell", "t cell", "T  cell ", "B cell", "e\u0301", "é", "T\u200b cell"]
    assert alike(names) == [["T cell", "t cell", "T  cell ", "T\u200b cell"], ["e\u0301", "é"]]


def test_warn_of_labels_says_each_thing_once():
    with pytest.warns(UserWarning) as caught:  # noqa: PT030 - the messages are compared below
        warn_of_labels({"NA": 2, "x": 5, "doublet": 3, "B": 4, "b ": 1, "?": 1}, "obs['k']", "x")
    first, second, third = (str(one.message) for one in caught)
    assert first.startswith("obs['k'] has the labels 'NA' (2 cells), which mean that a cell has no label")
    assert second.startswith("obs['k'] has the labels 'doublet' (3 cells), '?' (1 cell), which are learned as types")
    assert "pass unlabeled_category='doublet'" in second
    assert "Unicode form alone: 'B' and 'b '." in third


def test_warn_of_labels_without_need():
    warn_of_labels({"B": 1, "T": 1, "Unknown": 5}, "obs['k']", "Unknown")
