"""Training curves: losses, macro-F1 and the share of cells that are replayed, epoch by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.ticker import MaxNLocator

from celler.pl._chart import open_chart, shade, strip
from celler.tl._columns import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINING, VALIDATION = "#0072B2", "#D55E00"
CURVES = {
    "train_loss": ("training", TRAINING),
    "validation_loss": ("validation", VALIDATION),
    "validation_macro_f1": ("validation", VALIDATION),
    "replayed_share": ("training", TRAINING),
}
PANELS = {
    "loss": ["train_loss", "validation_loss"],
    "macro_f1": ["validation_macro_f1"],
    "replayed": ["replayed_share"],
}
Y_LABELS = {
    "loss": "loss",
    "macro_f1": "validation macro-F1",
    "replayed": "share of cells replayed",
}
SIZE = (3.2, 2.6)


def history(
    curves: pd.DataFrame,
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | dict[str, Axes] | Figure | None:
    """Draw the curves of a training: losses, validation macro-F1 and the share of cells replayed.

    The band around macro-F1 is one standard error. The losses are those of the training's own
    function and, on the validation cells, cross-entropy: compare their shapes, not their heights.

    curves: :attr:`celler.model.Celler.history`, or any table with a row per epoch and at least one of
        ``train_loss``, ``validation_loss``, ``validation_macro_f1`` and ``replayed_share``.

    The other options are those of :func:`celler.pl.confusion`. Returned are the axes "loss",
    "macro_f1" and "replayed", those for which there are curves, or the axes where there is one.
    """
    if not isinstance(curves, pd.DataFrame):
        given = "None" if curves is None else type(curves).__name__
        raise TypeError(f"curves={given} was given; pass model.history of a trained model.")
    known = {
        panel: [name for name in names if name in curves and curves[name].notna().any()]
        for panel, names in PANELS.items()
    }
    sizes = {panel: SIZE for panel, names in known.items() if names}
    if not sizes:
        raise KeyError(
            f"curves has no values of {listed(list(CURVES))}. Its columns: {listed(curves.columns, 30)}."
        )
    chart = open_chart(sizes, figsize, ax)
    for name, panel in chart.panels.items():
        strip(panel)
        panel.set(xlabel="epoch", ylabel=Y_LABELS[name])
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.grid(color=shade(0.92), lw=0.6)
        for column in known[name]:
            _draw(panel, curves, column)
    if len(known["loss"]) > 1:
        chart.panels["loss"].legend(frameon=False, fontsize="small")
    chart.arrange(title)
    return chart.finish(show=show, return_fig=return_fig)


def _draw(panel: Axes, curves: pd.DataFrame, name: str) -> None:
    """One curve, with a band of one standard error where there is one."""
    values = curves[name].dropna()
    label, color = CURVES[name]
    panel.plot(values.index, values, "o-", color=color, ms=3, lw=1.4, label=label)
    if f"{name}_error" in curves:
        error = curves.loc[values.index, f"{name}_error"]
        panel.fill_between(
            values.index, values - error, values + error, color=color, alpha=0.2, lw=0
        )
