"""Training curves: losses, macro-F1 and the share of replayed cells, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from celler._utils._check import checked
from celler._utils._messages import listed
from celler.pl._chart import open_chart, shade, strip
from celler.pl._docs import document

TRAINING, VALIDATION = ("training", "#0072B2"), ("validation", "#D55E00")
CURVES = {
    "train_loss": TRAINING,
    "validation_loss": VALIDATION,
    "validation_macro_f1": VALIDATION,
    "replayed_share": TRAINING,
}
#: Label of the y axis and curves of each panel.
PANELS = {
    "loss": ("loss", ["train_loss", "validation_loss"]),
    "macro_f1": ("validation macro-F1", ["validation_macro_f1"]),
    "replayed": ("share of cells replayed", ["replayed_share"]),
}
SIZE = (3.2, 2.6)


@document
@checked
def history(
    curves: pd.DataFrame,
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Plot the training curves: losses, validation macro-F1 and the share of replayed cells.

    The band around macro-F1 is one standard error, the dashed line marks the epoch whose weights are kept. The training
    loss is the loss that was minimised, the validation loss is cross-entropy: compare the shapes of the curves, not
    their heights.

    Parameters
    ----------
    curves
        :attr:`celler.model.Celler.history`, or a table with a row per epoch and at least one of the
        columns ``train_loss``, ``validation_loss``, ``validation_macro_f1`` and ``replayed_share``.
        Each panel is drawn if it has a curve: "loss", "macro_f1" and "replayed". ``is_kept`` places the dashed line.
    $panels

    Raises
    ------
    TypeError
        If ``curves`` is not a table.
    KeyError
        If the table has none of these curves.

    $example
    >>> cl.pl.history(model.history)
    """
    if not isinstance(curves, pd.DataFrame):
        given = "None" if curves is None else type(curves).__name__
        raise TypeError(f"curves={given} was given; pass model.history of a trained model.")
    known = {
        panel: [name for name in names if name in curves and curves[name].notna().any()]
        for panel, (_, names) in PANELS.items()
    }
    sizes = {panel: SIZE for panel, names in known.items() if names}
    if not sizes:
        raise KeyError(f"curves has no values of {listed(list(CURVES))}. Its columns: {listed(curves.columns, 30)}.")
    chart = open_chart(sizes, figsize, ax)
    for name, panel in chart.panels.items():
        strip(panel)
        panel.set(xlabel="epoch", ylabel=PANELS[name][0])
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.grid(color=shade(0.92), lw=0.6)
        for column in known[name]:
            _draw(panel, curves, column)
    _mark_kept(chart.panels, curves)
    if len(known["loss"]) > 1:
        chart.panels["loss"].legend(frameon=False, fontsize="small")
    chart.arrange(title)
    return chart.finish(show=show, return_fig=return_fig, save=save)


def _draw(panel: Axes, curves: pd.DataFrame, name: str) -> None:
    """Draw a curve, with a band of one standard error if the table has it."""
    values, (label, color) = curves[name].dropna(), CURVES[name]
    panel.plot(values.index, values, "o-", color=color, ms=3, lw=1.4, label=label)
    if f"{name}_error" in curves:
        error = curves.loc[values.index, f"{name}_error"]
        low, high = values - error, values + error
        panel.fill_between(values.index, low, high, color=color, alpha=0.2, lw=0)


def _mark_kept(panels: Mapping[str, Axes], curves: pd.DataFrame) -> None:
    """Draw a line at the kept epoch in each panel, and ring and name its macro-F1."""
    if "is_kept" not in curves or not curves["is_kept"].any():
        return
    epoch = curves.index[curves["is_kept"].astype(bool)][-1]
    for panel in panels.values():
        panel.axvline(epoch, color=shade(0.45), lw=0.8, ls="--", zorder=0)
    name, scores = "validation_macro_f1", panels.get("macro_f1")
    if scores is not None and np.isfinite(curves.loc[epoch, name]):
        text = f"epoch {epoch} is kept: {curves.loc[epoch, name]:.3f}"
        ring = scores.plot(epoch, curves.loc[epoch, name], "o", mfc="none", mec=shade(0), ms=8, mew=1.2, label=text)
        scores.legend(handles=ring, frameon=False, fontsize="small", loc="lower right")
