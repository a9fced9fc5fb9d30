"""Ontologies: an OBO file worked by hand, and the Cell Ontology in the package against facts of its release."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from celler.labels import LabelTree
from celler.labels._ontology import FILE as CELL_ONTOLOGY
from celler.labels._ontology import Ontology, Term, cell_ontology, read_obo, read_table, write_table

FILE = Path(__file__).parents[1] / "data" / "cells.obo"

# ---- OBO files ----


def write(tmp_path, *stanzas: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "some.obo"
    path.write_text("\n\n".join(f"[Term]\n{stanza}" for stanza in stanzas), encoding=encoding)
    return path


def test_read_obo_holds_the_terms_of_the_file():
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


def test_read_obo_with_other_line_ends_and_a_byte_order_mark(tmp_path):
    path = write(tmp_path, "id: X:1\nname: a", "id: X:2\r\nname: b\r\nis_a: X:1 ! a\r", encoding="utf-8-sig")
    assert read_obo(path).terms["X:2"].is_a == ["X:1"]


@pytest.mark.parametrize("name", ["T cell", "CL:0000084", "cl:0000804", "t  CELL", "T-lymphocyte", " T lymphocyte"])
def test_find_by_id_name_or_exact_synonym(name):
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
def test_find_with_names_of_no_term(name, words):
    with pytest.raises(ValueError, match=words):
        read_obo(FILE).find(name)


def test_from_obo_with_a_circle_of_is_a(tmp_path):
    path = write(tmp_path, "id: X:1\nname: a\nis_a: X:2", "id: X:2\nname: b\nis_a: X:1 ! a")
    with pytest.raises(ValueError, match=r"circle: a \(X:1\) is a b \(X:2\) is a a \(X:1\)"):
        LabelTree.from_obo(path, ["a"], ["b"])


def test_read_obo_with_files_that_are_no_ontology(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.obo does not exist; .*downloads nothing"):
        read_obo(tmp_path / "none.obo")
    path = tmp_path / "cl.owl"
    path.write_text("<rdf:RDF>")
    with pytest.raises(ValueError, match="so it is not an OBO file"):
        LabelTree.from_obo(path, ["a"])


# ---- the Cell Ontology in the package ----

#: By hand: id, name, an exact synonym and terms above, as any text book has them.
FACTS = [
    ("CL:0000084", "T cell", "T lymphocyte", ["CL:0000542", "CL:0000738"]),
    ("CL:0000623", "natural killer cell", "NK cell", ["CL:0001065", "CL:0000542"]),
    ("CL:0000169", "type B pancreatic cell", "pancreatic beta cell", ["CL:0008024", "CL:0000164"]),
    ("CL:0000129", "microglial cell", "microgliocyte", ["CL:0000125", "CL:0000235"]),
    ("CL:0000746", "cardiac muscle cell", "cardiomyocyte", ["CL:0000187"]),
    ("CL:0000784", "plasmacytoid dendritic cell", "pDC", ["CL:0000451"]),
    ("CL:0000895", "naive thymus-derived CD4-positive, alpha-beta T cell", "Th0", ["CL:0000624", "CL:0000898"]),
]


@pytest.mark.parametrize(("identifier", "name", "synonym", "above"), FACTS)
def test_cell_ontology_holds_the_facts_of_its_release(identifier, name, synonym, above):
    ontology = cell_ontology()
    term = ontology.terms[identifier]
    assert (term.name, ontology.find(synonym)) == (name, term)
    assert set(above) <= ontology.above(term).keys()


def test_cell_ontology_agrees_with_an_excerpt_in_obo():
    shipped = cell_ontology()
    for identifier, term in read_obo(FILE).terms.items():
        # the excerpt makes NKT cells a kind of NK cells, to have a class with two parents
        if not term.is_obsolete and identifier != "CL:0000814":
            assert shipped.terms[identifier].name == term.name
            above = {i for i in term.is_a if i.startswith("CL:")}
            assert above <= shipped.above(shipped.terms[identifier]).keys()


def test_cell_ontology_is_whole():
    ontology = cell_ontology()
    assert len(ontology.terms) > 3000
    for term in ontology.terms.values():
        assert set(term.is_a) <= ontology.terms.keys()
        assert "CL:0000000" in ontology.above(term)
    assert not ontology.terms["CL:0002394"].is_a.count("CL:0000784")


def test_cell_ontology_names_its_release_and_licence():
    about = cell_ontology().about
    assert (about["name"], about["version"], about["licence"]) == ("Cell Ontology", "v2026-03-26", "CC BY 4.0")
    assert CELL_ONTOLOGY.stat().st_size < 300_000


def test_cell_ontology_is_read_quickly_and_not_on_import():
    code = "import celler.labels as x, celler.labels._ontology as o; print(o.cell_ontology.cache_info().currsize)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "0"
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        read_table(CELL_ONTOLOGY)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.2  # 0.025 s on a laptop


def test_write_table_keeps_all_that_is_read(tmp_path):
    terms = [Term("X:1", "a é"), Term("X:2", "b, c", ["X:1"], ["d e", "f"]), Term("X:3", "g", ["X:1", "X:2"])]
    write_table(tmp_path / "table.tsv", Ontology(terms, {"version": "7"}))
    back = read_table(tmp_path / "table.tsv")
    assert list(back.terms.values()) == terms
    assert back.about == {"version": "7"}
