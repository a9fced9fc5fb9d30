"""Rare types that labels miss: how often ``check_labels`` lists them, and how often it lists one that it should not.

    python docs/benchmarks/rare_types.py DATA [--seeds 3] [--left-out 2] [--out rare_types.csv]

DATA is the folder of ``studies.py``, whose pairs are used. Per pair and seed one model is trained. Each type with 10
reference cells or more is made rare in the query, which keeps 3, 10 or 30 of its cells:

- ``runner-up``: the type is missed, as every cell that was labelled as it gets the second-best label;
- ``no label``: the type's cells have none, the others keep theirs;
- ``absent``: no cell of the type is left, and all labels stay: nothing should be listed;
- ``plain``: the whole query with its labels, errors included;
- ``left out``: a model is trained without the type, whose cells stay in the query as an unknown type (the largest
  types, ``--left-out`` of them).

"listed" is the share of trials whose type is listed, "right" the median share of the listed cells that are of it. An
entry is false where most of its cells are of another type, or the trial's type is absent. The rule was chosen on the
pairs of ``CHOSEN_ON``.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from studies import pair, trained

import celler as cl

SIZES = (3, 10, 30)
MIN_REFERENCE = 10
CHOSEN_ON = ("pbmc_5p", "forebrain", "onek1k", "tcells")
PAIRS = (*CHOSEN_ON, "pbmc_3tech", "endocrine", "cortex44")


def row(model: cl.model.Celler, query: ad.AnnData, labels: np.ndarray, name: str | None) -> dict:
    """What the check says of these labels; ``name`` is the type that they miss."""
    query = ad.AnnData(query.X, query.obs[["cell_type"]].assign(given=labels), query.var)
    check, truth = model.check_labels(query, "given"), query.obs["cell_type"].to_numpy()
    right = {}
    for found in check.table["type"]:
        cells = (check.types == found).to_numpy() & (labels != found)
        right[found] = (truth[cells] == found).mean()
    others = [share < 0.5 for found, share in right.items() if found != name]
    return {"listed": name in right, "right": right.get(name, np.nan), "false": sum(others), "entries": dict(right)}


def trials(model: cl.model.Celler, query: ad.AnnData, seed: int) -> Iterator[dict]:
    """Rows of a query with a trained model."""
    model.annotate(query)
    truth, given, second = (query.obs[key].astype(str).to_numpy() for key in ("cell_type", "celler", "celler_second"))
    rng, n_reference = np.random.default_rng(seed), dict(zip(model.classes_, model.class_counts_, strict=True))
    known = [name for name in model.classes_ if n_reference[name] >= MIN_REFERENCE]
    found = row(model, query, given, None)
    natural = [
        name for name in known if (truth == name).sum() >= SIZES[0] and (given[truth == name] == name).mean() < 0.5
    ]
    yield {"kind": "plain", **found, "n_missed": len(natural), "n_found": len(set(natural) & set(found["entries"]))}
    for name in known:
        cells = rng.permutation(np.flatnonzero(truth == name))
        rest = np.flatnonzero(truth != name)
        if len(cells) >= SIZES[0]:
            absent = row(model, query[rest], given[rest], name)
            yield {"kind": "absent", "type": name, **absent, "false": absent["false"] + absent["listed"]}
        for n in SIZES:
            if len(cells) < n:
                continue
            kept = np.sort(np.concatenate([rest, cells[:n]]))
            without = np.where(given == name, second, given)
            yield {"kind": "runner-up", "type": name, "n": n, **row(model, query[kept], without[kept], name)}
            without = np.where(truth == name, None, given)
            yield {"kind": "no label", "type": name, "n": n, **row(model, query[kept], without[kept], name)}


def left_out(reference: ad.AnnData, query: ad.AnnData, n_types: int, seed: int) -> Iterator[dict]:
    """Rows of models that lack one of the query's largest types."""
    counts = query.obs["cell_type"].value_counts()
    for name in counts.index[counts.index.isin(reference.obs["cell_type"].unique())][:n_types]:
        model = trained(reference[reference.obs["cell_type"] != name].copy(), seed)
        asked = query.copy()
        model.annotate(asked)
        yield {"kind": "left out", "type": name, **row(model, asked, asked.obs["celler"].astype(str).to_numpy(), None)}


def main() -> None:
    """Write a row per trial, print means per pair and kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--left-out", type=int, default=2)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS))
    parser.add_argument("--out", type=Path, default=Path("rare_types.csv"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in options.pairs:
        for seed in range(options.seeds):
            reference, query = pair(name, options.data, seed)
            where = {"pair": name, "seed": seed}
            rows += [where | found for found in left_out(reference, query, options.left_out, seed)]
            rows += [where | found for found in trials(trained(reference, seed), query, seed)]
            table = pd.DataFrame(rows)
            table.to_csv(options.out, index=False)
            print(f"{name}, seed {seed}: {len(table):,} trials so far", flush=True)
    table["pairs"] = np.where(table["pair"].isin(CHOSEN_ON), "chosen on", "confirmed on")
    is_rare = table["kind"].isin(["runner-up", "no label"])
    scores = {"listed": ("listed", "mean"), "right": ("right", "median"), "false": ("false", "mean")}
    scores |= {"trials": ("listed", "size")}
    for keys in (["kind", "pair"], ["kind", "n"], ["kind", "pairs"], ["kind"]):
        print(table[is_rare].groupby(keys, sort=False).agg(**scores).round(2).to_string(), end="\n\n")
    of_others = table[~is_rare].groupby(["kind", "pair"], sort=False)[["false", "n_missed", "n_found"]].mean()
    print(of_others.round(2).to_string(), end="\n\n")
    print(table.groupby("kind")["false"].mean().round(2).to_string())


if __name__ == "__main__":
    main()
