"""Tables of a report: what markers say of rare types, worked out by hand, and the labels of neighbours."""

import re

import numpy as np
import pandas as pd
import pytest
from report_cases import annotated
from scipy import sparse

from celler.report._annotation import plain, read_annotation
from celler.report._tables import cell_rows, label_rows, rare_rows


def verdict_of(pairs: dict, missed: dict | None = None, labels: int = 6):
    """What is said of the type "Rare", with the number of cells by type and label."""
    adata = annotated()
    if not labels:
        adata.obs["celler"] = pd.Categorical(["B"] * adata.n_obs, ["B", "T", "Rare"])
    types, given = zip(*pairs, strict=True) if pairs else ((), ())
    adata.uns["celler"]["by_markers"] = {"type": types, "label": given, "n_cells": list(pairs.values())}
    if missed is not None:
        adata.uns["celler"]["missed_types"] = {name: [value] for name, value in missed.items()}
    found = read_annotation(adata, "celler")
    return next((row.verdict, row.text) for row in rare_rows(found, label_rows(found)) if row.name == "Rare")


MISSED = {"type": "Rare", "n_cells": 35, "n_other": 32, "labels": "T (20), B (12)", "markers": "PPBP, PF4"}


@pytest.mark.parametrize(
    ("pairs", "options", "expected"),
    [
        ({("Rare", "Rare"): 4, ("T", "Rare"): 2}, {}, ("supported", "4 of the 6 cells with this label have its")),
        ({("Rare", "Rare"): 3, ("T", "Rare"): 3}, {}, ("supported", "3 of the 6 cells")),
        ({("Rare", "Rare"): 1, ("T", "Rare"): 3, ("B", "Rare"): 1}, {}, ("doubtful", "4 of the 6 cells .* mostly T.")),
        ({("Rare", "T"): 9}, {}, ("undecided", "Markers decide for none of the 6 cells")),
        ({("Rare", "T"): 1}, {"labels": 0}, ("absent", "No cell has this label; 1 cell has its markers.")),
        ({("B", "B"): 1}, {"labels": 0}, ("absent", "No cell has this label; none has its markers.")),
        (
            {("Rare", "T"): 32, ("Rare", "Rare"): 3},
            {"missed": MISSED},
            ("missed", r"32 of 35 cells with its markers \(PPBP, PF4\) are labelled T \(20\), B \(12\)."),
        ),
    ],
)
def test_rare_rows_say_what_markers_say(pairs, options, expected):
    verdict, text = verdict_of(pairs, **options)
    assert verdict == expected[0]
    assert re.match(expected[1], text)


def test_rare_rows_start_with_missed_types():
    adata = annotated()
    adata.uns["celler"]["missed_types"] = {name: [value] for name, value in (MISSED | {"type": "B"}).items()}
    found = read_annotation(adata, "celler")
    assert [row.name for row in rare_rows(found, label_rows(found))] == ["B", "Rare"]


def test_cell_rows_count_the_neighbours_of_a_graph():
    adata = annotated()
    graph = sparse.lil_matrix((120, 120))
    graph[59, [0, 1, 2, 80]] = 1  # three B and one T; cell 59 itself is no neighbour
    graph[59, 59] = 1
    adata.obsp["connectivities"] = graph.tocsr()
    rows, space = cell_rows(read_annotation(adata, "celler"), "leiden")
    assert space == "obsp['connectivities']"
    by_name = {row.name: row for row in rows}
    assert by_name["cell 59"].neighbors == "B 75%, T 25%"
    assert by_name["cell 113"].neighbors == "none"
    assert by_name["cell 59"].cluster == "0"


def test_plain_of_what_a_file_holds():
    value = {"a": np.array(["x", "none"], object), "b": np.float32(0.5), "c": np.str_("none"), "d": np.bool_(True)}
    found = plain(value | {"e": {"f": np.array(3)}, "g": b"text"})
    assert found == {"a": ["x", None], "b": 0.5, "c": None, "d": True, "e": {"f": 3}, "g": "text"}
    assert type(found["b"]) is float
    assert type(found["d"]) is bool
