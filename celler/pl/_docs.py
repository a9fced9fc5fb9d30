"""Parts of docstrings that several plots share."""

import inspect
from collections.abc import Callable
from string import Template
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

SHARED = {
    "cells": """adata
    Cells, or a table with the columns named below, such as ``adata.obs``.""",
    "labels": """truth_key
    Column with the given label of each cell.
prediction_key
    Column with the predicted label of each cell. Cells without one of the two labels are left out with a warning.""",
    "parents": """parents
    Parent of each class, or a column with the parent of each cell's given class. Classes of the same parent stay
    together. None places classes that are confused with each other side by side, as a hierarchical clustering does.""",
    "confidence_key": """confidence_key
    Column with the probability of the predicted label, from 0 to 1.""",
    "frame": """title
    Text above the plot.
figsize
    Width and height in inches. None makes the figure as large as the plot needs.
ax
    Axes to draw in. The plot and its text fill them and the margins around them, or get room from the figure's
    layout engine.
show
    Whether to show the figure. None uses ``scanpy.settings.autoshow``.
save
    File to write the figure to, with 300 dots per inch. Its ending, such as ".pdf", is the format.""",
    "returns": """return_fig
    Whether to return the figure instead of the axes.

Returns
-------
The axes, or the figure if ``return_fig`` is set, or None if the figure is shown. ``adata`` is not changed.""",
    "example": """Examples
--------
>>> import celler as cl
>>> cells = cl.datasets.pbmc68k()
>>> reference, query = cells[::2].copy(), cells[1::2].copy()
>>> cl.model.Celler.setup_anndata(reference, labels_key="cell_type")
>>> model = cl.model.Celler(reference)
>>> model.train()
>>> model.annotate(query)""",
    "raises": """Raises
------
KeyError
    If a column does not exist. The message names the closest one.
ValueError
    If no cell can be drawn, or a column holds values of another kind.""",
}
SHARED["layout"] = SHARED["frame"] + "\n" + SHARED["returns"]
SHARED["panels"] = SHARED["layout"].replace("The axes,", "The axes by name, a single one as it is,")
for part in ("layout", "panels"):
    SHARED[f"{part}_and_example"] = "\n\n".join(SHARED[name] for name in (part, "raises", "example"))


def document(plot: F) -> F:
    """Fill in the ``$name`` parts of a plot's docstring and show its picture below the example."""
    name = plot.__name__
    picture = f"\n\n.. image:: /images/plots/{name}.png\n    :alt: Example of celler.pl.{name}"
    plot.__doc__ = Template(inspect.cleandoc(plot.__doc__ or "")).substitute(SHARED) + picture
    return plot
