"""Class balance: does it help to show cells of rare types more often?

    python docs/benchmarks/class_balance.py DATA [--seeds 3] [--balances 0,0.5,1] [--sets pbmc_5p,...] [--out FILE]

DATA is the folder of ``studies.py``; ``*_longtail`` are halves thinned to 100 : 1. ``class_balance`` is the only
difference. ``@additive`` after the name of a set is a model without a base, which ``cbmc_longtail`` never has.
Tail recall is the mean over types with fewer than 20 of the reference's cells or 2 % of them.
"""

import argparse
from pathlib import Path

import anndata as ad
import pandas as pd
from studies import pair

import celler as cl

SETS = ["pbmc_5p", "pbmc_5p@additive", "forebrain", "forebrain@additive", "cbmc_longtail"]
SETS += ["endocrine_longtail", "endocrine_longtail@additive"]
SCORES = ["macro_f1", "recall_tail", "accuracy"]


def cells_of(name: str, data: Path, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Reference and query of a set."""
    if name != "endocrine_longtail":
        return pair(name, data, seed)
    adata = ad.read_h5ad(data / "mouse_endocrinogenesis_3696.h5ad")
    return cl.benchmark.long_tail_split(adata, "cell_type", seed=seed)


def scores(reference: ad.AnnData, query: ad.AnnData, encoder: str | None, **options: float) -> dict[str, float]:
    """Scores on the cells of types that the reference has; ``options`` are those of ``train``."""
    reference = reference.copy()
    cl.model.Celler.setup_anndata(reference, labels_key="cell_type")
    model = cl.model.Celler(reference, encoder=encoder)
    model.train(**options, accelerator="cpu", show_progress=False)
    query = query[query.obs["cell_type"].isin(model.classes_)].copy()
    counts = dict(zip(model.classes_, model.class_counts_, strict=True))
    found = cl.metrics.summary(query.obs["cell_type"].astype(str).to_numpy(), model.predict(query), counts)
    return {name: found[name] for name in SCORES}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--balances", type=lambda text: [float(part) for part in text.split(",")], default=[0, 0.5, 1])
    parser.add_argument("--sets", type=lambda text: text.split(","), default=SETS)
    parser.add_argument("--out", type=Path, help="table of all rows to write")
    args = parser.parse_args()
    rows = []
    for name in args.sets:
        origin, _, encoder = name.partition("@")
        for seed in range(args.seeds):
            cells = cells_of(origin, args.data, seed)
            for balance in args.balances:
                found = scores(*cells, encoder or None, class_balance=balance, seed=seed)
                rows.append({"set": name, "class_balance": balance, "seed": seed, **found})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    if args.out is not None:
        table.to_csv(args.out, index=False)
    of_sets = table.groupby(["set", "class_balance"])[SCORES].agg(["mean", "std"])
    print(of_sets.round(3).to_string(), table.groupby("class_balance")[SCORES].mean().round(4).to_string(), sep="\n")


if __name__ == "__main__":
    main()
