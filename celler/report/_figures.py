"""Figures: the charts of a report, drawn with `pl` and embedded in the page."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from celler._utils._messages import collected, counted
from celler.pl._chart import name_legend, open_chart
from celler.pl._colors import color_classes, stored_colors
from celler.pl._confidence import confidence
from celler.pl._confusion import confusion
from celler.pl._markers import marker_bubble
from celler.report._annotation import Annotation

#: Largest SVG in bytes; a chart of more marks becomes a PNG.
MAX_SVG = 1_000_000
DPI = 150  # of a PNG, and of points that are drawn as one
N_POINTS = 2000  #: points of a panel beyond which they become a picture within the SVG
MAP = 4.2  # inches
#: Points of an embedding share this area, in points squared.
INK = 25_000
#: Embeddings that are drawn where none is named, in the order of preference.
BASES = ("X_umap", "X_tsne", "spatial", "X_spatial")
#: Text as shapes, since the fonts of a reader are not known; ids that do not change from run to run.
STYLE: list[Any] = ["default", {"svg.fonttype": "path", "svg.hashsalt": "celler"}]
N_TYPES = 60  #: types whose markers are drawn, the most frequent


@dataclass(frozen=True)
class Picture:
    """A chart in the page, or the reason why there is none."""

    source: str = ""  # a data: address
    alt: str = ""
    width: int = 0  # CSS pixels
    height: int = 0
    notes: tuple[str, ...] = ()  # what was left out


def draw(plot: Callable[[], object], alt: str) -> Picture:
    """Embed the figure that ``plot`` makes, in the default style whatever the user's."""
    before = set(plt.get_fignums())
    with plt.style.context(STYLE), warnings.catch_warnings(), collected() as notes:
        warnings.simplefilter("ignore")  # ours stand below the chart
        try:
            plot()
            return _embedded(plt.gcf(), alt, notes)
        except (KeyError, ValueError) as error:
            reason = str(error.args[0] if error.args else error)
            return Picture(notes=(f"This chart cannot be drawn: {reason}",))
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)


def _embedded(figure: Figure, alt: str, notes: list[str]) -> Picture:
    """Return a figure as SVG, or as PNG where that is large."""
    for panel in figure.axes:
        for points in panel.collections:
            points.set_rasterized(len(np.asarray(points.get_offsets())) > N_POINTS)
    svg = _saved(figure, "svg", metadata=dict.fromkeys(["Date", "Creator", "Format", "Type"]))
    found = re.search(rb'<svg[^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None
    width, height = (round(float(size) * 96 / 72) for size in found.groups())  # of points
    kind, data = ("svg+xml", svg) if len(svg) <= MAX_SVG else ("png", _saved(figure, "png"))
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(source, alt, width, height, tuple(notes))


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=DPI, bbox_inches="tight", facecolor="white", **options)
    return file.getvalue()


def markers_picture(found: Annotation) -> Picture:
    """Draw the markers of the reference's types in the cells of each label; without a record, the labels' own."""
    counts = found.labels.value_counts().sort_values(ascending=False)
    most = set(counts.index[:N_TYPES])
    shown = [str(name) for name in found.labels.categories if name in most]
    markers = {name: found.markers[name] for name in shown if name in found.markers}
    table = found.adata
    if len(shown) < len(counts):
        table = table[np.isin(found.names, shown)]
    whose = "markers of the reference's types" if markers else "genes that distinguish the labels"
    alt = f"Bubble chart of {whose}, by label: {counted(len(shown), 'labels')}."
    return draw(lambda: marker_bubble(table, markers or None, found.key, categories_order=shown, show=False), alt)


def clusters_picture(found: Annotation, cluster_key: str) -> Picture:
    """Draw the labels of each cluster."""
    alt = f"Share of each cluster of {cluster_key} that got each label, as a matrix of colours."
    return draw(lambda: confusion(found.adata.obs, cluster_key, found.key, show=False), alt)


def truth_picture(found: Annotation, truth_key: str, cells: pd.DataFrame) -> Picture:
    """Draw the labels of each true type, from a table with both columns."""
    alt = f"Share of the cells of each type of {truth_key} that got each label, as a matrix of colours."
    return draw(lambda: confusion(cells, truth_key, found.key, show=False), alt)


def basis_of(found: Annotation, basis: str | None) -> str | None:
    """Return the name in obsm of the embedding to draw; raise ``KeyError`` for one that is not there."""
    names = list(found.adata.obsm.keys())
    if basis is None:
        return next((name for name in BASES if name in names), None)
    for name in (basis, f"X_{basis}"):
        if name in names:
            return name
    raise KeyError(f"basis={basis!r} is not in adata.obsm. There are: {names}.")


def map_picture(found: Annotation, basis: str) -> Picture:
    """Draw the labels on an embedding, rare ones on top."""
    points = np.asarray(found.adata.obsm[basis])[:, :2].astype(float)
    colors = color_classes(list(found.labels.categories), stored_colors(found.adata, found.key))
    names = [str(name) for name in found.labels.value_counts().sort_values(ascending=False).index]
    alt = f"{counted(len(points), 'cells')} on two axes of {basis}, coloured by label; most are {', '.join(names[:3])}."

    def plot() -> None:
        chart = open_chart({"labels": (MAP, MAP)}, None, None)
        panel, size = chart.first, float(np.clip(INK / max(1, len(points)), 0.3, 30))
        for name in names:
            x, y = points[found.names == name].T
            panel.scatter(x, y, color=colors[name], s=size, linewidths=0)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        name_legend(panel, {name: colors[name] for name in names}, markers="o")
        chart.arrange(None)

    return draw(plot, alt)


def confidence_picture(found: Annotation, basis: str | None) -> Picture:
    """Draw the confidence of each label, and on an embedding where there is one."""
    where = "" if basis is None else f", and on two axes of {basis}"
    alt = f"Confidence of the cells of each label: median, and where half and nine tenths of them lie{where}."
    return draw(lambda: confidence(found.adata, found.key, basis=basis, show=False), alt)
