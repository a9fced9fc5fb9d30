"""docs/benchmarks/shared_tasks.py: the tables by hand, splits, and rows of methods that run one after the other."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scripts
import toy
from sklearn.metrics import f1_score

from celler.benchmark import _compare as comparison
from celler.benchmark._process import Measured

script = scripts.load("shared_tasks")


def cells_of(markdown: str) -> dict[str, list[str]]:
    """The cells of a table by its first column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    return {first: others for first, *others in rows}


def table(scores: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """Rows with the same value, one for each seed, of every score."""
    return pd.DataFrame(
        {"task": task, "method": method, "seed": seed, **dict.fromkeys(script.SCORES, value)}
        for (task, method), values in scores.items()
        for seed, value in enumerate(values)
    )


@pytest.fixture
def rows() -> pd.DataFrame:
    """scANVI is best on ``a``, logistic regression on ``b`` and in the mean."""
    return table(
        {
            ("a", "celler"): [0.8, 0.9],
            ("a", "scanvi"): [0.7, 0.8],
            ("a", "logreg"): [0.7],
            ("a", "celler_transductive"): [0.99],
            ("b", "celler"): [0.5, 0.5],
            ("b", "scanvi"): [0.2],
            ("b", "logreg"): [0.6],
            ("b", "celler_transductive"): [0.99],
        }
    )


def test_leads_by_hand(rows):
    earlier = table({("a", "celler"): [0.825], ("b", "celler"): [0.25]})
    found = cells_of(script.leads(script.summary(rows), "macro_f1", script.summary(earlier)))
    assert found["macro_f1"] == [
        *("Celler", "best peer", "Celler − best peer", "logistic regression"),
        *("Celler − logistic regression", "earlier Celler", "Celler − earlier Celler", "best peer is"),
    ]
    sd = "0.071"  # of two values 0.1 apart: 0.1 / sqrt(2)
    assert found["a"] == [*(f"0.850 ± {sd}", f"0.750 ± {sd}", "+0.100", "0.700", "+0.150", "0.825", "+0.025", "scANVI")]
    assert found["b"] == [
        *("0.500 ± 0.000", "0.600", "-0.100", "0.600", "-0.100", "0.250", "+0.250", "logistic regression")
    ]
    assert found["mean"] == ["0.675", "0.675", "+0.000", "0.650", "+0.025", "0.537", "+0.138", ""]


def test_costs_by_hand(rows):
    found = cells_of(script.costs(script.summary(rows)))
    assert [found["a"][2], found["b"][2]] == ["1.13", "2.50"]
    without = rows[rows["method"] != "scanvi"]
    assert cells_of(script.costs(script.summary(without)))["a"][1:3] == ["–", "–"]
    earlier = script.summary(table({("a", "celler"): [0.425]}))
    assert cells_of(script.costs(script.summary(rows), earlier))["a"][-1] == "2.00"


def test_markdown_of_a_method_that_lacks_a_task(rows):
    rows = rows[~((rows["method"] == "scanvi") & (rows["task"] == "b"))]
    found = cells_of(script.markdown(script.summary(rows), "macro_f1"))
    assert list(found)[2:] == ["Celler, propagated", "Celler", "logistic regression", "scANVI"]
    assert found["scANVI"] == ["0.750 ± 0.071", "–", "–"]
    assert found["Celler"][-1] == "0.675"
    assert "Celler − " in script.report(rows)
    assert "Celler − " not in script.report(rows[rows["method"] != "celler"])


def test_every_second_by_name():
    adata = toy.cells(60)
    adata.obs["donor"] = np.resize(["d10", "d2", "d1", "d3"], 60)
    reference, query = script.every_second(adata, "donor")
    assert set(reference.obs["donor"]) == {"d1", "d2"}, "sorted as text: d1, d10, d2, d3"
    assert set(query.obs["donor"]) == {"d10", "d3"}
    assert reference.n_obs + query.n_obs == 60


def test_main_adds_a_method_to_stored_rows(tmp_path, monkeypatch, capsys):
    """A deterministic method runs once; what ran before is printed with what runs now."""
    reference, query = toy.cells(240), toy.cells(120, seed=1)
    truth = toy.truth(query)
    wrong = np.roll(np.unique(truth), 1)[np.unique(truth, return_inverse=True)[1]]
    ran = []

    def fake(function, imports, labels_key, seed, folder):
        ran.append((function.split(":")[1], seed))
        labels = np.where(np.arange(120) < 12 * (1 + seed), wrong, truth)
        return Measured(pd.get_dummies(labels).astype(float).set_axis(query.obs_names), 1.0, 1.0, 5.0)

    monkeypatch.setattr(comparison, "run_alone", fake)
    monkeypatch.setattr(script, "TASKS", {"toy": lambda data, seeds: [(reference, query, seeds)]})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is not installed")
        scripts.run(script, monkeypatch, tmp_path, "--out", tmp_path, "--methods", "logreg", "--seeds", 3)
        scripts.run(script, monkeypatch, tmp_path, "--out", tmp_path, "--methods", "celler", "--seeds", 2)
    assert ran == [("logreg", 0), ("celler", 0), ("celler", 1)]
    capsys.readouterr()
    scripts.run(script, monkeypatch, tmp_path, "--out", tmp_path, "--seeds", 0, "--earlier", tmp_path)
    assert len(ran) == 3
    text = capsys.readouterr().out
    assert "| accuracy | toy | mean |" in text
    assert f"| logistic regression | {0.9:.3f} | {0.9:.3f} |" in text
    table = pd.read_csv(tmp_path / "runs.csv")
    expected = f1_score(truth, np.where(np.arange(120) < 12, wrong, truth), average="macro")
    np.testing.assert_allclose(table.loc[table["seed"] == 0, ["macro_f1", "query_f1"]], expected)
    assert (tmp_path / "tables.md").read_text(encoding="utf-8").strip() in text
    assert (tmp_path / "macro_f1.png").exists()


def test_stored_takes_the_last_row_of_a_seed(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no rows of toy; run methods on them first"):
        script.stored(tmp_path, ["toy"])
    (tmp_path / "toy").mkdir()
    runs = pd.DataFrame({"method": "celler", "seed": 0, "key": ["01", "02"], "macro_f1": [0.1, 0.2]})
    runs.to_csv(tmp_path / "toy" / "runs.csv", index=False)
    types = runs.drop(columns="macro_f1").assign(**{"class": "B", "f1": [0.3, 0.4]})
    types.to_csv(tmp_path / "toy" / "classes.csv", index=False)
    rows, classes = script.stored(tmp_path, ["toy"])
    assert rows[["key", "macro_f1", "query_f1", "task"]].to_numpy().tolist() == [["02", 0.2, 0.4, "toy"]]
    assert classes["f1"].tolist() == [0.4]
