"""The command `celler benchmark`: what it prints and writes, and what it refuses."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toy
from anndata import AnnData
from sklearn.metrics import f1_score

from celler.benchmark import Variant, ablation
from celler.benchmark import _compare as comparison
from celler.benchmark._process import Measured
from celler.cli import _benchmark as command
from celler.cli import _main as cli
from celler.losses import CrossEntropy


def test_compare_prints_and_writes(tmp_path, capsys, monkeypatch):
    reference, query = toy.cells(60), toy.cells(40, seed=1)
    reference.write_h5ad(tmp_path / "reference.h5ad")
    query.write_h5ad(tmp_path / "query.h5ad")
    truth = toy.truth(query)
    names = np.unique(truth)
    scores = pd.DataFrame((truth[:, None] == names) * 1.0, query.obs_names, names)
    scores.iloc[:4] = np.roll(scores.iloc[:4], 1, axis=1)
    monkeypatch.setattr(comparison, "run_alone", lambda *_: Measured(scores, 1.0, 1.0, 1.0))
    monkeypatch.chdir(tmp_path)
    arguments = ["benchmark", "compare", "reference.h5ad", "query.h5ad", "--labels-key"]
    options = ["--methods", "logreg,linear_svm", "--seeds", "2", "--out", "new/folder"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert cli.main([*arguments, "cell_type", *options]) == 0
    expected = f1_score(truth, scores.idxmax(axis=1), average="macro")
    assert f"{expected:.3f} ± 0.000" in capsys.readouterr().out
    for name in ("macro_f1.png", "class_f1.png"):
        assert (tmp_path / "new" / "folder" / name).stat().st_size > 5_000
    assert len(pd.read_csv(tmp_path / "new" / "folder" / "runs.csv")) == 4
    assert cli.main([*arguments, "cell_type", *options]) == 0
    assert "[1/" not in capsys.readouterr().out, "no run was left"


def test_compare_with_bad_input(tmp_path, capsys, monkeypatch):
    toy.cells(60).write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(comparison, "run_alone", lambda *_: raise_error())
    monkeypatch.chdir(tmp_path)
    arguments = ["benchmark", "compare", "cells.h5ad", "cells.h5ad", "--methods", "knn"]
    assert cli.main([*arguments, "--labels-key", "nothing"]) == 1
    assert "labels_key='nothing' is not a column of reference.obs" in capsys.readouterr().err
    assert cli.main([*arguments, "--labels-key", "cell_type"]) == 1
    captured = capsys.readouterr()
    assert "failed, no luck" in captured.out
    assert "no method gave a result" in captured.err


def raise_error():
    raise RuntimeError("no luck")


def hpancreas(adata):
    """As TOSICA's files: log values, ``Celltype``, names in the index and in ``Gene Symbol``."""
    obs = pd.DataFrame({"Celltype": adata.obs["cell_type"]}, index=adata.obs_names)
    var = pd.DataFrame({"Gene Symbol": adata.var_names}, index=adata.var_names)
    sums = np.asarray(adata.X.sum(axis=1)).ravel()
    return AnnData(adata.X.multiply(1e4 / sums[:, None]).tocsr().log1p(), obs=obs, var=var)


def test_paper_prints_measured_and_published_figures(tmp_path, capsys, monkeypatch):
    reference, query = hpancreas(toy.cells(60)), hpancreas(toy.cells(40, seed=1))
    reference.write_h5ad(tmp_path / "train.h5ad")
    query.write_h5ad(tmp_path / "test.h5ad")
    names = sorted(set(reference.obs["Celltype"]))
    scores = pd.DataFrame(0.25, query.obs_names, names)
    monkeypatch.setattr(comparison, "run_alone", lambda *_: Measured(scores, 1.0, 1.0, 1.0))
    monkeypatch.chdir(tmp_path)
    arguments = ["benchmark", "paper", "--dataset", "hpancreas", "--reference", "train.h5ad"]
    options = ["--query", "test.h5ad", "--methods", "logreg,scanvi", "--seeds", "2"]
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        assert cli.main([*arguments, *options]) == 0
    captured = capsys.readouterr()
    assert "logistic regression" in captured.out
    assert "measured here, 2 seeds" in captured.out
    assert "arXiv:2602.03477, table 4" in captured.out
    assert "scANVI" in captured.err, "it needs counts, or its packages"
    table = pd.read_csv(tmp_path / "paper" / "hpancreas.csv", index_col=0)
    truth = query.obs["Celltype"].astype(str)
    expected = f1_score(truth, [names[0]] * 40, average="macro")
    assert table.loc["logistic regression", "F1"] == f"{expected:.3f} ± 0.000"
    assert cli.main([*arguments, "--query", "test.h5ad", "train.h5ad"]) == 2
    assert "1 references and 2 queries were given" in capsys.readouterr().err
    assert cli.main([*arguments, "--query", "test.h5ad", "--train-on", "patients"]) == 2
    assert "--dataset hpancreas has one split, leave it out" in capsys.readouterr().err
    arguments[3] = "organs"
    assert cli.main([*arguments, "--query", "test.h5ad", "--labels-key", "Celltype"]) == 2
    assert "needs --labels-key and --parent-labels-key" in capsys.readouterr().err


def test_paper_of_multiple_sclerosis_in_both_directions(tmp_path, capsys, monkeypatch):
    for name, n_cells, seed in (("healthy", 60, 0), ("patients", 40, 1)):
        cells = hpancreas(toy.cells(n_cells, seed=seed))
        cells.obs = cells.obs.rename(columns={"Celltype": "celltype"})
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    seen = []

    def run(reference, query, *_, folder):
        seen.append((reference.n_obs, query.n_obs, folder.name))
        return pd.DataFrame(columns=["method", "error", "macro_f1", "macro_precision"])

    monkeypatch.setattr("celler.benchmark.run", run)
    monkeypatch.chdir(tmp_path)
    files = ["--reference", "healthy.h5ad", "--query", "patients.h5ad"]
    for option in ([], ["--train-on", "healthy"], ["--train-on", "patients"]):
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)  # these are not the paper's cells
            assert cli.main(["benchmark", "paper", "--dataset", "ms", *files, *option]) == 0
    # A split has its own folder, or a rerun would go on with the rows of the other.
    assert seen == [(60, 40, "ms"), (60, 40, "ms"), (40, 60, "ms_patients")]
    assert "0.799 ± 0.004" in capsys.readouterr().out
    assert (tmp_path / "paper" / "ms_patients.csv").exists()


def test_paper_for_organs(tmp_path, capsys, monkeypatch):
    toy.cells(60).write_h5ad(tmp_path / "lung.h5ad")
    seen = {}

    def fake(organs, *keys, seeds):
        seen.update(keys=keys, seeds=seeds, organs=list(organs))
        scores = {"accuracy": 0.5, "macro_f1": 0.4, "macro_precision": 0.3}
        return pd.DataFrame([{"organ": "lung", "level": "class", "seed": 0} | scores])

    monkeypatch.setattr("celler.benchmark.level_scores", fake)
    monkeypatch.chdir(tmp_path)
    arguments = ["benchmark", "paper", "--dataset", "organs", "--reference", "lung.h5ad", "--query"]
    keys = ["--labels-key", "cell_type", "--parent-labels-key", "parent_type", "--seeds", "1"]
    assert cli.main([*arguments, "lung.h5ad", *keys]) == 0
    assert seen == {"keys": ("cell_type", "parent_type"), "seeds": 1, "organs": ["lung"]}
    printed = capsys.readouterr().out
    assert "lung" in printed
    assert "0.400" in printed


def test_ablation_prints_and_writes(tmp_path, capsys, monkeypatch):
    adata = toy.cells(300)
    adata.obs["is_poor"] = np.arange(adata.n_obs) < 10
    adata.write_h5ad(tmp_path / "cells.h5ad")
    seen = {}

    def few(data, labels_key, **options):
        seen.update(options, n_obs=[adata.n_obs for adata in data.values()])
        variants = {"Cross-entropy": Variant(CrossEntropy()), "again": Variant(CrossEntropy())}
        options |= {"variants": variants, "imbalance": 10, "max_epochs": 2}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # types of few cells
            return ablation(data, labels_key, **options)

    monkeypatch.setattr("celler.benchmark.ablation", few)
    arguments = ["benchmark", "ablation", "--data", str(tmp_path / "cells.h5ad"), "--labels-key"]
    options = ["--seeds", "1", "--exclude-key", "is_poor", "--out", str(tmp_path / "out")]
    options += ["--group-key", "donor", "--parent-keys", "parent_type,other"]
    assert cli.main([*arguments, "cell_type", *options]) == 0
    printed = capsys.readouterr().out
    assert "cells.h5ad: 290 cells, 10 left out" in printed
    assert "Cross-entropy" in printed
    assert "tail recall" in printed
    assert seen["n_obs"] == [290]
    assert seen["imbalance"] == 100
    assert seen["group_key"] == "donor"
    assert seen["parent_keys"] == ["parent_type", "other"]
    assert (tmp_path / "out" / "ablation.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "out" / "ablation.csv")) == 2 * 4
    assert cli.main([*arguments, "nothing", "--out", str(tmp_path / "none")]) == 1
    assert "labels_key='nothing' is not a column" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [bool, int, float, "category"])
def test_without_cells_marked_true(dtype, capsys):
    adata = toy.cells(20)
    adata.obs["is_poor"] = np.resize([True, False, False, False], 20)
    adata.obs["is_poor"] = adata.obs["is_poor"].astype(dtype)
    kept = command._without(adata, "is_poor", Path("cells.h5ad"))
    np.testing.assert_array_equal(kept.obs_names, np.delete(adata.obs_names, np.arange(0, 20, 4)))
    assert "15 cells, 5 left out" in capsys.readouterr().out


@pytest.mark.parametrize("values", [["True", "False"], [0, 2], [True, None]])
def test_without_with_other_marks(values):
    adata = toy.cells(20)
    adata.obs["is_poor"] = np.resize(np.array(values, dtype=object), 20)
    message = r"--exclude-key is_poor: the column of cells\.h5ad holds \[.*true or false, or 1 or 0"
    with pytest.raises(ValueError, match=message):
        command._without(adata, "is_poor", Path("cells.h5ad"))
