"""Colours of classes: the user's, or else those of a palette for readers without colour vision."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.colors import is_color_like, to_hex, to_rgb

#: The seven colours of Okabe and Ito; each further one is the most distant from all before it, in the
#: worst of three views: normal, protanopic and deuteranopic (OKLab, simulated after Machado et al. 2009).
# fmt: off
PALETTE = [
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#690F00", "#3C1E78", "#69F0E1",
    "#784B5A", "#5A87FF", "#5AD296", "#1E3CB4", "#B40F00", "#5A2D4B", "#78D2FF", "#4B4B87", "#96F0A5", "#5A7878",
    "#0F69E1", "#69C3C3", "#69B478", "#C3D25A", "#A55A4B", "#6996D2", "#4B5A1E", "#D2873C", "#3C6987", "#B43CA5",
    "#7878D2", "#1EA5FF", "#0FE1C3", "#D2695A", "#5A0F5A", "#782D69", "#A5C369", "#2D2D96", "#B4004B", "#005AC3",
    "#781E2D", "#A55A00", "#A56996", "#D2E178", "#69002D", "#0FA5B4", "#96E1FF", "#78E196", "#78872D", "#3C78F0",
    "#5AB4C3", "#5AC3FF", "#78B4A5", "#F0B400", "#C37887", "#96C3E1", "#E1964B", "#699696", "#8778B4", "#78F0C3",
]
# fmt: on
#: Colour of cells that the model rejected, by their default label.
UNKNOWN = {"Unknown": "#BDBDBD"}


def stored_colors(data: Any, key: str | None) -> dict[str, Any]:
    """Return ``adata.uns["<key>_colors"]`` by category of obs; nothing if they do not match."""
    if not isinstance(data, AnnData) or f"{key}_colors" not in data.uns:
        return {}
    colors = data.uns[f"{key}_colors"]
    categories = [str(name) for name in pd.Categorical(data.obs[key]).categories]
    if len(colors) < len(categories) or not all(map(is_color_like, colors)):
        return {}
    return dict(zip(categories, colors, strict=False))


def color_classes(names: Sequence[str], *stored: dict[str, Any]) -> dict[str, Any]:
    """Return a colour for each name: of the first of ``stored`` that has one, or else of the palette."""
    known = UNKNOWN | {name: color for part in reversed(stored) for name, color in part.items()}
    taken = {to_hex(known[name]).upper() for name in names if name in known}
    fresh = cycle([color for color in PALETTE if color not in taken] or PALETTE)
    return {name: known[name] if name in known else next(fresh) for name in names}


def contrast(color: Any) -> str:
    """Return black or white, whichever has more contrast to ``color``."""
    return "black" if np.dot(to_rgb(color), (0.299, 0.587, 0.114)) > 0.5 else "white"
