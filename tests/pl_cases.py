"""Cells with given and predicted labels, every chart of them, and what the tests of the charts look at."""

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib.text import Text

from celler import pl
from celler.tl import LabelCheck

KINDS = ["B cell", "CD4+ T cell", "NK cell", "monocyte", "plasmacytoid dendritic cell", "platelet"]


def annotated(n_classes=6, n_cells=600):
    """Classes from frequent to rare, three in four predicted right, some rejected, with a confidence."""
    rng = np.random.default_rng(0)
    names = [f"{KINDS[i % 6]} {i // 6 or ''}".strip() for i in range(n_classes)]
    sizes = 0.01 ** np.linspace(0, 1, n_classes) if n_classes > 1 else np.ones(1)
    codes = rng.choice(n_classes, n_cells, p=sizes / sizes.sum())
    codes[: min(n_classes, n_cells)] = np.arange(min(n_classes, n_cells))
    is_right = rng.random(n_cells) < 0.75
    shift = 6 if n_classes > 6 else 1
    labels = np.take(names, np.where(is_right, codes, (codes + shift) % n_classes)).astype(object)
    labels[rng.random(n_cells) < 0.02] = "Unknown"
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.take(names, codes), categories=names),
            "celler": pd.Categorical(labels),
            "celler_confidence": np.where(is_right, rng.beta(6, 2, n_cells), rng.beta(3, 3, n_cells)),
            "donor": pd.Categorical([f"donor {i}" for i in rng.integers(3, size=n_cells)]),
        },
        index=[f"cell {i}" for i in range(n_cells)],
    )
    angle = 2.4 * codes[:, None]
    centers = np.hstack([np.cos(angle), np.sin(angle)]) * 3 * np.sqrt(codes[:, None] + 1)
    adata = ad.AnnData(rng.poisson(1, (n_cells, 3)).astype(np.float32), obs=obs)
    adata.obsm["X_umap"] = centers + rng.normal(size=(n_cells, 2))
    return adata


def parents(names):
    """Lymphoid or myeloid, by class."""
    lymphoid = ("B cell", "CD4+", "NK")
    return {name: "lymphoid" if name.startswith(lymphoid) else "myeloid" for name in names}


def scores(adata):
    """Tables of two methods as ``f1_by_frequency`` takes them."""
    counts = adata.obs["cell_type"].value_counts()
    rng = np.random.default_rng(1)
    tables = {
        method: pd.DataFrame({"reference_cells": counts, "f1": low + (1 - low) * rng.random(len(counts))})
        for method, low in (("Celler", 0.5), ("another one", 0.2))
    }
    return {method: table.rename_axis("class") for method, table in tables.items()}


def curves(n_epochs=12):
    """A history of a training."""
    epoch = np.arange(n_epochs)
    return pd.DataFrame(
        {
            "train_loss": 2 * np.exp(-epoch / 4) + 0.3,
            "validation_loss": 2 * np.exp(-epoch / 3) + 0.5,
            "validation_macro_f1": 0.9 - 0.5 * np.exp(-epoch / 3),
            "validation_macro_f1_error": np.full(n_epochs, 0.03),
            "replayed_share": np.minimum(0.1, 0.02 * epoch),
            "replayed B cell": np.full(n_epochs, 3.0),
        }
    ).rename_axis("epoch")


def checked(adata):
    """A check of labels that miss platelets; monocytes have no marker of their own."""
    obs = getattr(adata, "obs", adata)
    types, labels = obs["cell_type"], obs["celler"].astype(str).replace("platelet", "B cell")
    counts = pd.crosstab(types, labels).rename_axis(index="type", columns="label")
    strength = counts.where(counts > 0) / counts.max().max()
    strength.loc["monocyte"] = np.nan
    n = int(counts.loc["platelet"].sum())
    row = {"type": "platelet", "n_cells": n, "n_other": n, "labels": "B cell", "markers": "PPBP, PF4", "strength": 0.9}
    markers = pd.DataFrame({"group": ["platelet"] * 2, "gene": ["PPBP", "PF4"]})
    return LabelCheck(pd.DataFrame([row]), types, counts, strength, markers)


#: Each takes an AnnData of ``annotated`` and the options that all charts have.
CHARTS = {
    "alluvial": lambda adata, **tail: pl.alluvial(adata, "cell_type", "celler", **tail),
    "cells_by": lambda adata, **tail: pl.cells_by(adata, ["cell_type", "donor"], **tail),
    "class_counts": lambda adata, **tail: pl.class_counts(adata, "cell_type", **tail),
    "composition": lambda adata, **tail: pl.composition(adata, "cell_type", "donor", **tail),
    "confidence": lambda adata, **tail: pl.confidence(adata, **tail),
    "confusion": lambda adata, **tail: pl.confusion(
        adata, "cell_type", "celler", parents=parents(adata.obs["cell_type"].cat.categories), **tail
    ),
    "f1_by_frequency": lambda adata, **tail: pl.f1_by_frequency(scores(adata), **tail),
    "history": lambda adata, **tail: pl.history(curves(), **tail),
    "label_check": lambda adata, **tail: pl.label_check(checked(annotated()), **tail),
    "prediction_bubble": lambda adata, **tail: pl.prediction_bubble(adata, "cell_type", "celler", **tail),
    "reliability": lambda adata, **tail: pl.reliability(adata, "cell_type", "celler", **tail),
}


def names_on(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def without_number(names):
    return [name.rpartition(" (")[0] for name in names]


def cells_of(truth, prediction, **more):
    """A table of cells; labels are letters, so many of each: "aab" is three cells."""
    return pd.DataFrame({"given": list(truth), "predicted": list(prediction), **more})


def assert_same(one, other):
    """Two AnnData hold the same: tables with their dtypes, matrices, uns."""
    for name in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    assert list(one.uns) == list(other.uns)
    np.testing.assert_equal(dict(one.uns), dict(other.uns))
    for name in ("layers", "obsm", "varm", "obsp"):
        assert list(getattr(one, name).keys()) == list(getattr(other, name).keys())
    pairs = [(one.X, other.X), *((one.obsm[key], other.obsm[key]) for key in one.obsm)]
    if one.raw is not None:
        pairs.append((one.raw.X, other.raw.X))
    for matrix, expected in pairs:
        assert type(matrix) is type(expected)
        assert (matrix != expected).sum() == 0


def texts_drawn(figure):
    """All text that is seen: without the labels of ticks beyond the ends of an axis."""
    unseen = set()
    for ax in figure.findobj(lambda artist: hasattr(artist, "get_xaxis")):
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
            outside = [label for place, label in ticks if not low <= place <= high]
            unseen.update(outside if ax.axison else axis.get_majorticklabels())
            # the second label of a tick is for the other side of the panel
            unseen.update(tick.label2 for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()])
    texts = figure.findobj(Text)
    return [t for t in texts if t.get_text() and t.get_visible() and t not in unseen]
