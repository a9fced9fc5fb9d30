"""Confidence: where the model is sure, and how often it is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from scipy.stats import binomtest

from celler._utils._check import checked
from celler._utils._messages import closest, warn
from celler.metrics import calibration_bins, expected_calibration_error
from celler.pl._chart import BESIDE, ROW, color_bar, name_rows, open_chart, shade, strip
from celler.pl._colors import stored_colors
from celler.pl._docs import document
from celler.tl._columns import label_column, share_column
from celler.tl._evaluate import read_pair

BLUE = "#0072B2"
EMBEDDING = (2.8, 5.6)  # least and largest side of the embedding
LOW_ROW = 0.15
N_TALL = 28  # labels beyond which rows are lower and their names smaller
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@document
@checked
def confidence(
    adata: AnnData | pd.DataFrame,
    key: str = "celler",
    *,
    basis: str | None = "X_umap",
    confidence_key: str | None = None,
    cmap: str | Colormap = "viridis",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Plot the confidence of predicted labels on an embedding and by label, the surest label first.

    By label, the dot is the median, and the thick and thin lines hold the middle 50 and 90 % of the cells. On the
    embedding, the least confident cells are drawn last.

    Parameters
    ----------
    adata
        Cells, or a table of them, which has no embedding.
    key
        Column with the predicted labels. Colours are those of ``adata.uns["<key>_colors"]``.
    basis
        Entry of ``adata.obsm``, with or without its ``X_``. None plots the labels only.
    $confidence_key
        None uses ``<key>_confidence``. Cells without a confidence are left out with a warning.
    cmap
        Colour map of confidences from 0 to 1 on the embedding.
    $panels_and_example
    >>> cl.pl.confidence(query, "celler")
    """
    key_of_values = f"{key}_confidence" if confidence_key is None else confidence_key
    labels = label_column(adata, key, "key")
    values = share_column(adata, key_of_values, "confidence_key")
    points = None if isinstance(adata, pd.DataFrame) or basis is None else _embedding(adata, basis)
    has_both = (labels.codes >= 0) & ~np.isnan(values)
    _check_left_out(has_both, f"no label in {key!r} or no number in {key_of_values!r}")
    by_label = pd.Series(values[has_both]).groupby(np.asarray(labels[has_both], dtype=str))
    spread = by_label.quantile(list(QUANTILES)).unstack().sort_values(0.5, ascending=False)
    n_rows, row = len(spread), ROW if len(spread) <= N_TALL else LOW_ROW
    sizes = {"labels": (2.5, row * n_rows)}
    if points is not None:
        side = float(np.clip(row * n_rows, *EMBEDDING))
        sizes = {"embedding": (side, side), "labels": (2.5, max(side, row * n_rows))}
    chart = open_chart(sizes, figsize, ax)
    if points is not None:
        order = np.flatnonzero(has_both)[np.argsort(-values[has_both], kind="stable")]
        _draw_embedding(chart.panels["embedding"], points[order], values[order], cmap)
        _name_axes(chart.panels["embedding"], str(basis))
    panel, colors = chart.panels["labels"], stored_colors(adata, key)
    strip(panel)
    panel.set(xlim=(0, 1), xlabel="confidence")
    panel.grid(axis="x", color=shade(0.92), lw=0.6)
    name_rows(panel, [f"{name} ({by_label.size()[name]:,})" for name in spread.index])
    if row < ROW:
        panel.tick_params(axis="y", labelsize="x-small")
    shades = [colors.get(name, BLUE) for name in spread.index]
    for (low, high), width in (((0.05, 0.95), 1.0), ((0.25, 0.75), 4.0)):
        panel.hlines(range(len(spread)), spread[low], spread[high], colors=shades, lw=width)
    panel.scatter(spread[0.5], range(len(spread)), s=20, c="white", edgecolors="0.15", zorder=3, clip_on=False)
    chart.arrange(title)
    return chart.finish(show=show, return_fig=return_fig, save=save)


@document
@checked
def reliability(
    adata: AnnData | pd.DataFrame,
    truth_key: str | None = None,
    prediction_key: str | None = None,
    *,
    correct_key: str | None = None,
    confidence_key: str | None = None,
    n_bins: int = 15,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Plot the reliability diagram: the accuracy of the cells at each confidence.

    Each dot is a bin of cells, at its mean confidence and its accuracy, with the 95 % interval of Wilson. The model is
    overconfident where dots are below the diagonal. Bars show the share of cells in each bin. ECE is
    :func:`celler.metrics.expected_calibration_error` over these bins.

    Parameters
    ----------
    $cells
    $labels
    correct_key
        Column that is true where the prediction is correct, instead of the two columns of labels.
    $confidence_key
        None uses ``<prediction_key>_confidence``. Cells without one are left out with a warning.
    n_bins
        Number of bins of equal width from 0 to 1.
    $layout_and_example
    >>> cl.pl.reliability(query, "cell_type", "celler")
    """
    values, is_correct = _outcomes(adata, truth_key, prediction_key, correct_key, confidence_key)
    bins = calibration_bins(values, is_correct, n_bins)
    n_correct = (bins["accuracy"] * bins["n_cells"]).round().astype(int)
    tests = [binomtest(*pair) for pair in zip(n_correct, bins["n_cells"], strict=True)]
    low, high = np.transpose([list(test.proportion_ci(method="wilson")) for test in tests])
    chart = open_chart({"main": (3.2, 3.2)}, figsize, ax)
    panel = chart.panels["main"]
    strip(panel)
    middles, shares = (bins.index.to_numpy() + 0.5) / n_bins, bins["n_cells"] / len(values)
    panel.bar(middles, shares, 1 / n_bins, color=shade(0.88), ec=shade(1), label="share of cells")
    panel.plot((0, 1), (0, 1), color=shade(0.6), lw=0.8, ls="--", label="perfect")
    panel.vlines(bins["confidence"], low, high, color=BLUE, lw=1)
    panel.plot(bins["confidence"], bins["accuracy"], "o-", color=BLUE, ms=4, lw=1, label="accuracy")
    panel.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy, share of cells")
    error = expected_calibration_error(values, is_correct, n_bins)
    text = f"ECE {error:.3f}\naccuracy {is_correct.mean():.3f}\n{len(values):,} cells"
    panel.legend(title=text, alignment="left", **BESIDE)
    chart.arrange(title)
    return chart.finish(show=show, return_fig=return_fig, save=save)


def _embedding(adata: AnnData, basis: str) -> np.ndarray:
    """Return the first two columns of an entry of obsm."""
    names = list(adata.obsm.keys())
    found = next((name for name in (basis, f"X_{basis}") if name in names), None)
    if found is None:
        raise KeyError(
            f"basis={basis!r} is not in adata.obsm.{closest(basis, names)} Pass one, or None to draw by label only."
        )
    points: np.ndarray = np.asarray(adata.obsm[found])
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError(f"adata.obsm[{found!r}] has the shape {points.shape}; 2 columns are needed.")
    return points[:, :2].astype(float)


def _draw_embedding(panel: Axes, points: np.ndarray, values: np.ndarray, cmap: str | Colormap) -> None:
    area = float(np.clip(30_000 / max(len(points), 1), 0.5, 20))
    x, y = points.T
    dots = panel.scatter(x, y, s=area, c=values, cmap=cmap, norm=Normalize(0, 1), lw=0, rasterized=True)
    panel.set(xticks=[], yticks=[])
    strip(panel)
    color_bar(panel, dots, "Confidence", down=0.3, corner=(0, 0))


def _name_axes(panel: Axes, basis: str) -> None:
    """Name the axes as scanpy does: UMAP1 and UMAP2 for "X_umap"."""
    name = basis.removeprefix("X_")
    name = {"pca": "PC", "tsne": "tSNE"}.get(name, name.upper())
    panel.set_xlabel(f"{name}1", loc="left", fontsize="small")
    panel.set_ylabel(f"{name}2", loc="bottom", fontsize="small")


def _outcomes(
    adata: AnnData | pd.DataFrame,
    truth_key: str | None,
    prediction_key: str | None,
    correct_key: str | None,
    confidence_key: str | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence of each cell that has one, and whether its label is correct."""
    has_pair = truth_key is not None and prediction_key is not None
    if has_pair == (correct_key is not None) or not (has_pair or confidence_key):
        raise ValueError("Pass truth_key and prediction_key, or correct_key and confidence_key.")
    key = f"{prediction_key}_confidence" if confidence_key is None else confidence_key
    values = share_column(adata, key, "confidence_key")
    outcome = np.full(len(values), np.nan)
    if truth_key is not None and prediction_key is not None:
        cells = read_pair(adata, truth_key, prediction_key, warns=False)
        outcome[cells.rows] = cells.truth == cells.prediction
    elif correct_key is not None:
        outcome = share_column(adata, correct_key, "correct_key")
    is_known = ~np.isnan(values) & ~np.isnan(outcome)
    _check_left_out(is_known, f"no number in {key!r} or nothing to compare")
    return values[is_known], outcome[is_known]


def _check_left_out(is_kept: np.ndarray, why: str) -> None:
    """Warn of cells that are not drawn; raise an error if none is left."""
    if not is_kept.any():
        raise ValueError(f"No cell can be drawn: {why}.")
    if n_missing := int((~is_kept).sum()):
        warn(f"Left out {n_missing:,} of {len(is_kept):,} cells, {why}.")
