"""Panels of a chart side by side, placed by the size of their text, so that nothing is cut or overlaps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, pairwise
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scanpy as sc
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

from celler._utils._messages import warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PathCollection
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


# Lengths are inches.
LEGEND_PAD = 0.25
WIDTH = 1.3
BAR = 0.12
LEGEND_HEADING = 0.2
LINE = 0.19
#: Rows of a legend of names beside a panel that is not higher.
N_ROWS = 20
SIZES = 0.3
#: Height of a legend of sizes with its heading and its numbers.
SIZE_LEGEND_HEIGHT = LEGEND_HEADING + SIZES + 0.25
#: Options of a legend to the right of its axes.
BESIDE: dict[str, Any] = {
    "loc": "upper left",
    "bbox_to_anchor": (1, 1),
    "borderaxespad": 0.5,
    "frameon": False,
    "fontsize": "small",
    "title_fontsize": "small",
}


@dataclass(frozen=True)
class Beside:
    """Places an inset axes ``right`` inches beside its host and ``down`` inches under the host's top.

    is_under: instead, at the host's left and ``down`` inches under its bottom.
    """

    host: Axes
    size: tuple[float, float]
    right: float = 0.0
    down: float = 0.0
    is_under: bool = False

    def __call__(self, axes: Any, renderer: Any) -> Bbox:
        """The place in fractions of the figure, as matplotlib asks for it."""
        figure, host = self.host.figure, self.host.bbox
        width, height = np.multiply(self.size, figure.dpi)
        left = host.x0 if self.is_under else host.x1 + self.right * figure.dpi
        top = (host.y0 if self.is_under else host.y1) - self.down * figure.dpi
        box = Bbox.from_bounds(left, top - height, width, height)
        return Bbox(figure.transSubfigure.inverted().transform(box))


def room_beside(host: Axes) -> float:
    """How far to the right of the host a legend can begin."""
    return margins_of(host).right + LEGEND_PAD


def color_bar(
    host: Axes,
    mappable: ScalarMappable,
    title: str,
    *,
    right: float = 0.0,
    down: float = 0.0,
    is_under: bool = False,
) -> None:
    """Draw a flat colour bar at the place of a :class:`Beside`."""
    bar = host.inset_axes((0, 0, 1, 1))
    bar.set_axes_locator(Beside(host, (WIDTH, BAR), right, down + LEGEND_HEADING, is_under))
    host.figure.colorbar(mappable, cax=bar, orientation="horizontal")
    bar.set_title(title, fontsize="small", loc="left")
    bar.tick_params(labelsize="x-small")
    bar.spines[:].set_visible(False)


def size_legend(
    host: Axes, sizes: Mapping[str, float], title: str, *, right: float
) -> PathCollection:
    """Draw dots of the areas ``sizes`` over their names, ``right`` inches beside the host."""
    panel = host.inset_axes((0, 0, 1, 1))
    panel.set_axes_locator(Beside(host, (WIDTH, SIZES), right, LEGEND_HEADING))
    numbers = np.arange(len(sizes))
    dots = panel.scatter(numbers, np.zeros(len(sizes)), s=list(sizes.values()), c="0.5")
    panel.set_xticks(range(len(sizes)), list(sizes), fontsize="x-small")
    panel.set(xlim=(-0.5, len(sizes) - 0.5), ylim=(-1, 1), yticks=[])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set_title(title, fontsize="small", loc="left")
    return dots


def name_legend(
    host: Axes, colors: Mapping[str, Any], title: str | None = None, markers: str = "s"
) -> None:
    """Name colours beside what is drawn to the right of the host, in as many columns as its height asks for.

    markers: one for all names, or one for each in turn.
    """
    height, width = host.bbox.height / host.figure.dpi, host.bbox.width / host.figure.dpi
    n_rows = max(N_ROWS, int(height / LINE) - (title is not None))
    handles = [
        Line2D([], [], color=color, marker=marker, ls="", ms=6, label=name)
        for (name, color), marker in zip(colors.items(), cycle(markers), strict=False)
    ]
    legend = host.legend(
        handles=handles,
        ncols=-(-len(handles) // n_rows),
        title=title,
        handletextpad=0.3,
        columnspacing=1.0,
        **BESIDE | {"bbox_to_anchor": (1 + (room_beside(host) - LEGEND_PAD) / width, 1)},
    )
    legend.set_alignment("left")


# Lengths are inches, as in figsize.
ROW = 0.2
GAP = 0.3
TITLE = 0.3
#: The least part of a panel's width and height that is legible.
SMALLEST = (0.2, 0.4)
#: Where no cells stand on a logarithmic axis.
NO_CELLS = 0.5


@dataclass(frozen=True)
class Chart:
    """Panels by name, from left to right, and the size each has where there is room.

    frame: the box to fill, in pixels of the figure; None = the figure takes the size it needs.
    is_managed: the figure's own layout engine places the panels.
    """

    panels: dict[str, Axes]
    sizes: Mapping[str, tuple[float, float]]
    frame: BboxBase | None = None
    is_managed: bool = False

    def arrange(self, title: str | None) -> None:
        """Make room for everything drawn so far, and write the title over the first panel."""
        first = next(iter(self.panels.values()))
        if self.is_managed:
            if title:
                first.set_title(title, loc="left", pad=72 * margins_of(first).top + 4)
            first.figure.canvas.figure.draw_without_rendering()
            return
        # The second time ticks and legends are those of the panels' new size.
        for _ in range(1 if self.frame is None else 2):
            corner = self._place(TITLE if title else 0.0)
        if self.frame is not None:
            self._tell_if_small(self.frame)
        if title:
            figure = first.figure
            figure.text(*corner, title, fontsize="large", ha="left", va="bottom")

    def size_of(self, name: str) -> np.ndarray:
        """Width and height of a panel once arranged, in inches."""
        panel = self.panels[name]
        return np.divide(panel.bbox.size, panel.figure.dpi)

    def finish(
        self, *, show: bool | None, return_fig: bool
    ) -> Axes | dict[str, Axes] | Figure | None:
        """What a plot returns: the figure, nothing once it is shown, or the panels."""
        first = next(iter(self.panels.values()))
        if return_fig:
            return first.figure.canvas.figure
        if sc.settings.autoshow if show is None else show:
            plt.show()
            return None
        return first if len(self.panels) == 1 else self.panels

    def _tell_if_small(self, frame: BboxBase) -> None:
        """Warn where names must overlap, with the size that would do."""
        whole = np.array([self.sizes[name] for name in self.panels])
        drawn = np.array([self.size_of(name) for name in self.panels])
        if (drawn >= SMALLEST * whole).all():
            return
        figure = next(iter(self.panels.values())).figure
        margins = [margins_of(panel) for panel in self.panels.values()]
        width = sum(margin.left + margin.right for margin in margins) + 2 * PAD
        width += GAP * (len(margins) - 1) + whole[:, 0].sum()
        height = max(
            margin.top + margin.bottom + size
            for margin, size in zip(margins, whole[:, 1], strict=True)
        )
        warn(
            f"{frame.width / figure.dpi:.1f} x {frame.height / figure.dpi:.1f} inches are too small for this "
            f"chart, and its text may overlap; pass figsize=({ceil(width)}, {ceil(height + 2 * PAD)}), "
            "or leave figsize and ax out."
        )

    def _place(self, heading: float) -> tuple[float, float]:
        """Give every panel its place; returns where the title begins."""
        margins = [margins_of(panel) for panel in self.panels.values()]
        figure = next(iter(self.panels.values())).figure
        around = sum(margin.left + margin.right for margin in margins)
        around += 2 * PAD + GAP * (len(margins) - 1)
        over = max(margin.top for margin in margins) + heading + PAD
        under = max(margin.bottom for margin in margins) + PAD
        sizes = np.array([self.sizes[name] for name in self.panels])
        frame = self.frame
        if frame is None:
            room = np.array([sizes[:, 0].sum() + around, sizes[:, 1].max() + over + under])
            figure.canvas.figure.set_size_inches(*room)
            frame = figure.bbox
        else:
            room = np.divide([frame.width, frame.height], figure.dpi)
            left = np.maximum(room - [around, over + under], 0.2)
            sizes[:, 0] *= left[0] / sizes[:, 0].sum()
            sizes[:, 1] = left[1]
        x, roof = PAD, room[1] - over
        for panel, margin, (width, height) in zip(
            self.panels.values(), margins, sizes, strict=True
        ):
            x += margin.left
            box = Box(x, roof - height, width, height)
            panel.set_position(fractions(box, frame, figure.bbox, figure.dpi))
            x += width + margin.right + GAP
        line = Box(PAD + margins[0].left, room[1] - PAD - heading, 0, 0)
        return fractions(line, frame, figure.bbox, figure.dpi)[:2]


def open_chart(
    sizes: Mapping[str, tuple[float, float]],
    figsize: tuple[float, float] | None,
    ax: Axes | None,
) -> Chart:
    """Empty panels of these sizes: in a new figure, in one of ``figsize``, or in the user's axes."""
    if ax is None:
        figure = plt.figure(figsize=figsize or np.sum(list(sizes.values()), axis=0) + 2)
        panels = {
            name: figure.add_axes(_natural(size, figure), label=name)
            for name, size in sizes.items()
        }
        return Chart(panels, sizes, None if figsize is None else figure.bbox)
    spec, engine = ax.get_subplotspec(), ax.figure.canvas.figure.get_layout_engine()
    frame = ax.get_window_extent().frozen()
    if len(sizes) == 1:
        panels = dict.fromkeys(sizes, ax)
    else:
        ax.set_axis_off()
        panels = _divide(ax, sizes)
    return Chart(panels, sizes, frame, engine is not None and spec is not None)


def margins_of(panel: Axes) -> Margins:
    """Room that everything around the panel takes, in inches."""
    inner = panel.get_window_extent()
    outer = panel.get_tightbbox() or inner
    left, bottom = np.maximum(np.subtract(inner.min, outer.min), 0) / panel.figure.dpi
    right, top = np.maximum(np.subtract(outer.max, inner.max), 0) / panel.figure.dpi
    return Margins(left, bottom, right, top)


def strip(ax: Axes) -> None:
    """Take away the upper and the right line and make the numbers small."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize="small")
    ax.set_axisbelow(True)


def shade(grey: float) -> tuple[float, float, float]:
    """A grey from 0, the colour of text, to 1, the background, so that lines stay faint on a dark one too."""
    *background, opacity = to_rgba(plt.rcParams["axes.facecolor"])
    ink = np.array(to_rgb(plt.rcParams["text.color"]))
    behind = np.array(background) if opacity == 1 else 1 - ink
    red, green, blue = grey * behind + (1 - grey) * ink
    return float(red), float(green), float(blue)


def name_rows(ax: Axes, names: list[str]) -> None:
    """One row per name, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, labelsize="small")


def count_axis(ax: Axes, low: float, high: float) -> None:
    """A logarithmic x axis of numbers of cells from ``low`` to ``high``; at ``NO_CELLS`` it says 0."""
    ax.set(xscale="log", xlim=(low, high))
    steps = (1, 2, 5) if high < 50 * low else (1,)
    ticks = [step * 10.0**power for power in range(9) for step in steps]
    ticks = [tick for tick in (NO_CELLS, *ticks) if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())


def apart(places: np.ndarray, gap: float) -> np.ndarray:
    """Rising ``places`` from 0 to 1 moved as little as makes each ``gap`` from the next, if there is room."""
    steps = gap * np.arange(len(places))
    moved = isotonic_regression(places - steps).x
    return np.clip(moved, 0, max(0.0, 1 - steps[-1])) + steps


def _natural(size: tuple[float, float], figure: Figure) -> tuple[float, float, float, float]:
    width, height = np.divide(size, figure.get_size_inches())
    return (0.1, 0.1, width, height)


def _divide(ax: Axes, sizes: Mapping[str, tuple[float, float]]) -> dict[str, Axes]:
    """Axes side by side where ``ax`` is."""
    spec, figure = ax.get_subplotspec(), ax.figure
    if spec is None:
        box = ax.get_position().bounds
        return {name: figure.add_axes(box, label=name) for name in sizes}
    widths = [width for width, _ in sizes.values()]
    parts = spec.subgridspec(1, len(sizes), width_ratios=widths)
    return {name: figure.add_subplot(parts[number]) for number, name in enumerate(sizes)}
