"""Chart of a check of labels: dots, outlines and rows against the table."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from pl_cases import annotated, checked, names_on, without_number

from celler import pl

mpl.use("Agg")


def test_label_check_draws_the_counts():
    check = checked(annotated())
    panel = pl.label_check(check, show=False)
    rows, columns = without_number(names_on(panel.yaxis)), names_on(panel.xaxis)
    assert rows[0] == "platelet"
    assert set(rows) == set(check.counts.index)
    assert set(columns) == set(check.counts.columns)
    dots = panel.collections[0]
    places, sizes = dots.get_offsets().astype(int), dots.get_sizes()
    share = check.counts.div(check.counts.sum(axis=1), axis=0)
    expected = np.array([share.loc[rows[y], columns[x]] for x, y in places])
    np.testing.assert_allclose(sizes / sizes.max(), expected / expected.max())
    strength = [check.strength.loc[rows[y], columns[x]] for x, y in places]
    np.testing.assert_allclose(np.ma.filled(dots.get_array(), np.nan), 100 * np.array(strength))
    is_red = (dots.get_edgecolors()[:, :3] == to_rgb("tab:red")).all(axis=1)
    np.testing.assert_array_equal(is_red, [rows[y] == "platelet" for _, y in places])
    assert "PPBP, PF4" in [text.get_text() for text in panel.texts]


def test_label_check_without_cells():
    check = checked(annotated())
    empty = type(check)(check.table, check.types, check.counts.iloc[:0, :0], check.strength, check.markers)
    with pytest.raises(ValueError, match="the markers decide for no cell"):
        pl.label_check(empty)
