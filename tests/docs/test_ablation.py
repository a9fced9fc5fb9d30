"""docs/benchmarks/ablation.py: the tables of its page by hand."""

import numpy as np
import pandas as pd
import pytest
import scripts
from scipy import stats

script = scripts.load("ablation")


@pytest.fixture
def rows():
    """Two sets, two seeds, three variants of two classes; the second set lacks balanced softmax."""
    rng = np.random.default_rng(0)
    made = []
    for dataset, seed, variant in [
        (dataset, seed, variant)
        for dataset in ("forebrain", "blood")
        for seed in range(2)
        for variant in ("Cross-entropy", "Balanced softmax", "GInf")
        if (dataset, variant) != ("blood", "Balanced softmax")
    ]:
        for name, frequency in (("x", "head"), ("y", "tail")):
            scores = dict(zip(("precision", "recall", "f1"), rng.random(3), strict=True))
            row = {"dataset": dataset, "seed": seed, "variant": variant, "class": name, "frequency": frequency}
            made.append(row | scores | {"accuracy": 0.5, "reference_cells": {"x": 90, "y": 9}[name]})
    return pd.DataFrame(made)


def cell(table: str, row: str, column: str) -> str:
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in table.splitlines()]
    return next(line for line in lines if line[0] == row)[lines[0].index(column)]


def macro_f1(rows: pd.DataFrame, dataset: str, variant: str) -> np.ndarray:
    part = rows[(rows["dataset"] == dataset) & (rows["variant"] == variant)]
    return 100 * part.groupby("seed")["f1"].mean().to_numpy()


def test_over_sets_counts_sets_and_pairs(rows):
    table = script.over_sets(rows)
    ours = macro_f1(rows, "forebrain", "Balanced softmax")
    gain = ours - macro_f1(rows, "forebrain", "Cross-entropy")
    assert cell(table, "Balanced softmax", "sets") == "1"
    assert cell(table, "GInf", "sets") == "2"
    assert cell(table, "Balanced softmax", "Macro-F1") == f"{ours.mean():.1f}"
    assert cell(table, "Balanced softmax", "Δ Macro-F1") == f"{gain.mean():+.1f} ± {gain.std(ddof=1):.1f}"


def test_by_set_names_the_seeds(rows):
    table = script.by_set(rows, "f1")
    ours = macro_f1(rows, "blood", "GInf")
    assert cell(table, "GInf", "blood (2)") == f"{ours.mean():.1f} ± {ours.std(ddof=1):.1f}"
    assert cell(table, "Balanced softmax", "blood (2)") == "–"


def test_steps_compare_with_the_recipe_before(rows):
    table = script.steps(rows, "f1")
    means = rows[rows["dataset"] == "forebrain"].groupby(["variant", "class"])["f1"].mean()
    gain = 100 * (means["GInf"] - means["Balanced softmax"])
    low, high = stats.ttest_1samp(gain, 0).confidence_interval(0.95)
    step = "GInf − Balanced softmax"
    assert cell(table, step, "forebrain") == f"{gain.mean():+.1f} ± {(high - low) / 2:.1f}"
    assert cell(table, step, "blood") == "–"
    assert cell(table, step, "mean of sets") == f"{gain.mean():+.1f}"
    assert "Default" not in table
    tail = script.steps(rows, "tail recall")
    means = rows[(rows["class"] == "y") & (rows["dataset"] == "forebrain")].groupby("variant")["recall"].mean()
    assert cell(tail, step, "forebrain") == f"{100 * (means['GInf'] - means['Balanced softmax']):+.1f}"
