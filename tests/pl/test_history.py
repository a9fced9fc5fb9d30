"""Training curves."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from pl_cases import (
    annotated,
    curves,
)

from celler import pl

mpl.use("Agg")


def test_history_draws_each_curve():
    table = curves()
    panels = pl.history(table, show=False)
    drawn = {(name, line.get_label()): line for name, panel in panels.items() for line in panel.lines}
    for key, column in {
        ("loss", "training"): "train_loss",
        ("loss", "validation"): "validation_loss",
        ("macro_f1", "validation"): "validation_macro_f1",
        ("replayed", "training"): "replayed_share",
    }.items():
        np.testing.assert_array_equal(drawn[key].get_ydata(), table[column])
        np.testing.assert_array_equal(drawn[key].get_xdata(), table.index)
    band = panels["macro_f1"].collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx((table["validation_macro_f1"] + 0.03).max())
    assert band[:, 1].min() == pytest.approx((table["validation_macro_f1"] - 0.03).min())


def test_history_rings_the_kept_epoch():
    table = curves().assign(is_kept=np.arange(12) == 7)
    panels = pl.history(table, show=False)
    text = f"epoch 7 is kept: {table['validation_macro_f1'][7]:.3f}"
    rings = [(name, line) for name, panel in panels.items() for line in panel.lines if line.get_label() == text]
    assert [name for name, _ in rings] == ["macro_f1"]
    np.testing.assert_array_equal(rings[0][1].get_xydata(), [[7, table["validation_macro_f1"][7]]])
    assert [text.get_text() for text in panels["macro_f1"].get_legend().get_texts()] == [text]
    for panel in panels.values():
        assert [7, 7] in [list(line.get_xdata()) for line in panel.lines if line.get_linestyle() == "--"]
    assert pl.history(curves(), show=False)["macro_f1"].get_legend() is None, "a table of an earlier version"


def test_history_without_validation_or_replay():
    table = curves(1)
    assert isinstance(pl.history(table[["train_loss"]], show=False), mpl.axes.Axes)
    assert list(pl.history(table[["train_loss", "replayed_share"]], show=False)) == [
        "loss",
        "replayed",
    ]
    table["validation_macro_f1"] = np.nan
    assert list(pl.history(table, show=False)) == ["loss", "replayed"]
    with pytest.raises(KeyError, match="curves has no values of train_loss, .*: elbo"):
        pl.history(pd.DataFrame({"elbo": [1.0]}))
    with pytest.raises(TypeError, match="curves=<AnnData> was given"):
        pl.history(annotated())
    with pytest.raises(TypeError, match=r"curves=None was given.*; model.history of a trained"):
        pl.history(None)
