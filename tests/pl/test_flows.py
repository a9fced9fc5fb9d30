"""Flows of labels and compositions of groups, against pandas."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from pl_cases import (
    cells_of,
    names_on,
)

from celler import pl
from celler.pl._colors import PALETTE

mpl.use("Agg")


def test_alluvial_flows_equal_the_crosstab(adata):
    panel = pl.alluvial(adata, "cell_type", "celler", show=False)
    counts = pd.crosstab(adata.obs["cell_type"], adata.obs["celler"])
    heights = sorted(patch.get_path().vertices[7, 1] - patch.get_path().vertices[0, 1] for patch in flows(panel))
    np.testing.assert_allclose(heights, sorted(counts.to_numpy()[counts.to_numpy() > 0]), atol=1e-9)
    n_cells = {text.get_text() for text in panel.texts}
    for labels in ("cell_type", "celler"):
        for name, count in adata.obs[labels].value_counts().items():
            assert f"{name} ({count})" in n_cells
    assert {"given: cell_type", "predicted: celler"} <= n_cells
    # what leaves a class fills its bar without a gap, and flows never cover each other at their ends
    for end in (0, 3):
        spans = sorted(ends_of(patch, end) for patch in flows(panel))
        assert all(one[1] <= other[0] + 1e-9 for one, other in zip(spans, spans[1:], strict=False))


def flows(panel):
    return [patch for patch in panel.patches if len(patch.get_path().vertices) == 9]


def ends_of(patch, end):
    """Top and bottom of a flow at its left, 0, or its right, 3."""
    points = patch.get_path().vertices
    return points[end, 1], points[7 if end == 0 else 4, 1]


def test_alluvial_with_stored_colours_or_the_palette(adata):
    adata.uns["cell_type_colors"] = [f"#{i}0{i}0{i}0" for i in range(6)]
    panel = pl.alluvial(adata, "cell_type", "celler", show=False)
    assert {to_hex(patch.get_facecolor()) for patch in flows(panel)} == set(adata.uns["cell_type_colors"])
    table = cells_of("aab", "abb")
    panel = pl.alluvial(table, "given", "predicted", show=False)
    alphas = {to_hex(patch.get_facecolor(), keep_alpha=True) for patch in flows(panel)}
    assert {
        PALETTE[0].lower() + "4c",
        PALETTE[0].lower() + "cc",
        PALETTE[1].lower() + "4c",
    } == alphas


def test_alluvial_of_clusters_has_one_colour_for_each_type():
    """Clusters 0 and 2 are T cells, 1 is B; a cell of 2 is B."""
    cells = cells_of("000111222", "TTTBBBTTB")
    panel = pl.alluvial(cells, "given", "predicted", show=False)
    colors = {to_hex(patch.get_facecolor(), keep_alpha=True) for patch in flows(panel)}
    blue, orange = (color.lower() for color in PALETTE[:2])
    assert colors == {blue + "4c", orange + "4c", orange + "cc"} or colors == {orange + "4c", blue + "4c", blue + "cc"}
    bars = {to_hex(patch.get_facecolor()) for patch in panel.patches if len(patch.get_path().vertices) != 9}
    assert bars == {blue, orange}


def test_alluvial_with_more_classes_than_can_be_told_apart(adata):
    panel = pl.alluvial(adata, "cell_type", "celler", n_most=4, show=False)
    counts = pd.crosstab(adata.obs["cell_type"], adata.obs["celler"])
    largest = counts.sum(axis=1).add(counts.sum(axis=0), fill_value=0).nlargest(3).index
    names = [text.get_text().rpartition(" (")[0] for text in panel.texts]
    assert set(names) - {""} == {*largest, "others", "Unknown"}
    heights = sum(patch.get_path().vertices[7, 1] - patch.get_path().vertices[0, 1] for patch in flows(panel))
    assert heights == pytest.approx(600)


def test_composition_equals_pandas_shares(adata):
    panel = pl.composition(adata, "cell_type", "donor", show=False)
    share = pd.crosstab(adata.obs["donor"], adata.obs["cell_type"], normalize="index")
    for bars, name in zip(panel.containers, share, strict=True):
        np.testing.assert_allclose([bar.get_width() for bar in bars], share[name])
        before = share.loc[:, :name].iloc[:, :-1].sum(axis=1)
        np.testing.assert_allclose([bar.get_x() for bar in bars], before, atol=1e-12)
    counts = adata.obs["donor"].value_counts()
    assert names_on(panel.yaxis) == [f"{donor} ({counts[donor]})" for donor in share.index]
    legend = [text.get_text() for text in panel.get_legend().get_texts()]
    assert legend == list(adata.obs["cell_type"].cat.categories)
    written = {text.get_text() for text in panel.texts}
    assert "B cell" in written
    assert "platelet" not in written, "no room for it"


def test_composition_with_cells_without_a_group(adata):
    adata.obs["tissue"] = adata.obs["donor"].where(adata.obs["cell_type"] != "B cell")
    with pytest.warns(UserWarning, match=r"Left out \d+ of 600 cells, no label in .* 'tissue'"):
        panel = pl.composition(adata, "cell_type", "tissue", show=False)
    assert "B cell" not in [text.get_text() for text in panel.get_legend().get_texts()]
    adata.obs["none"] = adata.obs["donor"].where(adata.obs["cell_type"] == "B cell")
    adata.obs["b"] = adata.obs["cell_type"].where(adata.obs["cell_type"] != "B cell")
    with pytest.raises(ValueError, match="No cell has both 'b' and 'none'"):
        pl.composition(adata, "b", "none")


def test_composition_of_counted_cells_equals_that_of_cells(adata):
    counts = adata.obs.groupby(["cell_type", "donor"], observed=True).size().rename("n").reset_index()
    cells, counted = (
        pl.composition(data, "cell_type", "donor", n_key=key, show=False)
        for data, key in ((adata, None), (counts, "n"))
    )
    assert names_on(cells.yaxis) == names_on(counted.yaxis)
    np.testing.assert_allclose([bar.get_width() for bar in cells.patches], [bar.get_width() for bar in counted.patches])
