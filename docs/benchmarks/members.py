"""Members: what the mean of several members gives beside one, and what it costs.

    python docs/benchmarks/members.py DATA [--out members.csv] [--seeds 3] [--members 1,5] [--sets pbmc_5p,...] [--once]

DATA is the folder of ``studies.py``, whose pairs are used. Each set has one reference and one
query; models differ in the seed of ``train`` alone. "seeds" is the share of the query's cells to which the models of
two seeds give the same label, "own" the mean agreement that ``annotate`` writes. Times are CPU seconds. ``@additive``
after the name of a set is a model without a base. ``--once`` leaves out validation and so trains once, not twice. Rows
that the file has already are not run again.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from studies import pair

import celler as cl

SETS = ["pbmc_5p", "pbmc3k", "tcells", "forebrain", "onek1k", "pbmc_3tech", "cortex44", "cortex44+0.7"]
SETS += ["endocrine+0.7", "cbmc_longtail", "pbmc_5p@additive", "cortex44@additive"]


def figures(
    reference: ad.AnnData, query: ad.AnnData, encoder: str | None, **options: float
) -> tuple[dict[str, float], np.ndarray]:
    """Scores and costs of a model on cells of known types, and its labels; ``options`` are those of ``train``."""
    reference, query = reference.copy(), query.copy()
    cl.model.Celler.setup_anndata(reference, labels_key="cell_type")
    model = cl.model.Celler(reference, encoder=encoder)
    start = time.process_time()
    model.train(**options, show_progress=False)
    fitted = time.process_time()
    labels = model.predict(query)
    done = time.process_time()
    truth = query.obs["cell_type"].astype(str).to_numpy()
    is_known = np.isin(truth, model.classes_)
    counts = dict(zip(model.classes_, model.class_counts_, strict=True))
    scores = cl.metrics.summary(truth[is_known], labels[is_known], counts)
    kept = {name: scores[name] for name in ("macro_f1", "recall_tail", "accuracy")}
    model.annotate(query)
    kept["own"] = query.obs["celler_agreement"].mean() if options["n_members"] > 1 else np.nan
    return kept | {"prior": model._state.fitted.class_prior, "fit": fitted - start, "predict": done - fitted}, labels


def run(options: argparse.Namespace, done: set[tuple[str, int, int]], folder: Path) -> Iterator[dict[str, object]]:
    """Rows that the table lacks; labels are kept for the agreement."""
    for name in options.sets:
        origin, _, encoder = name.partition("@")
        wanted = [(n, seed) for seed in range(options.seeds) for n in options.members if (name, n, seed) not in done]
        if not wanted:
            continue
        reference, query = pair(origin, options.data, 0)
        for n, seed in wanted:
            once = {"train_size": 1.0} if options.once else {}
            row, labels = figures(reference, query, encoder or None, seed=seed, n_members=n, **once)
            np.save(folder / f"{name}_{n}_{seed}.npy", labels.astype(str))
            yield {"set": name, "members": n, "seed": seed, **row}


def agreements(folder: Path, name: str, n: int, n_seeds: int) -> float:
    """Mean share of cells with the same label, over pairs of seeds."""
    files = [folder / f"{name}_{n}_{seed}.npy" for seed in range(n_seeds)]
    labels = [np.load(file) for file in files if file.exists()]
    return float(np.mean([(a == b).mean() for a, b in combinations(labels, 2)] or [np.nan]))


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("members.csv"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--members", type=lambda text: [int(n) for n in text.split(",")], default=[1, 5])
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--sets", type=lambda names: names.split(","), default=SETS)
    options = parser.parse_args()
    folder = options.out.with_suffix("")
    folder.mkdir(exist_ok=True)
    columns = ["set", "members", "seed"]
    table = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame(columns=columns)
    done = set(table[columns].itertuples(index=False, name=None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in run(options, done, folder):
            table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
            table.to_csv(options.out, index=False)
    means = table.drop(columns="seed").groupby(["set", "members"], sort=False).agg(["mean", "std"])
    means = means[means.columns[[not (c[1] == "std" and c[0] in ("fit", "predict")) for c in means.columns]]]
    means["seeds"] = [agreements(folder, name, int(n), options.seeds) for name, n in means.index]
    print(means.round(3).to_string())


if __name__ == "__main__":
    main()
