"""Ablation: rows and tables by hand, and continuing after a stop."""

import warnings

import numpy as np
import pandas as pd
import pytest
import toy
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

from celler.benchmark import (
    Variant,
    ablation,
    ablation_figure,
    ablation_table,
    ablation_text,
    group_split,
    long_tail_split,
)
from celler.benchmark import _ablation as module
from celler.benchmark._ablation import VARIANTS
from celler.benchmark._rivals import HierarchicalCrossEntropy, LogitAdjustment, PairwiseCorrection
from celler.losses import HDM, CrossEntropy, GInf
from celler.mining import Replay
from celler.model import Celler

TWO = {"Cross-entropy": Variant(CrossEntropy()), "ours": Variant(HDM(), Replay())}


def counts_of(labels) -> dict[str, int]:
    return pd.Series(labels).value_counts().to_dict()


@pytest.fixture(scope="module")
def data():
    return {"one": toy.cells(300), "two": toy.cells(260, seed=1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ablation")


@pytest.fixture(scope="module")
def rows(data, folder):
    return run(data, folder / "rows.csv")


def run(data, file=None, labels_key="cell_type", **options) -> pd.DataFrame:
    options = {"variants": TWO, "seeds": range(2), "imbalance": 10, "max_epochs": 2} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes of few cells, on purpose
        return ablation(data, labels_key, file=file, **options)


def test_ablation_rows_match_a_training_by_hand(data, rows):
    assert len(rows) == 2 * 2 * 2 * 4
    reference, query = long_tail_split(data["two"], "cell_type", imbalance=10, seed=1)
    Celler.setup_anndata(reference, labels_key="cell_type")
    model = Celler(reference)
    model.train(2, loss=HDM(), replay=Replay(), seed=1, show_progress=False)
    labels, truth = model.predict(query), toy.truth(query)
    one = rows[(rows["dataset"] == "two") & (rows["seed"] == 1) & (rows["variant"] == "ours")]
    one = one.set_index("class")
    f1 = f1_score(truth, labels, average=None, labels=one.index)
    np.testing.assert_allclose(one["f1"], f1)
    assert (one["accuracy"] == accuracy_score(truth, labels)).all()
    assert one["reference_cells"].to_dict() == counts_of(toy.truth(reference))
    assert (one["seconds"] > 0).all()


def test_ablation_continues_after_a_stop(data, rows, folder, monkeypatch, capsys):
    file = folder / "rows.csv"
    part = pd.read_csv(file).iloc[: 3 * 4]  # three of eight trainings
    stopped = folder / "stopped.csv"
    part.to_csv(stopped, index=False)
    trained = []
    train = module._train
    monkeypatch.setattr(module, "_train", lambda *a: trained.append(a[2]) or train(*a))
    again = run(data, stopped)
    assert len(trained) == 5
    assert "[5/5]" in capsys.readouterr().out
    order = ["dataset", "seed", "variant", "class"]
    columns = [name for name in rows.columns if name != "seconds"]
    pd.testing.assert_frame_equal(
        again.sort_values(order, ignore_index=True)[columns],
        rows.sort_values(order, ignore_index=True)[columns],
    )
    assert run(data, stopped).shape == rows.shape
    assert len(trained) == 5, "nothing was left to train"
    other = run(data, stopped, imbalance=20, seeds=[0])
    assert len(trained) == 5 + 4, "another recipe is another run"
    assert set(other["seed"]) == {0}
    assert len(other) == 2 * 2 * 4


@pytest.mark.slow
def test_ablation_with_parallel_jobs(data, rows):
    parallel = run({"one": data["one"]}, n_jobs=2, seeds=[0])
    same = rows[(rows["dataset"] == "one") & (rows["seed"] == 0)]
    merged = parallel.merge(same, on=["variant", "class"])
    np.testing.assert_allclose(merged["f1_x"], merged["f1_y"])
    assert len(merged) == 8


@pytest.fixture
def made_up():
    """Two data sets, three seeds and two variants of three classes, with scores to compute by hand."""
    rng = np.random.default_rng(0)
    rows = []
    for dataset in ("a", "b"):
        for seed in range(3):
            for variant in TWO:
                for name, frequency in (("x", "head"), ("y", "tail"), ("z", "tail")):
                    row = {"dataset": dataset, "seed": seed, "variant": variant, "class": name}
                    scores = dict(zip(("precision", "recall", "f1"), rng.random(3), strict=True))
                    size = {"reference_cells": {"x": 90, "y": 9, "z": 5}[name]}
                    rows.append(row | scores | size | {"frequency": frequency, "accuracy": 0.5})
    return pd.DataFrame(rows)


def test_ablation_table_matches_numpy(made_up):
    table = ablation_table(made_up)
    seeds = {}
    for variant in TWO:
        ours = made_up[made_up["variant"] == variant]
        tail = ours[ours["frequency"] == "tail"]
        seeds[variant] = [
            100 * np.mean([tail[(tail.dataset == d) & (tail.seed == s)]["recall"].mean() for d in "ab"])
            for s in range(3)
        ]
    ours, baseline = np.array(seeds["ours"]), np.array(seeds["Cross-entropy"])
    row = table.loc["ours", "tail recall"]
    assert row["mean"] == pytest.approx(ours.mean())
    assert row["sd"] == pytest.approx(ours.std(ddof=1))
    assert row["gain"] == pytest.approx((ours - baseline).mean())
    assert row["gain sd"] == pytest.approx((ours - baseline).std(ddof=1))
    assert (table.loc["Cross-entropy"].xs("gain", level=1) == 0).iloc[[0, 1, 2, 3, 5, 6]].all()
    assert table.loc["ours", ("accuracy", "mean")] == 50
    assert np.isnan(table.loc["ours", ("medium recall", "mean")]), "there is no medium class"
    text = ablation_text(table)
    assert f"{ours.mean():.1f} ± {ours.std(ddof=1):.1f}" in text
    assert f"{(ours - baseline).mean():+.1f} ± " in text


def test_ablation_figure_draws_mean_f1_by_size(made_up):
    figure = ablation_figure(made_up)
    try:
        assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
        lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
        assert list(lines) == list(TWO)
        assert len({line.get_color() for line in lines.values()}) == 2
        ours = made_up[(made_up["variant"] == "ours") & (made_up["dataset"] == "b")]
        np.testing.assert_array_equal(lines["ours"].get_xdata(), [5, 9, 90])
        means = ours.groupby("class")["f1"].mean()
        np.testing.assert_allclose(lines["ours"].get_ydata(), means[["z", "y", "x"]])
        assert figure.axes[0].get_xscale() == "log"
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert legend == list(TWO)
    finally:
        plt.close(figure)


def test_ablation_figure_averages_many_classes():
    sizes, f1 = np.arange(1, 37), np.linspace(0, 1, 36)
    sizes[:7] = 1
    rows = pd.DataFrame({"reference_cells": sizes, "f1": f1, "class": range(36), "dataset": "a", "variant": "one"})
    figure = ablation_figure(rows)
    try:
        (line,) = figure.axes[0].get_lines()
        np.testing.assert_allclose(line.get_xdata(), [1, 8.5, *sizes[9:].reshape(9, 3).mean(1)])
        np.testing.assert_allclose(line.get_ydata(), [f1[:7].mean(), f1[7:9].mean(), *f1[9:].reshape(9, 3).mean(1)])
    finally:
        plt.close(figure)


def test_ablation_table_pairs_what_a_variant_has(made_up):
    """A variant that lacks a set is compared with the baseline on the others."""
    part = made_up[(made_up["variant"] == "Cross-entropy") | (made_up["dataset"] == "b")]
    table, alone = ablation_table(part), ablation_table(made_up[made_up["dataset"] == "b"])
    pd.testing.assert_series_equal(table.loc["ours"], alone.loc["ours"])


def test_variants_are_those_of_the_paper():
    assert VARIANTS["GInf + HDM + cells"] == Variant(HDM(base=GInf(0.1, 0, 1)), Replay())
    assert VARIANTS["Default"] == Variant(None, Replay(), encoder=None)


def test_ablation_shares_a_training_with_adjustments(data, monkeypatch):
    plain = Variant(CrossEntropy())
    variants = {
        "plain": plain,
        "adjusted": Variant(CrossEntropy(), adjustment=LogitAdjustment()),
        "pairwise": Variant(CrossEntropy(), adjustment=PairwiseCorrection()),
    }
    trained = []
    logits = module._logits
    monkeypatch.setattr(module, "_logits", lambda *a: trained.append(a) or logits(*a))
    rows = run({"one": data["one"]}, variants=variants, seeds=[1])
    reference, query = long_tail_split(data["one"], "cell_type", imbalance=10, seed=1)
    assert [len(a[0]) for a in trained] == [
        len(reference),
        sum((counts + 1) // 2 for counts in counts_of(toy.truth(reference)).values()),
    ]
    Celler.setup_anndata(reference, labels_key="cell_type")
    model = Celler(reference)
    model.train(2, loss=CrossEntropy(), replay=None, seed=1, show_progress=False)
    p, counts = model.predict(query, soft=True), pd.Series(toy.truth(reference)).value_counts()
    z = np.log(p) * model._state.decision.temperature - np.log(counts)
    for name, labels in (("plain", p.idxmax(axis=1)), ("adjusted", z.idxmax(axis=1))):
        one = rows[rows["variant"] == name].set_index("class")
        np.testing.assert_allclose(one["f1"], f1_score(toy.truth(query), labels, average=None, labels=one.index))
    pairwise, plain = (rows.loc[rows["variant"] == name, "f1"].to_numpy() for name in ("pairwise", "plain"))
    assert not np.allclose(pairwise, plain)


def test_ablation_by_groups_with_parents_and_defaults(data):
    adata = data["one"].copy()
    adata.obs["library"] = [f"lib {i % 4}" for i in range(adata.n_obs)]
    variants = {
        "hierarchical": Variant(HierarchicalCrossEntropy()),
        "default": Variant(None, Replay(), encoder=None),
        "new": Variant(CrossEntropy(), has_new_classifier=True),
        "logreg": Variant(method="logreg"),
    }
    options = {"variants": variants, "seeds": [0], "group_key": "library"}
    rows = run({"one": adata}, parent_keys=["parent_type", "other"], **options)
    reference, query = group_split(adata, "cell_type", "library", imbalance=10, seed=0)
    truth = toy.truth(query)
    Celler.setup_anndata(reference, labels_key="cell_type")
    model = Celler(reference)
    model.train(2, seed=0, show_progress=False)
    accuracy = rows.groupby("variant")["accuracy"].first()
    assert accuracy["default"] == pytest.approx(accuracy_score(truth, model.predict(query)))
    X, new = (np.log1p(1e4 * part.X.toarray() / part.X.toarray().sum(1, keepdims=True)) for part in (reference, query))
    regression = LogisticRegression(class_weight="balanced", max_iter=1000).fit(X, toy.truth(reference))
    assert accuracy["logreg"] == pytest.approx(accuracy_score(truth, regression.predict(new)), abs=0.011)
    assert accuracy["new"] > 0.6
    assert set(run({"one": adata}, **options)["variant"]) == set(variants) - {"hierarchical"}
