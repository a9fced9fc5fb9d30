"""Marker bubble charts against pandas, a stored picture, and every way users hand data over."""

from itertools import combinations

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib import pyplot as plt
from pl_cases import texts_drawn
from scipy.cluster import hierarchy

from celler.pl import marker_bubble

mpl.use("Agg")

GENES = [f"gene{i}" for i in range(6)]
BY_TYPE = {"alpha": ["gene0", "gene1"], "beta": ["gene2", "gene3"], "gamma": "gene4"}
BLOOD = {
    "T cells": ["CD3D", "CD3E", "IL32"],
    "B": ["CD79A", "CD79B", "MS4A1"],
    "NK": ["NKG7", "GNLY"],
    "Monocytes": ["LYZ", "CST3", "S100A8"],
    "Dendritic": "FCER1A",
}


@pytest.fixture(scope="module")
def pbmc():
    return sc.datasets.pbmc68k_reduced()


@pytest.fixture
def adata():
    return toy(["alpha", "beta", "gamma", "delta"])


def toy(groups, n_cells=120):
    """Log values of six genes: in group number i gene i is high; counts in a layer."""
    rng = np.random.default_rng(0)
    codes = rng.integers(len(groups), size=n_cells)
    codes[: len(groups)] = np.arange(len(groups))
    rates = rng.gamma(0.5, 0.6, size=(len(groups), len(GENES)))
    rates[np.arange(len(groups)), np.arange(len(groups)) % len(GENES)] += 4
    counts = rng.poisson(rates[codes]).astype(np.float32)
    obs = pd.DataFrame(
        {"type": pd.Categorical(np.take(groups, codes), categories=groups)},
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame({"symbol": [f"S{i}" for i in range(len(GENES))]}, index=GENES)
    return ad.AnnData(np.log1p(counts), obs=obs, var=var, layers={"counts": counts})


def dots(values, groups, genes):
    """Share of cells above zero and mean, by group, from a dense cells-by-genes frame."""
    values = pd.DataFrame(np.asarray(values, dtype=float), columns=genes)
    values["group"] = np.asarray(groups, dtype=object)
    by_group = values.groupby("group", sort=True)
    return by_group.agg(lambda column: (column > 0).mean()), by_group.mean()


def assert_dots(dot_plot, share, mean):
    order = dot_plot.dot_size_df.index
    np.testing.assert_allclose(dot_plot.dot_size_df, share.loc[order], rtol=1e-6)
    np.testing.assert_allclose(dot_plot.dot_color_df, mean.loc[order], rtol=1e-5, atol=1e-7)


def labels_of(ticks):
    return [label.get_text() for label in ticks]


def bracket_labels(panels):
    return labels_of(panels["gene_group_ax"].texts)


def groups_drawn(panels):
    return labels_of(panels["mainplot_ax"].get_yticklabels())


def genes_drawn(panels):
    return labels_of(panels["mainplot_ax"].get_xticklabels())


def test_marker_bubble_equals_pandas(adata):
    genes = ["gene5", "gene0", "gene3"]
    dot_plot = marker_bubble(adata, genes, "type", return_fig=True)
    assert_dots(dot_plot, *dots(adata.X[:, [5, 0, 3]], adata.obs["type"], genes))
    assert list(dot_plot.dot_size_df.columns) == genes


def test_marker_bubble_sizes_and_colours(adata):
    panels = marker_bubble(adata, GENES, "type", show=False)
    share, mean = dots(adata.X, adata.obs["type"], GENES)
    drawn, groups = panels["mainplot_ax"].collections[0], groups_drawn(panels)
    assert groups == ["alpha", "beta", "gamma", "delta"]  # the order of the categories
    share, mean = share.loc[groups].to_numpy().ravel(), mean.loc[groups].to_numpy().ravel()
    largest = np.ceil(share.max() * 10) / 10
    np.testing.assert_allclose(drawn.get_sizes(), 200 * (share / largest) ** 1.5, rtol=1e-5)
    colors = mpl.colormaps["YlGnBu"](np.float32(mean / mean.max()))
    np.testing.assert_allclose(drawn.get_facecolors(), colors, atol=0.01)


def test_marker_bubble_of_scaled_cells_uses_raw(pbmc):
    genes = [gene for label in BLOOD for gene in np.atleast_1d(BLOOD[label])]
    dot_plot = marker_bubble(pbmc, BLOOD, "bulk_labels", return_fig=True)
    values = pbmc.raw.to_adata()[:, genes].X.toarray()
    assert_dots(dot_plot, *dots(values, pbmc.obs["bulk_labels"], genes))


@pytest.mark.parametrize("swap_axes", [False, True])
@pytest.mark.parametrize(("standard_scale", "axis"), [("var", 0), ("group", 1)])
def test_marker_bubble_with_standard_scale(adata, standard_scale, axis, swap_axes):
    panels = marker_bubble(adata, GENES, "type", standard_scale=standard_scale, swap_axes=swap_axes, show=False)
    mean = dots(adata.X, adata.obs["type"], GENES)[1].loc[["alpha", "beta", "gamma", "delta"]]
    mean = mean.to_numpy()
    low, high = mean.min(axis=axis, keepdims=True), mean.max(axis=axis, keepdims=True)
    scaled = (mean - low) / (high - low)
    colors = mpl.colormaps["YlGnBu"]((scaled.T if swap_axes else scaled).ravel())
    drawn = panels["mainplot_ax"].collections[0].get_facecolors()
    np.testing.assert_allclose(drawn, colors, atol=0.02)
    unit = {"var": "(scaled per gene)", "group": "(scaled per group)"}[standard_scale]
    assert panels["color_legend_ax"].get_title(loc="left") == f"Mean expression\n{unit}"


def test_marker_bubble_with_swapped_axes(adata):
    panels = marker_bubble(adata, BY_TYPE, "type", swap_axes=True, show=False)
    assert groups_drawn(panels) == GENES[:5]
    assert genes_drawn(panels) == ["alpha", "beta", "gamma", "delta"]
    assert bracket_labels(panels) == ["alpha", "beta", "gamma"]


def test_marker_bubble_legends_of_values_and_counts(adata):
    panels = marker_bubble(adata, GENES, "type", show=False)
    assert panels["size_legend_ax"].get_title(loc="left") == "Share of cells (%)"
    assert panels["color_legend_ax"].get_title(loc="left") == "Mean expression"
    counts = marker_bubble(adata, GENES, "type", layer="counts", show=False)
    assert counts["color_legend_ax"].get_title(loc="left") == "Mean expression\n(counts)"
    adata.X += 1.5
    high = marker_bubble(adata, GENES, "type", show=False)
    assert high["color_legend_ax"].get_xlim()[0] == 0


def test_marker_bubble_with_cmap_title_and_figsize(adata):
    panels = marker_bubble(
        adata,
        GENES,
        "type",
        cmap=mpl.colormaps["cividis"],
        title="Islets",
        figsize=(9, 4),
        show=False,
    )
    figure = panels["mainplot_ax"].figure
    colors = panels["mainplot_ax"].collections[0].get_facecolors()
    default = marker_bubble(adata, GENES, "type", show=False)
    assert not np.allclose(colors, default["mainplot_ax"].collections[0].get_facecolors())
    assert tuple(figure.get_size_inches()) == (9, 4)
    assert "Islets" in labels_of(figure.texts)
    assert default["mainplot_ax"].figure.texts == []


def test_marker_bubble_with_small_figsize(adata):
    sizes = [
        marker_bubble(adata, GENES, "type", figsize=figsize, show=False)["mainplot_ax"].collections[0].get_sizes()
        for figsize in (None, (3.2, 1.6))
    ]
    assert (sizes[1] < sizes[0])[sizes[0] > 0].all()


@pytest.mark.parametrize("engine", [None, "constrained"])
def test_marker_bubble_in_axes_with_and_without_layout_engine(adata, engine):
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5), layout=engine)
    left.plot([0, 1], label="kept")
    panels = marker_bubble(adata, BY_TYPE, "type", ax=right, title="Islets", show=False)
    figure.canvas.draw()
    box = (right.get_window_extent() if engine is None else figure.bbox).padded(1)
    neighbour = left.get_tightbbox()
    for panel in panels.values():
        assert panel.figure is figure
        assert box.contains(*panel.get_tightbbox().min)
        assert box.contains(*panel.get_tightbbox().max)
        assert not panel.get_tightbbox().overlaps(neighbour)
    assert len(left.lines) == 1


def test_marker_bubble_in_axes_outside_a_grid(adata):
    with pytest.raises(ValueError, match=r"plt\.subplots"):
        marker_bubble(adata, GENES, "type", ax=plt.figure().add_axes((0, 0, 1, 1)))


def test_marker_bubble_returns_like_scanpy(adata, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    assert isinstance(marker_bubble(adata, GENES, "type", return_fig=True), sc.pl.DotPlot)
    assert set(marker_bubble(adata, GENES, "type", show=False)) == {
        "mainplot_ax",
        "size_legend_ax",
        "color_legend_ax",
    }
    assert shown == []
    assert marker_bubble(adata, GENES, "type", show=True) is None
    before = sc.settings.autoshow
    try:
        sc.settings.autoshow = True
        assert marker_bubble(adata, GENES, "type") is None
        sc.settings.autoshow = False
        assert len(marker_bubble(adata, GENES, "type")) == 3
    finally:
        sc.settings.autoshow = before
    assert len(shown) == 2


def test_marker_bubble_with_unknown_standard_scale(adata):
    with pytest.raises(ValueError, match="standard_scale='gene'; expected 'var', 'group' or None"):
        marker_bubble(adata, GENES, "type", standard_scale="gene")


def test_dendrogram_of_markers_equals_the_cosine_tree(adata):
    panels = marker_bubble(adata, GENES, "type", dendrogram=True, show=False)
    mean = dots(adata.X, adata.obs["type"], GENES)[1].loc[adata.obs["type"].cat.categories]
    z = (mean - mean.mean()) / mean.std(ddof=0)
    tree = hierarchy.linkage(z, "complete", metric="cosine")
    expected = hierarchy.dendrogram(tree, labels=list(mean.index), no_plot=True)["ivl"]
    assert groups_drawn(panels) == expected
    assert expected != list(mean.index)
    assert len(panels["group_extra_ax"].lines) == 3


def test_dendrogram_of_components_or_stored(adata):
    plain = groups_drawn(marker_bubble(adata, GENES, "type", dendrogram=True, show=False))
    centers = {"alpha": [0, 0, 1], "gamma": [0, 2, 9], "beta": [1, 0, 0], "delta": [9, 2, 0]}
    adata.obsm["X_pca"] = np.array([centers[group] for group in adata.obs["type"]])
    from_components = groups_drawn(marker_bubble(adata, GENES, "type", dendrogram=True, show=False))
    assert {frozenset(from_components[:2]), frozenset(from_components[2:])} == {
        frozenset(["alpha", "gamma"]),
        frozenset(["beta", "delta"]),
    }
    del adata.obsm["X_pca"]
    sc.tl.dendrogram(adata, "type", use_rep="X", linkage_method="single", cor_method="spearman")
    adata.uns["dendrogram_type"]["categories_ordered"] = plain[::-1]
    stored = groups_drawn(marker_bubble(adata, GENES, "type", dendrogram=True, show=False))
    assert stored == plain[::-1]
    fewer = adata[adata.obs["type"] != "delta"]
    assert "delta" not in groups_drawn(marker_bubble(fewer, GENES, "type", dendrogram=True, show=False))


def test_dendrogram_with_brackets(adata):
    markers = {"delta": "gene3", "gamma": "gene2", "alpha": ["gene0", "gene5"], "beta": "gene1"}
    panels = marker_bubble(adata, markers, "type", dendrogram=True, swap_axes=True, show=False)
    order = genes_drawn(panels)
    assert bracket_labels(panels) == order
    expected = [gene for group in order for gene in np.atleast_1d(markers[group])]
    assert groups_drawn(panels) == expected


def test_dendrogram_of_one_marker_and_a_group_without_expression(adata):
    adata.X[adata.obs["type"] == "beta"] = 0
    for markers in ("gene0", GENES[:2], GENES):
        panels = marker_bubble(adata, markers, "type", dendrogram=True, show=False)
        assert set(groups_drawn(panels)) == {"alpha", "beta", "gamma", "delta"}


def test_dendrogram_of_two_groups_or_equal_groups(adata):
    two = adata[adata.obs["type"].isin(["alpha", "beta"])]
    with pytest.warns(UserWarning, match="No dendrogram: it takes 3 groups, there are 2"):
        panels = marker_bubble(two, GENES, "type", dendrogram=True, show=False)
    assert "group_extra_ax" not in panels
    adata.X[:] = 1
    with pytest.raises(ValueError, match=r"do not tell the groups apart.*scanpy\.pp\.pca"):
        marker_bubble(adata, GENES, "type", dendrogram=True)


@pytest.mark.parametrize("swap_axes", [False, True])
@pytest.mark.parametrize("dendrogram", [False, True])
@pytest.mark.parametrize("n_groups", [1, 5, 30, 60])
def test_marker_bubble_text_of_few_and_many_groups(n_groups, dendrogram, swap_axes):
    groups = [f"Cell type with a long name {i}" for i in range(n_groups)]
    adata = toy(groups, n_cells=20 * n_groups)
    markers = {group: GENES[i % 6] for i, group in enumerate(groups)}
    panels = marker_bubble(
        adata,
        markers,
        "type",
        dendrogram=dendrogram and n_groups > 2,
        swap_axes=swap_axes,
        title="A title wider than the dots of five types",
        show=False,
    )
    figure = panels["mainplot_ax"].figure
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in texts_drawn(figure)]
    assert len(boxes) > 2 * n_groups
    assert all(figure.bbox.padded(1).contains(x, y) for box in boxes for x, y in (box.min, box.max))
    main = panels["mainplot_ax"].get_window_extent()
    assert not any(box.padded(-1).overlaps(main) for box in boxes)
    assert not any(one.padded(-1).overlaps(other) for one, other in combinations(boxes, 2))
