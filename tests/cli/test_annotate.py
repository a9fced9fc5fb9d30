"""`celler annotate`: tables of labels, reports, queries of every format, and what is refused before any work."""

import json
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from report_cases import Page
from scipy import io
from toy import cells, trained

from celler.cli._main import main
from celler.model import Celler


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a saved model and a query."""
    folder = tmp_path_factory.mktemp("annotate")
    trained().save(folder / "model")
    query = cells(60, seed=1)
    query.obs["leiden"] = np.resize(list("abc"), query.n_obs)
    query.write_h5ad(folder / "query.h5ad")
    return folder


def annotate(folder, *options, query="query.h5ad"):
    return list(map(str, ["annotate", folder / "model", folder / query, *options]))


def refused(capsys, arguments, status):
    assert main(arguments) == status
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_annotate_writes_a_table_of_labels(files, tmp_path, suffix, separator):
    assert main(annotate(files, "--out", tmp_path / f"labels.{suffix}", "--cluster-key", "leiden")) == 0
    query = ad.read_h5ad(files / "query.h5ad")
    trained().annotate(query, cluster_key="leiden")
    table = pd.read_csv(tmp_path / f"labels.{suffix}", sep=separator, index_col="cell")
    assert list(table.columns) == list(query.uns["celler"]["columns"])
    assert list(table.index) == list(query.obs_names)
    np.testing.assert_array_equal(table["celler"], query.obs["celler"].astype(str))
    np.testing.assert_allclose(table["celler_confidence"], query.obs["celler_confidence"])


def test_annotate_table_labels_cells_of_train(files, tmp_path):
    """What annotate wrote is what ``train --labels`` reads."""
    assert main(annotate(files, "--out", tmp_path / "labels.csv")) == 0
    options = ["--labels", tmp_path / "labels.csv", "--labels-key", "celler", "--out", tmp_path / "model"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the few cells of some types
        assert main(list(map(str, ["train", files / "query.h5ad", *options, "--max-epochs", 1]))) == 0
    assert set(Celler.load(tmp_path / "model").classes_) <= set(trained().classes_)


def test_annotate_writes_a_report(files, tmp_path, capsys):
    out, page = tmp_path / "labels.csv", tmp_path / "page.html"
    options = ["--out", out, "--report", page, "--truth-key", "cell_type"]
    assert main(annotate(files, *options, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["out"], summary["report"]) == (str(out), str(page))
    assert 0 < summary["expected_accuracy"] <= 1
    found = Page(page.read_text("utf-8"))
    assert found.errors == []
    assert found.texts["h1"] == ["Cell types of query.h5ad"]
    assert "Agreement with cell_type" in found.texts["h2"]
    assert "(model model)" in found.text  # the folder's name, without the folders above it
    assert str(tmp_path) not in found.source
    labels = pd.read_csv(out)["celler"].value_counts()
    assert {row[0]: int(row[1]) for row in found.rows("Cells by label")} == dict(labels)
    (tmp_path / "names.csv").write_text("old,new\ntype 0,zero\n")
    assert main(annotate(files, *options, "--mapping", tmp_path / "names.csv", "--overwrite")) == 0
    assert "zero" in [row[0] for row in Page(page.read_text("utf-8")).rows("Agreement by type")]
    capsys.readouterr()
    assert "exists; pass --overwrite" in refused(capsys, annotate(files, *options), 1)
    assert main(annotate(files, *options, "--overwrite")) == 0
    assert f"wrote {page}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--out", "x.txt"], 2, "--out x.txt: cells are written as .h5ad, labels as .csv or .tsv; name it so."),
        (["--out", "x.zarr"], 2, "--out x.zarr: cells are written as .h5ad"),
        (["--out", "x.csv", "--report", "x.pdf"], 2, "--report x.pdf: an .html is written; name it so."),
        (["--out", "x.csv", "--truth-key", "cell_type"], 2, "--truth-key has an effect only with --report"),
        (["--out", "x.csv", "--mapping", "x.csv"], 2, "--mapping has an effect only with --truth-key"),
        (["--out", "x.csv", "--part-of", "x.csv", "--overwrite"], 1, "x.csv is a file of x.csv, which is read"),
    ],
)
def test_annotate_refuses_before_the_model_is_loaded(files, tmp_path, monkeypatch, capsys, options, status, words):
    monkeypatch.setattr(Celler, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, annotate(files, *options), status)
    assert list(tmp_path.iterdir()) == []


def test_annotate_with_a_truth_that_is_no_column(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Celler, "annotate", lambda *_, **__: pytest.fail("the cells were labelled"))
    options = ["--out", tmp_path / "x.csv", "--report", tmp_path / "x.html", "--truth-key", "celltype"]
    line = refused(capsys, annotate(files, *options), 1)
    assert "--truth-key='celltype' is not a column of adata.obs. Closest: 'cell_type'" in line
    assert list(tmp_path.iterdir()) == []


def as_10x(query, path):
    X = query.X.tocsr()
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name, values in {"data": X.data, "indices": X.indices, "indptr": X.indptr, "shape": X.shape[::-1]}.items():
            group[name] = values
        group["barcodes"] = query.obs_names.to_numpy().astype("S")
        features = group.create_group("features")
        for name in ("name", "id"):
            features[name] = query.var_names.to_numpy().astype("S")


def as_mtx(query, path):
    path.mkdir()
    io.mmwrite(path / "matrix.mtx", query.X.T)
    names = query.var_names.to_series()
    pd.DataFrame({"id": names, "name": names}).to_csv(path / "features.tsv", sep="\t", header=False, index=False)
    query.obs_names.to_series().to_csv(path / "barcodes.tsv", sep="\t", header=False, index=False)


def as_loom(query, path):
    with h5py.File(path, "w") as file:
        file["matrix"] = query.X.T.toarray()
        file["row_attrs/Gene"] = query.var_names.to_numpy().astype("S")
        file["col_attrs/CellID"] = query.obs_names.to_numpy().astype("S")


WRITERS = {
    "query.h5": as_10x,
    "folder": as_mtx,
    "query.loom": as_loom,
    "query.zarr": lambda query, path: query.write_zarr(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_annotate_of_each_format_gives_the_same_labels(files, tmp_path, name):
    query = ad.read_h5ad(files / "query.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr, on its own format
        WRITERS[name](query, tmp_path / name)
    assert main(list(map(str, ["annotate", files / "model", tmp_path / name, "--out", tmp_path / "out.csv"]))) == 0
    found = pd.read_csv(tmp_path / "out.csv", index_col="cell")
    assert list(found.index) == list(query.obs_names)
    np.testing.assert_array_equal(found["celler"], trained().predict(query))


@pytest.mark.parametrize(
    "options", [["--layer", "counts"], ["--layer", "raw"], ["--raw"], ["--raw", "--part-of", "scaled.h5ad"]]
)
def test_annotate_reads_the_values_that_are_named(files, tmp_path, monkeypatch, options):
    query = ad.read_h5ad(files / "query.h5ad")
    expected = trained().predict(query)
    query.layers["counts"] = query.X.copy()
    query.raw = query.copy()
    query.X = query.X.toarray() - 1
    query.write_h5ad(tmp_path / "scaled.h5ad")
    monkeypatch.chdir(tmp_path)
    assert main(["annotate", str(files / "model"), "scaled.h5ad", "--out", "out.csv", *options]) == 0
    np.testing.assert_array_equal(pd.read_csv("out.csv")["celler"], expected)
