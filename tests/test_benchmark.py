"""Benchmarks: thinning, splits, tables against pandas by hand, and an ablation that is stopped and goes on."""

import warnings

import numpy as np
import pandas as pd
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from sklearn.metrics import accuracy_score, f1_score

from celler.benchmark import (
    Variant,
    ablation,
    ablation_figure,
    ablation_table,
    ablation_text,
    long_tail_split,
    thin,
)
from celler.benchmark import _ablation as module
from celler.benchmark._ablation import VARIANTS
from celler.cli import _main as cli
from celler.losses import DEFAULT, HDM, CrossEntropy, GInf
from celler.mining import Replay
from celler.model import Celler

TWO = {"Cross-entropy": Variant(CrossEntropy()), "ours": Variant(HDM(), Replay())}


def counts_of(labels) -> dict[str, int]:
    return pd.Series(labels).value_counts().to_dict()


# ---- the task ----


def test_a_profile_worked_by_hand(rng):
    """200 of the largest, 100:1 over three classes: 200, 200 / 10, 200 / 100; never below five."""
    labels = rng.permutation(np.repeat(["a", "b", "c"], [200, 190, 180]))
    assert counts_of(labels[thin(labels, 100, rng=rng)]) == {"a": 200, "b": 20, "c": 5}
    assert counts_of(labels[thin(labels, 100, at_least=1, rng=rng)]) == {"a": 200, "b": 20, "c": 2}
    assert counts_of(labels[thin(labels, 1, rng=rng)]) == {"a": 200, "b": 190, "c": 180}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=8), st.floats(1, 200), st.integers(0, 99))
def test_thinning_keeps_the_order_of_the_classes_and_repeats_itself(sizes, imbalance, seed):
    labels = np.repeat([f"type {i}" for i in range(len(sizes))], sizes)
    rows = [thin(labels, imbalance, rng=np.random.default_rng(seed)) for _ in range(2)]
    np.testing.assert_array_equal(*rows)
    assert (np.diff(rows[0]) > 0).all()
    before, after = counts_of(labels), counts_of(labels[rows[0]])
    by_size = sorted(before, key=lambda name: (-before[name], name))
    kept = [after[name] for name in by_size]
    assert kept[0] == max(sizes)
    assert all(min(5, before[name]) <= after[name] <= before[name] for name in before)
    assert all(n <= max(5, m) for m, n in zip(kept, kept[1:], strict=False))


def test_the_split_halves_each_type_and_thins_the_reference_alone():
    adata = toy.cells(400)
    adata.obs["other"] = np.arange(400)
    before = toy.snapshot(adata)
    reference, query = long_tail_split(adata, "cell_type", imbalance=50, seed=3)
    toy.assert_unchanged(adata, before)
    all_counts, kept = counts_of(toy.truth(adata)), counts_of(toy.truth(reference))
    assert not set(reference.obs_names) & set(query.obs_names)
    for name, n in counts_of(toy.truth(query)).items():
        assert abs(n - all_counts[name] / 2) <= 1
    assert min(kept.values()) == 5
    for part in (reference, query):
        original = adata[part.obs_names]
        np.testing.assert_array_equal(part.X.toarray(), original.X.toarray())
        assert (toy.truth(part) == toy.truth(original)).all()
    again = long_tail_split(adata, "cell_type", imbalance=50, seed=3)
    other = long_tail_split(adata, "cell_type", imbalance=50, seed=4)
    assert list(again[0].obs_names) == list(reference.obs_names)
    assert list(other[0].obs_names) != list(reference.obs_names)


def test_cells_that_cannot_be_split():
    adata = toy.cells(60)
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[:2] = None
    labels.iloc[5] = "alone"
    adata.obs["gaps"] = labels
    message = r"2 cells without a label and 1 types of a single cell \['alone'\]; leave them out"
    with pytest.raises(ValueError, match=message):
        long_tail_split(adata, "gaps")
    with pytest.raises(KeyError, match="labels_key='nothing' is not a column"):
        long_tail_split(adata, "nothing")
    with pytest.raises(ValueError, match=r"imbalance=0\.5 was given"):
        long_tail_split(adata, "cell_type", imbalance=0.5)


# ---- the ablation ----


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


def test_rows_are_those_of_a_training_by_hand(data, rows):
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


def test_a_stopped_run_goes_on_where_it_was(data, rows, folder, monkeypatch, capsys):
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


def test_jobs_at_once_give_the_same(data, rows):
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


def test_the_table_worked_by_hand(made_up):
    table = ablation_table(made_up)
    seeds = {}
    for variant in TWO:
        ours = made_up[made_up["variant"] == variant]
        tail = ours[ours["frequency"] == "tail"]
        seeds[variant] = [
            100
            * np.mean([tail[(tail.dataset == d) & (tail.seed == s)]["recall"].mean() for d in "ab"])
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


def test_the_figure_shows_mean_f1_against_size(made_up):
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


def test_the_variants_are_the_papers_table():
    *_, both, default = VARIANTS
    assert VARIANTS[both] == Variant(HDM(base=GInf(0.1, 0, 1)), Replay())
    assert VARIANTS[default] == Variant(DEFAULT, Replay())
    assert [name for name, variant in VARIANTS.items() if variant.replay] == [both, default]


# ---- the command ----


def test_the_command_prints_the_table_and_writes_files(data, tmp_path, capsys, monkeypatch):
    adata = data["one"].copy()
    adata.obs["is_poor"] = np.arange(adata.n_obs) < 10
    adata.write_h5ad(tmp_path / "cells.h5ad")
    seen = {}

    def few(data, labels_key, **options):
        seen.update(options, n_obs=[adata.n_obs for adata in data.values()])
        return run(data, options["file"], labels_key, seeds=options["seeds"])

    monkeypatch.setattr("celler.benchmark.ablation", few)
    arguments = ["benchmark", "ablation", "--data", str(tmp_path / "cells.h5ad"), "--labels-key"]
    options = ["--seeds", "1", "--exclude-key", "is_poor", "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "cell_type", *options]) == 0
    printed = capsys.readouterr().out
    assert "cells.h5ad: 290 cells, 10 left out" in printed
    assert "Cross-entropy" in printed
    assert "tail recall" in printed
    assert seen["n_obs"] == [290]
    assert seen["imbalance"] == 100
    assert (tmp_path / "out" / "ablation.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "out" / "ablation.csv")) == 2 * 4
    assert cli.main([*arguments, "nothing", "--out", str(tmp_path / "none")]) == 2
    assert "labels_key='nothing' is not a column" in capsys.readouterr().err
