"""Marker bubble charts against pandas, a stored picture, and every way users hand data over."""

import re
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
from celler.pl._markers import robust_maximum

mpl.use("Agg")

GENES = [f"gene{i}" for i in range(6)]
BY_TYPE = {"A cells": ["gene0", "gene1"], "B cells": ["gene2", "gene3"], "C cells": "gene4"}
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
    share = share.where(share >= 0.05, 0)
    np.testing.assert_allclose(dot_plot.dot_size_df, share.loc[order], rtol=1e-6)
    np.testing.assert_allclose(dot_plot.dot_color_df, mean.loc[order], rtol=1e-5, atol=1e-7)


def labels_of(ticks):
    """Names, without the numbers of cells of groups."""
    return [re.sub(r" \([\d,]+\)$", "", label.get_text()) for label in ticks]


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
    panels = marker_bubble(adata, GENES, "type", vmin=0.1, vmax=1.2, dot_min=0.3, show=False)
    share, mean = dots(adata.X, adata.obs["type"], GENES)
    drawn, groups = panels["mainplot_ax"].collections[0], groups_drawn(panels)
    assert groups == ["alpha", "beta", "gamma", "delta"]  # the order of the categories
    share, mean = share.loc[groups].to_numpy().ravel(), mean.loc[groups].to_numpy().ravel()
    is_drawn = share >= 0.3
    assert 0 < is_drawn.sum() < is_drawn.size
    largest = np.ceil(share.max() * 10) / 10
    np.testing.assert_allclose(drawn.get_sizes(), 200 * (share[is_drawn] / largest) ** 1.5, rtol=1e-5)
    colors = mpl.colormaps["YlGnBu"](np.float32((mean[is_drawn] - 0.1) / 1.1))
    np.testing.assert_allclose(drawn.get_facecolors(), colors, atol=0.01)
    counts = adata.obs["type"].value_counts()
    names = [label.get_text() for label in panels["mainplot_ax"].get_yticklabels()]
    assert names == [f"{name} ({counts[name]})" for name in groups]
    largest = marker_bubble(adata, GENES, "type", dot_max=0.5, show=False)["mainplot_ax"].collections[0].get_sizes()
    assert (np.isclose(largest, 200)).sum() == (share >= 0.5).sum()


@pytest.mark.parametrize(
    ("highest", "largest"),
    [
        ([1, 1, 1.5, 1, 1, 10], 5),  # 10 is an outlier of Tukey's fence, but colours go to at least half of it
        ([1, 1.5, 1.5, 1, 2, 2.5], 2.5),
        ([3, 3, 3, 3, 3, 4], 3),
        ([2], 2),
    ],
)
def test_robust_maximum_of_one_dominating_gene(highest, largest):
    obs = pd.DataFrame({"type": pd.Categorical(["a", "b"])}, index=["1", "2"])
    table = ad.AnnData(np.array([np.zeros(len(highest)), highest]), obs=obs)
    assert robust_maximum(table, "type") == largest


def test_marker_bubble_of_counts_equals_scanpys_normalisation(adata):
    adata = adata[adata.layers["counts"].sum(axis=1) > 0].copy()
    logs = ad.AnnData(adata.layers["counts"].copy(), obs=adata.obs, var=adata.var)
    sc.pp.normalize_total(logs, target_sum=1e4)
    sc.pp.log1p(logs)
    dot_plot = marker_bubble(adata, GENES[:3], "type", layer="counts", return_fig=True)
    assert_dots(dot_plot, *dots(logs.X[:, :3], adata.obs["type"], GENES[:3]))


def test_marker_bubble_with_categories_order(adata):
    panels = marker_bubble(adata, GENES, "type", categories_order=["delta", "alpha"], show=False)
    assert groups_drawn(panels) == ["delta", "alpha"]
    automatic = marker_bubble(adata, groupby="type", categories_order=["delta", "alpha"], show=False)
    assert genes_drawn(automatic)[0] == "gene3"
    adata.obs["type"] = adata.obs["type"].cat.rename_categories({"alpha": "type 10", "beta": "type 9"})
    adata.obs["type"] = adata.obs["type"].astype(str)
    assert groups_drawn(marker_bubble(adata, GENES, "type", show=False)) == ["delta", "gamma", "type 9", "type 10"]
    with pytest.raises(ValueError, match="categories_order names typ 9, no group of 'type'. Closest: 'type 9'"):
        marker_bubble(adata, GENES, "type", categories_order=["typ 9"])
    with pytest.raises(ValueError, match="leave out categories_order, or the tree"):
        marker_bubble(adata, GENES, "type", categories_order=["delta"], dendrogram=True)


def test_marker_bubble_with_use_raw_and_save(adata, tmp_path):
    adata.raw = adata
    adata.X = adata.X[:, ::-1]
    for use_raw, layer in ((True, "raw"), (False, "X")):
        one = marker_bubble(adata, GENES, "type", use_raw=use_raw, return_fig=True).dot_color_df
        pd.testing.assert_frame_equal(
            one, marker_bubble(adata, GENES, "type", layer=layer, return_fig=True).dot_color_df
        )
    with pytest.raises(ValueError, match="layer='X' and use_raw=True were given; pass one"):
        marker_bubble(adata, GENES, "type", layer="X", use_raw=True)
    marker_bubble(adata, GENES, "type", show=False, save=tmp_path / "dots.png")
    assert plt.imread(tmp_path / "dots.png").shape[0] > 300
    with pytest.raises(ValueError, match="save it with its own savefig"):
        marker_bubble(adata, GENES, "type", return_fig=True, save=tmp_path / "dots.pdf")


def test_marker_bubble_leaves_out_brackets_that_repeat_the_rows(adata):
    rows = {"alpha": "gene0", "gamma": ["gene2", "gene5"]}
    assert "gene_group_ax" not in marker_bubble(adata, rows, "type", show=False)
    assert "gene_group_ax" not in marker_bubble(adata, groupby="type", show=False)
    for others in ({"gamma": "gene2", "alpha": "gene0"}, {"alpha": "gene0", "T": "gene2"}):
        assert bracket_labels(marker_bubble(adata, others, "type", show=False)) == list(others)


def test_marker_bubble_numbers_brackets_that_cannot_be_told_apart(adata):
    markers = {f"A population of activated cells, cluster {i}": f"gene{i}" for i in range(6)}
    panels = marker_bubble(adata, markers, "type", show=False)
    assert bracket_labels(panels) == [*"123456"]
    (key,) = [text.get_text() for text in panels["mainplot_ax"].texts]
    assert key.splitlines() == [f"{i + 1}  {name}" for i, name in enumerate(markers)]


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
    is_drawn = dots(adata.X, adata.obs["type"], GENES)[0].loc[["alpha", "beta", "gamma", "delta"]].to_numpy() >= 0.05
    scaled, is_drawn = (part.T if swap_axes else part for part in (scaled, is_drawn))
    colors = mpl.colormaps["YlGnBu"](scaled[is_drawn])
    drawn = panels["mainplot_ax"].collections[0].get_facecolors()
    np.testing.assert_allclose(drawn, colors, atol=0.02)
    unit = {"var": "(scaled per gene)", "group": "(scaled per group)"}[standard_scale]
    assert panels["color_legend_ax"].get_title(loc="left") == f"Mean expression\n{unit}"


def test_marker_bubble_with_swapped_axes(adata):
    panels = marker_bubble(adata, BY_TYPE, "type", swap_axes=True, show=False)
    assert groups_drawn(panels) == GENES[:5]
    assert genes_drawn(panels) == ["alpha", "beta", "gamma", "delta"]
    assert bracket_labels(panels) == list(BY_TYPE)


def test_marker_bubble_legends_of_values_and_counts(adata):
    panels = marker_bubble(adata, GENES, "type", show=False)
    assert panels["size_legend_ax"].get_title(loc="left") == "Share of cells (%)\n5 or more"
    assert panels["color_legend_ax"].get_title(loc="left") == "Mean expression"
    counts = marker_bubble(adata, GENES, "type", layer="counts", show=False)
    assert counts["color_legend_ax"].get_title(loc="left") == "Mean expression\nlog1p(CP10K)"
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
    box = figure.bbox.padded(1)
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
    assert "gene_group_ax" not in panels, "the labels are those of the groups, in their order"
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
    markers = {f"{i} is the literature's": GENES[i % 6] for i, group in enumerate(groups)}
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
    if not swap_axes:
        assert panels["gene_group_ax"].get_tightbbox().height <= figure.bbox.height / 6


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 1)])
def test_marker_bubble_in_one_of_four_panels_fills_it(adata, place):
    figure, grid = plt.subplots(2, 2, figsize=(11, 8))
    markers = {f"set {i}": gene for i, gene in enumerate(GENES)}
    adata.obs["type"] = adata.obs["type"].cat.rename_categories(lambda name: f"{name}-positive, long-named T cell")
    panels = marker_bubble(adata, markers, "type", ax=grid[place], show=False)
    main = panels["mainplot_ax"].get_window_extent()
    assert main.width > 0.3 * 11 / 2 * figure.dpi
    assert main.height > 0.3 * 8 / 2 * figure.dpi
    texts = [text for text in texts_drawn(figure) if text.axes not in grid.ravel()]
    assert all(
        figure.bbox.padded(1).contains(*corner) for text in texts for corner in text.get_window_extent().get_points()
    )
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.padded(-1).overlaps(other) for one, other in combinations(boxes, 2))


def test_marker_bubble_on_a_dark_background(adata):
    with plt.style.context("dark_background"):
        dots = marker_bubble(adata, GENES, "type", show=False)["mainplot_ax"].collections[0]
    strongest = dots.get_facecolors()[:, :3].max(axis=0)
    np.testing.assert_allclose(strongest, mpl.colormaps["YlGnBu"](0.0)[:3], atol=0.02)
