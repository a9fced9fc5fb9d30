"""Each method against its own package or scikit-learn by hand, in this process; a method is one file."""

import importlib
import importlib.util
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
from celler.benchmark.methods.shared import log_values, on_genes
from celler.model import Celler

N_GENES = 80


@pytest.fixture
def cells() -> Cells:
    """Fresh for each test: a method may do with its reference as it likes."""
    query = toy.cells(90, seed=1)[:, ::-1].copy()
    return Cells.of(toy.cells(200), query, "cell_type", None, None)


def scores(name: str, cells: Cells, seed: int = 0) -> pd.DataFrame:
    """What the method of this name answers."""
    fit = importlib.import_module(f"celler.benchmark.methods.{name}").fit
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


def test_every_method_has_its_file_and_every_file_its_line():
    folder = Path(importlib.import_module("celler.benchmark.methods").__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "shared", "variable"}
    assert files == set(METHODS)
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


# ---- what is shared ----


def test_log_values_are_scanpys(cells):
    for adata, expected in zip((cells.reference, cells.query), log_matrices(cells), strict=True):
        np.testing.assert_allclose(log_values(adata).toarray(), expected, rtol=1e-5)
    empty = cells.query.copy()
    empty.X = empty.X * 0
    assert not log_values(empty).toarray().any(), "a cell without counts is zeros, not NaN"


def test_logarithms_stay_as_they_are(cells):
    cells.query.X = cells.query.X.log1p()
    cells.query.uns["kind"] = "log1p"
    np.testing.assert_array_equal(log_values(cells.query).toarray(), cells.query.X.toarray())


def test_genes_that_a_query_lacks_are_zero(cells):
    part = cells.query[:, [5, 2, 7]]
    padded = on_genes(part.X, part.var_names, cells.reference.var_names).toarray()
    expected = np.zeros((90, N_GENES))
    expected[:, [5, 2, 7]] = cells.query.X.toarray()[:, [5, 2, 7]]
    np.testing.assert_array_equal(padded, expected)


def test_variable_genes_are_scanpys(cells):
    from celler.benchmark.methods.variable import variable_genes

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
def test_a_method_is_scikit_learns(cells, name, model, answer):
    X, asked = log_matrices(cells)
    model.fit(X, cells.reference.obs[LABELS_KEY])
    table = scores(name, cells)
    assert list(table.columns) == list(model.classes_)
    assert list(table.index) == list(cells.query.obs_names)
    np.testing.assert_allclose(table, getattr(model, answer)(asked), atol=0.02)


def test_nearest_neighbours(cells):
    X, asked = log_matrices(cells)
    pca = PCA(50, random_state=0).fit(X)
    model = KNeighborsClassifier(15)
    model.fit(pca.transform(X), cells.reference.obs[LABELS_KEY])
    expected = model.predict_proba(pca.transform(asked))
    np.testing.assert_allclose(scores("knn", cells), expected, atol=1e-6)


def test_two_types_have_a_decision_value_each(cells):
    is_first = cells.reference.obs[LABELS_KEY].isin(["type 0", "type 1"]).to_numpy()
    cells = Cells(cells.reference[is_first].copy(), cells.query, cells.truth)
    table = scores("linear_svm", cells)
    assert list(table) == ["type 0", "type 1"]
    np.testing.assert_array_equal(table["type 0"], -table["type 1"])


def test_the_perceptron_learns_and_leaves_extreme_genes_out(cells):
    from celler.benchmark.methods import mlp

    X = log_values(cells.reference)
    columns = mlp._central(X)
    sums = X.toarray().sum(axis=0)
    assert 0 < len(columns) < N_GENES
    assert not {sums.argmax(), sums.argmin()} & set(columns)
    table = scores("mlp", cells)
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)
    assert accuracy(table, cells) > 0.5


# ---- others' packages ----


@pytest.mark.skipif(not importlib.util.find_spec("celltypist"), reason="extra: benchmark")
def test_celltypist_is_its_model_worked_by_hand(cells):
    X, asked = log_matrices(cells)
    scaler = StandardScaler().fit(X)
    X, asked = (np.minimum(scaler.transform(matrix), 10) for matrix in (X, asked))
    labels = cells.reference.obs[LABELS_KEY].to_numpy()
    expected = {}
    for name in np.unique(labels):
        one = LogisticRegression(max_iter=1000).fit(X, labels == name)
        expected[name] = expit(one.decision_function(asked))
    table = scores("celltypist", cells)
    assert list(table) == list(expected)
    np.testing.assert_allclose(table, pd.DataFrame(expected), atol=1e-3)
    train = importlib.import_module("celltypist.train")
    assert train.LogisticRegression is LogisticRegression, "the package is as it was"
    folder = importlib.import_module("celltypist.models").celltypist_path
    assert Path(folder).parent == Path(tempfile.gettempdir()), "not in the user's home"


def test_gradient_boosting_is_xgboosts(cells):
    xgboost = pytest.importorskip("xgboost")
    X, asked = log_matrices(cells)
    names, codes = np.unique(cells.reference.obs[LABELS_KEY], return_inverse=True)
    # zeros of a sparse matrix are missing values to xgboost
    model = xgboost.XGBClassifier(random_state=0, missing=0.0).fit(X, codes)
    table = scores("xgboost", cells)
    assert list(table) == list(names)
    np.testing.assert_allclose(table, model.predict_proba(asked), atol=0.02)


@pytest.mark.slow
def test_scanvi_learns_from_both_and_answers_for_the_query(cells, monkeypatch):
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
def test_celler_with_its_defaults(cells, monkeypatch):
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
def test_celler_spreads_its_probabilities_over_the_query(cells, monkeypatch):
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
