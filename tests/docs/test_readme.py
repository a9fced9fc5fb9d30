"""README and landing page: their numbers are those of the benchmark's table, their figure is small and described."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scripts

ROOT = Path(__file__).parents[2]
script = scripts.load("readme_table")


def test_table_of_both_pages_is_that_of_the_benchmark():
    text = script.table(pd.read_csv(script.MEANS, index_col=0, dtype=str))
    assert len(text.splitlines()) == 2 + 4
    for page in script.PAGES:
        shown = page.read_text("utf-8")
        assert script.filled(shown, text) == shown, f"python docs/benchmarks/readme_table.py renews {page.name}"


def test_means_of_the_benchmark_page_are_those_of_the_table():
    page = (ROOT / "docs" / "benchmark.md").read_text("utf-8").partition("| Mean of the tasks |")[2]
    lines = re.findall(r"^\| ([\w ]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", page, flags=re.MULTILINE)
    shown = pd.DataFrame(lines).set_index(0)
    means = pd.read_csv(script.MEANS, index_col=0, dtype=str)[["Macro-F1", "Tail recall", "Accuracy"]]
    both = [name for name in shown.index if name in means.index]
    assert len(both) >= 4
    assert shown.loc[both].to_numpy().tolist() == means.loc[both].to_numpy().tolist()


RUNS = pd.DataFrame(
    [
        ("a", "celler", 0, 0.9, 0.5, 0.5, 1.0),
        ("a", "celler", 1, 0.7, 0.3, 0.5, 3.0),
        ("b", "celler", 0, 0.4, np.nan, 0.5, 6.0),
        ("a", "scanvi", 0, 0.6, 0.8, 0.5, 9.0),
        ("a", "logreg", 0, 0.5, 0.1, 0.5, 0.2),
        ("a", "xgboost", 0, 0.3, 0.9, 0.5, 0.1),
        ("a", "celltypist", 0, 0.1, 0.0, 0.5, 0.3),
    ],
    columns=["task", "method", "seed", *script.SCORES],
)


def test_means_count_each_task_once():
    means = script.means(RUNS)
    assert means.loc["Celler"].tolist() == ["0.600", "0.400", "0.500", "4.0"]
    lines = script.table(means).splitlines()
    assert "| Celler | **0.600** | 0.400 | 4.0 |" in lines
    assert "| scANVI (trained with the query) | **0.600** | **0.800** | 9.0 |" in lines
    assert "| logistic regression | 0.500 | 0.100 | **0.2** |" in lines
    assert "gradient boosting" not in script.table(means)


def test_filled_needs_both_markers():
    page = f"above\n{script.START}old{script.END}\nbelow"
    assert script.filled(page, "new") == f"above\n{script.START}new{script.END}\nbelow"
    with pytest.raises(ValueError, match="the page has no"):
        script.filled("above", "new")


def test_main_renews_the_means_and_the_pages(tmp_path, monkeypatch, capsys):
    means, page, runs = tmp_path / "means.csv", tmp_path / "README.md", tmp_path / "runs.csv"
    page.write_text(f"a\n\n{script.START}old{script.END}\n")
    RUNS.to_csv(runs, index=False)
    monkeypatch.setattr(script, "MEANS", means)
    monkeypatch.setattr(script, "PAGES", (page,))
    scripts.run(script, monkeypatch, runs)
    assert "| logistic regression | 0.500 | 0.100 | **0.2** |" in page.read_text()
    assert means.read_text().splitlines()[0] == "Mean of nine tasks,Macro-F1,Tail recall,Accuracy,Training (s)"
    assert "Celler" in capsys.readouterr().out


def test_figure_is_small_and_described():
    figure = ROOT / "docs" / "images" / "readme.png"
    assert figure.stat().st_size <= 200_000
    description = re.search(r"!\[([^]]+)\]\(docs/images/readme.png\)", (ROOT / "README.md").read_text("utf-8"))[1]
    assert len(description.split()) > 10
