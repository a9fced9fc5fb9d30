"""Comparison of methods: rows against scikit-learn by hand, what is skipped, what fails, continuing."""

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import toy
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

from celler.benchmark import Method, class_scores, run, summary, summary_text
from celler.benchmark import _compare as comparison
from celler.benchmark._compare import LABELS_KEY, Cells
from celler.benchmark._process import Measured
from celler.benchmark.methods import METHODS

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


@pytest.mark.slow
def test_run_scores_match_scikit_learn(rows, reference, query):
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


@pytest.mark.slow
def test_run_gives_a_row_per_method_and_seed(rows):
    assert list(rows["method"]) == ["logreg", "logreg", "linear_svm", "linear_svm"]
    assert list(rows["seed"]) == [0, 1, 0, 1]
    assert rows["error"].isna().all()
    assert rows["rejection_auroc"].isna().all(), "the reference has all types"
    is_svm = rows["method"] == "linear_svm"
    assert (rows["ece"].isna() == is_svm).all(), "decision values are no probabilities"
    assert (rows[["fit_seconds", "cells_per_second"]] > 0).all(axis=None)
    assert rows["versions"].str.match(r"scikit-learn \d.*, Python 3\.\d+\.\d+").all()
    assert rows["peak_memory_mb"].between(0, 500).all()


@pytest.mark.slow
def test_class_scores_match_the_rows_of_run(rows, folder, query):
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


@pytest.mark.slow
def test_run_continues_after_a_stop(rows, reference, query, folder, tmp_path, monkeypatch, capsys):
    for name in ("runs.csv", "classes.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    half = pd.read_csv(tmp_path / "runs.csv").iloc[:3]
    half.to_csv(tmp_path / "runs.csv", index=False)
    started = []

    def fake(function, imports, labels_key, seed, folder):
        started.append((function.split(":")[-1], seed))
        return Measured(certain(query), 1.0, 0.1, 5.0)

    monkeypatch.setattr(comparison, "run_alone", fake)
    again = run(reference, query, "cell_type", FAST, seeds=2, folder=tmp_path)
    assert started == [("linear_svm", 1)]
    assert "[1/1] linear SVM, seed 1: macro-F1 " in capsys.readouterr().out
    pd.testing.assert_frame_equal(again.iloc[:3], rows.iloc[:3])
    assert again["key"].equals(rows["key"])
    assert len(class_scores(again, tmp_path)) == 16, "what was left of the lost row is not counted"
    assert run(reference, query, "cell_type", FAST, seeds=[1], folder=tmp_path).shape[0] == 2
    assert len(started) == 1, "nothing was left to run"

    swapped = query.copy()
    swapped.obs["cell_type"] = np.roll(toy.truth(query), 1)
    other = run(reference, swapped, "cell_type", FAST[:1], seeds=1, folder=tmp_path)
    assert len(started) == 2
    assert other["key"][0] not in set(rows["key"])
    monkeypatch.setitem(METHODS, "logreg", Method("logistic regression", ("numpy",)))
    run(reference, query, "cell_type", FAST[:1], seeds=1, folder=tmp_path)
    assert len(started) == 3, "other versions are another run"


def certain(query, wrong: int = 0) -> pd.DataFrame:
    """Probability 1 for the true type; the first ``wrong`` cells get that of another."""
    truth = toy.truth(query)
    names = np.unique(truth)
    scores = (truth[:, None] == names).astype(float)
    scores[:wrong] = np.roll(scores[:wrong], 1, axis=1)
    return pd.DataFrame(scores, query.obs_names, names)


def test_run_with_names_that_look_like_numbers(reference, query, tmp_path, monkeypatch):
    reference, query = reference.copy(), query.copy()
    names = {"type 0": "inf", "type 1": "1", "type 2": "1e3", "type 3": "True"}
    for adata in (reference, query):
        adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).map(names)
    started = []
    monkeypatch.setattr(comparison, "_key", lambda *_: "12e4")
    monkeypatch.setattr(
        comparison,
        "run_alone",
        lambda *_: started.append(0) or Measured(certain(query), 1.0, 1.0, 5.0),
    )
    for _ in range(2):
        rows = run(reference, query, "cell_type", ["knn"], seeds=1, folder=tmp_path)
    assert len(started) == 1
    assert rows["accuracy"][0] == 1
    assert set(class_scores(rows, tmp_path)["class"]) == set(names.values())


# ---- types that the reference lacks ----


def test_run_with_types_new_to_the_reference(reference, query, tmp_path, monkeypatch, rng):
    known = reference[reference.obs["cell_type"] != "type 3"].copy()
    scores = pd.DataFrame(rng.dirichlet(np.ones(3), query.n_obs), query.obs_names, [f"type {i}" for i in range(3)])
    monkeypatch.setattr(comparison, "run_alone", lambda *_: Measured(scores, 1.0, 0.5, 5.0))
    rows = run(known, query, "cell_type", ["logreg"], seeds=1, folder=tmp_path)
    truth = toy.truth(query)
    is_unseen = truth == "type 3"
    assert rows["rejection_auroc"][0] == pytest.approx(roc_auc_score(is_unseen, 1 - scores.max(axis=1)))
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


def test_cells_of_without_labels(reference, query):
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


def test_cells_of_layer_and_genes(reference, query):
    reference, query = reference.copy(), query.copy()
    for adata in (reference, query):
        adata.layers["counts"] = adata.X.copy()
        adata.X = adata.X.log1p()
    logs, counts = (Cells.of(reference, query, "cell_type", None, x) for x in (None, "counts"))
    assert logs.reference.uns["kind"] == logs.query.uns["kind"] == "log1p"
    assert counts.reference.uns["kind"] == counts.query.uns["kind"] == "counts"
    assert logs.fingerprint != counts.fingerprint
    genes = list(counts.query.var_names)
    assert genes == [name for name in reference.var_names if name in set(query.var_names)]
    np.testing.assert_array_equal(counts.query.X.toarray(), query[:, genes].layers["counts"].toarray())
    assert list(counts.query.obs) == [], "no method sees the truth"
    assert list(counts.reference.obs) == [LABELS_KEY]


def test_run_with_a_missing_package(reference, query, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "xgboost", Method("gradient boosting", ("no-such-package",)))
    monkeypatch.setattr(comparison, "run_alone", lambda *_: Measured(certain(query), 1.0, 1.0, 5.0))
    message = (
        r"^no-such-package is not installed, gradient boosting is skipped: "
        r"pip install 'celler\[benchmark\]'$"
    )
    with pytest.warns(UserWarning, match=message):
        rows = run(reference, query, "cell_type", ["xgboost", "knn"], seeds=1, folder=tmp_path)
    assert list(rows["method"]) == ["knn"]


def test_run_skips_a_method_without_counts(reference, query, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "scanvi", Method("scANVI", ("numpy",), needs_counts=True))
    query = query.copy()
    query.X = query.X.log1p()
    message = "scANVI needs counts and is skipped: the cells hold log1p values. Pass the layer"
    with pytest.warns(UserWarning, match=message):
        rows = run(reference, query, "cell_type", ["scanvi"], folder=tmp_path)
    assert rows.empty
    assert "macro_f1" in rows


def test_run_with_unknown_names(reference, query, tmp_path):
    with pytest.raises(ValueError, match=r"methods names 'xgbost', .* Closest: 'xgboost'\. Methods: celler,"):
        run(reference, query, "cell_type", ["xgbost"], folder=tmp_path)
    with pytest.raises(TypeError, match="methods='knn' was given, of type str; a list of at least one text"):
        run(reference, query, "cell_type", "knn", folder=tmp_path)
    with pytest.raises(KeyError, match=r"query_labels_key='cell type' is not .* of query\.obs"):
        run(reference, query, "cell_type", query_labels_key="cell type", folder=tmp_path)


def test_run_with_a_failing_method(reference, query, tmp_path, monkeypatch, capsys):
    def fake(function, imports, labels_key, seed, folder):
        if "logreg" in function:
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


def test_code_of_celler_includes_its_training():
    names = {file.name for file in comparison._code("celler")}
    assert {"_celler.py", "_sklearn.py", "_plan.py", "_tokenizer.py", "losses.py"} <= names


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("celler")])
def test_code_of_peers_is_their_own(method):
    own = METHODS[method].module.rpartition(".")[2]
    assert {file.name for file in comparison._code(method)} == {f"{own}.py", "_sklearn.py"}


def test_key_changes_with_celler_for_celler_alone(tmp_path, monkeypatch):
    """New modules, changed code and changed weights of Celler leave the rows of its peers."""
    methods = tmp_path / "celler" / "benchmark" / "methods"
    methods.mkdir(parents=True)
    (methods / "_sklearn.py").write_text("")
    monkeypatch.setattr(comparison, "__file__", str(methods.parent / "_compare.py"))
    cells = SimpleNamespace(fingerprint="cells")

    def keys(name, content):
        file = tmp_path / "celler" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        return [comparison._key(cells, method, "1.0") for method in ("celler", "scanvi", "logreg")]

    ours, *peers = keys("model/_defaults.py", b"")
    changes = [
        ("model/_defaults.py", b"1"),
        ("model/_new.py", b""),
        *((f"model/base.{kind}", bytes([0, 255])) for kind in ("safetensors", "tsv")),
    ]
    for change in changes:
        before, (ours, *others) = ours, keys(*change)
        assert ours != before, change
        assert others == peers, change
    for change in [("model/__pycache__/_new.nbi", b"1"), ("cli/_new.py", b"1"), ("benchmark/_compare.py", b"1")]:
        assert keys(*change) == [ours, *peers], change


# ---- summaries ----


@pytest.fixture
def made_up(rng):
    """Two tasks, three seeds and two methods, the second better by 0.1."""
    rows = [
        {"task": task, "method": method, "seed": seed, "macro_f1": rng.random() / 2 + gain}
        for task in ("a", "b")
        for method, gain in (("logreg", 0.0), ("celler", 0.5))
        for seed in range(3)
    ]
    return pd.DataFrame(rows).reindex(columns=["task", *comparison.COLUMNS])


def test_summary_matches_pandas(made_up):
    table = summary(made_up)
    for (task, method), part in made_up.groupby(["task", "method"]):
        row = table.loc[(task, method), "macro_f1"]
        assert row["mean"] == pytest.approx(part["macro_f1"].mean())
        assert row["sd"] == pytest.approx(part["macro_f1"].std(ddof=1))
    assert list(table.index) == [
        ("a", "celler"), ("a", "logreg"), ("b", "celler"), ("b", "logreg"),
    ]  # fmt: skip
    best = table.loc[("a", "celler"), "macro_f1"]
    text = summary_text(table)
    assert f"{best['mean']:.3f} ± {best['sd']:.3f}" in text
    assert "ece" not in text, "there is none"
    once = made_up[(made_up["seed"] == 0) & (made_up["task"] == "a")]
    alone = summary_text(summary(once.drop(columns="task")))
    assert "±" not in alone
