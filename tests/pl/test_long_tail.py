"""Class counts and F1 by frequency, against pandas."""

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from pl_cases import (
    names_on,
    scores,
)

from celler import pl
from celler.metrics import frequency_groups
from celler.tl import evaluate

mpl.use("Agg")


def test_class_counts_equal_pandas_and_the_bands_of_the_metrics(adata):
    panel = pl.class_counts(adata, "cell_type", show=False)
    counts = adata.obs["cell_type"].value_counts()
    assert names_on(panel.yaxis) == list(counts.index)
    np.testing.assert_array_equal([bar.get_width() for bar in panel.containers[0]], counts)
    assert panel.get_xscale() == "log"
    bands = pd.Series(frequency_groups(counts.to_dict()))
    for band, names in bands.groupby(bands):
        share = counts[names.index].sum() / counts.sum()
        assert f"{band}: {len(names)}, {share:.1%} of cells" in [t.get_text() for t in panel.texts]
    colors = [to_hex(bar.get_facecolor()) for bar in panel.containers[0]]
    assert len(set(colors)) == bands.nunique()
    adata.uns["cell_type_colors"] = [f"#{i}0{i}0{i}0" for i in range(6)]
    panel = pl.class_counts(adata, "cell_type", show=False)
    own = dict(zip(adata.obs["cell_type"].cat.categories, adata.uns["cell_type_colors"], strict=True))
    assert [to_hex(bar.get_facecolor()) for bar in panel.containers[0]] == [own[n] for n in counts.index]


def test_class_counts_of_counted_cells(adata):
    counts = adata.obs["cell_type"].value_counts()
    table = evaluate(adata, "cell_type", "celler").per_class
    for given in (counts, counts.to_dict(), table, table.reset_index()):
        panel = pl.class_counts(given, show=False)
        assert names_on(panel.yaxis) == list(counts.index)
        np.testing.assert_array_equal([bar.get_width() for bar in panel.containers[0]], counts)
    with pytest.raises(TypeError, match="data=AnnData was given without a key; pass key="):
        pl.class_counts(adata)
    with pytest.raises(TypeError, match="tables=<AnnData> was given"):
        pl.f1_by_frequency(adata)
    with pytest.raises(KeyError, match="no column 'reference_cells'. Closest: 'reference_cell'"):
        pl.class_counts(table.rename(columns={"query_cells": "reference_cell"}))
    reference = evaluate(adata, "cell_type", "celler", reference_counts=7 * counts).per_class
    panel = pl.class_counts(reference, show=False)
    np.testing.assert_array_equal([bar.get_width() for bar in panel.containers[0]], 7 * counts)


def test_class_counts_with_an_empty_class_and_unlabelled_cells(adata):
    panel = pl.class_counts({"a": 100, "b": 0}, show=False)
    assert names_on(panel.yaxis) == ["a", "b"]
    assert len(panel.containers[0]) == 1
    assert "0" in [text.get_text() for text in panel.texts]
    adata.obs["cell_type"] = adata.obs["cell_type"].where(adata.obs["donor"] == "donor 0")
    with pytest.warns(UserWarning, match=r"Left out \d+ of 600 cells") as caught:
        pl.class_counts(adata, "cell_type", show=False)
    assert caught[0].filename == __file__


def points(panel):
    """F1 by size of each method, as drawn."""
    drawn = [item for item in panel.collections if isinstance(item, mpl.collections.PathCollection)]
    return [item.get_offsets() for item in drawn]


def test_f1_by_frequency_of_two_methods(adata):
    tables = scores(adata)
    panel = pl.f1_by_frequency(tables, show=False)
    for drawn, table in zip(points(panel), tables.values(), strict=True):
        table = table.sort_values("reference_cells", kind="stable")
        np.testing.assert_allclose(drawn[:, 0], table["reference_cells"], rtol=0.1)
        np.testing.assert_allclose(drawn[:, 1], table["f1"])
    assert [text.get_text() for text in panel.get_legend().get_texts()] == list(tables)
    names = [text.get_text() for text in panel.texts if text.get_rotation() == 90]
    assert names == list(table.index)


def test_f1_by_frequency_lines_equal_the_means_of_the_bands(adata):
    tables = scores(adata)
    panel = pl.f1_by_frequency(tables, show=False)
    counts = adata.obs["cell_type"].value_counts().to_dict()
    bands = pd.Series(frequency_groups(counts))
    lines = [item for item in panel.collections if isinstance(item, mpl.collections.LineCollection)]
    flat = {tuple(segment[:, 1]) for item in lines for segment in item.get_segments()}
    for table in tables.values():
        for band in bands.unique():
            mean = table.loc[bands.index[bands == band], "f1"].mean()
            assert any(np.allclose(line, mean) for line in flat)
    # the groups of the table count, not those of the classes that are drawn
    only_tail = next(iter(tables.values())).assign(frequency="tail")
    panel = pl.f1_by_frequency(only_tail, show=False)
    assert [t.get_text() for t in panel.texts if t.get_rotation() == 0] == ["tail"]


def test_f1_by_frequency_names_of_narrow_bands_do_not_collide():
    """All three bands lie between 190 and 1,000 cells."""
    sizes = {f"head {i}": 1000 for i in range(8)} | {"medium": 195} | {f"tail {i}": 185 for i in range(3)}
    table = pd.DataFrame({"reference_cells": sizes, "f1": 0.5}).rename_axis("class")
    panel = pl.f1_by_frequency(table, figsize=(6, 4), show=False)
    names = [text for text in panel.texts if text.get_text() in ("head", "medium", "tail")]
    boxes = sorted((text.get_window_extent() for text in names), key=lambda box: box.x0)
    assert len(boxes) == 3
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_f1_by_frequency_of_a_table_a_tidy_one_and_an_evaluation(adata):
    result = evaluate(adata, "cell_type", "celler")
    alone = points(pl.f1_by_frequency(result, show=False))[0]
    panel = pl.f1_by_frequency(result.per_class.reset_index(), show=False)
    np.testing.assert_allclose(points(panel)[0], alone)
    assert panel.get_legend() is None
    assert panel.get_xlabel() == "query cells of the class"
    counts = adata.obs["cell_type"].value_counts()
    reference = evaluate(adata, "cell_type", "celler", reference_counts=counts)
    assert pl.f1_by_frequency(reference, show=False).get_xlabel() == "reference cells of the class"
    seeds = [result.per_class.assign(method="one", f1=f1) for f1 in (0.2, 0.6)]
    tidy = pd.concat([*seeds, result.per_class.assign(method="two")])
    one, two = points(pl.f1_by_frequency(tidy, show=False))
    np.testing.assert_allclose(one[:, 1], 0.4)
    np.testing.assert_allclose(two, alone)
    named = points(pl.f1_by_frequency({"one": seeds[0], "two": result}, show=False))
    np.testing.assert_allclose(named[1], alone)


def test_f1_by_frequency_with_classes_missing_in_reference_or_method():
    table = pd.DataFrame({"class": ["a", "b", "c"], "reference_cells": [0, 0, 50], "f1": [0, 0.1, 0.9]})
    part = table.iloc[1:].assign(f1=0.5)
    panel = pl.f1_by_frequency({"all": table, "part": part}, show=False)
    assert "0" in names_on(panel.xaxis)
    first, second = points(panel)
    assert len(first) == 3
    assert np.isfinite(second[:, 1]).sum() == 2 or len(second) == 2
    assert first[1, 0] > first[0, 0], "classes of the same size are drawn side by side"
    with pytest.raises(ValueError, match="There is no class to draw"):
        pl.f1_by_frequency(table.iloc[:0])
    with pytest.raises(KeyError, match="no column 'f1'. Closest: 'F1'"):
        pl.f1_by_frequency({"x": table.rename(columns={"f1": "F1"})})
