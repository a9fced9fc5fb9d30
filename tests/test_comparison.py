"""The comparison of methods: rows against scikit-learn by hand, what is skipped, what fails, and going on."""

import pickle
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import toy
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

from celler.benchmark import Method, class_scores, run, summary
from celler.benchmark import _compare as comparison
from celler.benchmark._compare import LABELS_KEY, Cells
from celler.benchmark._process import CELLS, Measured, run_alone
from celler.benchmark.methods import METHODS
from celler.cli import _main as cli

FAST = ["logreg", "linear_svm"]


@pytest.fixture(scope="module")
def reference():
    return toy.cells(240)


@pytest.fixture(scope="module")
def query():
    """Other cells, with one gene that the reference lacks, without twenty that it has, in another order."""
    adata = toy.cells(120, seed=1)
    names = [*adata.var_names[:-1], "a new gene"]
    order = np.random.default_rng(0).permutation(np.r_[:60, 79])
    return ad.AnnData(adata.X, obs=adata.obs, var=pd.DataFrame(index=names))[:, order].copy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def rows(reference, query, folder):
    before = [toy.snapshot(adata) for adata in (reference, query)]
    rows = run(reference, query, "cell_type", FAST, seeds=2, folder=folder)
    for adata, was in zip((reference, query), before, strict=True):
        toy.assert_unchanged(adata, was)
    return rows


def log_matrix(adata: ad.AnnData) -> np.ndarray:
    """scanpy's log1p(CP10K)."""
    adata = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata.X.toarray()


# ---- rows ----


def test_the_rows_are_those_of_scikit_learn_by_hand(rows, reference, query):
    shared = [name for name in reference.var_names if name in set(query.var_names)]
    X = np.zeros((query.n_obs, reference.n_vars), np.float32)
    X[:, reference.var_names.get_indexer(shared)] = log_matrix(query[:, shared])
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(log_matrix(reference), toy.truth(reference))
    probabilities, truth = model.predict_proba(X), toy.truth(query)
    labels = model.classes_[probabilities.argmax(1)]
    row = rows.iloc[0]
    assert row["accuracy"] == accuracy_score(truth, labels)
    parts = precision_recall_fscore_support(truth, labels, average="macro", zero_division=0)
    for name, value in zip(("macro_precision", "macro_recall", "macro_f1"), parts, strict=False):
        assert row[name] == pytest.approx(value)
    best = probabilities.max(1)
    bins = np.minimum((best * 15).astype(int), 14)
    gaps = [
        abs((labels == truth)[bins == one].mean() - best[bins == one].mean()) * (bins == one).mean()
        for one in np.unique(bins)
    ]
    assert row["ece"] == pytest.approx(sum(gaps), abs=1e-4)


def test_there_is_a_tidy_row_per_method_and_seed(rows):
    assert list(rows["method"]) == ["logreg", "logreg", "linear_svm", "linear_svm"]
    assert list(rows["seed"]) == [0, 1, 0, 1]
    assert rows["error"].isna().all()
    assert rows["rejection_auroc"].isna().all(), "the reference has all types"
    is_svm = rows["method"] == "linear_svm"
    assert (rows["ece"].isna() == is_svm).all(), "decision values are no probabilities"
    assert (rows[["fit_seconds", "cells_per_second"]] > 0).all(axis=None)
    assert rows["versions"].str.match(r"scikit-learn \d.*, Python 3\.\d+\.\d+").all()
    assert rows["peak_memory_mb"].between(0, 500).all()


def test_the_table_of_types_has_the_same_runs(rows, folder, query):
    classes = class_scores(rows, folder)
    sizes = query.obs["cell_type"].value_counts()
    assert len(classes) == 4 * sizes.gt(0).sum()
    for (method, seed), part in classes.groupby(["method", "seed"]):
        row = rows[(rows["method"] == method) & (rows["seed"] == seed)].iloc[0]
        assert part["f1"].mean() == pytest.approx(row["macro_f1"])
        assert part.set_index("class")["query_cells"].to_dict() == sizes.to_dict()
        head = part.loc[part["frequency"] == "head", "recall"].mean()
        assert row["recall_head"] == pytest.approx(head)
    with pytest.raises(FileNotFoundError, match="pass the folder that run"):
        class_scores(rows, folder / "elsewhere")


def test_a_stopped_run_goes_on_and_other_cells_are_another_run(
    rows, reference, query, folder, tmp_path, monkeypatch, capsys
):
    for name in ("runs.csv", "classes.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    half = pd.read_csv(tmp_path / "runs.csv").iloc[:3]
    half.to_csv(tmp_path / "runs.csv", index=False)
    asked = []

    def fake(module, labels_key, seed, folder):
        asked.append((module.split(".")[-1], seed))
        return Measured(certain(query), 1.0, 0.1, 5.0)

    monkeypatch.setattr(comparison, "run_alone", fake)
    again = run(reference, query, "cell_type", FAST, seeds=2, folder=tmp_path)
    assert asked == [("linear_svm", 1)]
    assert "[1/1] linear SVM, seed 1: macro-F1 " in capsys.readouterr().out
    pd.testing.assert_frame_equal(again.iloc[:3], rows.iloc[:3])
    assert again["key"].equals(rows["key"])
    assert len(class_scores(again, tmp_path)) == 16, "what was left of the lost row is not counted"
    assert run(reference, query, "cell_type", FAST, seeds=[1], folder=tmp_path).shape[0] == 2
    assert len(asked) == 1, "nothing was left to run"

    swapped = query.copy()
    swapped.obs["cell_type"] = np.roll(toy.truth(query), 1)
    other = run(reference, swapped, "cell_type", FAST[:1], seeds=1, folder=tmp_path)
    assert len(asked) == 2
    assert other["key"][0] not in set(rows["key"])
    monkeypatch.setitem(METHODS, "logreg", Method("logistic regression", ("numpy",)))
    run(reference, query, "cell_type", FAST[:1], seeds=1, folder=tmp_path)
    assert len(asked) == 3, "other versions are another run"


def certain(query, wrong: int = 0) -> pd.DataFrame:
    """Probability 1 for the true type; the first ``wrong`` cells get that of another."""
    truth = toy.truth(query)
    names = np.unique(truth)
    scores = (truth[:, None] == names).astype(float)
    scores[:wrong] = np.roll(scores[:wrong], 1, axis=1)
    return pd.DataFrame(scores, query.obs_names, names)


def test_types_and_keys_that_look_like_something_else(reference, query, tmp_path, monkeypatch):
    reference, query = reference.copy(), query.copy()
    names = {"type 0": "NA", "type 1": "1", "type 2": "1e3", "type 3": "None"}
    for adata in (reference, query):
        adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).map(names)
    asked = []
    monkeypatch.setattr(comparison, "_key", lambda *_: "12e4")
    monkeypatch.setattr(
        comparison,
        "run_alone",
        lambda *_: asked.append(0) or Measured(certain(query), 1.0, 1.0, 5.0),
    )
    for _ in range(2):
        rows = run(reference, query, "cell_type", ["knn"], seeds=1, folder=tmp_path)
    assert len(asked) == 1
    assert rows["accuracy"][0] == 1
    assert set(class_scores(rows, tmp_path)["class"]) == set(names.values())


# ---- types that the reference lacks ----


def test_types_that_the_reference_lacks(reference, query, tmp_path, monkeypatch, rng):
    known = reference[reference.obs["cell_type"] != "type 3"].copy()
    scores = pd.DataFrame(
        rng.dirichlet(np.ones(3), query.n_obs), query.obs_names, [f"type {i}" for i in range(3)]
    )
    monkeypatch.setattr(comparison, "run_alone", lambda *_: Measured(scores, 1.0, 0.5, 5.0))
    rows = run(known, query, "cell_type", ["logreg"], seeds=1, folder=tmp_path)
    truth = toy.truth(query)
    is_unseen = truth == "type 3"
    assert rows["rejection_auroc"][0] == pytest.approx(
        roc_auc_score(is_unseen, 1 - scores.max(axis=1))
    )
    assert rows["cells_per_second"][0] == query.n_obs / 0.5
    classes = class_scores(rows, tmp_path).set_index("class")
    assert classes.loc["type 3", ["reference_cells", "f1"]].tolist() == [0, 0]
    assert classes.loc["type 3", "frequency"] == "unseen"
    seen = classes.drop("type 3")
    assert rows["macro_f1"][0] == pytest.approx(classes["f1"].mean()), "they count as missed"
    for group in ("head", "medium", "tail"):
        expected = seen.loc[seen["frequency"] == group, "recall"].mean()
        assert rows[f"recall_{group}"][0] == pytest.approx(expected, nan_ok=True)


# ---- what is left out, skipped and failed ----


def test_cells_without_a_label_are_left_out(reference, query):
    reference, query = reference.copy(), query.copy()
    labels = reference.obs["cell_type"].astype(object)
    labels.iloc[:5] = None
    reference.obs["cell_type"] = labels
    query.obs["other"] = query.obs["cell_type"].astype(object)
    query.obs.loc[query.obs_names[:3], "other"] = "Unknown"
    with pytest.warns(UserWarning, match="have no label; they are left out") as caught:
        cells = Cells.of(reference, query, "cell_type", "other", None)
    messages = [str(warning.message) for warning in caught]
    assert messages[0].startswith("5 of the reference's 240 cells have no label; they are left out")
    assert messages[1].startswith("3 of the query's 120 cells have no label")
    assert (cells.reference.n_obs, cells.query.n_obs) == (235, 117)
    np.testing.assert_array_equal(cells.truth, toy.truth(query)[3:])
    query.obs["other"] = "Unknown"
    with pytest.raises(ValueError, match=r"query\.obs\['other'\] labels no cell"):
        Cells.of(reference.copy()[5:], query, "cell_type", "other", None)


def test_the_layer_and_the_genes_that_methods_get(reference, query):
    reference, query = reference.copy(), query.copy()
    for adata in (reference, query):
        adata.layers["counts"] = adata.X.copy()
        adata.X = adata.X.log1p()
    logs, counts = (Cells.of(reference, query, "cell_type", None, x) for x in (None, "counts"))
    assert logs.kinds == {"log1p"}
    assert counts.kinds == {"counts"}
    assert logs.fingerprint != counts.fingerprint
    genes = list(counts.query.var_names)
    assert genes == [name for name in reference.var_names if name in set(query.var_names)]
    np.testing.assert_array_equal(
        counts.query.X.toarray(), query[:, genes].layers["counts"].toarray()
    )
    assert list(counts.query.obs) == [], "no method sees the truth"
    assert list(counts.reference.obs) == [LABELS_KEY]


def test_a_missing_package_is_named_and_skipped(reference, query, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "xgboost", Method("gradient boosting", ("no-such-package",)))
    monkeypatch.setattr(comparison, "run_alone", lambda *_: Measured(certain(query), 1.0, 1.0, 5.0))
    message = (
        r"^no-such-package is not installed, gradient boosting is skipped: "
        r"pip install 'celler\[benchmark\]'$"
    )
    with pytest.warns(UserWarning, match=message):
        rows = run(reference, query, "cell_type", ["xgboost", "knn"], seeds=1, folder=tmp_path)
    assert list(rows["method"]) == ["knn"]


def test_a_method_that_needs_counts_is_skipped_without(reference, query, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "scanvi", Method("scANVI", ("numpy",), needs_counts=True))
    query = query.copy()
    query.X = query.X.log1p()
    message = "scANVI needs counts and is skipped: the cells hold log1p values. Pass the layer"
    with pytest.warns(UserWarning, match=message):
        rows = run(reference, query, "cell_type", ["scanvi"], folder=tmp_path)
    assert rows.empty
    assert "macro_f1" in rows


def test_a_name_that_there_is_not(reference, query, tmp_path):
    with pytest.raises(ValueError, match=r"methods names 'xgbost', .* Closest: 'xgboost'\. There"):
        run(reference, query, "cell_type", ["xgbost"], folder=tmp_path)
    with pytest.raises(TypeError, match="methods='knn' is one string; pass a list"):
        run(reference, query, "cell_type", "knn", folder=tmp_path)
    with pytest.raises(KeyError, match=r"query_labels_key='cell type' is not .* of query\.obs"):
        run(reference, query, "cell_type", query_labels_key="cell type", folder=tmp_path)


def test_a_method_that_fails_has_a_row_with_the_reason(
    reference, query, tmp_path, monkeypatch, capsys
):
    def fake(module, labels_key, seed, folder):
        if "logreg" in module:
            raise RuntimeError("ValueError: no")
        return Measured(certain(query, wrong=12), 1.0, 1.0, 5.0)

    monkeypatch.setattr(comparison, "run_alone", fake)
    rows = run(reference, query, "cell_type", FAST, seeds=1, folder=tmp_path)
    assert rows["error"][0] == "ValueError: no"
    assert np.isnan(rows["macro_f1"][0])
    assert rows["accuracy"][1] == 0.9
    assert "logistic regression, seed 0: failed, ValueError: no" in capsys.readouterr().out
    assert list(pd.read_csv(tmp_path / "runs.csv")["method"]) == ["linear_svm"], "it is tried again"
    assert list(summary(rows).index) == ["linear_svm"]


# ---- a process of its own ----

METHOD = """
import os, signal, warnings
import numpy as np, pandas as pd

def fit(reference, labels_key, query, seed):
    names = sorted(set(reference.obs[labels_key]))
    warnings.warn("not for the user's eyes")
    print("nor this")
    if seed == 1:
        raise ValueError("cannot be learned")
    if seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    large = np.ones(200 * 2**17)  # 200 MiB
    def predict(query):
        return pd.DataFrame(large[0] / len(names), query.obs_names, names)
    return predict
"""


def test_a_method_in_its_own_process(reference, query, tmp_path, monkeypatch, capfd):
    (tmp_path / "made_up_method.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    cells = Cells.of(reference, query, "cell_type", None, None)
    (tmp_path / CELLS).write_bytes(pickle.dumps((cells.reference, cells.query)))
    measured = run_alone("made_up_method", LABELS_KEY, 0, tmp_path)
    assert list(measured.scores.index) == list(query.obs_names)
    assert (measured.scores == 0.25).all(axis=None)
    assert 190 < measured.peak_memory_mb < 300
    assert 0 < measured.fit_seconds < 60
    with pytest.raises(RuntimeError, match="^ValueError: cannot be learned$"):
        run_alone("made_up_method", LABELS_KEY, 1, tmp_path)
    with pytest.raises(RuntimeError, match="^ended by SIGKILL, perhaps for want of memory$"):
        run_alone("made_up_method", LABELS_KEY, 2, tmp_path)
    assert capfd.readouterr() == ("", "")


# ---- the command ----


def test_the_command_compares(reference, query, rows, folder, tmp_path, capsys, monkeypatch):
    reference.write_h5ad(tmp_path / "reference.h5ad")
    query.write_h5ad(tmp_path / "query.h5ad")
    arguments = ["benchmark", "compare", "reference.h5ad", "query.h5ad", "--labels-key"]
    options = ["--methods", "logreg,linear_svm", "--seeds", "2", "--out", str(folder)]
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert cli.main([*arguments, "cell_type", *options]) == 0
    printed = capsys.readouterr().out
    assert "[1/" not in printed, "every row was there"
    assert f"{rows['macro_f1'][0]:.3f} ± 0.000" in printed
    for name in ("macro_f1.png", "class_f1.png"):
        assert (folder / name).stat().st_size > 5_000
    assert cli.main([*arguments, "nothing", *options]) == 2
    assert "labels_key='nothing' is not a column of reference.obs" in capsys.readouterr().err
    monkeypatch.setattr(comparison, "run_alone", lambda *_: raise_error())
    assert cli.main([*arguments, "cell_type", "--methods", "knn", "--out", "new"]) == 2
    captured = capsys.readouterr()
    assert "failed, no luck" in captured.out
    assert "no method gave a result" in captured.err


def raise_error():
    raise RuntimeError("no luck")
