"""Charts: panels in a new figure or in the user's axes, laid out so that no text is cut or overlaps.

Matplotlib's constrained layout places the panels, in new figures and in figures of the user that have a
layout engine. It arranges whole figures: without an engine it would move all of the user's axes, and
``Chart._place`` moves only those of the plot. Constrained layout neither chooses the size of a figure,
which here follows from the number of classes, nor moves legends clear of text beside the panel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection, PathCollection
from matplotlib.colors import Colormap, to_rgb, to_rgba
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine, PlaceHolderLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import Bbox, BboxBase, ScaledTranslation, Transform, blended_transform_factory
from scipy.optimize import isotonic_regression

from celler._utils._messages import warn

# Lengths are inches, as in figsize.
ROW = 0.2
PAD = 0.08
LEGEND_GAP = 0.25
LEGEND_WIDTH = 1.3
HEADING = 0.2
COLOR_BAR = 0.12
SIZES = 0.3
LINE = 0.19
N_ROWS = 20  # rows in one column of a legend of names, at least
SMALLEST = (0.2, 0.4)  # smallest part of a panel's natural width and height that is legible
SAVED_DPI = 300
NO_CELLS = 0.5  # place of 0 on a logarithmic axis of numbers of cells
#: Options of a legend to the right of its axes.
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1), "borderaxespad": 0.5}
BESIDE |= {"frameon": False, "fontsize": "small", "title_fontsize": "small"}


@dataclass(frozen=True)
class Chart:
    """Panels by name, from left to right, and their natural sizes in inches."""

    panels: dict[str, Axes]
    sizes: Mapping[str, Sequence[float]]
    is_new: bool = False  # the figure was made for this chart
    has_size: bool = True  # chosen by the user
    frame: Bbox | None = None  # pixels to fill with the panels and their text; None leaves that to a layout engine

    @property
    def first(self) -> Axes:
        return next(iter(self.panels.values()))

    @property
    def figure(self) -> Figure:
        """The whole figure, also where the panels are in a subfigure."""
        return self.first.figure.canvas.figure

    def arrange(self, title: str | None, *, is_last: bool = True) -> None:
        """Make room for everything drawn so far and for the title; at last, warn if there is none."""
        if self.is_new:
            self._arrange_new(title, is_last)
            return
        if title:
            height = margins_of(self.first)[3] + 0.08
            text = self.first.text(0, height, title, transform=above(self.first), va="bottom")
            text.set_fontsize("large")
        if self.frame is None:
            self.figure.draw_without_rendering()
            return
        # The second time, ticks and legends are those of the panels' new size.
        for _ in range(2):
            around = self._place(self.frame)
        self._is_small(self.frame, around, is_last)

    def _arrange_new(self, title: str | None, is_last: bool) -> None:
        figure, heading, over = self.figure, None, 0.0
        around = self._room()[1]
        if title:
            heading = figure.suptitle(title, ha="left", fontsize="large")
            over = heading.get_window_extent().height / figure.dpi + 2 * PAD
        around[1] += over
        if not self.has_size:
            for name, (width, height) in self.sizes.items():
                if height < self._natural()[1]:
                    self.panels[name].set(box_aspect=height / width, anchor="NW")
            figure.set_size_inches(*np.ceil(72 * (self._natural() + around)) / 72)
        elif self._is_small(figure.bbox, around, is_last):
            # Constrained layout gives up where text leaves no room.
            figure.set_layout_engine("none")
            width, height = figure.bbox.size
            self._place(Bbox.from_bounds(0, 0, width, height - over * figure.dpi))
        figure.draw_without_rendering()
        if heading:
            room = 1 - heading.get_window_extent().width / figure.bbox.width
            heading.set_x(max(0, min(self.first.get_position().x0, room)))

    def shrink(self, step: float, *dots: Collection) -> None:
        """Scale ``dots``, made for rows and columns of ``step`` inches, to narrower ones."""
        spans = np.abs(np.diff([self.first.get_xlim(), self.first.get_ylim()]).ravel())
        scale = min(1.0, (size_of(self.first) / spans / step).min()) ** 2
        for some in dots:
            if isinstance(some, PathCollection):
                some.set_sizes(some.get_sizes() * scale)

    def finish(
        self, *, show: bool | None, return_fig: bool, save: str | Path | None = None
    ) -> Axes | dict[str, Axes] | Figure | None:
        """Save the figure; return it, nothing once it is shown, or the panels."""
        if save is not None:
            self.figure.savefig(save, dpi=SAVED_DPI)
        if return_fig:
            return self.figure
        if sc.settings.autoshow if show is None else show:
            plt.show()
            return None
        return self.first if len(self.panels) == 1 else self.panels

    def _natural(self) -> np.ndarray:
        """Width and height of all panels side by side."""
        sizes = np.array([self.sizes[name] for name in self.panels])
        return np.array([sizes[:, 0].sum(), sizes[:, 1].max()])

    def _room(self) -> tuple[np.ndarray, np.ndarray]:
        """Margins of each panel, and the width and height of all that is not a panel."""
        margins = np.array([margins_of(panel) for panel in self.panels.values()])
        left, bottom, right, top = margins.T
        width = (left + right + 2 * PAD).sum()
        return margins, np.array([width, bottom.max() + top.max() + 2 * PAD])

    def _is_small(self, frame: BboxBase, around: np.ndarray, is_last: bool) -> bool:
        """Warn where text must overlap, with the size that is enough."""
        room, natural = np.divide(frame.size, self.figure.dpi), self._natural()
        is_small = bool((room - around < SMALLEST * natural).any())
        if is_small and is_last:
            width, height = map(ceil, natural + around)
            warn(
                f"{room[0]:.1f} x {room[1]:.1f} inches are too small for this chart, and its text may overlap; pass "
                f"figsize=({width}, {height}), or leave figsize and ax out."
            )
        return is_small

    def _place(self, frame: Bbox) -> np.ndarray:
        """Fill ``frame`` with the panels and their text; returns the room of the text."""
        margins, around = self._room()
        figure, room = self.first.figure, np.divide(frame.size, self.figure.dpi)
        widths = np.array([self.sizes[name][0] for name in self.panels], dtype=float)
        widths *= max(room[0] - around[0], 0.2) / widths.sum()
        ends = np.cumsum(widths + margins[:, 0] + margins[:, 2] + 2 * PAD) - margins[:, 2] - PAD
        roof = room[1] - PAD - margins[:, 3].max()
        floor = roof - max(room[1] - around[1], 0.2)
        for panel, end, width in zip(self.panels.values(), ends, widths, strict=True):
            inches = np.array([[end - width, floor], [end, roof]])
            pixels = Bbox(frame.min + figure.dpi * inches)
            panel.set_position(pixels.transformed(figure.transSubfigure.inverted()))
        return around


def open_chart(sizes: Mapping[str, tuple[float, float]], figsize: tuple[float, float] | None, ax: Axes | None) -> Chart:
    """Make empty panels: of these sizes, in a figure of ``figsize``, or in the user's axes."""
    if ax is None:
        widths, heights = np.transpose(list(sizes.values()))
        whole = np.array([widths.sum(), heights.max()]) + 2
        engine = ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD, wspace=0, hspace=0)
        figure = plt.figure(figsize=figsize or tuple(whole), layout=engine)
        # Until they are arranged, panels have their natural size, which legends read.
        left, bottom = 1 / whole
        grid = figure.add_gridspec(left=left, right=1 - left, bottom=bottom, top=1 - bottom)
        panels = _divide(figure, grid[0], sizes)
        return Chart(panels, sizes, is_new=True, has_size=figsize is not None)
    spec, used = ax.get_subplotspec(), ax.figure.canvas.figure.get_layout_engine()
    is_placed = spec is not None and not isinstance(used, PlaceHolderLayoutEngine | None)
    frame = None if is_placed else _free(ax)
    if len(sizes) == 1:
        return Chart(dict.fromkeys(sizes, ax), sizes, frame=frame)
    ax.set_axis_off()
    panels = _divide(ax.figure, spec or ax.figure.add_gridspec()[0], sizes)
    return Chart(panels, sizes, frame=frame)


def _divide(figure: Figure | SubFigure, spec: SubplotSpec, sizes: Mapping[str, tuple[float, float]]) -> dict[str, Axes]:
    """Make panels side by side in a cell of a grid."""
    widths = [width for width, _ in sizes.values()]
    parts = spec.subgridspec(1, len(sizes), width_ratios=widths)
    return {name: figure.add_subplot(parts[i], label=name) for i, name in enumerate(sizes)}


def _free(ax: Axes) -> Bbox:
    """Return the pixels that a plot in ``ax`` fills: its own, and those around it up to half way to other axes."""
    own, whole = ax.get_window_extent(), ax.figure.bbox
    low, high = np.array(whole.min), np.array(whole.max)
    others = [(other.get_window_extent(), other.get_tightbbox()) for other in ax.figure.axes if other is not ax]
    others += [(text.get_window_extent(),) * 2 for text in ax.figure.texts]
    for box, tight in others:
        tight = tight or box
        for side, other_side in ((0, 1), (1, 0)):
            if box.min[other_side] >= own.max[other_side] or box.max[other_side] <= own.min[other_side]:
                continue  # not beside each other
            if box.min[side] >= own.max[side]:
                high[side] = min(high[side], (own.max[side] + box.min[side]) / 2, tight.min[side])
            elif box.max[side] <= own.min[side]:
                low[side] = max(low[side], (own.min[side] + box.max[side]) / 2, tight.max[side])
    return Bbox([np.minimum(low, own.min), np.maximum(high, own.max)])


def room_of(ax: Axes) -> np.ndarray:
    """Width and height in inches of what a plot in ``ax`` fills."""
    return np.divide(_free(ax).size, ax.figure.dpi)


def size_of(ax: Axes) -> np.ndarray:
    """Width and height in inches."""
    return np.divide(ax.bbox.size, ax.figure.dpi)


def margins_of(ax: Axes) -> np.ndarray:
    """Inches of text and legends to the left, below, to the right and above ``ax``."""
    inner = ax.get_window_extent()
    whole = Bbox.union([inner, ax.get_tightbbox() or inner])
    around = [*np.subtract(inner.min, whole.min), *np.subtract(whole.max, inner.max)]
    return np.divide(around, ax.figure.dpi)


def in_inches(ax: Axes, corner: tuple[float, float]) -> Transform:
    """Places in inches from a corner of ``ax``, which is (0, 1) for the upper left one."""
    to_pixels: Any = ax.transAxes
    return ax.figure.dpi_scale_trans + ScaledTranslation(*corner, to_pixels)


def above(ax: Axes) -> Transform:
    """Places in widths of ``ax`` and inches above it."""
    return blended_transform_factory(ax.transAxes, in_inches(ax, (0, 1)))


def beside(ax: Axes) -> Transform:
    """Places in inches to the right of ``ax`` and its heights."""
    return blended_transform_factory(in_inches(ax, (1, 0)), ax.transAxes)


def room_beside(host: Axes) -> float:
    """Inches from the right of ``host`` to where a legend can begin."""
    return margins_of(host)[2] + LEGEND_GAP


def color_bar(
    host: Axes,
    mappable: ScalarMappable,
    title: str,
    *,
    right: float = 0.0,
    down: float = 0.0,
    corner: tuple[float, float] = (1, 1),
    extend: Literal["neither", "max"] = "neither",
) -> Axes:
    """Draw a flat colour bar, ``right`` and ``down`` inches from a corner of ``host``."""
    top = down + HEADING * (1 + title.count("\n"))
    place = (right, -top - COLOR_BAR, LEGEND_WIDTH, COLOR_BAR)
    bar = host.inset_axes(place, transform=in_inches(host, corner))
    host.figure.colorbar(mappable, cax=bar, orientation="horizontal", extend=extend)
    bar.set_title(title, fontsize="small", loc="left")
    bar.tick_params(labelsize="x-small")
    bar.spines[:].set_visible(False)
    return bar


def legend_height(title: str) -> float:
    """Return the height of a legend of sizes with its heading and its numbers."""
    return HEADING * (1 + title.count("\n")) + SIZES + 0.25


def size_legend(
    host: Axes,
    sizes: Mapping[str, float],
    title: str,
    *,
    right: float,
    down: float = 0.0,
    corner: tuple[float, float] = (1, 1),
) -> Axes:
    """Draw dots of the areas ``sizes`` above their names, ``right`` and ``down`` inches from a corner of the host."""
    top = down + HEADING * (1 + title.count("\n"))
    panel = host.inset_axes((right, -top - SIZES, LEGEND_WIDTH, SIZES), transform=in_inches(host, corner))
    panel.scatter(range(len(sizes)), np.zeros(len(sizes)), s=list(sizes.values()), c="0.5")
    panel.set_xticks(range(len(sizes)), list(sizes), fontsize="x-small")
    panel.set(xlim=(-0.5, len(sizes) - 0.5), ylim=(-1, 1), yticks=[])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set_title(title, fontsize="small", loc="left")
    return panel


def name_legend(host: Axes, colors: Mapping[str, Any], title: str | None = None, markers: str = "s") -> None:
    """Name colours to the right of the host and what is beside it; the names take the ``markers`` in turn."""
    width, height = size_of(host)
    n_rows = max(N_ROWS, int(height / LINE) - (title is not None))
    handles = [
        Line2D([], [], color=color, marker=marker, ls="", ms=6, label=name)
        for (name, color), marker in zip(colors.items(), cycle(markers), strict=False)
    ]
    style = BESIDE | {"handletextpad": 0.3, "columnspacing": 1.0, "alignment": "left"}
    style["bbox_to_anchor"] = (1 + margins_of(host)[2] / width, 1)
    host.legend(handles=handles, ncols=ceil(len(handles) / n_rows), title=title, **style)


def strip(ax: Axes) -> None:
    """Remove the upper and the right line and make the numbers small."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize="small")
    ax.set_axisbelow(True)


def shade(grey: float) -> tuple[float, float, float]:
    """Return a grey from 0, the colour of text, to 1, the background, light or dark."""
    *background, opacity = to_rgba(plt.rcParams["axes.facecolor"])
    ink = np.array(to_rgb(plt.rcParams["text.color"]))
    behind = np.array(background) if opacity == 1 else 1 - ink
    red, green, blue = grey * behind + (1 - grey) * ink
    return float(red), float(green), float(blue)


def on_background(cmap: str | Colormap) -> str | Colormap:
    """Return the default colour map reversed on a dark background, where its dark end would not be seen."""
    is_dark = sum(shade(1)) < sum(shade(0))
    return f"{cmap}_r" if cmap == "YlGnBu" and is_dark else cmap


def name_rows(ax: Axes, names: list[str]) -> None:
    """Name one row each, the first at the top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, labelsize="small")


def write_counts(ax: Axes, counts: Sequence[int] | pd.Series) -> None:
    """Write the number of cells behind the bar of each row."""
    for row, count in enumerate(counts):
        place = (max(count, NO_CELLS), row), (3, 0)
        ax.annotate(f"{count:,}", *place, textcoords="offset points", va="center", size="x-small")


def note_beside(ax: Axes, text: str, row: float, x: float = 1.0) -> None:
    """Write ``text`` to the right of the axes, at the height of ``row``."""
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "size": "small"}
    ax.annotate(text, (x, row), (6, 0), xycoords=ax.get_yaxis_transform(), **style)


def count_axis(ax: Axes, low: float, high: float) -> None:
    """Make x a logarithmic axis of cells from ``low`` to ``high``; ``NO_CELLS`` is labelled 0."""
    ax.set(xscale="log", xlim=(low, high))
    steps = (1, 2, 5) if high < 50 * low else (1,)
    ticks = [step * 10.0**power for power in range(9) for step in steps]
    ticks = [tick for tick in (NO_CELLS, *ticks) if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())


def apart(places: np.ndarray, gap: float) -> np.ndarray:
    """Move rising ``places`` in 0 to 1 as little as needed to be ``gap`` apart, if there is room."""
    steps = gap * np.arange(len(places))
    moved = isotonic_regression(places - steps).x
    return np.clip(moved, 0, max(0.0, 1 - steps[-1])) + steps
