"""The command line: what it prints and writes, its exit status, and no traceback for bad input."""

import json
import subprocess
import sys
import warnings

import anndata as ad
import numpy as np
import pytest
from toy import cells

import celler
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


def assert_refused(capsys, arguments, *words, status=1):
    """Exit status 1 and one line on stderr that holds the words; 2 is for wrong usage."""
    assert main(list(map(str, arguments))) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"celler {arguments[0]}: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["train", "--help"], ["annotate", "--help"]])
def test_help_of_each_command(capsys, arguments):
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


@pytest.mark.parametrize("arguments", [[], ["label"], ["train", "x.h5ad"], ["annotate", "--out", "y"]])
def test_main_with_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: celler" in capsys.readouterr().err


def test_annotate_writes_the_labels_of_the_model(files, capsys):
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


def test_train_gives_the_model_of_the_library(files):
    reference = ad.read_h5ad(files / "reference.h5ad")
    Celler.setup_anndata(reference, labels_key="cell_type")
    model, query = Celler(reference), ad.read_h5ad(files / "query.h5ad")
    model.train(3, show_progress=False)
    expected = model.predict(query, soft=True)
    assert Celler.load(files / "model").predict(query, soft=True).equals(expected)


def test_train_options(files, tmp_path):
    options = ["--layer", "counts", "--unlabeled-category", "type 3", "--seed", "4"]
    assert main([*train(files, *options), "--out", str(tmp_path / "other")]) == 0
    model = Celler.load(tmp_path / "other")
    assert list(model.classes_) == ["type 0", "type 1", "type 2"]
    assert model.registry["setup_args"]["layer"] == "counts"
    assert len(model.history) <= 3
    first = Celler.load(files / "model")
    assert not np.array_equal(model.validation_indices, first.validation_indices)


def test_annotate_options(files):
    options = ["--key-added", "label", "--threshold", "1.0"]
    assert main(annotate(files, "new folder/out.h5ad", *options)) == 0
    annotated = ad.read_h5ad(files / "new folder" / "out.h5ad")
    assert set(annotated.obs["label"]) == {"Unknown"}
    assert "celler" not in annotated.obs


def test_annotate_matches_the_library_with_every_option(files, tmp_path):
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


def test_annotate_a_part_as_the_whole(files, tmp_path):
    query = ad.read_h5ad(files / "query.h5ad")
    halves = [tmp_path / "first.h5ad", tmp_path / "second.h5ad"]
    for path, rows in zip(halves, (slice(0, 30), slice(30, None)), strict=True):
        query[rows].copy().write_h5ad(path)
    Celler.load(files / "model").annotate(query)
    for whole in ([files / "query.h5ad"], halves):
        options = [option for path in whole for option in ("--part-of", str(path))]
        arguments = ["annotate", files / "model", halves[0], "--out", tmp_path / f"out{len(whole)}.h5ad", *options]
        assert main([str(argument) for argument in arguments]) == 0
        part = ad.read_h5ad(tmp_path / f"out{len(whole)}.h5ad")
        for name in ("celler_confidence", "celler_novelty"):
            np.testing.assert_array_equal(part.obs[name], query.obs[name][:30])


def test_annotate_reference_without_propagate(files, capsys):
    query = annotate(files, "x.h5ad", "--reference", str(files / "reference.h5ad"))
    assert_refused(capsys, query, "--reference has an effect only with a model and --propagate", status=2)


def test_train_overwrite(files, capsys, monkeypatch):
    before = (files / "model" / "config.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Celler, "train", lambda *_, **__: pytest.fail("only said after training"))
        assert_refused(capsys, train(files), "holds a model", "--overwrite")
    assert (files / "model" / "config.json").read_bytes() == before
    assert main(train(files, "--overwrite")) == 0


def test_main_with_unreadable_files(files, tmp_path, capsys):
    (tmp_path / "text.h5ad").write_text("no")
    model, out = files / "model", tmp_path / "out.h5ad"
    options = ["--labels-key", "cell_type", "--out", tmp_path / "new"]
    assert_refused(capsys, ["train", tmp_path / "none.h5ad", *options], "none.h5ad does not exist")
    assert_refused(
        capsys,
        ["train", tmp_path / "text.h5ad", *options],
        "text.h5ad cannot be read as cells: it is a table that is not clearly",
    )
    assert_refused(
        capsys, ["annotate", model, tmp_path, "--out", out], "it is a folder; name one of ['text.h5ad'] in it"
    )
    query = files / "query.h5ad"
    assert_refused(capsys, ["annotate", tmp_path, query, "--out", out], "config.json does not exist")
    assert_refused(capsys, ["annotate", model, query, "--out", query], "is the query itself")
    assert not out.exists()
    assert not (tmp_path / "new").exists()


def test_main_with_bad_input(files, capsys):
    reference = files / "reference.h5ad"
    wrong_key = ["train", reference, "--labels-key", "celltype", "--out", files / "new"]
    assert_refused(capsys, wrong_key, "labels_key='celltype'", "Closest: 'cell_type'")
    assert_refused(capsys, [*wrong_key, "--labels-key", "cell_type", "--max-epochs", "0"], "max_epochs=0")
    assert_refused(capsys, annotate(files, "bad.h5ad", "--threshold", "7"), "threshold=7.0")
    assert not (files / "bad.h5ad").exists()


def test_main_prints_a_warning_as_one_line(files, tmp_path, capsys):
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


def test_exit_status_in_a_shell(tmp_path):
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
    assert done.returncode == 1
    assert done.stderr == "celler annotate: --out q.h5ad is the query itself; name another file.\n"


@pytest.mark.parametrize("place", [0, 1, 5])
def test_debug_shows_where_an_error_comes_from(tmp_path, place):
    """Before and after the command, and after its options."""
    arguments = ["annotate", "m", "q.h5ad", "--out", "q.h5ad"]
    arguments.insert(place, "--debug")
    command = [sys.executable, "-m", "celler.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "FileExistsError: --out q.h5ad is the query itself; name another file."
    assert any("_annotate.py" in line and "in _check_annotate" in line for line in lines)


def test_main_with_a_mistake_of_our_own(files, monkeypatch, capsys):
    """One line, as for any error, and with ``--debug`` what a report of it needs."""
    monkeypatch.setattr(Celler, "load", lambda *_, **__: [].missing)
    assert_refused(capsys, annotate(files, "x.h5ad"), "AttributeError", "mistake of Celler", "--debug")
    with pytest.raises(AttributeError):
        main(annotate(files, "x.h5ad", "--debug"))


@pytest.mark.parametrize(
    ("error", "status", "word"), [(KeyboardInterrupt, 130, "interrupted"), (MemoryError, 1, "memory")]
)
def test_main_that_is_stopped(files, monkeypatch, capsys, error, status, word):
    def stop(*_, **__):
        raise error

    monkeypatch.setattr(Celler, "load", stop)
    assert_refused(capsys, annotate(files, "x.h5ad"), word, status=status)


def test_annotate_json(files, capsys):
    options = ["--threshold", "1.0", "--unknown-label", "none", "--json"]
    assert main(annotate(files, "json.h5ad", *options)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["celler"] == celler.__version__
    assert (summary["out"], summary["model"]) == (str(files / "json.h5ad"), str(files / "model"))
    assert (summary["n_cells"], summary["counts"], summary["unknown_share"]) == (60, {"none": 60}, 1.0)
    assert (summary["genes"]["matched"], summary["genes"]["missing"]) == (80, 0)


def test_train_with_labels_of_a_table(files, tmp_path, capsys):
    """Such as for Cell Ranger's files, which hold none."""
    reference = ad.read_h5ad(files / "reference.h5ad")
    table = reference.obs[["cell_type"]].sample(frac=1, random_state=0)
    table.iloc[:-5].to_csv(tmp_path / "labels.tsv", sep="\t")
    reference.obs = reference.obs[[]]
    reference.write_h5ad(tmp_path / "bare.h5ad")
    options = ["--labels", tmp_path / "labels.tsv", "--out", tmp_path / "model", "--max-epochs", 3, "--json"]
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        assert main(list(map(str, ["train", tmp_path / "bare.h5ad", *options]))) == 0
    printed = capsys.readouterr()
    assert "has labels for 195 of the 200 cells" in printed.err
    summary = json.loads(printed.out)
    assert summary["counts"] == table.iloc[:-5, 0].value_counts().to_dict()
    (tmp_path / "other.csv").write_text("cell,label\nx,B\n")
    wrong = ["train", tmp_path / "bare.h5ad", "--labels", tmp_path / "other.csv", "--out", tmp_path / "no"]
    assert_refused(capsys, wrong, "names none of the 200 cells", "other.csv")
    assert_refused(capsys, [*wrong[:2], "--out", tmp_path / "no"], "--labels-key", status=2)
