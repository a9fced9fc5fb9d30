"""What the charts of sizes, scores and training draw, against pandas, scikit-learn and SciPy."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from pl_cases import annotated, curves, scores
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from celler import pl
from celler.metrics import expected_calibration_error, frequency_groups
from celler.pl._chart import apart
from celler.tl import evaluate

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _figures():
    with plt.style.context("default"):
        yield
    plt.close("all")


@pytest.fixture
def adata():
    return annotated()


def names_on(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


# ---- class_counts ----


def test_bars_are_the_counts_and_bands_those_of_the_metrics(adata):
    panel = pl.class_counts(adata, "cell_type", show=False)
    counts = adata.obs["cell_type"].value_counts()
    assert names_on(panel.yaxis) == list(counts.index)
    np.testing.assert_array_equal([bar.get_width() for bar in panel.containers[0]], counts)
    assert panel.get_xscale() == "log"
    bands = pd.Series(frequency_groups(counts.to_dict()))
    for band, names in bands.groupby(bands):
        share = counts[names.index].sum() / counts.sum()
        assert f"{band}: {len(names)}, {share:.1%} of cells" in [t.get_text() for t in panel.texts]
    colors = [to_hex(bar.get_facecolor()) for bar in panel.containers[0]]
    assert len(set(colors)) == bands.nunique()
    adata.uns["cell_type_colors"] = [f"#{i}0{i}0{i}0" for i in range(6)]
    panel = pl.class_counts(adata, "cell_type", show=False)
    own = dict(
        zip(adata.obs["cell_type"].cat.categories, adata.uns["cell_type_colors"], strict=True)
    )
    assert [to_hex(bar.get_facecolor()) for bar in panel.containers[0]] == [
        own[n] for n in counts.index
    ]


def test_counts_may_be_counted_already(adata):
    counts = adata.obs["cell_type"].value_counts()
    table = evaluate(adata, "cell_type", "celler").per_class
    for given in (counts, counts.to_dict(), table, table.reset_index()):
        panel = pl.class_counts(given, show=False)
        assert names_on(panel.yaxis) == list(counts.index)
        np.testing.assert_array_equal([bar.get_width() for bar in panel.containers[0]], counts)
    with pytest.raises(TypeError, match="data=AnnData was given without a key; pass key="):
        pl.class_counts(adata)
    with pytest.raises(TypeError, match="tables=AnnData was given; pass a table"):
        pl.f1_by_frequency(adata)
    with pytest.raises(KeyError, match="no column 'reference_cells'. Closest: 'reference_cell'"):
        pl.class_counts(table.rename(columns={"reference_cells": "reference_cell"}))


def test_a_class_without_cells_and_cells_without_a_class(adata):
    panel = pl.class_counts({"a": 100, "b": 0}, show=False)
    assert names_on(panel.yaxis) == ["a", "b"]
    assert len(panel.containers[0]) == 1
    assert "0" in [text.get_text() for text in panel.texts]
    adata.obs["cell_type"] = adata.obs["cell_type"].where(adata.obs["donor"] == "donor 0")
    with pytest.warns(UserWarning, match=r"Left out \d+ of 600 cells") as caught:
        pl.class_counts(adata, "cell_type", show=False)
    assert caught[0].filename == __file__


# ---- f1_by_frequency ----


def points(panel):
    """F1 by size of each method, as drawn."""
    drawn = [item for item in panel.collections if isinstance(item, mpl.collections.PathCollection)]
    return [item.get_offsets() for item in drawn]


def test_f1_is_drawn_by_size(adata):
    tables = scores(adata)
    panel = pl.f1_by_frequency(tables, show=False)
    for drawn, table in zip(points(panel), tables.values(), strict=True):
        table = table.sort_values("reference_cells", kind="stable")
        np.testing.assert_allclose(drawn[:, 0], table["reference_cells"], rtol=0.1)
        np.testing.assert_allclose(drawn[:, 1], table["f1"])
    assert [text.get_text() for text in panel.get_legend().get_texts()] == list(tables)
    names = [text.get_text() for text in panel.texts if text.get_rotation() == 90]
    assert names == list(table.index)


def test_flat_lines_are_the_means_of_the_bands(adata):
    tables = scores(adata)
    panel = pl.f1_by_frequency(tables, show=False)
    counts = adata.obs["cell_type"].value_counts().to_dict()
    bands = pd.Series(frequency_groups(counts))
    lines = [item for item in panel.collections if isinstance(item, mpl.collections.LineCollection)]
    flat = {tuple(segment[:, 1]) for item in lines for segment in item.get_segments()}
    for table in tables.values():
        for band in bands.unique():
            mean = table.loc[bands.index[bands == band], "f1"].mean()
            assert any(np.allclose(line, mean) for line in flat)
    # the groups of the table count, not those of the classes that are drawn
    only_tail = next(iter(tables.values())).assign(frequency="tail")
    panel = pl.f1_by_frequency(only_tail, show=False)
    assert [t.get_text() for t in panel.texts if t.get_rotation() == 0] == ["tail"]


def test_one_table_a_tidy_one_and_an_evaluation(adata):
    result = evaluate(adata, "cell_type", "celler")
    alone = points(pl.f1_by_frequency(result, show=False))[0]
    panel = pl.f1_by_frequency(result.per_class.reset_index(), show=False)
    np.testing.assert_allclose(points(panel)[0], alone)
    assert panel.get_legend() is None
    seeds = [result.per_class.assign(method="one", f1=f1) for f1 in (0.2, 0.6)]
    tidy = pd.concat([*seeds, result.per_class.assign(method="two")])
    one, two = points(pl.f1_by_frequency(tidy, show=False))
    np.testing.assert_allclose(one[:, 1], 0.4)
    np.testing.assert_allclose(two, alone)
    named = points(pl.f1_by_frequency({"one": seeds[0], "two": result}, show=False))
    np.testing.assert_allclose(named[1], alone)


def test_f1_of_classes_the_reference_lacks_or_one_method():
    table = pd.DataFrame(
        {"class": ["a", "b", "c"], "reference_cells": [0, 0, 50], "f1": [0, 0.1, 0.9]}
    )
    part = table.iloc[1:].assign(f1=0.5)
    panel = pl.f1_by_frequency({"all": table, "part": part}, show=False)
    assert "0" in names_on(panel.xaxis)
    first, second = points(panel)
    assert len(first) == 3
    assert np.isfinite(second[:, 1]).sum() == 2 or len(second) == 2
    assert first[1, 0] > first[0, 0], "classes of the same size are drawn side by side"
    with pytest.raises(ValueError, match="There is no class to draw"):
        pl.f1_by_frequency(table.iloc[:0])
    with pytest.raises(KeyError, match="no column 'f1'. Closest: 'F1'"):
        pl.f1_by_frequency({"x": table.rename(columns={"f1": "F1"})})


def test_names_are_moved_no_further_than_they_need():
    np.testing.assert_allclose(apart(np.array([0.2, 0.5, 0.8]), 0.1), [0.2, 0.5, 0.8])
    np.testing.assert_allclose(apart(np.array([0.5, 0.5, 0.5]), 0.1), [0.4, 0.5, 0.6])
    np.testing.assert_allclose(apart(np.array([0.98, 0.99]), 0.1), [0.9, 1.0])
    np.testing.assert_allclose(apart(np.array([0.0, 0.01]), 0.1), [0.0, 0.1])


# ---- confidence ----


def test_confidence_by_label_is_pandas_quantiles(adata):
    panels = pl.confidence(adata, show=False)
    by_label = adata.obs.groupby("celler", observed=True)["celler_confidence"]
    order = by_label.median().sort_values(ascending=False).index
    sizes = by_label.size()
    assert names_on(panels["labels"].yaxis) == [f"{name} ({sizes[name]})" for name in order]
    thin, thick, dots = panels["labels"].collections
    for lines, ends in ((thin, (0.05, 0.95)), (thick, (0.25, 0.75))):
        for end, q in enumerate(ends):
            drawn = [segment[end, 0] for segment in lines.get_segments()]
            np.testing.assert_allclose(drawn, by_label.quantile(q)[order])
    np.testing.assert_allclose(dots.get_offsets()[:, 0], by_label.median()[order])


def test_the_least_sure_cells_lie_on_top(adata):
    dots = pl.confidence(adata, show=False)["embedding"].collections[0]
    order = np.argsort(-adata.obs["celler_confidence"].to_numpy(), kind="stable")
    np.testing.assert_array_equal(dots.get_offsets(), adata.obsm["X_umap"][order])
    np.testing.assert_array_equal(
        dots.get_array(), adata.obs["celler_confidence"].to_numpy()[order]
    )
    assert dots.get_clim() == (0, 1)


def test_basis(adata):
    adata.obsm["mine"] = adata.obsm["X_umap"] + 1
    for basis, key in (("umap", "X_umap"), ("mine", "mine"), ("X_umap", "X_umap")):
        dots = pl.confidence(adata, basis=basis, show=False)["embedding"].collections[0]
        drawn = np.sort(dots.get_offsets()[:, 0])
        np.testing.assert_allclose(drawn, np.sort(adata.obsm[key][:, 0]))
    assert isinstance(pl.confidence(adata, basis=None, show=False), mpl.axes.Axes)
    assert isinstance(pl.confidence(adata.obs, show=False), mpl.axes.Axes)
    with pytest.raises(
        KeyError, match=r"basis='X_umpa' is not in adata.obsm. Closest: 'X_umap'.*None"
    ):
        pl.confidence(adata, basis="X_umpa")
    adata.obsm["thin"] = adata.obsm["X_umap"][:, :1]
    with pytest.raises(ValueError, match=r"has the shape \(600, 1\); 2 columns are needed"):
        pl.confidence(adata, basis="thin")


def test_cells_without_a_confidence(adata):
    adata.obs.loc[adata.obs["donor"] == "donor 0", "celler_confidence"] = np.nan
    n_missing = (adata.obs["donor"] == "donor 0").sum()
    for draw in (
        lambda: pl.confidence(adata, show=False),
        lambda: pl.reliability(adata, "cell_type", "celler", show=False),
    ):
        with pytest.warns(UserWarning, match=f"Left out {n_missing} of 600 cells") as caught:
            draw()
        assert caught[0].filename == __file__
    adata.obs["celler_confidence"] = np.nan
    with pytest.raises(ValueError, match="No cell can be drawn"):
        pl.confidence(adata)
    adata.obs["celler_confidence"] = 97.5
    with pytest.raises(ValueError, match=r"holds 97.5; probabilities from 0 to 1"):
        pl.confidence(adata)
    with pytest.raises(ValueError, match="confidence_key='donor' holds .*; a column of numbers"):
        pl.confidence(adata, confidence_key="donor")


# ---- reliability ----


def test_dots_are_sklearns_calibration_curve(adata):
    panel = pl.reliability(adata, "cell_type", "celler", n_bins=8, show=False)
    is_correct = (adata.obs["cell_type"].astype(str) == adata.obs["celler"].astype(str)).to_numpy()
    confidence = adata.obs["celler_confidence"].to_numpy()
    accuracy, mean = calibration_curve(is_correct, confidence, n_bins=8)
    curve = next(line for line in panel.lines if line.get_label() == "accuracy")
    np.testing.assert_allclose(curve.get_xdata(), mean)
    np.testing.assert_allclose(curve.get_ydata(), accuracy)
    n_cells = np.histogram(confidence, np.linspace(0, 1, 9))[0]
    n_cells = n_cells[n_cells > 0]
    np.testing.assert_allclose([bar.get_height() for bar in panel.patches], n_cells / 600)
    for segment, share, n in zip(
        panel.collections[0].get_segments(), accuracy, n_cells, strict=True
    ):
        interval = binomtest(round(share * n), n).proportion_ci(method="wilson")
        np.testing.assert_allclose(segment[:, 1], [interval.low, interval.high], atol=1e-4)
    error = expected_calibration_error(confidence, is_correct, 8)
    title = panel.get_legend().get_title().get_text()
    assert title == f"ECE {error:.3f}\naccuracy {is_correct.mean():.3f}\n600 cells"


def test_reliability_of_a_column_that_says_what_is_right(adata):
    is_correct = adata.obs["cell_type"].astype(str) == adata.obs["celler"].astype(str)
    table = pd.DataFrame({"right": is_correct, "p": adata.obs["celler_confidence"]})
    panel = pl.reliability(table, correct_key="right", confidence_key="p", show=False)
    expected = pl.reliability(adata, "cell_type", "celler", show=False)
    for one, other in zip(panel.lines, expected.lines, strict=True):
        np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())
    for wrong in (
        {},
        {"truth_key": "right"},
        {"correct_key": "right"},
        {"correct_key": "right", "truth_key": "right", "prediction_key": "right"},
    ):
        with pytest.raises(
            ValueError, match="Pass truth_key and prediction_key, or correct_key and"
        ):
            pl.reliability(table, **wrong)


# ---- history ----


def test_history_draws_each_curve():
    table = curves()
    panels = pl.history(table, show=False)
    drawn = {
        (name, line.get_label()): line for name, panel in panels.items() for line in panel.lines
    }
    for key, column in {
        ("loss", "training"): "train_loss",
        ("loss", "validation"): "validation_loss",
        ("macro_f1", "validation"): "validation_macro_f1",
        ("replayed", "training"): "replayed_share",
    }.items():
        np.testing.assert_array_equal(drawn[key].get_ydata(), table[column])
        np.testing.assert_array_equal(drawn[key].get_xdata(), table.index)
    band = panels["macro_f1"].collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx((table["validation_macro_f1"] + 0.03).max())
    assert band[:, 1].min() == pytest.approx((table["validation_macro_f1"] - 0.03).min())


def test_history_without_validation_or_replay():
    table = curves(1)
    assert isinstance(pl.history(table[["train_loss"]], show=False), mpl.axes.Axes)
    assert list(pl.history(table[["train_loss", "replayed_share"]], show=False)) == [
        "loss",
        "replayed",
    ]
    table["validation_macro_f1"] = np.nan
    assert list(pl.history(table, show=False)) == ["loss", "replayed"]
    with pytest.raises(KeyError, match="curves has no values of train_loss, .*: elbo"):
        pl.history(pd.DataFrame({"elbo": [1.0]}))
    with pytest.raises(TypeError, match="curves=AnnData was given"):
        pl.history(annotated())
    with pytest.raises(TypeError, match=r"curves=None was given; pass model.history of a trained"):
        pl.history(None)
