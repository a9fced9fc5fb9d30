"""What the charts draw against pandas, scikit-learn and SciPy: labels against labels, and who is where."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from pl_cases import CHARTS, annotated
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from celler import pl
from celler.pl._colors import PALETTE, color_classes

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _figures():
    with plt.style.context("default"):
        yield
    plt.close("all")


@pytest.fixture
def adata():
    return annotated()


def names_on(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def without_number(names):
    return [name.rpartition(" (")[0] for name in names]


def cells_of(truth, prediction, **more):
    """A table of cells; labels are letters, so many of each: "aab" is three cells."""
    return pd.DataFrame({"given": list(truth), "predicted": list(prediction), **more})


# ---- confusion ----


def test_confusion_is_pandas_crosstab(adata):
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


def test_confused_classes_are_neighbours():
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


def test_confusion_keeps_the_classes_of_a_parent_together():
    cells = cells_of("aaaabbbbcccc", "aaccbbbbcaac", parent=[*"xxxxyyyyxxxx"])
    for given in ({"a": "x", "b": "y", "c": "x"}, "parent"):
        panel = pl.confusion(cells, "given", "predicted", parents=given, show=False)
        order = "".join(without_number(names_on(panel.yaxis)))
        assert order in ("acb", "cab", "bac", "bca")
        assert [text.get_text() for text in panel.texts if text.get_text() in "xy"] == (
            ["x", "y"] if order.endswith("b") else ["y", "x"]
        )
    cells = cells_of("aaaabbbbcccc", "aaccbbbbcaac")
    panel = pl.confusion(
        cells, "given", "predicted", parents={"a": "x", "b": "x", "c": "y"}, show=False
    )
    assert "".join(without_number(names_on(panel.yaxis))) in ("abc", "bac", "cab", "cba")
    with pytest.raises(ValueError, match="parents has no parent for c; name one for each"):
        pl.confusion(cells, "given", "predicted", parents={"a": "x", "b": "x"})


def test_many_classes_are_drawn_without_numbers():
    panel = pl.confusion(annotated(20), "cell_type", "celler", show=False)
    assert not any(text.get_text().isdigit() for text in panel.texts)


# ---- prediction_bubble ----


def test_bubbles_are_share_and_mean_confidence(adata):
    panel = pl.prediction_bubble(adata, "cell_type", "celler", show=False)
    rows, columns = without_number(names_on(panel.yaxis)), names_on(panel.xaxis)
    dots = panel.collections[0]
    places = dots.get_offsets().astype(int)
    share = pd.crosstab(adata.obs["cell_type"], adata.obs["celler"], normalize="index")
    mean = adata.obs.pivot_table(
        index="cell_type", columns="celler", values="celler_confidence", observed=True
    )
    assert len(places) == (share > 0).to_numpy().sum()
    expected = [share.loc[rows[y], columns[x]] for x, y in places]
    np.testing.assert_allclose(
        dots.get_sizes() / dots.get_sizes().max(), expected / np.max(expected)
    )
    assert dots.get_sizes().max() <= (72 * 0.22) ** 2 * np.pi / 4
    np.testing.assert_allclose(dots.get_array(), [mean.loc[rows[y], columns[x]] for x, y in places])
    assert dots.get_clim() == (0, 1)


def test_bubbles_without_a_confidence_are_grey():
    cells = cells_of("aabb", "aabb", sure=[0.5, np.nan, np.nan, np.nan])
    panel = pl.prediction_bubble(cells, "given", "predicted", confidence_key="sure", show=False)
    panel.figure.canvas.draw()
    dots = panel.collections[0]
    colors = dict(zip(dots.get_offsets()[:, 1], map(to_hex, dots.get_facecolors()), strict=True))
    rows = without_number(names_on(panel.yaxis))
    assert colors[rows.index("b")] == to_hex("0.8")
    assert colors[rows.index("a")] == to_hex(mpl.colormaps["viridis"](0.5))


# ---- alluvial ----


def test_flows_are_the_counts(adata):
    panel = pl.alluvial(adata, "cell_type", "celler", show=False)
    counts = pd.crosstab(adata.obs["cell_type"], adata.obs["celler"])
    heights = sorted(
        patch.get_path().vertices[7, 1] - patch.get_path().vertices[0, 1] for patch in flows(panel)
    )
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


def test_flows_have_the_colour_of_the_given_class(adata):
    adata.uns["cell_type_colors"] = [f"#{i}0{i}0{i}0" for i in range(6)]
    panel = pl.alluvial(adata, "cell_type", "celler", show=False)
    assert {to_hex(patch.get_facecolor()) for patch in flows(panel)} == set(
        adata.uns["cell_type_colors"]
    )
    table = cells_of("aab", "abb")
    panel = pl.alluvial(table, "given", "predicted", show=False)
    alphas = {to_hex(patch.get_facecolor(), keep_alpha=True) for patch in flows(panel)}
    assert {
        PALETTE[0].lower() + "4c",
        PALETTE[0].lower() + "cc",
        PALETTE[1].lower() + "4c",
    } == alphas


# ---- composition ----


def test_parts_are_pandas_shares(adata):
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


def test_composition_of_cells_without_a_group(adata):
    adata.obs["tissue"] = adata.obs["donor"].where(adata.obs["cell_type"] != "B cell")
    with pytest.warns(UserWarning, match=r"Left out \d+ of 600 cells, no label in .* 'tissue'"):
        panel = pl.composition(adata, "cell_type", "tissue", show=False)
    assert "B cell" not in [text.get_text() for text in panel.get_legend().get_texts()]
    adata.obs["none"] = adata.obs["donor"].where(adata.obs["cell_type"] == "B cell")
    adata.obs["b"] = adata.obs["cell_type"].where(adata.obs["cell_type"] != "B cell")
    with pytest.raises(ValueError, match="No cell has both 'b' and 'none'"):
        pl.composition(adata, "b", "none")


def test_composition_of_counted_cells_is_that_of_the_cells(adata):
    counts = (
        adata.obs.groupby(["cell_type", "donor"], observed=True).size().rename("n").reset_index()
    )
    cells, counted = (
        pl.composition(data, "cell_type", "donor", n_key=key, show=False)
        for data, key in ((adata, None), (counts, "n"))
    )
    assert names_on(cells.yaxis) == names_on(counted.yaxis)
    np.testing.assert_allclose(
        [bar.get_width() for bar in cells.patches], [bar.get_width() for bar in counted.patches]
    )


# ---- cells by ----


def test_cells_by_draws_all_cells_and_those_for_testing(adata):
    obs = adata.obs.assign(split=np.where(adata.obs["donor"] == "donor 1", "test", "train"))
    panels = pl.cells_by(obs, ["cell_type", "donor"], n_most=4, show=False)
    counts = obs["cell_type"].value_counts()
    names = [text.get_text() for text in panels["cell_type"].get_yticklabels()]
    assert names == [*counts.index[:3], "3 others"]
    bars, test = panels["cell_type"].containers
    assert [bar.get_width() for bar in bars] == [*counts[:3], counts[3:].sum()]
    expected = obs.loc[obs["split"] == "test", "cell_type"].value_counts()[counts.index]
    assert [bar.get_width() for bar in test] == [*expected[:3], expected[3:].sum()]
    with pytest.raises(KeyError, match=r"columns='doner'.*Closest: 'donor'"):
        pl.cells_by(obs, ["doner"])
    with pytest.raises(TypeError, match="one string"):
        pl.cells_by(obs, "donor")


# ---- colours ----


def linear(colors):
    rgb = np.array([mpl.colors.to_rgb(color) for color in colors])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Björn Ottosson's OKLab of linear sRGB."""
    to_lms = [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069955, 0.10739696]]
    to_lms = np.array([*to_lms, [0.08830246, 0.28171884, 0.6299787]])
    to_lab = [[0.21045426, 0.79361779, -0.00407205], [1.9779985, -2.4285922, 0.45059371]]
    to_lab = np.array([*to_lab, [0.02590404, 0.78277177, -0.80867577]])
    return np.cbrt(rgb @ to_lms.T) @ to_lab.T


# Machado, Oliveira and Fernandes 2009, severity 1, on linear sRGB
SIMULATED = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


@pytest.mark.parametrize("view", list(SIMULATED))
def test_the_palette_is_told_apart_without_colour_vision(view):
    """0.02 in OKLab is about the least difference that is seen side by side."""
    seen = oklab(np.clip(linear(PALETTE) @ np.array(SIMULATED[view]).T, 0, 1))
    distance = np.linalg.norm(seen[:, None] - seen, axis=2) + np.eye(60)
    assert distance[:10, :10].min() > 0.07
    assert distance[:30, :30].min() > 0.06
    assert distance.min() > 0.035


def test_colours_are_the_users_or_the_palettes(adata):
    names = list(adata.obs["cell_type"].cat.categories)

    def drawn():
        legend = pl.composition(adata, "cell_type", "donor", show=False).get_legend()
        return [to_hex(handle.get_color()).upper() for handle in legend.legend_handles]

    assert drawn() == PALETTE[:6]
    own = ["#111111", "#222222", "red", "#444444", "C0", "#666666"]
    adata.uns["cell_type_colors"] = np.array(own, dtype=object)
    assert drawn() == [to_hex(color).upper() for color in own]
    for broken in (own[:5], ["no colour", *own[1:]]):
        adata.uns["cell_type_colors"] = broken
        assert drawn() == PALETTE[:6]
    assert color_classes(["a", "b", "c"], {"b": PALETTE[0]}) == {
        "a": PALETTE[1],
        "b": PALETTE[0],
        "c": PALETTE[2],
    }
    assert len(color_classes([str(i) for i in range(100)])) == 100
    assert names == list(adata.obs["cell_type"].cat.categories)


# ---- what is given ----

NO_TABLE = ["f1_by_frequency", "history"]


@pytest.mark.parametrize("name", [name for name in CHARTS if name not in NO_TABLE])
def test_a_table_of_cells_will_do(adata, name):
    """Also columns of plain text instead of categories, and classes that no cell has."""
    obs = adata.obs.assign(celler=adata.obs["celler"].astype(str))
    obs["cell_type"] = obs["cell_type"].cat.add_categories("nobody")
    if name == "confusion":
        pl.confusion(obs, "cell_type", "celler", show=False)
        return
    figure = CHARTS[name](obs, return_fig=True)
    texts = {text.get_text() for text in figure.findobj(mpl.text.Text)}
    assert not any("nobody" in text for text in texts)


@pytest.mark.parametrize(
    ("chart", "keys", "message"),
    [
        (pl.confusion, ("cell_typ", "celler"), "truth_key='cell_typ' .*Closest: 'cell_type'"),
        (pl.confusion, ("cell_type", "Celer"), "prediction_key='Celer' .*Closest: 'celler'"),
        (
            pl.prediction_bubble,
            ("donor", "cell_type"),
            "confidence_key='cell_type_confidence' is not",
        ),
        (pl.alluvial, ("cell_type", "nothing like it"), "There are: cell_type, celler, "),
        (pl.composition, ("cell_type", "Donor"), "groupby='Donor' .*Closest: 'donor'"),
        (pl.composition, ("celltype", "donor"), "key='celltype' .*Closest: 'cell_type'"),
        (pl.class_counts, ("celltype",), "key='celltype' .*Closest: 'cell_type'"),
        (pl.confidence, ("celer",), "key='celer' .*Closest: 'celler'"),
        (
            pl.confidence,
            ("donor",),
            "confidence_key='donor_confidence' .*Closest: 'celler_confidence'",
        ),
        (pl.reliability, ("donor", "donor"), "confidence_key='donor_confidence' is not a column"),
    ],
)
def test_unknown_columns(adata, chart, keys, message):
    with pytest.raises(KeyError, match=message):
        chart(adata, *keys)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("chart", [pl.confusion, pl.prediction_bubble, pl.alluvial])
def test_cells_without_a_label_are_left_out(adata, chart):
    adata.obs["celler"] = adata.obs["celler"].where(adata.obs["donor"] == "donor 0")
    n_missing = (adata.obs["donor"] != "donor 0").sum()
    message = f"Left out {n_missing} of 600 cells, no label in 'cell_type' or 'celler'"
    with pytest.warns(UserWarning, match=message) as caught:
        panel = chart(adata, "cell_type", "celler", show=False)
    assert caught[0].filename == __file__
    assert (
        f"B cell ({(adata.obs[['cell_type', 'celler']].dropna()['cell_type'] == 'B cell').sum()})"
        in [
            *names_on(panel.yaxis),
            *(text.get_text() for text in panel.texts),
        ]
    )
    adata.obs["celler"] = pd.Series(np.nan, index=adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match=r"No cell has a label in adata\.obs\['celler'\]"):
        chart(adata, "cell_type", "celler")
    with pytest.raises(ValueError, match="'celler_confidence' holds numbers such as"):
        chart(adata, "cell_type", "celler_confidence")
    with pytest.raises(
        TypeError, match="a list was given; an AnnData or a pandas.DataFrame is needed"
    ):
        chart([1, 2], "cell_type", "celler")
