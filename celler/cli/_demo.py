"""The demo: 350 real blood cells teach ten types, 350 others are labelled, next to a logistic regression."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from celler.datasets import pbmc68k
from celler.metrics import per_class, summary
from celler.model import Celler
from celler.pl import marker_bubble

#: Genes biologists know these types by, as far as the data hold them.
MARKERS = {
    "T": ["CD3D", "CD3E", "IL7R", "CCR7", "CD8A", "CD8B"],
    "NK": ["GNLY", "NKG7", "GZMB"],
    "B": ["MS4A1", "CD79A", "CD79B"],
    "Monocyte": ["LYZ", "S100A8", "FCN1"],
    "Dendritic": ["FCER1A", "CLEC10A", "CST3"],
    "Progenitor": ["STMN1", "SOX4"],
}


@dataclass(frozen=True)
class DemoResult:
    """query: annotated AnnData. table: one row per class. scores: summary by method."""

    query: AnnData
    table: pd.DataFrame
    scores: dict[str, dict[str, float]]


def compare(seed: int = 0, *, show_progress: bool = True) -> DemoResult:
    """Split the cells in half by ``seed``, train both methods on one half, label the other."""
    adata = pbmc68k()
    rows = np.arange(adata.n_obs)
    reference_rows, query_rows = train_test_split(
        rows, test_size=0.5, stratify=adata.obs["cell_type"], random_state=seed
    )
    reference, query = adata[np.sort(reference_rows)].copy(), adata[np.sort(query_rows)].copy()
    truth = query.obs["cell_type"].to_numpy().astype(str)
    counts = reference.obs["cell_type"].value_counts().to_dict()

    Celler.setup_anndata(reference, labels_key="cell_type")
    model = Celler(reference)
    model.train(seed=seed, show_progress=show_progress)
    model.annotate(query)
    predictions = {
        "Celler": query.obs["celler"].to_numpy().astype(str),
        "logistic regression": logistic_regression(reference, query),
    }
    table = per_class(truth, predictions["Celler"], counts)
    baseline = per_class(truth, predictions["logistic regression"], counts)
    table["f1_logreg"] = baseline["f1"]
    scores = {name: summary(truth, labels, counts) for name, labels in predictions.items()}
    return DemoResult(query, table, scores)


def logistic_regression(reference: AnnData, query: AnnData) -> np.ndarray:
    """Labels of the query by class-balanced logistic regression on the log values of all genes."""
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    labels = reference.obs["cell_type"].to_numpy().astype(str)
    return np.asarray(model.fit(reference.X, labels).predict(query.X))


def report(result: DemoResult) -> str:
    """The per-class table and the summary as text."""
    table = result.table.rename(
        columns={
            "reference_cells": "reference",
            "query_cells": "query",
            "f1_logreg": "F1 logreg",
            "f1": "F1",
        }
    ).drop(columns="frequency")
    table.insert(0, "group", result.table["frequency"])
    table.index.name = None
    scores = pd.DataFrame(result.scores).T
    scores = scores[["macro_f1", "f1_head", "f1_medium", "f1_tail", "accuracy"]]
    scores.columns = ["macro-F1", "head F1", "medium F1", "tail F1", "accuracy"]
    return "\n\n".join(
        part.to_string(float_format=lambda value: f"{value:.3f}") for part in (table, scores)
    )


def run(folder: Path, seed: int = 0) -> None:
    """Compare, print, and write ``celler_demo.h5ad`` and ``celler_demo_markers.png`` to ``folder``."""
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    print(
        "Celler demo: 350 labelled blood cells (reference) label 350 others (query).\n", flush=True
    )
    result = compare(seed)
    print(f"\n{report(result)}\n")
    data, figure = folder / "celler_demo.h5ad", folder / "celler_demo_markers.png"
    result.query.write_h5ad(data)
    draw_markers(result.query, figure)
    print(f"wrote {data} (obs: celler, celler_confidence, celler_margin; the truth is cell_type)")
    print(f"wrote {figure} (markers of the predicted types)")
    print(f"total time {time.perf_counter() - start:.0f} s")


def draw_markers(query: AnnData, path: Path) -> None:
    """Bubble chart of the markers by predicted type."""
    marker_bubble(query, MARKERS, groupby="celler", show=False)
    plt.savefig(path, dpi=150, bbox_inches="tight")
    plt.close()
