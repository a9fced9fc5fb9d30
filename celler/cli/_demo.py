"""The demo: 350 labelled blood cells of ten types label 350 others, next to a logistic regression."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from anndata import AnnData
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegression

from celler._utils._write import check_out, whole, write_h5ad
from celler.benchmark._tasks import long_tail_split
from celler.datasets import pbmc68k
from celler.metrics import per_class, summary
from celler.model import Celler
from celler.pl import marker_bubble

#: Known markers of these types that the data hold.
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
    """The annotated query, a table with a row per class, and a summary by method."""

    query: AnnData
    table: pd.DataFrame
    scores: dict[str, dict[str, float]]


def compare(seed: int = 0, *, show_progress: bool = True) -> DemoResult:
    """Split the cells in half by ``seed``, train both methods on one half, label the other."""
    reference, query = long_tail_split(pbmc68k(), "cell_type", imbalance=1, seed=seed)
    truth, known = (part.obs["cell_type"].to_numpy() for part in (query, reference))
    counts = dict(Counter(known))
    baseline = LogisticRegression(class_weight="balanced", max_iter=1000).fit(reference.X, known)
    Celler.setup_anndata(reference, labels_key="cell_type")
    model = Celler(reference)
    model.train(seed=seed, show_progress=show_progress)
    model.annotate(query)
    labels = query.obs["celler"].to_numpy().astype(str)
    predictions = {"Celler": labels, "logistic regression": baseline.predict(query.X)}
    scores = {name: summary(truth, labels, counts) for name, labels in predictions.items()}
    ours, theirs = (per_class(truth, labels, counts) for labels in predictions.values())
    return DemoResult(query, ours.assign(f1_logreg=theirs["f1"]), scores)


def report(result: DemoResult) -> str:
    """Return the table of classes and the summary as text."""
    names = {"reference_cells": "reference", "query_cells": "query", "f1": "F1", "f1_logreg": "F1 logreg"}
    table = result.table.drop(columns="frequency").rename(columns=names).rename_axis(None)
    table.insert(0, "group", result.table["frequency"])
    scores = pd.DataFrame(result.scores).T[["macro_f1", "f1_head", "f1_medium", "f1_tail", "accuracy"]]
    scores.columns = ["macro-F1", "head F1", "medium F1", "tail F1", "accuracy"]
    return "\n\n".join(part.to_string(float_format="{:.3f}".format) for part in (table, scores))


def run(folder: Path, seed: int = 0, *, overwrite: bool = False) -> None:
    """Compare, print, and write ``celler_demo.h5ad`` and ``celler_demo_markers.png`` to ``folder``."""
    start = time.perf_counter()
    data, figure = folder / "celler_demo.h5ad", folder / "celler_demo_markers.png"
    for file in (data, figure):
        check_out(file, overwrite=overwrite, how="--overwrite")
    print("Celler demo: 350 labelled blood cells (reference) label 350 others (query).\n", flush=True)
    result = compare(seed)
    print(f"\n{report(result)}\n")
    write_h5ad(result.query, data, overwrite=overwrite, how="--overwrite")
    marker_bubble(result.query, MARKERS, groupby="celler", show=False)
    with whole(figure, overwrite=overwrite, how="--overwrite") as part:
        plt.savefig(part, dpi=150, bbox_inches="tight")
    plt.close()
    print(f"wrote {data} (obs: celler, celler_confidence, celler_margin; the truth is cell_type)")
    print(f"wrote {figure} (markers of the predicted types)")
    print(f"total time {time.perf_counter() - start:.0f} s")
