"""Tissues: classes that the ontology does not put above each other, and what a broader type may be."""

from functools import cache

import numpy as np
import pytest

from celler.data._atlas_types import read_atlas_types
from celler.data._tissues import BROAD, above, tissue_types
from celler.labels._ontology import cell_ontology

ASKED = [
    ("blood", None),
    ("blood", "human"),
    ("blood", "mouse"),
    ("pancreas", None),
    (["lung", "lymph node"], "mouse"),
    ("thymus", "human"),
    (None, "human"),
    (None, "mouse"),
    (None, None),
]


@cache
def above_by_hand(term: str) -> set[str]:
    """All ids above one, along ``is_a``, without our own walk."""
    terms, found = cell_ontology().terms, {term}
    while True:
        more = {parent for i in found if i in terms for parent in terms[i].is_a} & set(terms)
        if more <= found:
            return found
        found |= more


@pytest.mark.parametrize("key", ["CL:0000236", "CL:0000939", "CL:0000169", "CL:0000233"])
def test_above_is_the_way_to_the_root(key):
    assert above(key) == above_by_hand(key)


def test_above_a_name_without_id():
    assert above("sympathoblast") == {"sympathoblast"}


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_tissue_types_are_the_finest(asked):
    found = tissue_types(*asked)
    names = found.tree.classes
    assert list(names) == sorted(set(names))
    keys = [found.ids.get(name, name) for name in names]
    for key in keys:
        assert not above_by_hand(key) & (set(keys) - {key})
    # Every type that is no class has a finer one.
    others = set(found.types.keys) - set(keys)
    assert all(any(other in above_by_hand(key) for key in keys) for other in others)


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_tissue_types_may_be_what_the_ontology_says(asked):
    found = tissue_types(*asked)
    keys = [found.ids.get(name, name) for name in found.tree.classes]
    expected = [[own in above_by_hand(key) for key in keys] for own in dict.fromkeys(found.types.keys)]
    by_key = dict(zip(dict.fromkeys(found.types.keys), expected, strict=True))
    np.testing.assert_array_equal(found.may_be, [by_key[key] for key in found.types.keys])
    assert found.may_be.any(axis=1).all()
    assert found.may_be.any(axis=0).all()
    np.testing.assert_allclose(found.shares.sum(axis=1), 1)
    assert (found.shares > 0).tolist() == found.may_be.tolist()


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_tissue_types_have_broad_types_as_parents(asked):
    found, terms = tissue_types(*asked), cell_ontology().terms
    assert set(found.tree.parent_of) == set(found.tree.classes)
    for name, parent in found.tree.parent_of.items():
        assert parent in BROAD.values() or parent == name
        if name in found.ids:
            assert terms[found.ids[name]].name == name
            assert found.ids[parent] in above_by_hand(found.ids[name])
            if parent == name and found.ids[name] not in BROAD:
                assert not above_by_hand(found.ids[name]) & set(BROAD)
        else:
            assert parent == name


def test_broad_types_are_named_as_in_the_ontology():
    assert {i: cell_ontology().terms[i].name for i in BROAD} == BROAD


def test_tissue_types_of_blood():
    found = tissue_types("blood", "human")
    parents = found.tree.parent_of
    assert parents["memory B cell"] == "B cell"
    assert parents["classical monocyte"] == "monocyte"
    assert parents["naive thymus-derived CD8-positive, alpha-beta T cell"] == "T cell"
    assert parents["platelet"] == "platelet"
    assert found.ids["platelet"] == "CL:0000233"
    assert "T cell" not in found.tree.classes
    assert found.ids["T cell"] == "CL:0000084"


def test_tissue_types_n_alike_counts_clusters():
    found = tissue_types("lymph node", "human")
    names = list(found.types.table["name"])
    np.testing.assert_array_equal(found.n_alike, [names.count(name) for name in names])
    assert found.n_alike.max() > 1


def test_tissue_types_of_several_tissues():
    one, other = tissue_types("blood", "human"), tissue_types("pancreas", "human")
    both = tissue_types(["blood", "islets"], "human")
    assert set(both.types.keys) == set(one.types.keys) | set(other.types.keys)
    assert both.tissues == ("blood", "pancreas")
    assert len(both.types) == len(one.types) + len(other.types)


def test_tissue_types_of_all():
    every = tissue_types(None, None)
    assert len(every.types) == len(read_atlas_types())
    assert every.tissues == ()
    assert every.describe() == f"{len(every.tree.classes)} types of all tissues, from 72 atlases"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("blood", None), "31 types of blood, from 4 atlases"),
        (("thymus", "human"), "5 types of human thymus, from 1 atlas"),
        ((["PBMC", "bone marrow"], None), "38 types of blood and bone marrow, from 6 atlases"),
        ((None, "mouse"), "types of mouse, from"),
    ],
)
def test_describe(asked, words):
    assert words in tissue_types(*asked).describe()
