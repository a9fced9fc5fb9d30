"""Legends to the right of a panel, of a fixed size in inches whatever the size of the panel."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from celler.pl.panels import margins_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PathCollection

# Lengths are inches.
GAP = 0.25
WIDTH = 1.3
BAR = 0.12
HEADING = 0.2
LINE = 0.19
#: Rows of a legend of names beside a panel that is not higher.
N_ROWS = 20
SIZES = 0.3
#: Height of a legend of sizes with its heading and its numbers.
SIZE_LEGEND = HEADING + SIZES + 0.25
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
    return margins_of(host).right + GAP


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
    bar.set_axes_locator(Beside(host, (WIDTH, BAR), right, down + HEADING, is_under))
    host.figure.colorbar(mappable, cax=bar, orientation="horizontal")
    bar.set_title(title, fontsize="small", loc="left")
    bar.tick_params(labelsize="x-small")
    bar.spines[:].set_visible(False)


def size_legend(
    host: Axes, sizes: Mapping[str, float], title: str, *, right: float
) -> PathCollection:
    """Draw dots of the areas ``sizes`` over their names, ``right`` inches beside the host."""
    panel = host.inset_axes((0, 0, 1, 1))
    panel.set_axes_locator(Beside(host, (WIDTH, SIZES), right, HEADING))
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
        **BESIDE | {"bbox_to_anchor": (1 + margins_of(host).right / width, 1)},
    )
    legend.set_alignment("left")
