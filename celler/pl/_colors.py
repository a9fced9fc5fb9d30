"""Colours of classes: the user's, or else those of a palette for readers without colour vision."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.colors import is_color_like, to_hex, to_rgb

#: Six colours of Okabe and Ito, all but the yellow; each further one is the most distant from all before it, in the
#: worst of three views: normal (at 0.6 of its distance), protanopic and deuteranopic (OKLab, simulated after Machado et
#: al. 2009). All have a contrast of at least 2:1 to white and 2.5:1 to black.
# fmt: off
PALETTE = [
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#960F5A", "#5A0FF0", "#8769F0", "#874B00",
    "#87C387", "#5A3C96", "#965A78", "#D20FC3", "#D2004B", "#B4B4C3", "#F05A69", "#5A694B", "#7800C3", "#9687D2",
    "#4B4B69", "#A53C96", "#5AC34B", "#4B5AE1", "#96874B", "#C39696", "#F087F0", "#B49600", "#787896", "#5A78D2",
    "#961E2D", "#1EA5B4", "#69870F", "#C396D2", "#B478F0", "#D24B96", "#B42D2D", "#F0A569", "#695A87", "#783CB4",
    "#007878", "#783C87", "#00B487", "#2D96F0", "#D20F78", "#F05AC3", "#E1A5A5", "#D2874B", "#A54B4B", "#A58778",
    "#783C3C", "#875AB4", "#003CD2", "#A51EF0", "#A5A569", "#3C875A", "#2DD23C", "#3C96C3", "#960F78", "#00B4D2",
]
# fmt: on
#: Colour of cells that the model rejected, by their default label.
UNKNOWN = {"Unknown": "#A6A6A6"}


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
