"""Bad labels: one row for what a column of labels holds, with the outcome and the words that it says."""

import numpy as np
import pandas as pd
import pytest
from name_cases import HAS_ATLAS, TYPES, clean, outcome_of, quietly

import celler as cl
from celler.model import Celler


def labelled(value, n=30):
    """Other labels in the first cells; the others keep theirs."""

    def change(adata):
        values = adata.obs["cell_type"].to_numpy().copy()
        values[:n] = value
        adata.obs["cell_type"] = pd.Series(values, index=adata.obs_names, dtype=object)

    return change


def each(rename):
    def change(adata):
        adata.obs["cell_type"] = pd.Series(
            [rename(x) for x in adata.obs["cell_type"]], index=adata.obs_names, dtype=object
        )

    return change


#: input: (change, outcome, words, classes)
MISSING = ["", "  ", "nan", "NaN", "NA", "<NA>", "N/A", "None", "null", "NULL", "#N/A", "\u200b"]
UNKNOWN = ["unknown", "UNKNOWN", " Unknown "]
DOUBTFUL = ["unassigned", "Unlabeled", "doublet", "Doublets", "low quality", "none", "?"]
ALIKE = ["type 0 ", "Type 0", "type  0", "type\xa00", "TYPE 0", "ty\u200bpe 0"]
LABELS = {
    **{f"{v!r}": (labelled(v), "says", "which mean that a cell has no label", TYPES) for v in MISSING + UNKNOWN},
    **{f"{v!r}": (labelled(v), "says", "which are learned as types", sorted([*TYPES, v])) for v in DOUBTFUL},
    **{f"{v!r}": (labelled(v, 9), "says", "that differ in blanks, upper and", sorted([*TYPES, v])) for v in ALIKE},
    "Unknown": (labelled("Unknown"), "same", "", TYPES),
    "missing": (labelled(None), "same", "", TYPES),
    "NaN": (labelled(np.nan), "same", "", TYPES),
    "pandas' NA": (labelled(pd.NA), "same", "", TYPES),
    "bytes": (each(str.encode), "same", "", TYPES),
    "numbers": (each(lambda x: int(x[-1])), "same", "", ["0", "1", "2", "3"]),
    "numbers as text": (each(lambda x: x[-1]), "same", "", ["0", "1", "2", "3"]),
    "booleans": (each(lambda x: x == "type 0"), "same", "", ["False", "True"]),
    "numbers and text": (each(lambda x: 1 if x == "type 1" else x), "same", "", ["1", "type 0", "type 2", "type 3"]),
    "ordered": (
        lambda a: a.obs.__setitem__("cell_type", pd.Categorical(a.obs["cell_type"], [*TYPES[::-1], "z"], ordered=True)),
        "same", "", TYPES,
    ),
    "pandas' string": (
        lambda a: a.obs.__setitem__("cell_type", a.obs["cell_type"].astype("string")), "same", "", TYPES
    ),
    "lists": (each(lambda x: [x]), "refused", "holds values of type list; a label is text", ()),
    "dicts": (each(lambda x: {x: 1}), "refused", "holds values of type dict", ()),
    "dates": (
        each(lambda x: pd.Timestamp(2020, 1, 1 + int(x[-1]))), "refused", "holds values of kind datetime", ()
    ),
    "spans of time": (each(lambda x: pd.Timedelta(int(x[-1]), "D")), "refused", "kind timedelta", ()),
    "complex numbers": (each(lambda x: int(x[-1]) * 1j), "refused", "kind complex", ()),
    "names of cells": (
        lambda a: a.obs.__setitem__("cell_type", list(a.obs_names)), "refused", "a label of its own, as names of", ()
    ),
    "nullable integers": (
        lambda a: a.obs.__setitem__("cell_type", a.obs["cell_type"].str[-1].astype("Int64")),
        "same", "", ["0", "1", "2", "3"],
    ),
    "nullable booleans": (
        lambda a: a.obs.__setitem__("cell_type", (a.obs["cell_type"] == "type 0").astype("boolean")),
        "same", "", ["False", "True"],
    ),
    "half a surrogate pair": (
        each(lambda x: x.replace("0", "\ud800")), "same", "", [*TYPES[1:], r"type \ud800"]
    ),
    "numbers with a fraction": (each(lambda x: float(x[-1]) + 0.5), "refused", "0.5", ()),
    "all missing": (each(lambda _: "nan"), "refused", "", ()),
    "two columns": (
        lambda a: setattr(a, "obs", pd.concat([a.obs, a.obs[["cell_type"]]], axis=1)), "refused", "columns", ()
    ),
}  # fmt: skip


#: What may group cells, but is no class to learn.
NOT_LEARNED = ("dates", "spans of time", "complex numbers", "names of cells")


@pytest.mark.parametrize("case", LABELS)
def test_labels_of_a_reference(case):
    change, outcome, words, classes = LABELS[case]
    adata = quietly(change, clean())
    setup = lambda: Celler.setup_anndata(adata, "cell_type") or Celler(adata)
    if outcome == "refused":
        with pytest.raises(ValueError) as error:
            setup()
        assert words in str(error.value)
        return
    made, said = outcome_of(setup)
    assert bool(said) == (outcome == "says")
    assert all(words in message for message in said)
    assert made.classes_.tolist() == list(classes)


@pytest.mark.skipif(not HAS_ATLAS, reason="annbatch needs Python 3.12")
@pytest.mark.parametrize(
    "case", ["'nan'", "''", "'unknown'", "'NA'", "'doublet'", "'Type 0'", "'type 0 '", "bytes", "lists", "all missing"]
)
def test_labels_of_a_source_of_a_store(case, tmp_path):
    change, outcome, _, classes = LABELS[case]
    adata = quietly(change, clean())
    store = tmp_path / "store"

    def build():
        cl.atlas.build({"a": adata}, store, labels_key="cell_type", test_size=0)
        return cl.atlas.DataModule(store, labels_key="cell_type")

    if outcome == "refused":
        with pytest.raises((ValueError, KeyError), match=r"type list|'cell_type' is not a column of the store"):
            outcome_of(build)
        return
    made, said = outcome_of(build)
    expected = sorted({name.strip() for name in classes})  # a store strips labels of outer blanks
    assert made.classes == expected
    assert bool(said) == (len(expected) > 4)


@pytest.mark.parametrize("case", LABELS)
def test_labels_to_evaluate(case):
    change, outcome, _, _ = LABELS[case]
    adata = quietly(change, clean())
    call = lambda: cl.tl.evaluate(adata, "cell_type", "cell_type").summary["accuracy"]
    if outcome == "refused" and case not in NOT_LEARNED:
        with pytest.raises(ValueError):
            call()
        return
    accuracy, said = outcome_of(call)
    assert accuracy == 1
    is_missing = case in {"missing", "NaN", "pandas' NA"} | {repr(value) for value in MISSING}
    assert said == ["Left out 30 of 120 cells, no label in 'cell_type' or 'cell_type'."] * is_missing


@pytest.mark.parametrize("split", [cl.benchmark.group_split, cl.benchmark.long_tail_split])
@pytest.mark.parametrize("case", LABELS)
def test_labels_to_split(case, split):
    change, outcome, _, classes = LABELS[case]
    adata = quietly(change, clean())
    arguments = ("cell_type", "group") if split is cl.benchmark.group_split else ("cell_type",)
    has_missing = outcome != "refused" and list(classes) == TYPES and case not in ("bytes", "ordered", "pandas' string")
    if outcome == "refused" or has_missing:
        with pytest.raises(ValueError):
            split(adata, *arguments)
    else:
        reference, _ = split(adata, *arguments)
        assert set(reference.obs["cell_type"]) <= set(classes)


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, "", "nan", "NA", "None"])
def test_groups_without_a_name_are_no_group(value):
    adata = clean()
    adata.obs["group"] = pd.Series(["a", "b", value, "c"] * 30, index=adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match=r"30 no group in adata\.obs\['group'\]; leave them out first"):
        cl.benchmark.group_split(adata, "cell_type", "group")


@pytest.mark.parametrize("value", ["nan", "", "NA", None])
def test_labels_in_plots_and_tools(value):
    adata = quietly(labelled(value), clean())
    markers, _ = outcome_of(lambda: cl.tl.rank_markers(adata, "cell_type", 2))
    assert set(markers["group"]) <= set(TYPES)
    _, said = outcome_of(lambda: cl.pl.class_counts(adata, "cell_type", show=False))
    assert any("no label in 'cell_type'" in message for message in said)
    assert cl.labels.LabelTree.from_labels(np.array(["a", "b"], object), "Unknown").classes == ("a", "b")
