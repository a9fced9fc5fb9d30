"""Labels spread over neighbours: scores on the benchmark's tasks, and what becomes of rare cells in a query.

    python docs/benchmarks/propagation.py DATA [--seeds 3] [--tasks a,b] [--n-cells N]

DATA is the folder of the benchmark. "alone" spreads over the query's cells without the reference. Then each type
in turn is thinned to five cells in the query, and the recall of those five is averaged over the types. ``--n-cells N``
measures time and memory on as many synthetic cells instead.
"""

import argparse
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata as ad
import numpy as np
import pandas as pd
from scaling import cells, peak_mb
from shared_tasks import TASKS

from celler.metrics import expected_calibration_error, summary
from celler.model import Celler

#: Cells that are left of a type that is made rare in the query.
N_RARE = 5


def answers(model: Celler, query: ad.AnnData) -> dict[str, pd.DataFrame]:
    """Probabilities of the query's cells without propagation, with it, and with it but no reference."""
    found = {name: model.predict(query, soft=True, propagate=name == "on") for name in ("off", "on")}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(folder, overwrite=True)
        found["alone"] = Celler.load(folder).predict(query, soft=True, propagate=True)
    return found


def scores(truth: np.ndarray, soft: pd.DataFrame, counts: dict[str, int]) -> dict[str, float]:
    """Macro-F1, tail recall, accuracy and calibration error."""
    labels = soft.columns[soft.to_numpy().argmax(axis=1)].to_numpy().astype(str)
    confidence = soft.to_numpy().max(axis=1)
    found = summary(truth, labels, counts)
    return found | {"ece": expected_calibration_error(confidence, labels == truth)}


def rare_recall(model: Celler, query: ad.AnnData, truth: np.ndarray, seed: int) -> dict[str, float]:
    """Recall of five cells of a type among all cells of the others, a mean over types, without and with propagation."""
    rng = np.random.default_rng(seed)
    recall: dict[str, list[float]] = {"off": [], "on": []}
    for name in np.unique(truth):
        of_type = rng.permutation(np.flatnonzero(truth == name))
        if len(of_type) < N_RARE or name not in model.classes_:
            continue
        kept = np.sort(np.concatenate([np.flatnonzero(truth != name), of_type[:N_RARE]]))
        part = query[kept].copy()
        for option, values in recall.items():
            labels = model.predict(part, propagate=option == "on")
            values.append(float((labels[truth[kept] == name] == name).mean()))
    return {name: float(np.mean(values)) for name, values in recall.items()}


def cost(n_cells: int) -> None:
    """Processor seconds and MiB at the peak, without and with propagation, of a query and 5,000 labelled cells."""
    reference, query = cells(5000), cells(n_cells, seed=1)
    Celler.setup_anndata(reference, labels_key="cell_type")
    model = Celler(reference)
    model.train(max_epochs=1, refit=False, show_progress=False)
    model.predict(query[:100].copy())
    for propagate in (False, True):
        start = time.process_time()
        model.predict(query, propagate=propagate)
        seconds = time.process_time() - start
        print(f"propagate={propagate}: {seconds:.0f} CPU s, peak {peak_mb():.0f} MiB", flush=True)


def main() -> None:
    """Train once for each task and seed, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n-cells", type=int)
    options = parser.parse_args()
    if options.n_cells:
        return cost(options.n_cells)
    rows = []
    for task in options.tasks.split(","):
        for reference, query, seeds in TASKS[task](options.data, list(range(options.seeds))):
            truth = query.obs["cell_type"].to_numpy().astype(str)
            counts = reference.obs["cell_type"].value_counts().to_dict()
            for seed in seeds:
                Celler.setup_anndata(reference, labels_key="cell_type")
                model = Celler(reference)
                model.train(seed=seed, show_progress=False)
                rare = rare_recall(model, query, truth, seed)
                for option, soft in answers(model, query).items():
                    found = scores(truth, soft, counts) | {"rare": rare.get(option, np.nan)}
                    rows.append({"task": task, "propagate": option, "seed": seed} | found)
        shown = ["macro_f1", "recall_tail", "accuracy", "ece", "rare"]
        table = pd.DataFrame(rows).groupby(["task", "propagate"], sort=False)[shown]
        print(table.agg(["mean", "std"]).round(3).loc[[task]].to_string(), flush=True)


if __name__ == "__main__":
    main()
