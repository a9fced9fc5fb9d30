"""Each method against its own package or scikit-learn by hand, in this process."""

import importlib
import importlib.util
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import toy
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from celler.benchmark._compare import LABELS_KEY, Cells
from celler.benchmark.methods import METHODS
from celler.benchmark.methods._sklearn import _central, log_values, on_genes, variable_genes
from celler.model import Celler

N_GENES = 80


@pytest.fixture
def cells() -> Cells:
    """Fresh for each test: a method may change its reference."""
    query = toy.cells(90, seed=1)[:, ::-1].copy()
    return Cells.of(toy.cells(200), query, "cell_type", None, None)


def scores(name: str, cells: Cells, seed: int = 0) -> pd.DataFrame:
    """The scores of the method of this name."""
    fit = getattr(importlib.import_module(METHODS[name].module), name)
    predict = fit(cells.reference, LABELS_KEY, cells.query, seed)
    return predict(cells.query)


def log_matrices(cells: Cells) -> list[np.ndarray]:
    """scanpy's log1p(CP10K) of reference and query."""
    matrices = []
    for adata in (cells.reference, cells.query):
        adata = adata.copy()
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        matrices.append(adata.X.toarray())
    return matrices


def accuracy(table: pd.DataFrame, cells: Cells) -> float:
    return float((table.idxmax(axis=1) == cells.truth).mean())


# ---- the registry ----


def test_methods_have_functions_and_titles():
    for name, method in METHODS.items():
        spec = importlib.util.find_spec(method.module)
        assert f"\ndef {name}(" in Path(spec.origin).read_text(encoding="utf-8")
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_modules_load_only_their_own_packages():
    """What a method does not need, its process neither waits for nor holds."""
    code = "import sys, celler.benchmark.methods._sklearn; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"torch", "scvi", "lightning", "scanpy", "xgboost", "celltypist", "matplotlib"}
    assert not heavy & set(done.stdout.split())


# ---- what is shared ----


def test_log_values_match_scanpy(cells):
    for adata, expected in zip((cells.reference, cells.query), log_matrices(cells), strict=True):
        np.testing.assert_allclose(log_values(adata).toarray(), expected, rtol=1e-5)
    empty = cells.query.copy()
    empty.X = empty.X * 0
    assert not log_values(empty).toarray().any(), "a cell without counts is zeros, not NaN"


def test_log_values_of_logarithms(cells):
    cells.query.X = cells.query.X.log1p()
    cells.query.uns["kind"] = "log1p"
    np.testing.assert_array_equal(log_values(cells.query).toarray(), cells.query.X.toarray())


def test_on_genes_with_missing_genes(cells):
    part = cells.query[:, [5, 2, 7]]
    padded = on_genes(part.X, part.var_names, cells.reference.var_names).toarray()
    expected = np.zeros((90, N_GENES))
    expected[:, [5, 2, 7]] = cells.query.X.toarray()[:, [5, 2, 7]]
    np.testing.assert_array_equal(padded, expected)


def test_variable_genes_match_scanpy(cells):
    np.testing.assert_array_equal(variable_genes(cells.reference), np.arange(N_GENES))
    chosen = variable_genes(cells.reference, 20)
    adata = cells.reference.copy()
    adata.X = log_matrices(cells)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.highly_variable_genes(adata, n_top_genes=20)
    np.testing.assert_array_equal(chosen, np.flatnonzero(adata.var["highly_variable"]))


# ---- scikit-learn's ----


@pytest.mark.parametrize(
    ("name", "model", "answer"),
    [
        ("logreg", LogisticRegression(class_weight="balanced", max_iter=1000), "predict_proba"),
        ("linear_svm", LinearSVC(C=0.1, random_state=0), "decision_function"),
        ("random_forest", RandomForestClassifier(300, random_state=0), "predict_proba"),
    ],
)
def test_classifier_matches_scikit_learn(cells, name, model, answer):
    X, X_query = log_matrices(cells)
    model.fit(X, cells.reference.obs[LABELS_KEY])
    table = scores(name, cells)
    assert list(table.columns) == list(model.classes_)
    assert list(table.index) == list(cells.query.obs_names)
    np.testing.assert_allclose(table, getattr(model, answer)(X_query), atol=0.02)


def test_knn_matches_scikit_learn(cells):
    X, X_query = log_matrices(cells)
    pca = PCA(50, random_state=0).fit(X)
    model = KNeighborsClassifier(15)
    model.fit(pca.transform(X), cells.reference.obs[LABELS_KEY])
    expected = model.predict_proba(pca.transform(X_query))
    np.testing.assert_allclose(scores("knn", cells), expected, atol=1e-6)


def test_linear_svm_with_two_types(cells):
    is_first = cells.reference.obs[LABELS_KEY].isin(["type 0", "type 1"]).to_numpy()
    cells = Cells(cells.reference[is_first].copy(), cells.query, cells.truth)
    table = scores("linear_svm", cells)
    assert list(table) == ["type 0", "type 1"]
    np.testing.assert_array_equal(table["type 0"], -table["type 1"])


def test_mlp_leaves_extreme_genes_out(cells):
    X = log_values(cells.reference)
    columns = _central(X)
    sums = X.toarray().sum(axis=0)
    assert 0 < len(columns) < N_GENES
    assert not {sums.argmax(), sums.argmin()} & set(columns)
    table = scores("mlp", cells)
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)
    assert accuracy(table, cells) > 0.5


# ---- others' packages ----


@pytest.mark.skipif(not importlib.util.find_spec("celltypist"), reason="extra: benchmark")
def test_celltypist_matches_its_model_by_hand(cells):
    X, X_query = log_matrices(cells)
    scaler = StandardScaler().fit(X)
    X, X_query = (np.minimum(scaler.transform(matrix), 10) for matrix in (X, X_query))
    labels = cells.reference.obs[LABELS_KEY].to_numpy()
    expected = {}
    for name in np.unique(labels):
        one = LogisticRegression(max_iter=1000).fit(X, labels == name)
        expected[name] = expit(one.decision_function(X_query))
    table = scores("celltypist", cells)
    assert list(table) == list(expected)
    np.testing.assert_allclose(table, pd.DataFrame(expected), atol=1e-3)
    train = importlib.import_module("celltypist.train")
    assert train.LogisticRegression is LogisticRegression, "the package is as it was"
    folder = importlib.import_module("celltypist.models").celltypist_path
    assert Path(folder).parent == Path(tempfile.gettempdir()), "not in the user's home"


def test_xgboost_matches_its_package(cells):
    xgboost = pytest.importorskip("xgboost")
    X, X_query = log_matrices(cells)
    names, codes = np.unique(cells.reference.obs[LABELS_KEY], return_inverse=True)
    # zeros of a sparse matrix are missing values to xgboost
    model = xgboost.XGBClassifier(random_state=0, missing=0.0).fit(X, codes)
    table = scores("xgboost", cells)
    assert list(table) == list(names)
    np.testing.assert_allclose(table, model.predict_proba(X_query), atol=0.02)


@pytest.mark.slow
def test_scanvi_labels_the_query(cells, monkeypatch):
    scvi = importlib.import_module("scvi")
    monkeypatch.setattr(scvi.model.SCVI, "train", few_epochs(scvi.model.SCVI.train, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = scores("scanvi", cells)
    assert list(table.index) == list(cells.query.obs_names)
    assert sorted(table) == [f"type {i}" for i in range(4)]
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-4)
    assert accuracy(table, cells) > 0.7


def few_epochs(train, max_epochs):
    def patched(self, **options):
        train(self, **options | {"max_epochs": max_epochs})

    return patched


# ---- ours ----


@pytest.mark.slow
def test_celler_matches_the_library(cells, monkeypatch):
    monkeypatch.setattr(Celler, "train", few_epochs(Celler.train, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # types of few cells
        table = scores("celler", cells, seed=1)
        reference = toy.cells(200)
        Celler.setup_anndata(reference, labels_key="cell_type")
        model = Celler(reference)
        model.train(seed=1, show_progress=False)
    expected = model.predict(toy.cells(90, seed=1), soft=True)
    toy.assert_close(table, expected)


@pytest.mark.slow
def test_celler_transductive_spreads_probabilities(cells, monkeypatch):
    monkeypatch.setattr(Celler, "train", few_epochs(Celler.train, 3))
    query = cells.query[:, 5:].copy()
    given = Cells(cells.reference, query, cells.truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        alone, table = (scores(name, given) for name in ("celler", "celler_transductive"))
    assert list(table.index) == list(query.obs_names)
    assert list(table.columns) == list(alone.columns)
    np.testing.assert_allclose(table.sum(axis=1), 1)
    assert not np.allclose(table, alone, atol=0.01)
    assert LABELS_KEY not in query.obs
