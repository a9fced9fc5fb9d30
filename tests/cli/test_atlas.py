"""The command `celler atlas`."""

import pandas as pd
import pytest
from stores import cut_small, use_any_engine, write_forms

from celler.atlas._store import read_manifest
from celler.cli._main import main


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    use_any_engine(monkeypatch)
    cut_small(monkeypatch)


@pytest.fixture
def files(tmp_path):
    return write_forms(tmp_path)


def test_atlas_build_and_summary(files, tmp_path, capsys):
    cells, paths = files
    table = tmp_path / "parents.csv"
    parents = {"B": "lymphoid", "T": "lymphoid", "NK": "innate", "rare": "rare"}
    pd.Series(parents).rename_axis("class").rename("parent").reset_index().to_csv(table, index=False)
    (tmp_path / "genes.txt").write_text("\n".join(cells["one"].var_names))
    out = str(tmp_path / "out")
    command = ["atlas", "build", *map(str, paths), "--out", out, "--drop", "rare"]
    command += ["--labels-key", "one=label", "two=label", "three=label", "--columns", "donor=donor"]
    command += ["--parents", str(table), "--genes", str(tmp_path / "genes.txt"), "--memory-gb", "2"]
    assert main(command) == 0
    assert "wrote" in capsys.readouterr().out
    manifest = read_manifest(out)
    assert manifest["genes"] == list(cells["one"].var_names)
    assert manifest["classes"] == ["B", "NK", "T"]
    assert manifest["parents"]["B"] == "lymphoid"
    assert main(["atlas", "summary", out]) == 0
    assert "liver" in capsys.readouterr().out
    assert main([*command, "--columns", "donor"]) == 2
    assert "'donor' was given; NAME=COLUMN" in capsys.readouterr().err
