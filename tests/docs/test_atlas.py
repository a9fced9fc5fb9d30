"""The scripts that measure stores: docs/benchmarks/atlas.py and streaming.py."""

import re

import anndata
import numpy as np
import pytest
import scripts
from stores import read_store

atlas = scripts.load("atlas")


def figures(printed: str) -> dict[str, float]:
    """``name: value`` lines of a script's output."""
    lines = re.findall(r"^ *(\w+): ([\d.,-]+)$", printed, re.MULTILINE)
    return {name: float(value.replace(",", "")) for name, value in lines}


@pytest.mark.slow
def test_main_builds_and_reads_a_store(tmp_path, capsys, monkeypatch):
    pytest.importorskip("annbatch")
    sizes = ["--cells", 900, "--genes", 2000, "--files", 2]
    scripts.run(atlas, monkeypatch, *sizes, "--out", tmp_path)
    built = figures(capsys.readouterr().out)
    assert list(built) == [
        "seconds", "processor_seconds", "peak_memory_mb", "sources_gb", "store_gb",
    ]  # fmt: skip
    assert built["peak_memory_mb"] > 0

    sources = [anndata.read_h5ad(path) for path in sorted((tmp_path / "sources").iterdir())]
    store = read_store(tmp_path / "store")
    for i, source in enumerate(sources):
        cells = [f"part_{i}:{cell}" for cell in source.obs_names]
        found = store[cells][:, source.var_names].X
        np.testing.assert_array_equal(found.toarray(), source.X.toarray())

    scripts.run(scripts.load("streaming"), monkeypatch, tmp_path / "store", "--rounds", 1)
    read = figures(capsys.readouterr().out)
    assert len(read) == 10
    for name, value in read.items():
        assert value > 0 or name == "training_loses"
    ratio = read["celler_cells_per_second"] / read["annbatch_cells_per_second"]
    assert read["celler_per_annbatch"] == pytest.approx(ratio, abs=0.006)


def test_make_files_shape_and_counts(tmp_path):
    paths = atlas.make_files(tmp_path, 101, n_genes=3000, n_files=2, n_values=200)
    sources = [anndata.read_h5ad(path) for path in paths]
    assert [source.n_obs for source in sources] == [51, 50]
    for source in sources:
        assert source.n_vars == 2850
        assert 150 < np.diff(source.X.indptr).mean() < 220
        assert source.X.has_canonical_format
        assert (source.X.data >= 1).all()


def test_measure_alone_with_a_failing_script():
    measure_alone = scripts.load("processes").measure_alone
    with pytest.raises(RuntimeError, match=r"JSONDecodeError|ValueError"):
        measure_alone(atlas.__file__, "--one", "no json")
