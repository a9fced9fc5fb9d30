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


def macro_f1(rows: pd.DataFrame, dataset: str, variant: str) -> np.ndarray:
    part = rows[(rows["dataset"] == dataset) & (rows["variant"] == variant)]
    return 100 * part.groupby("seed")["f1"].mean().to_numpy()


def test_over_sets_counts_sets_and_pairs(rows):
    table = script.over_sets(rows)
    ours = macro_f1(rows, "forebrain", "Balanced softmax")
    gain = ours - macro_f1(rows, "forebrain", "Cross-entropy")
    assert table["Sets"].to_dict() == {"Cross-entropy": 2, "Balanced softmax": 1, "GInf": 2}
    assert table.loc["Balanced softmax", "Macro-F1"] == f"{ours.mean():.1f}"
    assert table.loc["Balanced softmax", "Δ Macro-F1"] == f"{gain.mean():+.1f} ± {gain.std(ddof=1):.1f}"


def test_by_set_names_missing_seeds(rows):
    rows = rows[(rows["seed"] == 0) | (rows["variant"] != "Cross-entropy") | (rows["dataset"] == "blood")]
    table = script.by_set(rows, "f1")
    ours = macro_f1(rows, "blood", "GInf")
    assert table.loc["GInf", "blood"] == f"{ours.mean():.1f} ± {ours.std(ddof=1):.1f}"
    assert table.loc["Balanced softmax", "blood"] == "–"
    assert table.loc["Cross-entropy", "forebrain"] == f"{macro_f1(rows, 'forebrain', 'Cross-entropy')[0]:.1f} (1)"


def test_steps_compare_with_the_recipe_before(rows):
    table = script.steps(rows, "f1")
    means = rows[rows["dataset"] == "forebrain"].groupby(["variant", "class"])["f1"].mean()
    gain = 100 * (means["GInf"] - means["Balanced softmax"])
    low, high = stats.ttest_1samp(gain, 0).confidence_interval(0.95)
    step = "GInf − Balanced softmax"
    assert table.loc[step, "forebrain"] == f"{gain.mean():+.1f} ± {(high - low) / 2:.1f}"
    assert table.loc[step, "blood"] == "–"
    assert table.loc[step, "mean of sets"] == f"{gain.mean():+.1f}"
    assert not table.index.str.contains("Default").any()
    tail = script.steps(rows, "tail recall")
    means = rows[(rows["class"] == "y") & (rows["dataset"] == "forebrain")].groupby("variant")["recall"].mean()
    assert tail.loc[step, "forebrain"] == f"{100 * (means['GInf'] - means['Balanced softmax']):+.1f}"
