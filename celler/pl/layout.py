"""Places the panels of a dot plot by the size of their text, so that nothing is cut or overlaps."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.collections import PathCollection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.transforms import BboxBase

# Lengths are inches, as in figsize.
CELL = 0.28
PAD = 0.1
BRACKET = 0.1
TREE = 0.6
HEADING = 0.3
LEGEND_GAP = 0.25
LEGEND_WIDTH = 1.5
SIZE_LEGEND = 0.7
BETWEEN_LEGENDS = 0.6
COLOR_BAR = 0.12
LEGEND_HEIGHT = SIZE_LEGEND + BETWEEN_LEGENDS + COLOR_BAR + 0.2


class Box(NamedTuple):
    """A rectangle, from the lower left corner of the frame."""

    left: float
    bottom: float
    width: float
    height: float


class Margins(NamedTuple):
    """Room that text, brackets and tree take on each side of the dots."""

    left: float
    bottom: float
    right: float
    top: float


def arrange(
    panels: Mapping[str, Axes],
    *,
    labels: Sequence[str] = (),
    title: str | None = None,
    swap_axes: bool = False,
    frame: BboxBase | None = None,
) -> None:
    """Place ``panels``, the axes of a :class:`scanpy.pl.DotPlot`, and write what stands around them.

    labels: the text of the brackets, in order. Written in full: flat beside upright brackets; over
        flat ones flat where all of them fit side by side, else upright.
    frame: the box to fill, in pixels of the figure; None = the figure takes the size it needs.
    """
    main = panels["mainplot_ax"]
    figure, dpi = main.figure, main.figure.dpi
    spans = np.abs([np.diff(main.get_xlim()).item(), np.diff(main.get_ylim()).item()])
    heading = HEADING if title else 0.0
    _write_labels(panels, labels, swap_axes=swap_axes)
    margins = _margins(panels, swap_axes=swap_axes)
    size = _size(spans, margins, heading, frame, dpi)
    if not swap_axes and _touch(panels, cell=size[0] / spans[0]):
        for text in panels["gene_group_ax"].texts:
            text.set_rotation(90)
        margins = _margins(panels, swap_axes=swap_axes)
        size = _size(spans, margins, heading, frame, dpi)
    if frame is None:
        figure.canvas.figure.set_size_inches(_needed(size, margins, heading))
        frame = figure.bbox
    _shrink_dots(panels, cell=min(size / spans))
    corner = (PAD + margins.left, frame.height / dpi - PAD - heading - margins.top)
    boxes = _boxes(corner, (size[0], size[1]), margins, swap_axes=swap_axes)
    for name, panel in panels.items():
        panel.set_position(fractions(boxes[name], frame, figure.bbox, dpi))
    if title:
        line = Box(corner[0], corner[1] + margins.top + 0.1, size[0], 0)
        _write_title(figure, title, fractions(line, frame, figure.bbox, dpi))


def _write_labels(panels: Mapping[str, Axes], labels: Sequence[str], *, swap_axes: bool) -> None:
    texts = panels["gene_group_ax"].texts if labels else []
    for text, label in zip(texts, labels, strict=True):
        text.set(text=label, fontsize="small", rotation=0)
        if swap_axes:
            text.set(x=0.8, ha="left", va="center")


def _touch(panels: Mapping[str, Axes], *, cell: float) -> bool:
    """Whether neighbouring labels over the brackets come close when a gene is ``cell`` wide."""
    if "gene_group_ax" not in panels:
        return False
    texts = panels["gene_group_ax"].texts
    halves = [text.get_window_extent().width / text.figure.dpi / 2 for text in texts]
    edges = [
        (text.get_position()[0] * cell - half, text.get_position()[0] * cell + half)
        for text, half in zip(texts, halves, strict=True)
    ]
    return any(right[0] - left[1] < 0.05 for left, right in pairwise(edges))


def _margins(panels: Mapping[str, Axes], *, swap_axes: bool) -> Margins:
    main = panels["mainplot_ax"]
    dots = main.get_window_extent()
    with_labels = main.get_tightbbox() or dots
    tree = TREE if "group_extra_ax" in panels else 0.0
    brackets = 0.0
    if "gene_group_ax" in panels:
        extents = [text.get_window_extent() for text in panels["gene_group_ax"].texts]
        longest = max(box.width if swap_axes else box.height for box in extents)
        brackets = BRACKET + 0.05 + longest / main.figure.dpi
    left, bottom = np.subtract(dots.min, with_labels.min) / main.figure.dpi
    return Margins(left, bottom, *((brackets, tree) if swap_axes else (tree, brackets)))


def _around(margins: Margins, heading: float) -> tuple[float, float]:
    """Width and height of everything but the dots."""
    beside = margins.left + margins.right + LEGEND_GAP + LEGEND_WIDTH
    return beside + 2 * PAD, margins.bottom + margins.top + heading + 2 * PAD


def _size(
    spans: np.ndarray, margins: Margins, heading: float, frame: BboxBase | None, dpi: float
) -> np.ndarray:
    """Width and height of the dots' panel, which spans so many columns and rows."""
    if frame is None:
        return spans * CELL
    room = np.divide([frame.width, frame.height], dpi) - _around(margins, heading)
    # Where the text alone fills the frame the dots stay visible and run out of it.
    return np.maximum(room, 0.05 * spans)


def _needed(size: np.ndarray, margins: Margins, heading: float) -> tuple[float, float]:
    width, height = size + _around(margins, heading)
    return width, max(height, LEGEND_HEIGHT + margins.top + heading + 2 * PAD)


def _write_title(figure: Figure | SubFigure, title: str, line: Box) -> None:
    """Write ``title`` centred over ``line``, moved to the right where it would leave the figure."""
    text = figure.text(line.left + line.width / 2, line.bottom, title, fontsize="large")
    text.set(ha="center", va="bottom")
    half = text.get_window_extent().width / figure.bbox.width / 2
    text.set_x(max(text.get_position()[0], half + 0.01))


def _shrink_dots(panels: Mapping[str, Axes], *, cell: float) -> None:
    """Scale the area of the dots, and of those in the legend, to cells narrower than ``CELL``."""
    collections = [*panels["mainplot_ax"].collections, *panels["size_legend_ax"].collections]
    for dots in collections:
        if isinstance(dots, PathCollection):
            dots.set_sizes(dots.get_sizes() * min(1.0, cell / CELL) ** 2)


def _boxes(
    corner: tuple[float, float], size: tuple[float, float], margins: Margins, *, swap_axes: bool
) -> dict[str, Box]:
    """The place of every panel; ``corner`` is the upper left one of the dots' panel."""
    (x, roof), (width, height) = corner, size
    floor, side = roof - height, x + width
    legend_x, legend_y = side + margins.right + LEGEND_GAP, roof - SIZE_LEGEND
    bar_y = legend_y - BETWEEN_LEGENDS - COLOR_BAR
    over = {depth: Box(x, roof, width, depth) for depth in (BRACKET, TREE)}
    beside = {depth: Box(side, floor, depth, height) for depth in (BRACKET, TREE)}
    return {
        "mainplot_ax": Box(x, floor, width, height),
        "gene_group_ax": (beside if swap_axes else over)[BRACKET],
        "group_extra_ax": (over if swap_axes else beside)[TREE],
        "size_legend_ax": Box(legend_x, legend_y, LEGEND_WIDTH, SIZE_LEGEND),
        "color_legend_ax": Box(legend_x + 0.1, bar_y, LEGEND_WIDTH - 0.25, COLOR_BAR),
    }


def fractions(box: Box, frame: BboxBase, canvas: BboxBase, dpi: float) -> Box:
    """Turn inches in ``frame`` into fractions of the figure's canvas."""
    left, bottom, width, height = (length * dpi for length in box)
    return Box(
        (frame.x0 - canvas.x0 + left) / canvas.width,
        (frame.y0 - canvas.y0 + bottom) / canvas.height,
        width / canvas.width,
        height / canvas.height,
    )
