"""Colours: the palette as seen without colour vision, and the user's colours."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex

from celler import pl
from celler.pl._colors import PALETTE, UNKNOWN, color_classes

mpl.use("Agg")


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
def test_palette_without_colour_vision(view):
    """0.02 in OKLab is about the least difference that is seen side by side."""
    seen = oklab(np.clip(linear(PALETTE) @ np.array(SIMULATED[view]).T, 0, 1))
    distance = np.linalg.norm(seen[:, None] - seen, axis=2) + np.eye(60)
    assert distance[:10, :10].min() > 0.07
    assert distance[:20, :20].min() > 0.055
    assert distance[:30, :30].min() > 0.045
    assert distance.min() > 0.029


def test_palette_with_colour_vision():
    seen = oklab(linear(PALETTE))
    distance = np.linalg.norm(seen[:, None] - seen, axis=2) + np.eye(60)
    assert distance[:12, :12].min() > 0.14
    assert distance[:30, :30].min() > 0.08


def test_palette_on_white_and_on_black():
    """Contrast as the web guidelines of the W3C (WCAG 2) define it, also of rejected cells."""
    luminance = linear([*PALETTE, *UNKNOWN.values()]) @ [0.2126, 0.7152, 0.0722]
    assert (1.05 / (luminance + 0.05)).min() > 2
    assert ((luminance + 0.05) / 0.05).min() > 2.45


def test_color_classes_with_stored_or_broken_colours(adata):
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
    assert color_classes(["a", "Unknown"]) == {"a": PALETTE[0], "Unknown": "#A6A6A6"}
    assert color_classes(["Unknown"], {"Unknown": "red"}) == {"Unknown": "red"}
    assert len(color_classes([str(i) for i in range(100)])) == 100
    assert names == list(adata.obs["cell_type"].cat.categories)
