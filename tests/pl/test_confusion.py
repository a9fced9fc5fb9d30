"""Confusion matrix and prediction bubbles, against pandas and SciPy."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from pl_cases import (
    annotated,
    cells_of,
    names_on,
    without_number,
)
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from celler import pl

mpl.use("Agg")


def test_confusion_equals_pandas_crosstab(adata):
    panel = pl.confusion(adata, "cell_type", "celler", show=False)
    rows, columns = without_number(names_on(panel.yaxis)), names_on(panel.xaxis)
    expected = pd.crosstab(adata.obs["cell_type"], adata.obs["celler"], normalize="index") * 100
    drawn = panel.collections[0].get_array().reshape(len(rows), len(columns))
    np.testing.assert_allclose(drawn.filled(0), expected.loc[rows, columns])
    np.testing.assert_array_equal(drawn.mask, expected.loc[rows, columns] == 0)
    assert columns == [*rows, "Unknown"]
    numbers = {text.get_position(): text.get_text() for text in panel.texts}
    for (row, column), value in np.ndenumerate(drawn.filled(0)):
        assert numbers.get((column, row)) == (f"{value:.0f}" if value >= 0.5 else None)
    counts = adata.obs["cell_type"].value_counts()
    assert names_on(panel.yaxis) == [f"{name} ({counts[name]})" for name in rows]


def test_confusion_order_equals_scipys_tree():
    """d is taken for a and b for e; the order is that of SciPy's tree."""
    cells = cells_of("aaaabbbbccccddddeeee", "aaaabbeeccccddaaeeee")
    panel = pl.confusion(cells, "given", "predicted", show=False)
    order = without_number(names_on(panel.yaxis))
    distance = np.ones((5, 5)) - np.eye(5)
    distance[[0, 3], [3, 0]] = distance[[1, 4], [4, 1]] = 0.75
    tree = hierarchy.linkage(squareform(distance), "average", optimal_ordering=True)
    assert order == ["abcde"[leaf] for leaf in hierarchy.leaves_list(tree)]
    assert {"ad", "da"} & {order[i] + order[i + 1] for i in range(4)}
    assert {"be", "eb"} & {order[i] + order[i + 1] for i in range(4)}


def test_confusion_with_parents():
    cells = cells_of("aaaabbbbcccc", "aaccbbbbcaac", parent=[*"xxxxyyyyxxxx"])
    for given in ({"a": "x", "b": "y", "c": "x"}, "parent"):
        panel = pl.confusion(cells, "given", "predicted", parents=given, show=False)
        order = "".join(without_number(names_on(panel.yaxis)))
        assert order in ("acb", "cab", "bac", "bca")
        assert [text.get_text() for text in panel.texts if text.get_text() in "xy"] == (
            ["x", "y"] if order.endswith("b") else ["y", "x"]
        )
    cells = cells_of("aaaabbbbcccc", "aaccbbbbcaac")
    panel = pl.confusion(cells, "given", "predicted", parents={"a": "x", "b": "x", "c": "y"}, show=False)
    assert "".join(without_number(names_on(panel.yaxis))) in ("abc", "bac", "cab", "cba")
    with pytest.raises(ValueError, match="parents has no parent for c; name one for each"):
        pl.confusion(cells, "given", "predicted", parents={"a": "x", "b": "x"})


@pytest.mark.parametrize("chart", [pl.confusion, pl.prediction_bubble])
def test_confusion_of_clusters_orders_both_sides_by_best_match(chart):
    """Clusters 0 and 4 are T cells, 1 and 3 B cells, 2 is NK; one cell of 3 is rejected."""
    cells = cells_of("000111222333444", "TTTBBBNNNBBUTTT")
    cells["predicted"] = cells["predicted"].replace("U", "Unknown")
    cells["sure"] = 0.5
    options = {} if chart is pl.confusion else {"confidence_key": "sure"}
    panel = chart(cells, "given", "predicted", show=False, **options)
    rows, columns = without_number(names_on(panel.yaxis)), names_on(panel.xaxis)
    assert columns[-1] == "Unknown"
    best = {"0": "T", "4": "T", "1": "B", "3": "B", "2": "N"}
    assert list(dict.fromkeys(best[row] for row in rows)) == columns[:-1], "from the upper left to the lower right"


def test_confusion_has_no_empty_column(adata):
    adata.obs["celler"] = adata.obs["celler"].astype(str).replace("platelet", "monocyte")
    columns = names_on(pl.confusion(adata, "cell_type", "celler", show=False).xaxis)
    assert set(columns) == set(adata.obs["celler"])


def test_confusion_with_many_classes():
    panel = pl.confusion(annotated(20), "cell_type", "celler", show=False)
    assert not any(text.get_text().isdigit() for text in panel.texts)


def test_prediction_bubble_equals_share_and_mean_confidence(adata):
    panel = pl.prediction_bubble(adata, "cell_type", "celler", show=False)
    rows, columns = without_number(names_on(panel.yaxis)), names_on(panel.xaxis)
    dots = panel.collections[0]
    places = dots.get_offsets().astype(int)
    share = pd.crosstab(adata.obs["cell_type"], adata.obs["celler"], normalize="index")
    mean = adata.obs.pivot_table(index="cell_type", columns="celler", values="celler_confidence", observed=True)
    assert len(places) == (share > 0).to_numpy().sum()
    expected = [share.loc[rows[y], columns[x]] for x, y in places]
    np.testing.assert_allclose(dots.get_sizes() / dots.get_sizes().max(), expected / np.max(expected))
    assert dots.get_sizes().max() <= (72 * 0.22) ** 2 * np.pi / 4
    np.testing.assert_allclose(dots.get_array(), [mean.loc[rows[y], columns[x]] for x, y in places])
    assert dots.get_clim() == (0, 1)


def test_prediction_bubble_without_a_confidence():
    cells = cells_of("aabb", "aabb", sure=[0.5, np.nan, np.nan, np.nan])
    panel = pl.prediction_bubble(cells, "given", "predicted", confidence_key="sure", show=False)
    panel.figure.canvas.draw()
    dots = panel.collections[0]
    colors = dict(zip(dots.get_offsets()[:, 1], map(to_hex, dots.get_facecolors()), strict=True))
    rows = without_number(names_on(panel.yaxis))
    assert colors[rows.index("b")] == to_hex("0.8")
    assert colors[rows.index("a")] == to_hex(mpl.colormaps["viridis"](0.5))


@pytest.mark.parametrize("chart", [pl.confusion, pl.prediction_bubble, pl.alluvial])
def test_read_labels_with_cells_without_a_label(adata, chart):
    adata.obs["celler"] = adata.obs["celler"].where(adata.obs["donor"] == "donor 0")
    n_missing = (adata.obs["donor"] != "donor 0").sum()
    message = f"Left out {n_missing} of 600 cells, no label in 'cell_type' or 'celler'"
    with pytest.warns(UserWarning, match=message) as caught:
        panel = chart(adata, "cell_type", "celler", show=False)
    assert caught[0].filename == __file__
    assert f"B cell ({(adata.obs[['cell_type', 'celler']].dropna()['cell_type'] == 'B cell').sum()})" in [
        *names_on(panel.yaxis),
        *(text.get_text() for text in panel.texts),
    ]
    adata.obs["celler"] = pd.Series(np.nan, index=adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match=r"No cell has a label in adata\.obs\['celler'\]"):
        chart(adata, "cell_type", "celler")
    with pytest.raises(ValueError, match="'celler_confidence' holds numbers such as"):
        chart(adata, "cell_type", "celler_confidence")
    with pytest.raises(TypeError, match="of type list; an AnnData or a pandas DataFrame is needed"):
        chart([1, 2], "cell_type", "celler")
