"""Ids for names as people write them; what means two things or nothing gets none."""

import numpy as np
import pandas as pd
import pytest

from celler.labels import find_ids
from celler.labels._abbreviations import ABBREVIATIONS, AMBIGUOUS
from celler.labels._cell_types import CellTypeNames, cell_type_names, ids_of
from celler.labels._ontology import Ontology, Term, cell_ontology

#: Labels of published data sets with the ids that CELLxGENE and Azimuth give them.
WRITTEN = [
    ("CL:0000084", "id", "CL:0000084"),
    ("cl_0000084", "id", "CL:0000084"),
    ("http://purl.obolibrary.org/obo/CL_0000084", "id", "CL:0000084"),
    ("T cell", "name", "CL:0000084"),
    ("T  CELL", "name", "CL:0000084"),
    ("T-lymphocyte", "synonym", "CL:0000084"),
    ("pDC", "synonym", "CL:0000784"),
    ("Treg", "synonym", "CL:0000815"),
    ("CD4 T", "abbreviation", "CL:0000624"),
    ("CD8+ T-cells", "abbreviation", "CL:0000625"),
    ("Tcells.CD8", "abbreviation", "CL:0000625"),
    ("T_CD4", "abbreviation", "CL:0000624"),
    ("naive CD4+ T cells", "abbreviation", "CL:0000895"),
    ("CD8 TEM", "abbreviation", "CL:0000913"),
    ("CD14 Mono", "abbreviation", "CL:0001054"),
    ("CD16 Mono", "abbreviation", "CL:0002396"),
    ("FCGR3A+ Monocytes", "abbreviation", "CL:0002396"),
    ("NK_CD56bright", "abbreviation", "CL:0000938"),
    ("MAIT", "abbreviation", "CL:0000940"),
    ("gdT", "abbreviation", "CL:0000798"),
    ("cDC1", "abbreviation", "CL:0002394"),
    ("DCs", "abbreviation", "CL:0000451"),
    ("Mk", "abbreviation", "CL:0000556"),
    ("HSPC", "abbreviation", "CL:0008001"),
    ("CD34+", "abbreviation", "CL:0008001"),
    ("CD56+ NK", "abbreviation", "CL:0000623"),
    ("Oligo", "abbreviation", "CL:0000128"),
    ("OPCs", "abbreviation", "CL:0002453"),
    ("AT2", "abbreviation", "CL:0002063"),
    ("beta cells", "abbreviation", "CL:0000169"),
    ("CD14+ Monocytes", "spelling", "CL:0001054"),
    ("B cells", "spelling", "CL:0000236"),
    ("B", "spelling", "CL:0000236"),
    ("NK", "spelling", "CL:0000623"),
    ("Dendritic", "spelling", "CL:0000451"),
    ("Megakaryocytes", "spelling", "CL:0000556"),
    ("γδ T cells", "spelling", "CL:0000798"),
    ("lymphatic vessel endothelial cells", "spelling", "CL:0002138"),
    ("B_naive", "spelling", "CL:0000788"),
    ("NaiveBcells", "spelling", "CL:0000788"),
    ("Schwann", "spelling", "CL:0002573"),
]


@pytest.mark.parametrize(("label", "found_by", "identifier"), WRITTEN)
def test_find_ids_of_names_as_people_write_them(label, found_by, identifier):
    row = find_ids([label]).loc[label]
    assert row.tolist() == [identifier, cell_ontology().terms[identifier].name, found_by, ""]


@pytest.mark.parametrize(
    ("label", "candidates"),
    [
        ("alpha", {"CL:0000171", "CL:0002067"}),
        ("alpha cells", {"CL:0000171", "CL:0004117"}),  # the ontology's "alpha cell" is one of the mouse retina
        ("delta", {"CL:0000173", "CL:0000502"}),
        ("beta", {"CL:0000169"}),
        ("DC2", {"CL:0002399", "CL:0000784"}),  # cDC2 today, pDC in the ontology's synonyms
        ("HSC", {"CL:0000037", "CL:0000632"}),
        ("stellate cells", {"CL:0002410", "CL:0000632"}),
        ("CD16+ monocytes", {"CL:0002396", "CL:0002397"}),
        ("C42", {"CL:0020024"}),  # the number of a cluster, and of a ganglion cell
        ("CD4", {"CL:0000624"}),
    ],
)
def test_find_ids_of_names_with_several_meanings(label, candidates):
    row = find_ids([label]).loc[label]
    assert (row["cl_id"], row["cl_name"], row["found_by"]) == ("", "", "ambiguous")
    assert all(f"({identifier})" in row["candidates"] for identifier in candidates)


@pytest.mark.parametrize(
    ("label", "candidate"),
    [
        ("monocites", "monocyte (CL:0000576)"),
        ("Macrophages 2", "macrophage (CL:0000235)"),
        ("NK/T", "natural killer cell (CL:0000623)"),
        ("Club (nasal)", "club cell (CL:0000158)"),
        ("Neurons - GABAergic 1", "GABAergic neuron (CL:0000617)"),
        ("CD4 naive/central memory T", "central memory CD4-positive, alpha-beta T cell (CL:0000904)"),
        ("CD14+CD16- monocytes", "CD14-positive, CD16-negative classical monocyte (CL:0002057)"),
    ],
)
def test_find_ids_of_unknown_names_lists_the_closest(label, candidate):
    row = find_ids([label]).loc[label]
    assert (row["cl_id"], row["found_by"]) == ("", "unknown")
    assert candidate in row["candidates"].split("; ")


@pytest.mark.parametrize("label", ["", "  ", "0", "17", "CL:9999999", "???", "xyzzy", "Ω 9"])
def test_find_ids_of_what_is_no_name(label):
    assert find_ids([label]).loc[label].tolist() == ["", "", "unknown", ""]


def test_find_ids_with_each_kind_of_column():
    expected = find_ids(["NK", "B"])
    assert expected.index.name == "label"
    for kind in (tuple, np.array, pd.Series, pd.Index, pd.Categorical, iter, lambda x: pd.Series(x, dtype="category")):
        pd.testing.assert_frame_equal(find_ids(kind(["NK", "B"])), expected)
    pd.testing.assert_frame_equal(find_ids(dict.fromkeys(["NK", "B"], 1)), expected)
    pd.testing.assert_frame_equal(find_ids(pd.Series(["NK", None, "B", np.nan, "NK", pd.NA])), expected)


def test_find_ids_maps_a_column():
    obs = pd.DataFrame({"cell_type": pd.Categorical(["NK", "alpha", None, "NK"])})
    ids = obs["cell_type"].map(find_ids(obs["cell_type"])["cl_id"])
    assert ids.astype(object).where(ids.notna(), None).tolist() == ["CL:0000623", "", None, "CL:0000623"]


@pytest.mark.parametrize("labels", [[], (), pd.Series([], dtype=object), pd.Categorical([]), [None, np.nan]])
def test_find_ids_of_nothing(labels):
    table = find_ids(labels)
    assert table.columns.tolist() == ["cl_id", "cl_name", "found_by", "candidates"]
    assert len(table) == 0


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("T cell", r"labels='T cell' is one string; pass a list"),
        (b"T cell", "is one string"),
        (7, "labels is a int; a list of names or a column"),
        (None, "labels is a NoneType"),
        (pd.DataFrame({"cell_type": ["T cell"]}), r"labels is a DataFrame; .*adata\.obs\['cell_type'\]"),
        ([3, 4], r"labels holds 3 \(int\); .*Numbers of clusters"),
        (["T cell", 0.5], r"labels holds 0\.5 \(float\)"),
        ([["T cell"]], r"labels holds \['T cell'\] \(list\)"),
        (pd.Categorical([2, 1]), r"labels holds 1 \(int\)"),
        (pd.Series([True, False]), r"labels holds True \(bool\)"),
    ],
)
def test_find_ids_with_what_holds_no_names(labels, words):
    with pytest.raises(TypeError, match=words):
        find_ids(labels)


def test_ids_of_agrees_with_find_ids():
    labels = ["NK", "alpha", "xyzzy", "NK", None]
    assert ids_of(labels) == {"NK": "CL:0000623", "alpha": "", "xyzzy": ""}
    assert ids_of(labels) == find_ids(labels)["cl_id"].to_dict()


# ---- laws ----


def test_every_name_of_the_ontology_means_its_term():
    names = cell_type_names()
    for term in names.ontology.terms.values():
        assert names.find(term.name).terms == (term,)
        assert names.find(term.id).terms == (term,)


def test_an_exact_synonym_means_its_term_or_several():
    names, n_several = cell_type_names(), 0
    name_of = {term.name.casefold(): term for term in names.ontology.terms.values()}
    for term in names.ontology.terms.values():
        for synonym in term.exact:
            match = names.find(synonym)
            # a synonym that is the name of another term means that one
            assert term in match.terms or synonym.casefold() in name_of or match.found_by == "ambiguous"
            n_several += match.found_by == "ambiguous"
    assert 0 < n_several < 60


@pytest.mark.parametrize(("name", "short"), [(name, short) for name, all_ in ABBREVIATIONS.items() for short in all_])
def test_abbreviations_mean_one_term_and_are_needed(name, short):
    """The ontology alone knows none of them, or it would be found as a synonym."""
    match = cell_type_names().find(short)
    assert (match.found_by, [term.name for term in match.terms]) == ("abbreviation", [name])


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_names_get_no_id(name):
    assert set(ids_of([name, f"{name}s"]).values()) == {""}


def test_a_synonym_of_two_terms_is_ambiguous():
    terms = [*cell_ontology().terms.values(), Term("CL:1", "one", [], ["shared"]), Term("CL:2", "two", [], ["shared"])]
    match = CellTypeNames(Ontology(terms)).find("Shared")
    assert (match.found_by, [term.id for term in match.terms]) == ("ambiguous", ["CL:1", "CL:2"])


def test_a_short_name_that_is_another_synonym_is_ambiguous():
    terms = [*cell_ontology().terms.values(), Term("CL:1", "one", [], ["OPC"])]
    match = CellTypeNames(Ontology(terms)).find("OPC")
    assert (match.found_by, {term.id for term in match.terms}) == ("ambiguous", {"CL:1", "CL:0002453"})
