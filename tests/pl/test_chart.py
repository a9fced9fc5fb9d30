"""Charts of few and of many classes can be read: nothing is cut or overlaps, no text is tiny."""

import re
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
import scanpy as sc
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from pl_cases import (
    CHARTS,
    annotated,
    assert_same,
    texts_drawn,
)

from celler import pl
from celler.pl._chart import apart, room_of

mpl.use("Agg")


SINGLE = ["history", "reliability"]  # they do not know classes


PANELS = {
    "cells_by": ["cell_type", "donor"],
    "confidence": ["embedding", "labels"],
    "history": ["loss", "macro_f1", "replayed"],
}


@pytest.fixture(scope="module")
def cells():
    return {n: annotated(n, 20 * n + 100) for n in (1, 6, 30, 60)}


def assert_legible(figure, box):
    """All text is in the box, none over other text, none smaller than 6 points."""
    texts = texts_drawn(figure)
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) > 3
    for text, extent in zip(texts, boxes, strict=True):
        assert text.get_fontsize() >= 6
        is_in = all(box.padded(1).contains(*corner) for corner in (extent.min, extent.max))
        assert is_in, f"{text.get_text()!r} is cut"
    for (one, first), (other, second) in combinations(zip(texts, boxes, strict=True), 2):
        is_clear = not first.padded(-1).overlaps(second)
        assert is_clear, f"{one.get_text()!r} and {other.get_text()!r} overlap"


@pytest.mark.parametrize("n_classes", [1, 6, 30, 60])
@pytest.mark.parametrize("name", [name for name in CHARTS if name not in SINGLE])
def test_arrange_with_few_and_many_classes(cells, name, n_classes):
    figure = CHARTS[name](cells[n_classes], title="A title", return_fig=True)
    figure.canvas.draw()
    assert_legible(figure, figure.bbox)
    assert max(figure.get_size_inches()) < 25


@pytest.mark.parametrize("name", SINGLE)
def test_arrange_without_classes(cells, name):
    figure = CHARTS[name](cells[6], title="A title", return_fig=True)
    figure.canvas.draw()
    assert_legible(figure, figure.bbox)


@pytest.mark.parametrize("engine", [None, "constrained"])
@pytest.mark.parametrize("name", list(CHARTS))
def test_arrange_in_axes_with_and_without_layout_engine(cells, name, engine):
    figure, (left, right) = plt.subplots(1, 2, figsize=(20, 8), layout=engine)
    left.plot([0, 1])
    box = figure.bbox
    CHARTS[name](cells[6], ax=right, title="A title", show=False)
    figure.canvas.draw()
    drawn = [ax for ax in figure.axes if ax is not left]
    for panel in drawn:
        assert box.padded(1).contains(*panel.get_tightbbox().min)
        assert box.padded(1).contains(*panel.get_tightbbox().max)
        assert not panel.get_tightbbox().overlaps(left.get_tightbbox())
    assert len(left.lines) == 1
    texts = [(text.get_text(), text.get_window_extent()) for text in texts_drawn(figure)]
    (title,) = [extent for text, extent in texts if text == "A title"]
    assert not any(title.overlaps(extent) for text, extent in texts if text != "A title")
    assert (figure.get_layout_engine() is None) == (engine is None)


@pytest.mark.parametrize("engine", [None, "constrained"])
@pytest.mark.parametrize("name", ["confusion", "history"])
def test_arrange_in_a_subfigure(cells, name, engine):
    figure = plt.figure(figsize=(20, 8), layout=engine)
    left, right = figure.subfigures(1, 2)
    neighbour, ax = left.subplots(), right.subplots()
    CHARTS[name](cells[6], ax=ax, title="A title", show=False)
    figure.canvas.draw()
    assert all(panel.figure is right for panel in figure.axes if panel is not neighbour)
    assert_legible(right, right.bbox)


@pytest.mark.parametrize("name", list(CHARTS))
def test_arrange_with_figsize(cells, name):
    figure = CHARTS[name](cells[6], figsize=(11, 7), title="A title", return_fig=True)
    figure.canvas.draw()
    assert tuple(figure.get_size_inches()) == (11, 7)
    assert_legible(figure, figure.bbox)
    panels = figure.axes
    assert max(panel.get_tightbbox().y1 for panel in panels) > 0.85 * figure.bbox.y1
    assert max(panel.get_tightbbox().x1 for panel in panels) > 0.95 * figure.bbox.x1


@pytest.mark.parametrize("name", list(CHARTS))
def test_finish_returns_axes_figure_or_none(cells, name, monkeypatch, no_autoshow):
    adata = cells[6].copy()
    adata.uns["cell_type_colors"] = [f"#{i}0{i}0{i}0" for i in range(6)]
    before = adata.copy()
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    drawn = CHARTS[name](adata)
    panels = drawn if name in PANELS else {"main": drawn}
    assert list(panels) == PANELS.get(name, ["main"])
    assert all(isinstance(panel, mpl.axes.Axes) for panel in panels.values())
    assert isinstance(CHARTS[name](adata, return_fig=True), mpl.figure.Figure)
    assert shown == []
    assert CHARTS[name](adata, show=True) is None
    sc.settings.autoshow = True
    assert CHARTS[name](adata) is None
    assert CHARTS[name](adata, show=False) is not None
    assert len(shown) == 2
    assert_same(adata, before)


@pytest.mark.parametrize("name", list(CHARTS))
def test_finish_saves_the_figure(cells, name, tmp_path):
    figure = CHARTS[name](cells[6], save=tmp_path / "plot.png", return_fig=True)
    height, width, _ = plt.imread(tmp_path / "plot.png").shape
    np.testing.assert_allclose((width, height), 300 * figure.get_size_inches(), atol=1)


def test_free_room_ends_half_way_to_other_axes():
    """Of four panels of 2 x 2 inches, 1 inch apart and 0.5 inches from the edges, one with a label of its own."""
    figure = plt.figure(figsize=(6, 6), dpi=100)
    grid = figure.add_gridspec(2, 2, left=0.5 / 6, right=5.5 / 6, bottom=0.5 / 6, top=5.5 / 6, wspace=0.5, hspace=0.5)
    axes = [figure.add_subplot(grid[i]) for i in range(4)]
    for ax in axes:
        ax.set_axis_off()
    np.testing.assert_allclose(room_of(axes[0]), (3, 3))
    np.testing.assert_allclose(room_of(axes[3]), (3, 3))
    axes[1].text(-0.45, 0.5, "a label", ha="left", va="center")
    assert 2 < room_of(axes[0])[0] < 2.7
    np.testing.assert_allclose(room_of(axes[1])[0], 3, atol=0.01)


def test_shrink_in_a_small_figure(cells):
    bubble, matrix = (
        [CHARTS[name](cells[6], figsize=figsize, show=False) for figsize in (None, (5.2, 3.9))]
        for name in ("prediction_bubble", "confusion")
    )
    sizes = [np.max(panel.collections[0].get_sizes()) for panel in bubble]
    assert sizes[1] < sizes[0]
    n_numbers = [sum(text.get_text().isdigit() for text in panel.texts) for panel in matrix]
    assert n_numbers[0] > 6
    assert n_numbers[1] == 0


@pytest.mark.parametrize("name", list(CHARTS))
def test_arrange_in_a_frame_too_small(cells, name):
    small, large = r"3\.0 x 2\.0 inches", r"pass figsize=\((\d+), (\d+)\)"
    if name == "reliability":
        small = r"1\.5 x 1\.0 inches"
    size = (1.5, 1) if name == "reliability" else (3, 2)
    with pytest.warns(UserWarning, match=f"{small} are too small.*{large}") as caught:
        CHARTS[name](cells[30], figsize=size, show=False)
    width, height = re.search(large, str(caught[0].message)).groups()
    CHARTS[name](cells[30], figsize=(int(width), int(height)), show=False)


def test_shade_on_light_and_dark_backgrounds(cells):
    for style in ("default", "dark_background"):
        with plt.style.context(style):
            panel = CHARTS["prediction_bubble"](cells[6], show=False)
            line, background = panel.xaxis.get_gridlines()[0].get_color(), panel.get_facecolor()
        distance = np.abs(np.subtract(to_rgb(line), background[:3])).max()
        assert distance == pytest.approx(0.08)


NO_TABLE = ["f1_by_frequency", "history"]


@pytest.mark.parametrize("name", [name for name in CHARTS if name not in NO_TABLE])
def test_charts_of_a_table_of_cells(adata, name):
    """Also columns of plain text instead of categories, and classes that no cell has."""
    obs = adata.obs.assign(celler=adata.obs["celler"].astype(str))
    obs["cell_type"] = obs["cell_type"].cat.add_categories("nobody")
    if name == "confusion":
        pl.confusion(obs, "cell_type", "celler", show=False)
        return
    figure = CHARTS[name](obs, return_fig=True)
    texts = {text.get_text() for text in figure.findobj(mpl.text.Text)}
    assert not any("nobody" in text for text in texts)


@pytest.mark.parametrize(
    ("chart", "keys", "message"),
    [
        (pl.confusion, ("cell_typ", "celler"), "truth_key='cell_typ' .*Closest: 'cell_type'"),
        (pl.confusion, ("cell_type", "Celer"), "prediction_key='Celer' .*Closest: 'celler'"),
        (
            pl.prediction_bubble,
            ("donor", "cell_type"),
            "confidence_key='cell_type_confidence' is not",
        ),
        (pl.alluvial, ("cell_type", "nothing like it"), "Columns: \\['cell_type', 'celler'"),
        (pl.composition, ("cell_type", "Donor"), "groupby='Donor' .*Closest: 'donor'"),
        (pl.composition, ("celltype", "donor"), "key='celltype' .*Closest: 'cell_type'"),
        (pl.class_counts, ("celltype",), "key='celltype' .*Closest: 'cell_type'"),
        (pl.confidence, ("celer",), "key='celer' .*Closest: 'celler'"),
        (
            pl.confidence,
            ("donor",),
            "confidence_key='donor_confidence' .*Closest: 'celler_confidence'",
        ),
        (pl.reliability, ("donor", "donor"), "confidence_key='donor_confidence' is not a column"),
    ],
)
def test_charts_with_unknown_columns(adata, chart, keys, message):
    with pytest.raises(KeyError, match=message):
        chart(adata, *keys)
    assert plt.get_fignums() == []


def test_apart_moves_no_further_than_needed():
    np.testing.assert_allclose(apart(np.array([0.2, 0.5, 0.8]), 0.1), [0.2, 0.5, 0.8])
    np.testing.assert_allclose(apart(np.array([0.5, 0.5, 0.5]), 0.1), [0.4, 0.5, 0.6])
    np.testing.assert_allclose(apart(np.array([0.98, 0.99]), 0.1), [0.9, 1.0])
    np.testing.assert_allclose(apart(np.array([0.0, 0.01]), 0.1), [0.0, 0.1])
