"""The benchmark of stores: synthetic files, and what building and reading them takes."""

import re

import anndata
import numpy as np
import pytest
from stores import read_store, use_any_engine

from celler.benchmark import make_files
from celler.cli._main import main


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    use_any_engine(monkeypatch)


def test_the_benchmark_measures_building_and_reading(tmp_path, capsys):
    pytest.importorskip("annbatch")
    command = ["benchmark", "atlas", "--cells", "900", "--genes", "2000", "--files", "2"]
    assert main([*command, "--rounds", "1", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    found = dict(re.findall(r"  (\w+): (\S+)", said))
    assert len(found) == 15
    for name, value in found.items():
        assert float(value.replace(",", "")) > 0 or name.endswith(("_gb", "training_loses"))
    ratio = float(found["celler_cells_per_second"].replace(",", "")) / float(
        found["annbatch_cells_per_second"].replace(",", "")
    )
    assert float(found["celler_per_annbatch"]) == pytest.approx(ratio, abs=0.006)
    sources = [anndata.read_h5ad(path) for path in sorted((tmp_path / "sources").iterdir())]
    store = read_store(tmp_path / "store")
    for i, source in enumerate(sources):
        cells = [f"part_{i}:{cell}" for cell in source.obs_names]
        found = store[cells][:, source.var_names].X
        np.testing.assert_array_equal(found.toarray(), source.X.toarray())


def test_synthetic_files_have_what_is_asked(tmp_path):
    paths = make_files(tmp_path, 101, n_genes=3000, n_files=2, n_values=200)
    sources = [anndata.read_h5ad(path) for path in paths]
    assert [source.n_obs for source in sources] == [51, 50]
    for source in sources:
        assert source.n_vars == 2850
        assert 150 < np.diff(source.X.indptr).mean() < 220
        assert source.X.has_canonical_format
        assert (source.X.data >= 1).all()
