"""Charts of few and of many classes can be read: nothing is cut, nothing overlaps, no text is tiny."""

import re
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
import scanpy as sc
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from pl_cases import CHARTS, annotated, assert_same, texts_drawn

mpl.use("Agg")
SINGLE = ["history", "reliability"]  # they do not know classes
PANELS = {
    "cells_by": ["cell_type", "donor"],
    "confidence": ["embedding", "labels"],
    "history": ["loss", "macro_f1", "replayed"],
}


@pytest.fixture(autouse=True)
def _figures():
    with plt.style.context("default"):
        yield
    plt.close("all")


@pytest.fixture
def no_autoshow():
    before = sc.settings.autoshow
    sc.settings.autoshow = False
    yield
    sc.settings.autoshow = before


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
def test_no_text_is_cut_or_overlaps(cells, name, n_classes):
    figure = CHARTS[name](cells[n_classes], title="A title", return_fig=True)
    figure.canvas.draw()
    assert_legible(figure, figure.bbox)
    assert max(figure.get_size_inches()) < 25


@pytest.mark.parametrize("name", SINGLE)
def test_charts_without_classes_are_legible(cells, name):
    figure = CHARTS[name](cells[6], title="A title", return_fig=True)
    figure.canvas.draw()
    assert_legible(figure, figure.bbox)


@pytest.mark.parametrize("engine", [None, "constrained"])
@pytest.mark.parametrize("name", list(CHARTS))
def test_ax_holds_everything_and_its_neighbour_stays(cells, name, engine):
    figure, (left, right) = plt.subplots(1, 2, figsize=(20, 8), layout=engine)
    left.plot([0, 1])
    box = right.get_window_extent().frozen() if engine is None else figure.bbox
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


@pytest.mark.parametrize("name", list(CHARTS))
def test_figsize_is_kept_and_filled(cells, name):
    figure = CHARTS[name](cells[6], figsize=(11, 7), title="A title", return_fig=True)
    figure.canvas.draw()
    assert tuple(figure.get_size_inches()) == (11, 7)
    assert_legible(figure, figure.bbox)
    panels = figure.axes
    assert max(panel.get_tightbbox().y1 for panel in panels) > 0.85 * figure.bbox.y1
    assert max(panel.get_tightbbox().x1 for panel in panels) > 0.95 * figure.bbox.x1


@pytest.mark.parametrize("name", list(CHARTS))
def test_returns_and_changes_nothing(cells, name, monkeypatch, no_autoshow):
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


def test_small_frames_shrink_dots_and_drop_numbers(cells):
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
def test_a_frame_too_small_names_the_size_that_does(cells, name):
    small, large = r"3\.0 x 2\.0 inches", r"pass figsize=\((\d+), (\d+)\)"
    if name == "reliability":
        small = r"1\.5 x 1\.0 inches"
    size = (1.5, 1) if name == "reliability" else (3, 2)
    with pytest.warns(UserWarning, match=f"{small} are too small.*{large}") as caught:
        CHARTS[name](cells[30], figsize=size, show=False)
    width, height = re.search(large, str(caught[0].message)).groups()
    CHARTS[name](cells[30], figsize=(int(width), int(height)), show=False)


def test_faint_lines_follow_the_background(cells):
    for style in ("default", "dark_background"):
        with plt.style.context(style):
            panel = CHARTS["prediction_bubble"](cells[6], show=False)
            line, background = panel.xaxis.get_gridlines()[0].get_color(), panel.get_facecolor()
        distance = np.abs(np.subtract(to_rgb(line), background[:3])).max()
        assert distance == pytest.approx(0.08)
