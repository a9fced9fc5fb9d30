"""Bubble chart of marker genes: how many cells of a type express a gene, and how strongly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection
from matplotlib.colors import Colormap, Normalize
from matplotlib.text import Text
from scanpy.plotting import DotPlot

from celler._utils._arguments import checked
from celler._utils._messages import listed, warn
from celler._utils._text import as_names, found_names
from celler.pl._chart import SIZE_LEGEND_HEIGHT, Chart, above, beside, color_bar, open_chart, room_beside, size_legend
from celler.pl._docs import document
from celler.tl._columns import N_LISTED, label_column, note_unlabelled, with_closest
from celler.tl._markers import Source, check_state, check_values, find_source, rank_markers, read_columns

# Lengths are inches, as in figsize.
CELL = 0.28
DEPTHS = {"gene_group_ax": 0.1, "group_extra_ax": 0.6}  # depth of the brackets and of the tree
MARKERS_PER_GROUP = {12: 3, 30: 2}  # markers chosen for each group, by the largest number of groups; one beyond that
COLOR_NOTES = {"var": "\n(scaled per gene)", "group": "\n(scaled per group)"}


def markers_by_label(markers: str | Iterable[str] | Mapping[str, Any] | pd.DataFrame) -> dict[str, list[str]]:
    """Return markers by label, each once per label; without labels, the label is ""."""
    if isinstance(markers, pd.DataFrame):
        markers = dict(iter(markers.groupby("group", sort=False)["gene"]))
    by_label = markers if isinstance(markers, Mapping) else {"": markers}
    return {
        str(label): _names_in([genes] if isinstance(genes, str | bytes) else genes) for label, genes in by_label.items()
    }


def _names_in(genes: Iterable[Any]) -> list[str]:
    """Return the names once each, without missing ones."""
    return [name for name in dict.fromkeys(as_names(genes)) if name]


def automatic_markers(adata: AnnData, groupby: str, layer: str | None, notes: list[str]) -> pd.DataFrame:
    """Return the best markers of each group, fewer if there are many groups."""
    groups = label_column(adata, groupby, "groupby").categories
    n_genes = next((n for most, n in MARKERS_PER_GROUP.items() if len(groups) <= most), 1)
    markers = rank_markers(adata, groupby, n_genes, layer=layer)
    without = groups.difference(markers["group"], sort=False)
    if len(without) == len(groups):
        raise ValueError(f"No gene tells the groups of {groupby!r} apart; pass markers.")
    if len(without):
        notes.append(f"No gene leads in {listed(without)}: without markers.")
    return markers


def known_markers(markers: Mapping[str, Sequence[str]], source: Source, notes: list[str]) -> dict[str, list[str]]:
    """Return the markers that ``source`` has, by label; ``notes`` names those left out."""
    genes = list(dict.fromkeys(chain.from_iterable(markers.values())))
    name_of = found_names(genes, source.gene_names)
    unknown = [gene for gene in genes if gene not in name_of]
    if len(unknown) == len(genes):
        raise ValueError(_nothing_known(genes, source))
    twice = set(source.gene_names[source.gene_names.duplicated()]).intersection(name_of.values())
    if twice:
        raise ValueError(
            f"{listed(sorted(twice))}: the name of more than one gene of {source.name}. Make names unique, e.g. with "
            "adata.var_names_make_unique(), and pass those you mean."
        )
    if unknown:
        hints = [with_closest(gene, source.gene_names) for gene in unknown[:N_LISTED]]
        notes.append(
            f"Left out {len(unknown)} of {len(genes)} markers, no genes of {source.name}: "
            f"{listed(hints + unknown[N_LISTED:])}."
        )
    known = {
        label: list(dict.fromkeys(name_of[gene] for gene in genes if gene in name_of))
        for label, genes in markers.items()
    }
    empty = [label for label, genes in known.items() if not genes]
    if empty:
        notes.append(f"Left out labels without genes: {listed(empty)}.")
    return {label: genes for label, genes in known.items() if genes}


def small_copy(adata: AnnData, source: Source, genes: Iterable[str], groups: pd.Categorical, groupby: str) -> AnnData:
    """Return an AnnData of the cells that have a group and of ``genes`` only."""
    genes = list(dict.fromkeys(genes))
    labelled = np.flatnonzero(groups.codes >= 0)
    values = read_columns(source, source.gene_names.get_indexer_for(genes))[labelled]
    check_values(values.data, source.name, adata)
    check_state(source.state, source.name, adata)
    obs = pd.DataFrame({groupby: groups[labelled]}, index=pd.RangeIndex(len(labelled)).astype(str))
    values = values.astype(np.result_type(values.dtype, np.float32))
    return AnnData(values, obs=obs, var=pd.DataFrame(index=pd.Index(genes)))


def _nothing_known(genes: Sequence[str], source: Source) -> str:
    if not genes:
        return "markers is empty; pass at least one gene."
    names = listed(source.gene_names[source.gene_names != ""])
    return (
        f"None of the {len(genes)} markers is a gene of {source.name}: {listed(genes)}. Its genes are named like "
        f"{names}. Pass names like these, or put those of the markers in a column of var."
    )


@document
@checked
def marker_bubble(
    adata: AnnData,
    markers: str | Sequence[str] | Mapping[str, str | Sequence[str]] | pd.DataFrame | None = None,
    groupby: str = "celler",
    *,
    layer: str | None = None,
    standard_scale: Literal["var", "group"] | None = None,
    swap_axes: bool = False,
    dendrogram: bool = False,
    cmap: str | Colormap = "YlGnBu",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> DotPlot | dict[str, Axes] | None:
    """Plot marker genes against cell types, one dot each, with :class:`scanpy.pl.DotPlot`.

    The area of a dot grows with the share of the group's cells that express the gene. Its colour is the mean over all
    cells of the group, zeros included. Pass log-normalised values; means of counts are labelled in the legend.

    Parameters
    ----------
    adata
        Cells with the values of genes.
    markers
        Genes, or genes by the label of their bracket, or a table of :func:`celler.tl.rank_markers`. Names are those of
        ``var_names``, or of a column of ``var`` if ``var_names`` has none of them. Unknown genes are left out with a
        warning, repeated ones are drawn once. None is the three best markers of each group, two for more than 12
        groups and one for more than 30.
    groupby
        Column of ``adata.obs`` with the groups. Unused categories and, with a warning, unlabelled cells are left out.
    layer
        Layer with the values, "X" or "raw". None uses ``X``, or ``adata.raw`` if X is scaled or lacks markers. Scaled
        values are an error, since their sign does not show expression.
    standard_scale
        "var" scales the means of each gene to 0 to 1, "group" those of each group.
    swap_axes
        Whether genes are rows and groups columns, for many genes and few groups.
    dendrogram
        Whether to order groups by similarity and draw their tree: that of ``scanpy.tl.dendrogram`` if it has the same
        groups, else one of ``obsm["X_pca"]``, else one of the markers.
    cmap
        Colour map of the means. The default can be read without colour vision and in grey.
    $frame
    return_fig
        Whether to return the :class:`scanpy.pl.DotPlot`, not yet drawn, to refine it.

    Returns
    -------
    The axes by name, or the DotPlot if ``return_fig`` is set, or None if the figure is shown. ``adata`` is not changed.

    $raises

    Examples
    --------
    >>> import celler as cl
    >>> cells = cl.datasets.pbmc68k()
    >>> markers = {"T cells": ["CD3D", "CD3E", "IL32"], "B": ["CD79A", "CD79B"], "NK": ["NKG7", "GNLY"]}
    >>> cl.pl.marker_bubble(cells, markers, groupby="cell_type")
    """
    _check_options(standard_scale, ax)
    notes: list[str] = []
    groups = label_column(adata, groupby, "groupby")
    note_unlabelled(groups, groupby, notes)
    if markers is None:
        markers = automatic_markers(adata, groupby, layer, notes)
    by_label = markers_by_label(markers)
    source = find_source(adata, layer, list(chain.from_iterable(by_label.values())))
    known = known_markers(by_label, source, notes)
    genes = list(chain.from_iterable(known.values()))
    table = small_copy(adata, source, genes, groups, groupby)
    values: np.ndarray = table.to_df().to_numpy()
    is_blank = not values.any()
    dot_plot = sc.pl.DotPlot(
        table,
        genes if list(known) == [""] else known,
        groupby,
        title=title,
        figsize=figsize,
        standard_scale=standard_scale,
        ax=ax,
        vmin=0,
        vmax=1 if standard_scale or is_blank else None,
    )
    # The means are scaled by now; with swapped axes scanpy 1.11 would scale them again, along the wrong axis.
    dot_plot.standard_scale = None
    if dendrogram:
        _add_dendrogram(dot_plot, adata, groups, notes)
    if swap_axes:
        dot_plot.swap_axes()
    dot_plot.style(cmap=cmap, dot_max=1 if is_blank else None)
    color_title = "Mean expression" + _color_note(values, standard_scale)
    dot_plot.legend(size_title="Share of cells (%)", colorbar_title=color_title)
    if notes:
        warn(" ".join(notes))
    if return_fig:
        return dot_plot
    return _draw(dot_plot, figsize).finish(show=show, return_fig=False)


def _check_options(standard_scale: str | None, ax: Axes | None) -> None:
    if standard_scale not in (None, *COLOR_NOTES):
        raise ValueError(f"standard_scale={standard_scale!r}; expected 'var', 'group' or None.")
    if ax is not None and ax.get_subplotspec() is None:
        raise ValueError("ax is not part of a grid of axes; pass one made by plt.subplots().")


def _color_note(values: np.ndarray, standard_scale: str | None) -> str:
    """Return a second line for the colour legend: the scaling of the values, or that they are counts."""
    if standard_scale is not None:
        return COLOR_NOTES[standard_scale]
    return "\n(counts)" if values.max(initial=0) > 1 and (values % 1 == 0).all() else ""


def _add_dendrogram(dot_plot: DotPlot, adata: AnnData, groups: pd.Categorical, notes: list[str]) -> None:
    """Add the tree of the groups, which the plot's own table keeps, not the user's object."""
    table, key = dot_plot.adata, f"dendrogram_{dot_plot.groupby[0]}"
    if len(groups.categories) < 3:
        notes.append(f"No dendrogram: it takes 3 groups, there are {len(groups.categories)}.")
        return
    # scanpy logs that it keeps the order of markers whose labels are not the groups: as expected.
    with sc.settings.verbosity.override("error"):
        if set(adata.uns.get(key, {}).get("categories_ordered", ())) == set(groups.categories):
            table.uns[key] = adata.uns[key]
        else:
            table.obsm["X_tree"] = _tree_features(table, adata, groups)
            sc.tl.dendrogram(table, dot_plot.groupby[0], use_rep="X_tree")
        dot_plot.add_dendrogram()


def _tree_features(table: AnnData, adata: AnnData, groups: pd.Categorical) -> np.ndarray:
    """Return the features of the cells whose means by group are correlated for the tree.

    They are the principal components, or else the group means of the markers as z-scores. Both signs
    of these make the correlation a cosine, which exists for few markers and for groups that express
    none of them, whose z-scores may all be equal.
    """
    codes = groups.codes[groups.codes >= 0]
    if "X_pca" in adata.obsm:
        return np.asarray(adata.obsm["X_pca"])[groups.codes >= 0]
    means = table.to_df().groupby(codes).mean().to_numpy()
    deviations = means - means.mean(axis=0)
    z = deviations / np.maximum(deviations.std(axis=0), np.finfo(means.dtype).tiny)
    if not z.any(axis=1).all():
        raise ValueError(
            "dendrogram=True: these markers do not tell the groups apart. Compute the principal components with "
            "scanpy.pp.pca, or pass more markers."
        )
    return np.hstack([z, -z])[codes]


def _draw(dot_plot: DotPlot, figsize: tuple[float, float] | None) -> Chart:
    """Draw the dots, brackets and tree of scanpy; place them, the legends and the title."""
    title, dot_plot.fig_title = dot_plot.fig_title, None
    is_swapped, shape = dot_plot.are_axes_swapped, dot_plot.dot_size_df.shape
    height, width = shape[::-1] if is_swapped else shape
    width += 2 * dot_plot.plot_x_padding - 1
    height += 2 * dot_plot.plot_y_padding - 1
    chart = open_chart({"main": (CELL * width, CELL * height)}, figsize, dot_plot.ax)
    holder = dot_plot.ax = chart.first
    panels: dict[str, Axes] = dot_plot.get_axes()
    main, spec = panels["mainplot_ax"], holder.get_subplotspec()
    if spec is not None:
        main.set_subplotspec(spec)
    if chart.is_new:
        holder.remove()
    chart = replace(chart, panels={"main": main})
    for name, depth in DEPTHS.items():
        if name in panels:
            _attach(main, panels[name], depth, is_beside=is_swapped == (name == "gene_group_ax"))
    labels = _write_labels(dot_plot, panels)
    dots = [*main.collections, *_redraw_legends(main, panels, dot_plot.cmap)]
    chart.arrange(None, is_last=False)
    boxes = [text.get_window_extent().padded(0.04 * main.figure.dpi) for text in labels]
    if not is_swapped and any(one.overlaps(other) for one, other in pairwise(boxes)):
        plt.setp(labels, rotation=90)
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


def _write_labels(dot_plot: DotPlot, panels: Mapping[str, Axes]) -> list[Text]:
    """Write the labels of the brackets in full and flat."""
    if not dot_plot.var_groups:
        return []
    texts = list(panels["gene_group_ax"].texts)
    for text, label in zip(texts, dot_plot.var_groups.labels, strict=True):
        text.set(text=label, fontsize="small", rotation=0)
        if dot_plot.are_axes_swapped:
            text.set(x=0.8, ha="left", va="center")
    return texts


def _redraw_legends(main: Axes, panels: dict[str, Axes], cmap: str | Colormap) -> Sequence[Collection]:
    """Draw scanpy's legends as parts of ``main``; returns the dots of the legend."""
    size, color = panels["size_legend_ax"], panels["color_legend_ax"]
    names = [text.get_text() for text in size.get_xticklabels()]
    dots: Any = size.collections[0]
    sizes = dict(zip(names, dots.get_sizes(), strict=True))
    colors = ScalarMappable(Normalize(*color.get_xlim()), cmap)
    place: dict[str, Any] = {"right": room_beside(main)}
    size.remove()
    color.remove()
    panels["size_legend_ax"] = size_legend(main, sizes, size.get_title(), **place)
    place["down"] = SIZE_LEGEND_HEIGHT
    panels["color_legend_ax"] = color_bar(main, colors, color.get_title(), **place)
    return panels["size_legend_ax"].collections
