"""The demo on real cells: at least as good as logistic regression; its table, text and files."""

import anndata as ad
import numpy as np
import pytest
from matplotlib import image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from sklearn.model_selection import train_test_split

from celler.cli._demo import MARKERS, DemoResult, compare, report
from celler.cli._main import main
from celler.datasets import pbmc68k


@pytest.fixture(scope="module")
def results() -> list[DemoResult]:
    return [compare(seed, show_progress=False) for seed in range(3)]


@pytest.mark.slow
def test_compare_macro_f1_against_logistic_regression(results):
    scores = {
        name: np.mean([result.scores[name]["macro_f1"] for result in results])
        for name in ("Celler", "logistic regression")
    }
    assert scores["logistic regression"] > 0.6
    assert scores["Celler"] >= scores["logistic regression"]


@pytest.mark.slow
def test_compare_logistic_regression_matches_scikit_learn(results):
    adata = pbmc68k()
    labels = adata.obs["cell_type"].to_numpy().astype(str)
    for seed, result in enumerate(results):
        reference, query = train_test_split(np.arange(700), test_size=0.5, stratify=labels, random_state=seed)
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
        model.fit(adata.X[reference], labels[reference])
        expected = f1_score(labels[query], model.predict(adata.X[query]), average="macro")
        assert result.scores["logistic regression"]["macro_f1"] == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_report_matches_scikit_learn(results):
    for result in results:
        table, query = result.table, result.query
        truth = query.obs["cell_type"].to_numpy().astype(str)
        labels = query.obs["celler"].to_numpy().astype(str)
        parts = precision_recall_fscore_support(truth, labels, labels=table.index, zero_division=0)
        for name, values in zip(("precision", "recall", "f1", "query_cells"), parts, strict=True):
            np.testing.assert_allclose(table[name], values)
        assert table["query_cells"].sum() == table["reference_cells"].sum() == 350
        assert len(table) == 10
        assert result.scores["Celler"]["accuracy"] == accuracy_score(truth, labels)
        printed = report(result)
        assert all(name in printed for name in [*table.index, "macro-F1", "tail F1", "F1 logreg"])
        assert f"{result.scores['Celler']['macro_f1']:.3f}" in printed


@pytest.mark.slow
def test_compare_splits_by_seed(results):
    queries = [set(result.query.obs_names) for result in results]
    assert queries[0] != queries[1]
    assert all(len(names) == 350 for names in queries)


def test_markers_exist_in_the_data():
    genes = {gene for genes in MARKERS.values() for gene in genes}
    assert genes <= set(pbmc68k().var_names)


@pytest.mark.slow
def test_demo_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "a new folder"
    assert main(["demo", "--out", str(out), "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        "celler_demo.h5ad",
        "celler_demo_markers.png",
    ]
    query = ad.read_h5ad(out / "celler_demo.h5ad")
    assert query.n_obs == 350
    assert {"cell_type", "celler", "celler_confidence", "celler_margin"} <= set(query.obs)
    picture = image.imread(out / "celler_demo_markers.png")
    assert picture.shape[0] > 300
    assert picture.std() > 0.05  # not blank
    for words in [
        *query.obs["cell_type"].unique(), "precision", "recall", "macro-F1", "tail F1",
        "logistic regression", "total time", str(out / "celler_demo.h5ad"),
    ]:  # fmt: skip
        assert words in printed
