"""Every chart looks as it did: stored pictures, all but the text, which releases of matplotlib draw differently.

After a wanted change draw them anew, and look at each: ``PYTHONPATH=tests python tests/pl/test_pictures.py``.
"""

from pathlib import Path
from unittest.mock import patch

import matplotlib as mpl
import pytest
import scanpy as sc
from matplotlib import pyplot as plt
from matplotlib.testing.compare import compare_images
from pl_cases import CHARTS, annotated

from celler.pl import _bubble, _chart, _confusion, marker_bubble

mpl.use("Agg")
IMAGES = Path(__file__).parent / "images"
BLOOD = {
    "T cells": ["CD3D", "CD3E", "IL32"],
    "B": ["CD79A", "CD79B", "MS4A1"],
    "NK": ["NKG7", "GNLY"],
    "Monocytes": ["LYZ", "CST3", "S100A8"],
    "Dendritic": "FCER1A",
}


def blood(adata, **tail):
    pbmc = sc.datasets.pbmc68k_reduced()
    marker_bubble(pbmc, BLOOD, "bulk_labels", dendrogram=True, **tail)


PICTURES = {"marker_bubble": blood} | CHARTS
SIZES = {"marker_bubble": (8, 5), "confidence": (7, 3.2), "history": (9, 3), "cells_by": (11, 3)}
#: Inches to the left, below, to the right and above a panel.
MARGINS = {
    "marker_bubble": (2.1, 0.6, 2.2, 0.7),
    "confidence": (1.2, 0.6, 0.2, 0.4),
    "history": (1.2, 0.6, 0.2, 0.4),
}


def draw(name, path):
    """Write the picture, with panels of the same size whatever the size of the text around them."""
    margins = MARGINS.get(name, (1.2, 0.6, 1.7, 0.4))
    whole = {"left": 0, "bottom": 0, "right": 1, "top": 1}
    with (
        plt.style.context("default"),
        patch.object(_chart, "margins_of", lambda _: margins),
        patch.object(_chart, "room_beside", lambda _: 0.45),
        patch.object(_confusion, "room_beside", lambda _: 0.85 if name == "label_check" else 0.45),
        patch.object(_bubble, "room_beside", lambda _: 0.85),
        patch.object(_bubble, "_fit_names", lambda *_: "right"),
    ):
        figure, ax = plt.subplots(figsize=SIZES.get(name, (5, 3.2)), gridspec_kw=whole)
        PICTURES[name](annotated(), title="Blood", ax=ax, show=False)
        for text in figure.findobj(mpl.text.Text):
            text.set_alpha(0)
        figure.savefig(path, dpi=80)
    plt.close("all")


@pytest.mark.parametrize("name", list(PICTURES))
def test_pictures_of_every_chart(name, tmp_path):
    """One dot of a third of its size makes 0.5, another colour map 17."""
    draw(name, tmp_path / f"{name}.png")
    stored = IMAGES / f"{name}.png"
    assert compare_images(stored, tmp_path / f"{name}.png", tol=0.3) is None


if __name__ == "__main__":
    for name in PICTURES:
        draw(name, IMAGES / f"{name}.png")
