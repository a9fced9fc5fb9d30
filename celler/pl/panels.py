"""Panels of a chart side by side, placed by the size of their text, so that nothing is cut or overlaps."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import scanpy as sc
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.ticker import NullFormatter
from scipy.optimize import isotonic_regression

from celler.door import warn
from celler.pl.layout import PAD, Box, Margins, fractions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import BboxBase

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
