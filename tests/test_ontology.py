"""Ontologies: a file worked by hand, every way to name a term, and every way it can be wrong."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from celler.labels import LabelTree, read_obo

FILE = Path(__file__).parent / "data" / "cells.obo"
TERMS = ["CL:0000084", "CL:0000623", "CL:0000236", "CL:0000576"]  # T, NK, B, monocyte


def write(tmp_path, *stanzas: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "some.obo"
    path.write_text("\n\n".join(f"[Term]\n{stanza}" for stanza in stanzas), encoding=encoding)
    return path


def test_terms_are_those_of_the_file():
    terms = read_obo(FILE).terms
    assert len(terms) == 11
    assert "part_of" not in terms
    cell = terms["CL:0000084"]
    assert (cell.name, cell.exact) == ("T cell", ["T lymphocyte", "T-lymphocyte"])
    assert cell.is_a == ["CL:0000542", "CL:0000738"]
    assert (cell.loose, cell.other_ids) == (["thymocyte"], ["CL:0000804"])
    assert terms["CL:0000624"].is_a == ["CL:0000084"]
    assert terms["CL:0000624"].exact == ['the "helper" cell']
    assert [i for i, term in terms.items() if term.is_obsolete] == ["CL:0000999", "CL:0000998"]


def test_line_ends_marks_and_case_make_no_difference(tmp_path):
    path = write(
        tmp_path, "id: X:1\nname: a", "id: X:2\r\nname: b\r\nis_a: X:1 ! a\r", encoding="utf-8-sig"
    )
    assert read_obo(path).terms["X:2"].is_a == ["X:1"]


@pytest.mark.parametrize(
    "name", ["T cell", "CL:0000084", "cl:0000804", "t  CELL", "T-lymphocyte", " T lymphocyte"]
)
def test_a_term_by_id_name_or_exact_synonym(name):
    assert read_obo(FILE).find(name).id == "CL:0000084"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("T cel", "'T cel' is no id, name or exact synonym of a term. Closest: 'T cell'"),
        ("t lymphocytes", "Closest: 'T cell'"),
        ("thymocyte", r"only a related, .* one of T cell \(CL:0000084\)"),
        ("killer", r"natural killer cell \(CL:0000623\) and of mature NK T cell \(CL:0000814\)"),
        (
            "CL:0000999",
            r"obsolete\. It was replaced by CD4-positive, alpha-beta T cell \(CL:0000624\)",
        ),
        ("obsolete thing", "which is obsolete. Pass another term."),
    ],
)
def test_names_that_lead_to_no_term(name, words):
    with pytest.raises(ValueError, match=words):
        read_obo(FILE).find(name)


# ---- trees ----


def test_parents_are_the_nearest_of_those_allowed():
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


def test_without_a_list_the_parent_is_the_term_above():
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
def test_labels_of_any_kind(kind):
    tree = LabelTree.from_obo(FILE, kind(["T cell", "B cell", "T cell"]), parents=TERMS)
    assert tree == LabelTree(("B cell", "T cell"), ("B cell", "T cell"))


def test_missing_and_unlabelled_cells_are_no_classes():
    labels = pd.Series(["T cell", None, "not yet", np.nan])
    tree = LabelTree.from_obo(FILE, labels, parents=TERMS, unlabeled_category="not yet")
    assert tree.classes == ("T cell",)


def test_names_of_ones_own_are_mapped_to_terms():
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
            r"T cell \(.*killer cell.*Say which with parents=",
        ),
        (
            ["B cell"],
            TERMS[:1],
            ValueError,
            r"'B cell' stands under none of the parents; .* lymphocyte \(",
        ),
        (["cell"], None, ValueError, "'cell' stands under none"),
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
def test_trees_that_cannot_be(labels, parents, error, words):
    with pytest.raises(error, match=words):
        LabelTree.from_obo(FILE, labels, parents)


def test_the_term_itself_settles_two_parents():
    tree = LabelTree.from_obo(FILE, ["mature NK T cell"], [*TERMS, "mature NK T cell"])
    assert tree.parents == ("mature NK T cell",)


def test_a_circle_of_is_a(tmp_path):
    path = write(tmp_path, "id: X:1\nname: a\nis_a: X:2", "id: X:2\nname: b\nis_a: X:1 ! a")
    with pytest.raises(ValueError, match=r"circle: a \(X:1\) is a b \(X:2\) is a a \(X:1\)"):
        LabelTree.from_obo(path, ["a"], ["b"])


def test_files_that_are_no_ontology(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.obo does not exist; .*downloads nothing"):
        read_obo(tmp_path / "none.obo")
    path = tmp_path / "cl.owl"
    path.write_text("<rdf:RDF>")
    with pytest.raises(ValueError, match="so it is not an OBO file"):
        LabelTree.from_obo(path, ["a"])
