"""The command line: what it prints and writes, its exit status, and no traceback for bad input."""

import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from toy import cells

import celler
from celler.cli import _benchmark as command
from celler.cli._main import main
from celler.model import Celler


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a reference, a query and a model that the command trained."""
    folder = tmp_path_factory.mktemp("cli")
    reference, query = cells(200), cells(60, seed=1)
    reference.layers["counts"] = reference.X.copy()
    reference.write_h5ad(folder / "reference.h5ad")
    query.write_h5ad(folder / "query.h5ad")
    assert main(train(folder)) == 0
    return folder


def train(folder, *options):
    arguments = [
        "train",
        folder / "reference.h5ad",
        "--labels-key",
        "cell_type",
        "--out",
        folder / "model",
    ]
    return [*map(str, arguments), "--max-epochs", "3", *options]


def annotate(folder, out, *options):
    arguments = ["annotate", folder / "model", folder / "query.h5ad", "--out", folder / out]
    return [*map(str, arguments), *options]


def assert_refused(capsys, arguments, *words):
    """Exit status 2 and one line on stderr that holds the words."""
    assert main(list(map(str, arguments))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"celler {arguments[0]}: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["demo", "--help"], ["train", "--help"], ["annotate", "--help"]]
)
def test_help(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: celler" in printed
    if len(arguments) == 1:
        assert all(command in printed for command in ("demo", "train", "annotate"))


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"celler {celler.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["label"], ["train", "x.h5ad"], ["annotate", "--out", "y"]]
)
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: celler" in capsys.readouterr().err


def test_train_and_annotate(files, capsys):
    assert main(annotate(files, "out.h5ad")) == 0
    printed = capsys.readouterr().out
    annotated, query = ad.read_h5ad(files / "out.h5ad"), ad.read_h5ad(files / "query.h5ad")
    model = Celler.load(files / "model")
    np.testing.assert_array_equal(annotated.obs["celler"].astype(str), model.predict(query))
    assert list(annotated.obs_names) == list(query.obs_names)
    np.testing.assert_array_equal(annotated.X.toarray(), query.X.toarray())
    assert f"wrote {files / 'out.h5ad'}" in printed
    for name, count in annotated.obs["celler"].value_counts().items():
        assert f"{name} {count:5d}" in printed


def test_the_model_is_that_of_the_library(files):
    reference = ad.read_h5ad(files / "reference.h5ad")
    Celler.setup_anndata(reference, labels_key="cell_type")
    model, query = Celler(reference), ad.read_h5ad(files / "query.h5ad")
    model.train(3, show_progress=False)
    expected = model.predict(query, soft=True)
    assert Celler.load(files / "model").predict(query, soft=True).equals(expected)


def test_train_options_are_passed_on(files, tmp_path):
    options = ["--layer", "counts", "--unlabeled-category", "type 3", "--seed", "4"]
    assert main([*train(files, *options), "--out", str(tmp_path / "other")]) == 0
    model = Celler.load(tmp_path / "other")
    assert list(model.classes_) == ["type 0", "type 1", "type 2"]
    assert model.registry["setup_args"]["layer"] == "counts"
    assert len(model.history) <= 3
    first = Celler.load(files / "model")
    assert not np.array_equal(model.validation_indices, first.validation_indices)


def test_annotate_options_are_passed_on(files):
    options = ["--key-added", "label", "--threshold", "1.0"]
    assert main(annotate(files, "new folder/out.h5ad", *options)) == 0
    annotated = ad.read_h5ad(files / "new folder" / "out.h5ad")
    assert set(annotated.obs["label"]) == {"Unknown"}
    assert "celler" not in annotated.obs


def test_annotate_does_what_the_library_does(files, tmp_path):
    """With every option at once, and parents."""
    trained = [*train(files), "--parent-labels-key", "lineage", "--out", str(tmp_path / "model")]
    reference = ad.read_h5ad(files / "reference.h5ad")
    reference.obs["lineage"] = reference.obs["cell_type"].isin(["type 0", "type 1"]).astype(str)
    reference.write_h5ad(tmp_path / "reference.h5ad")
    trained[1] = str(tmp_path / "reference.h5ad")
    assert main(trained) == 0
    query = ad.read_h5ad(files / "query.h5ad")
    query.obs["leiden"] = np.resize(list("abc"), query.n_obs)
    query.write_h5ad(tmp_path / "query.h5ad")
    options = ["--threshold", "0.6", "--backoff", "--false-alarm-rate", "0.2", "--propagate"]
    options += ["--unknown-label", "none", "--cluster-key", "leiden", "--no-correct-shift"]
    options += ["--reference", str(tmp_path / "reference.h5ad")]
    paths = [str(tmp_path / name) for name in ("model", "query.h5ad", "out.h5ad")]
    assert main(["annotate", *paths[:2], "--out", paths[2], *options]) == 0
    Celler.load(paths[0], adata=reference).annotate(
        query,
        threshold=0.6,
        backoff=True,
        false_alarm_rate=0.2,
        propagate=True,
        unknown_label="none",
        cluster_key="leiden",
        correct_shift=False,
    )
    written = ad.read_h5ad(paths[2]).obs
    assert list(written) == list(query.obs)
    for name in query.obs.filter(like="celler"):
        np.testing.assert_array_equal(written[name].astype(str), query.obs[name].astype(str))
    assert set(written["celler_level"]) >= {"class", "unknown"}


def test_a_reference_is_for_propagation(files, capsys):
    query = annotate(files, "x.h5ad", "--reference", str(files / "reference.h5ad"))
    assert_refused(capsys, query, "--reference takes part in --propagate alone")


def test_overwrite(files, capsys, monkeypatch):
    before = (files / "model" / "model.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Celler, "train", lambda *_, **__: pytest.fail("only said after training"))
        assert_refused(capsys, train(files), "holds a model", "--overwrite")
    assert (files / "model" / "model.pt").read_bytes() == before
    assert main(train(files, "--overwrite")) == 0


def test_files_that_cannot_be_read(files, tmp_path, capsys):
    (tmp_path / "text.h5ad").write_text("no")
    model, out = files / "model", tmp_path / "out.h5ad"
    options = ["--labels-key", "cell_type", "--out", tmp_path / "new"]
    assert_refused(capsys, ["train", tmp_path / "none.h5ad", *options], "none.h5ad is not a file")
    assert_refused(
        capsys, ["train", tmp_path / "text.h5ad", *options], "text.h5ad cannot be read as .h5ad"
    )
    assert_refused(capsys, ["annotate", model, tmp_path, "--out", out], "is not a file")
    query = files / "query.h5ad"
    assert_refused(capsys, ["annotate", tmp_path, query, "--out", out], "model.pt does not exist")
    assert_refused(capsys, ["annotate", model, query, "--out", query], "is the query itself")
    assert not out.exists()
    assert not (tmp_path / "new").exists()


def test_bad_input_ends_with_status_2_and_a_message(files, capsys):
    reference = files / "reference.h5ad"
    wrong_key = ["train", reference, "--labels-key", "celltype", "--out", files / "new"]
    assert_refused(capsys, wrong_key, "labels_key='celltype'", "Closest: 'cell_type'")
    assert_refused(
        capsys, [*wrong_key, "--labels-key", "cell_type", "--max-epochs", "0"], "max_epochs=0"
    )
    assert_refused(capsys, annotate(files, "bad.h5ad", "--threshold", "7"), "threshold=7.0")
    assert not (files / "bad.h5ad").exists()


def test_a_warning_is_one_line(files, tmp_path, capsys):
    cells(60, seed=1)[:, :70].write_h5ad(tmp_path / "fewer.h5ad")
    arguments = [
        "annotate",
        files / "model",
        tmp_path / "fewer.h5ad",
        "--out",
        tmp_path / "out.h5ad",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        assert main(list(map(str, arguments))) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("celler annotate: 70 of the model's 80 genes are in the query")


def test_a_shell_gets_the_exit_status(tmp_path):
    """In a process of its own, where a traceback would show."""
    command = [
        sys.executable,
        "-m",
        "celler.cli",
        "annotate",
        "m",
        "q.h5ad",
        "--out",
        "q.h5ad",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "celler annotate: --out q.h5ad is the query itself; name another file.\n"


@pytest.mark.parametrize("dtype", [bool, int, float, "category"])
def test_cells_to_leave_out_are_marked_true(dtype, capsys):
    adata = cells(20)
    adata.obs["is_poor"] = np.resize([True, False, False, False], 20)
    adata.obs["is_poor"] = adata.obs["is_poor"].astype(dtype)
    kept = command._without(adata, "is_poor", Path("cells.h5ad"))
    np.testing.assert_array_equal(kept.obs_names, np.delete(adata.obs_names, np.arange(0, 20, 4)))
    assert "15 cells, 5 left out" in capsys.readouterr().out


@pytest.mark.parametrize("values", [["True", "False"], [0, 2], [True, None]])
def test_other_marks_are_refused(values):
    adata = cells(20)
    adata.obs["is_poor"] = np.resize(np.array(values, dtype=object), 20)
    message = r"--exclude-key is_poor: the column of cells\.h5ad holds \[.*true or false, or 1 or 0"
    with pytest.raises(ValueError, match=message):
        command._without(adata, "is_poor", Path("cells.h5ad"))
