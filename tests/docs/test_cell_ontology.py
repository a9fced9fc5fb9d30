"""docs/benchmarks/cell_ontology.py: which terms of a release the table keeps."""

import json

import scripts

from celler.labels._ontology import Term, read_table


def test_main_keeps_cells_that_are_not_deprecated(tmp_path, monkeypatch):
    release = {
        "CL:0000000": {"label": "cell", "deprecated": False, "ancestors": {}},
        "CL:0000002": {"label": "b", "deprecated": False, "ancestors": {"CL:0000001": 1, "CL:0000000": 2}},
        "CL:0000001": {"label": "a", "deprecated": False, "ancestors": {"CL:0000000": 1}, "synonyms": ["z", "y"]},
        "CL:0000003": {"label": "old", "deprecated": True, "ancestors": {"CL:0000000": 1}},
        "CL:0000004": {"label": "part of a cell", "deprecated": False, "ancestors": {"CL:0000000": 3}},
    }
    path = tmp_path / "CL-ontology-v2020-01-02.json"
    path.write_text(json.dumps(release))
    scripts.run(scripts.load("cell_ontology"), monkeypatch, path, "--out", tmp_path / "out.tsv")
    made = read_table(tmp_path / "out.tsv")
    assert made.about["version"] == "v2020-01-02"
    assert list(made.terms.values()) == [
        Term("CL:0000000", "cell"),
        Term("CL:0000001", "a", ["CL:0000000"], ["y", "z"]),
        Term("CL:0000002", "b", ["CL:0000001"]),
    ]
