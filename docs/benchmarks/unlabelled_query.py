"""The query's cells as unlabelled ones in training: alone, with ``masked_weight``, and with ``pretrain`` before.

    python docs/benchmarks/unlabelled_query.py DATA [--tasks cbmc_longtail,endocrine] [--seeds 3] [--out unlabelled.csv]

DATA is the folder of the benchmark, whose tasks and splits these are, so that its scANVI stands beside them.
Finished rows are kept in the file, and a run that was stopped goes on.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import pandas as pd
from shared_tasks import TASKS

from celler.metrics import summary
from celler.model import Celler


def alone(model: Celler, seed: int) -> None:
    """The labelled cells alone."""
    model.train(seed=seed, show_progress=False)


def joint(model: Celler, seed: int) -> None:
    """Hidden genes of all cells in each step."""
    model.train(masked_weight=1.0, seed=seed, show_progress=False)


def pretrained(model: Celler, seed: int) -> None:
    """Hidden genes of all cells first."""
    model.pretrain(seed=seed, show_progress=False)
    model.train(seed=seed, show_progress=False)


METHODS: dict[str, Callable[[Celler, int], None]] = {
    "train": alone,
    "masked_weight": joint,
    "pretrain": pretrained,
}


def together(reference: ad.AnnData, query: ad.AnnData) -> ad.AnnData:
    """All cells in one registered AnnData, the query's without labels."""
    parts = [reference.copy(), query.copy()]
    parts[1].obs["cell_type"] = "Unknown"
    both = ad.concat(parts, index_unique="-")
    both.obs = both.obs[["cell_type"]].astype(str)
    Celler.setup_anndata(both, labels_key="cell_type")
    return both


def main() -> None:
    """Run what is missing, and print mean and spread over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", default="cbmc_longtail,endocrine")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("unlabelled_query.csv"))
    options = parser.parse_args()
    runs = ["task", "seed", "method"]
    done = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame(columns=runs)
    known = set(done[runs].itertuples(index=False, name=None))
    for task in options.tasks.split(","):
        for reference, query, seeds in TASKS[task](options.data, list(range(options.seeds))):
            truth = query.obs["cell_type"].to_numpy().astype(str)
            counts = reference.obs["cell_type"].astype(str).value_counts().to_dict()
            wanted = [(task, seed, name) for seed in seeds for name in METHODS]
            for _, seed, name in [run for run in wanted if run not in known]:
                model = Celler(together(reference, query))
                start = time.process_time()
                METHODS[name](model, seed)
                row = {"task": task, "seed": seed, "method": name}
                row["seconds"] = round(time.process_time() - start, 1)
                for asked in (False, True):
                    labels = model.predict(query, propagate=asked)
                    found = summary(truth, labels, counts)
                    end = ", propagated" if asked else ""
                    row |= {f"{key}{end}": found[key] for key in ("macro_f1", "recall_tail")}
                frame = pd.DataFrame([row])
                frame.to_csv(options.out, mode="a", header=not options.out.exists(), index=False)
                print(row, flush=True)
    table = pd.read_csv(options.out)
    found = table.drop(columns="seed").groupby(["task", "method"], sort=False).agg(["mean", "std"])
    print(found.round(3).T.to_string())


if __name__ == "__main__":
    main()
