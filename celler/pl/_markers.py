"""Bubble chart of marker genes: how many cells of a type express a gene, and how strongly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from scanpy.plotting import DotPlot

from celler._utils._check import checked
from celler._utils._messages import closest, listed, warn
from celler._utils._text import as_names, found_names
from celler.pl._bubble import Look, draw
from celler.pl._chart import on_background, shade
from celler.pl._docs import document
from celler.tl._columns import N_LISTED, in_natural_order, label_column, note_unlabelled, with_closest
from celler.tl._markers import Source, check_state, check_values, find_source, rank_markers, read_logs

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


def automatic_markers(
    adata: AnnData, groupby: str, layer: str | None, notes: list[str], order: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the best markers of each group, in natural or this order, fewer if there are many groups."""
    groups = pd.Index(in_natural_order(label_column(adata, groupby, "groupby")).categories if order is None else order)
    n_genes = next((n for most, n in MARKERS_PER_GROUP.items() if len(groups) <= most), 1)
    markers = rank_markers(adata, groupby, n_genes, layer=layer)
    without = groups.difference(markers["group"], sort=False)
    if len(without) == len(groups):
        raise ValueError(f"No gene tells the groups of {groupby!r} apart; pass markers.")
    if len(without):
        notes.append(f"No gene leads in {listed(without)}: without markers.")
    if order is not None:
        kept = groups.difference(without, sort=False).rename("group")
        markers = markers.set_index("group").loc[kept].reset_index()
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
    values = read_logs(source, source.gene_names.get_indexer_for(genes))[labelled]
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
    categories_order: Sequence[str] | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    standard_scale: Literal["var", "group"] | None = None,
    vmin: float = 0.0,
    vmax: float | None = None,
    dot_min: float = 0.05,
    dot_max: float | None = None,
    swap_axes: bool = False,
    dendrogram: bool = False,
    cmap: str | Colormap = "YlGnBu",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> DotPlot | dict[str, Axes] | None:
    """Plot marker genes against cell types, one dot each, with :class:`scanpy.pl.DotPlot`.

    The area of a dot grows with the share of the group's cells that express the gene. Its colour is the mean over all
    cells of the group, zeros included. Counts are drawn as log1p of counts per 10,000, logarithms as they are.
    Brackets group the genes, unless their labels repeat the names of the rows.

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
    categories_order
        Groups from top to bottom; others are left out. None is the order of the categories, "2" before "10".
    layer
        Layer with the values, "X" or "raw". None uses ``X``, or ``adata.raw`` if X is scaled or lacks markers. Scaled
        values are an error, since their sign does not show expression.
    use_raw
        True is ``layer="raw"`` and False ``layer="X"``, as in scanpy.
    standard_scale
        "var" scales the means of each gene to 0 to 1, "group" those of each group.
    vmin
        Mean of the first colour.
    vmax
        Mean of the last colour. None is the highest mean, or less if few genes are far stronger than all others, which
        would make these pale; an arrow at the end of the colour bar says so.
    dot_min
        Share of cells below which no dot is drawn.
    dot_max
        Share of cells of the largest dot. None is the largest share, rounded up to a tenth.
    swap_axes
        Whether genes are rows and groups columns, for many genes and few groups.
    dendrogram
        Whether to order groups by similarity and draw their tree: that of ``scanpy.tl.dendrogram`` if it has the same
        groups, else one of ``obsm["X_pca"]``, else one of the markers.
    cmap
        Colour map of the means. The default can be read without colour vision and in grey; it is reversed on a dark
        background.
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
    _check_options(standard_scale, ax, has_order=categories_order is not None, has_tree=dendrogram)
    if return_fig and save is not None:
        raise ValueError("return_fig=True gives a DotPlot that is not drawn yet; save it with its own savefig().")
    notes: list[str] = []
    layer = _layer(layer, use_raw)
    groups = _groups(adata, groupby, categories_order, notes)
    if markers is None:
        markers = automatic_markers(adata, groupby, layer, notes, categories_order and list(groups.categories))
    by_label = markers_by_label(markers)
    source = find_source(adata, layer, list(chain.from_iterable(by_label.values())))
    known = known_markers(by_label, source, notes)
    genes = list(chain.from_iterable(known.values()))
    table = small_copy(adata, source, genes, groups, groupby)
    if vmax is None:
        vmax = robust_maximum(table, groupby) if standard_scale is None else 1.0
    names, last = genes if list(known) == [""] else known, vmax if vmax > vmin else vmin + 1
    frame: dict[str, Any] = {"title": title, "figsize": figsize, "ax": ax}
    dot_plot = sc.pl.DotPlot(table, names, groupby, standard_scale=standard_scale, vmin=vmin, vmax=last, **frame)
    # The means are scaled by now; with swapped axes scanpy 1.11 would scale them again, along the wrong axis.
    dot_plot.standard_scale = None
    dot_plot.dot_size_df = dot_plot.dot_size_df.where(dot_plot.dot_size_df >= dot_min, 0)
    if dendrogram:
        _add_dendrogram(dot_plot, adata, groups, notes)
    if swap_axes:
        dot_plot.swap_axes()
    dot_plot.style(
        cmap=on_background(cmap),
        dot_edge_color=shade(0),
        dot_max=dot_max if dot_plot.dot_size_df.to_numpy().any() else 1,
    )
    titles = _titles(dot_min, standard_scale, is_log=source.state.is_log)
    dot_plot.legend(size_title=titles[0], colorbar_title=titles[1])
    if notes:
        warn(" ".join(notes))
    if return_fig:
        return dot_plot
    highest = float(dot_plot.dot_color_df.to_numpy().max())
    look = Look(groups.value_counts().to_dict(), titles, highest, _add_something(known, dot_plot))
    return draw(dot_plot, look, figsize).finish(show=show, return_fig=False, save=save)


def robust_maximum(table: AnnData, groupby: str) -> float:
    """Return the mean of the last colour.

    It is the highest mean of a gene that is no outlier among the genes (Tukey's fence), so that few genes do not make
    all others pale, but at least half of the highest, so that colours of the strong ones can still be told apart.
    """
    highest = table.to_df().groupby(table.obs[groupby].array, observed=True).mean().max().to_numpy()
    low, high = np.quantile(highest, [0.25, 0.75])
    usual = highest[highest <= high + 1.5 * (high - low)]
    return float(max(usual.max(), highest.max() / 2))


def _layer(layer: str | None, use_raw: bool | None) -> str | None:
    if use_raw is None:
        return layer
    if layer is not None:
        raise ValueError(f"layer={layer!r} and use_raw={use_raw} were given; pass one of them.")
    return "raw" if use_raw else "X"


def _groups(adata: AnnData, groupby: str, order: Sequence[str] | None, notes: list[str]) -> pd.Categorical:
    """Return the group of each cell, in the user's order or in a natural one."""
    groups = label_column(adata, groupby, "groupby")
    note_unlabelled(groups, groupby, notes)
    if order is None:
        return in_natural_order(groups)
    names = list(dict.fromkeys(map(str, order)))
    if unknown := [name for name in names if name not in groups.categories]:
        raise ValueError(
            f"categories_order names {listed(unknown)}, no group of {groupby!r}."
            f"{closest(unknown[0], groups.categories)} Its groups: {listed(groups.categories, 30)}."
        )
    return groups.set_categories(names)


def _add_something(known: Mapping[str, Sequence[str]], dot_plot: DotPlot) -> bool:
    """Whether the labels of the brackets are not just the names of the rows in their order."""
    rows = dot_plot.categories_order if dot_plot.categories_order is not None else dot_plot.dot_size_df.index
    shown = dot_plot.var_groups.labels if dot_plot.var_groups else list(known)
    return [name for name in rows if name in known] != list(shown)


def _check_options(standard_scale: str | None, ax: Axes | None, *, has_order: bool, has_tree: bool) -> None:
    if standard_scale not in (None, *COLOR_NOTES):
        raise ValueError(f"standard_scale={standard_scale!r}; expected 'var', 'group' or None.")
    if ax is not None and ax.get_subplotspec() is None:
        raise ValueError("ax is not part of a grid of axes; pass one made by plt.subplots().")
    if has_order and has_tree:
        raise ValueError("dendrogram=True orders the groups by similarity; leave out categories_order, or the tree.")


def _titles(dot_min: float, standard_scale: str | None, *, is_log: bool) -> tuple[str, str]:
    """Return the titles of the legends of sizes and of colours, each with a second line for what is not plain."""
    smallest = f"\n{100 * dot_min:g} or more" if dot_min else ""
    unit = "" if is_log else "\nlog1p(CP10K)"
    note = unit if standard_scale is None else COLOR_NOTES[standard_scale]
    return f"Share of cells (%){smallest}", f"Mean expression{note}"


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
