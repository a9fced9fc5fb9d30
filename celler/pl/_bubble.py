"""Drawing of scanpy's dot plot: names, brackets, tree and legends where there is room for them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection
from matplotlib.colors import Colormap, Normalize
from matplotlib.text import Text
from scanpy.plotting import DotPlot

from celler.pl._chart import (
    LEGEND_GAP,
    LEGEND_WIDTH,
    Chart,
    above,
    beside,
    color_bar,
    in_inches,
    legend_height,
    margins_of,
    open_chart,
    room_beside,
    room_of,
    size_legend,
)

# Lengths are inches, as in figsize.
CELL = 0.28
DEPTHS = {"gene_group_ax": 0.1, "group_extra_ax": 0.6}  # depth of the brackets and of the tree
LOWEST_BRACKETS = 0.55  # height that brackets and their labels may have in a new figure of any size
FONTS = (8.33, 7.5, 6.8, 6.0)  # sizes of the names, in points, until they fit their rows
LEGEND_BELOW = 0.85  # height of both legends side by side
SMALL = 0.83  # size of labels that have too little room, as a share of that of the others
SHORTEST = 5  # letters of a shortened label, at least


@dataclass(frozen=True)
class Look:
    """What a chart has beside what scanpy draws: numbers of cells by group, titles of legends, brackets."""

    n_cells: Mapping[str, int]
    titles: tuple[str, str]  # of the legends of sizes and of colours
    highest: float
    has_brackets: bool


def draw(dot_plot: DotPlot, look: Look, figsize: tuple[float, float] | None) -> Chart:
    """Draw the dots, brackets and tree of scanpy; place them, the legends and the title."""
    title, dot_plot.fig_title = dot_plot.fig_title, None
    is_swapped, shape = dot_plot.are_axes_swapped, dot_plot.dot_size_df.shape
    height, width = shape[::-1] if is_swapped else shape
    width += 2 * dot_plot.plot_x_padding - 1
    height += 2 * dot_plot.plot_y_padding - 1
    room = np.array(figsize or (0, 0), float) if dot_plot.ax is None else room_of(dot_plot.ax)
    chart = open_chart({"main": (CELL * width, CELL * height)}, figsize, dot_plot.ax)
    holder = dot_plot.ax = chart.first
    panels: dict[str, Axes] = dot_plot.get_axes()
    main, spec = panels["mainplot_ax"], holder.get_subplotspec()
    if spec is not None:
        main.set_subplotspec(spec)
    if chart.is_new:
        holder.remove()
    chart = replace(chart, panels={"main": main})
    if not look.has_brackets and "gene_group_ax" in panels:
        panels.pop("gene_group_ax").remove()
    for name, depth in DEPTHS.items():
        if name in panels:
            _attach(main, panels[name], depth, is_beside=is_swapped == (name == "gene_group_ax"))
    _count_cells(main, look.n_cells, is_swapped=is_swapped)
    _hide_specks(main.collections[0])
    legends = [panels.pop("size_legend_ax"), panels.pop("color_legend_ax")]
    place = _fit_names(main, room) if room.any() else "right"
    labels = _write_labels(dot_plot, panels)
    dots = [main.collections[0], *_redraw_legends(main, legends, panels, (look, dot_plot.cmap, place))]
    chart.arrange(None, is_last=False)
    if labels and not is_swapped:
        others = chart.figure.get_figheight() - margins_of(main)[3]
        limit = room[1] / 6 if room[1] else max(others / 5, LOWEST_BRACKETS)  # a sixth of the whole
        _fit_labels(main, labels, [last + 1 - first for first, last in dot_plot.var_groups.positions], limit)
    chart.arrange(title)
    chart.shrink(CELL, *dots)
    return replace(chart, panels=panels)


def _attach(main: Axes, panel: Axes, depth: float, *, is_beside: bool) -> None:
    """Make a panel of scanpy a part of ``main``, beside or above it, ``depth`` inches wide or high."""
    size, transform = ((depth, 1), beside(main)) if is_beside else ((1, depth), above(main))
    place = main.inset_axes((0, 0, *size), transform=transform)
    panel.remove()
    panel.set_figure(main.figure)
    main.add_child_axes(panel)
    panel.set_axes_locator(place.get_axes_locator())
    place.remove()


def _count_cells(main: Axes, n_cells: Mapping[str, int], *, is_swapped: bool) -> None:
    """Write the number of cells behind the name of each group."""
    axis = main.xaxis if is_swapped else main.yaxis
    names = [label.get_text() for label in axis.get_ticklabels()]
    axis.set_ticklabels([f"{name} ({n_cells[name]:,})" for name in names])


def _hide_specks(dots: Any) -> None:
    """Remove dots without an area, whose edges a vector graphic would still show."""
    is_drawn = dots.get_sizes() > 0
    colors = dots.get_facecolors()
    dots.set_offsets(np.asarray(dots.get_offsets())[is_drawn])
    dots.set_facecolors(colors[is_drawn] if len(colors) == len(is_drawn) else colors)
    dots.set_sizes(dots.get_sizes()[is_drawn])


def _fit_names(main: Axes, room: np.ndarray) -> str:
    """Choose the size of the names and the place of the legends that leave most for the dots; returns the place."""
    spans = np.abs(np.diff([main.get_xlim(), main.get_ylim()]).ravel())
    place = "right"
    for size in FONTS:
        main.tick_params(labelsize=size)
        left, bottom, right, top = margins_of(main)
        free = room - (left + right, bottom + top)
        steps = {
            "right": (free - (LEGEND_WIDTH + LEGEND_GAP, 0)) / spans,
            "below": (free - (0, LEGEND_BELOW)) / spans,
        }
        place = max(steps, key=lambda name: steps[name].min())
        if 72 * steps[place].min() >= 1.2 * size:
            break
    return place


def _write_labels(dot_plot: DotPlot, panels: Mapping[str, Axes]) -> list[Text]:
    """Write the labels of the brackets in full and flat."""
    if not dot_plot.var_groups or "gene_group_ax" not in panels:
        return []
    texts = list(panels["gene_group_ax"].texts)
    for text, label in zip(texts, dot_plot.var_groups.labels, strict=True):
        text.set(text=label, fontsize="small", rotation=0)
        if dot_plot.are_axes_swapped:
            text.set(x=0.8, ha="left", va="center")
    return texts


def _fit_labels(main: Axes, labels: list[Text], n_genes: Sequence[int], limit: float) -> None:
    """Write labels flat, in several lines, upright, or as numbers with a key: the first that fits ``limit`` inches."""
    pixels = main.figure.dpi
    if _are_apart(labels, 0.04 * pixels):
        return
    names, font = [label.get_text() for label in labels], float(labels[0].get_fontsize())
    boxes = [label.get_window_extent() for label in labels]
    letters = [1.05 * box.width / len(name) for box, name in zip(boxes, names, strict=True)]
    line, column = 1.1 * max(box.height for box in boxes), main.bbox.width / abs(np.diff(main.get_xlim())[0])
    height = pixels * (limit - DEPTHS["gene_group_ax"]) - 0.3 * line
    for rotation, scale in ((0, 1.0), (90, 1.0), (90, SMALL)):
        plt.setp(labels, rotation=rotation, fontsize=scale * font)
        for label, name, letter, n in zip(labels, names, letters, n_genes, strict=True):
            along, across = (n * column, height) if rotation == 0 else (height, n * column)
            label.set_text(_wrapped(name, int(along / letter / scale), int(across / line / scale)))
        written = [label.get_text() for label in labels]
        if not any("…" in text for text in written):
            return
    if _are_clear(written):
        return
    plt.setp(labels, rotation=0, fontsize=font)
    for number, label in enumerate(labels, start=1):
        label.set_text(f"{number}")
    _write_key(main, names)


def _wrapped(name: str, n_letters: int, n_lines: int) -> str:
    """Return the name in lines; "…" stands for what there is no room for."""
    if n_letters < SHORTEST or n_lines < 1:
        return name if len(name) <= n_letters and n_lines else "…"
    lines = textwrap.wrap(name, n_letters, max_lines=n_lines, placeholder="…", break_long_words=False)
    return "\n".join(line if len(line) <= n_letters else f"{line[: n_letters - 1]}…" for line in lines)


def _are_clear(texts: list[str]) -> bool:
    """Whether shortened labels still tell the brackets apart."""
    return len(set(texts)) == len(texts) and all(len(text) >= SHORTEST or "…" not in text for text in texts)


def _are_apart(labels: list[Text], gap: float) -> bool:
    boxes = [label.get_window_extent().padded(gap) for label in labels]
    return not any(one.overlaps(other) for one, other in pairwise(boxes))


def _write_key(main: Axes, names: list[str]) -> None:
    """Write what the numbers of the brackets mean, right of everything else."""
    text = "\n".join(f"{number}  {name}" for number, name in enumerate(names, start=1))
    place = in_inches(main, (1, 1))
    main.text(room_beside(main), 0, text, transform=place, va="top", fontsize="small", linespacing=1.3)


def _redraw_legends(
    main: Axes, legends: Sequence[Axes], panels: dict[str, Axes], style: tuple[Look, str | Colormap, str]
) -> Sequence[Collection]:
    """Draw scanpy's legends as parts of ``main``, at its right or below it; returns the dots of the legend."""
    (size, color), (look, cmap, place) = legends, style
    names = [text.get_text() for text in size.get_xticklabels()]
    dots: Any = size.collections[0]
    sizes = dict(zip(names, dots.get_sizes(), strict=True))
    colors = ScalarMappable(Normalize(*color.get_xlim()), cmap)
    extend: Literal["neither", "max"] = "max" if look.highest > 1.001 * color.get_xlim()[1] else "neither"
    size.remove()
    color.remove()
    if place == "right":
        where: list[dict[str, Any]] = [{"right": room_beside(main)}] * 2
        where[1] = where[0] | {"down": legend_height(look.titles[0])}
    else:
        corner = {"corner": (1, 0), "down": margins_of(main)[1] + 0.1}
        where = [corner | {"right": -2 * LEGEND_WIDTH - LEGEND_GAP}, corner | {"right": -LEGEND_WIDTH}]
    panels["size_legend_ax"] = size_legend(main, sizes, look.titles[0], **where[0])
    panels["color_legend_ax"] = color_bar(main, colors, look.titles[1], extend=extend, **where[1])
    return panels["size_legend_ax"].collections
