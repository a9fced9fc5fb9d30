"""Confidence by label and on an embedding, and calibration, against pandas, scikit-learn and SciPy."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from pl_cases import (
    names_on,
)
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from celler import pl
from celler.metrics import expected_calibration_error

mpl.use("Agg")


def test_confidence_equals_pandas_quantiles(adata):
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


def test_confidence_draws_the_least_confident_cells_last(adata):
    dots = pl.confidence(adata, show=False)["embedding"].collections[0]
    order = np.argsort(-adata.obs["celler_confidence"].to_numpy(), kind="stable")
    np.testing.assert_array_equal(dots.get_offsets(), adata.obsm["X_umap"][order])
    np.testing.assert_array_equal(dots.get_array(), adata.obs["celler_confidence"].to_numpy()[order])
    assert dots.get_clim() == (0, 1)


def test_confidence_names_the_axes_and_leaves_no_corner_empty(adata):
    adata.obsm["X_pca"] = adata.obsm["X_umap"]
    for basis, names in (("X_umap", ("UMAP1", "UMAP2")), ("X_pca", ("PC1", "PC2"))):
        panels = pl.confidence(adata, basis=basis, show=False)
        assert (panels["embedding"].get_xlabel(), panels["embedding"].get_ylabel()) == names
    boxes = [panels[name].get_window_extent() for name in ("embedding", "labels")]
    assert boxes[1].height == pytest.approx(boxes[0].height, rel=0.02)


def test_confidence_with_a_basis_or_none(adata):
    adata.obsm["mine"] = adata.obsm["X_umap"] + 1
    for basis, key in (("umap", "X_umap"), ("mine", "mine"), ("X_umap", "X_umap")):
        dots = pl.confidence(adata, basis=basis, show=False)["embedding"].collections[0]
        drawn = np.sort(dots.get_offsets()[:, 0])
        np.testing.assert_allclose(drawn, np.sort(adata.obsm[key][:, 0]))
    assert isinstance(pl.confidence(adata, basis=None, show=False), mpl.axes.Axes)
    assert isinstance(pl.confidence(adata.obs, show=False), mpl.axes.Axes)
    with pytest.raises(KeyError, match=r"basis='X_umpa' is not in adata.obsm. Closest: 'X_umap'.*None"):
        pl.confidence(adata, basis="X_umpa")
    adata.obsm["thin"] = adata.obsm["X_umap"][:, :1]
    with pytest.raises(ValueError, match=r"has the shape \(600, 1\); 2 columns are needed"):
        pl.confidence(adata, basis="thin")


def test_confidence_and_reliability_without_a_confidence(adata):
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


def test_reliability_equals_sklearns_calibration_curve(adata):
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
    for segment, share, n in zip(panel.collections[0].get_segments(), accuracy, n_cells, strict=True):
        interval = binomtest(round(share * n), n).proportion_ci(method="wilson")
        np.testing.assert_allclose(segment[:, 1], [interval.low, interval.high], atol=1e-4)
    error = expected_calibration_error(confidence, is_correct, 8)
    title = panel.get_legend().get_title().get_text()
    assert title == f"ECE {error:.3f}\naccuracy {is_correct.mean():.3f}\n600 cells"


def test_reliability_with_a_column_of_correct_cells(adata):
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
        with pytest.raises(ValueError, match="Pass truth_key and prediction_key, or correct_key and"):
            pl.reliability(table, **wrong)
