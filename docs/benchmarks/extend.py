"""Two classes are added to a model from another study: what it forgets, how well it knows them, what they take.

    python docs/benchmarks/extend.py DATA [--seeds 3] [--pairs pbmc_3tech ...] [--out extend.csv]

DATA is the folder of ``studies.py``, whose pairs are used. Half of the cells of each type of both studies train. A
model learns the reference without two types and is extended by their cells of the query's study: all of them (``all``)
or 15 of each (``15``), alone or, ``+ others``, with its other cells without labels, hidden cells of the new types among
them. Test cells are the other half of both studies. "lost" are points of macro-F1 of the old types on their test cells,
before less after; "new" is the macro-F1 of the new types; "taken" is the largest share of other cells, in percent,
that one of them takes; "said" is that a warning named a type that takes too many.
"""

import argparse
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import f1_score
from studies import NATURAL, SYNTHETIC, pair, trained

import celler as cl

NEW = {
    "pbmc_5p": [["DC", "NK"], ["CD16 Mono", "CD8 T"]],
    "pbmc_3tech": [["DC", "NK"], ["CD16 Mono", "B"]],
    "onek1k": [["non-classical monocyte", "memory B"]],
    "forebrain": [["OPCs", "Neurons - GABAergic 1"], ["Microglia 1", "Radial glia"]],
    "endocrine": [["Epsilon", "Alpha"]],
    "cortex44": [["Vip Chat", "L6 IT_1"], ["Macrophage", "Sst Hspe_3"]],
}
PAIRS = [name for name in (*NATURAL, *SYNTHETIC) if name.partition("+")[0] in NEW]
VARIANTS = {"all": (None, False), "15": (15, False), "all + others": (None, True), "15 + others": (15, True)}


def halves(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train and to test on, half of each class."""
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(np.flatnonzero(labels == name)) for name in np.unique(labels)]
    train = np.concatenate([part[: (len(part) + 1) // 2] for part in parts])
    return np.sort(train), np.setdiff1d(np.arange(len(labels)), train)


def given_cells(study: ad.AnnData, new: list[str], n_new: int | None, others: bool, seed: int) -> ad.AnnData:
    """Training cells of a study with labels of new types alone."""
    labels, rng = study.obs["cell_type"].to_numpy(object, copy=True), np.random.default_rng(seed)
    rows = np.concatenate([rng.permutation(np.flatnonzero(labels == name))[:n_new] for name in new])
    labels[np.setdiff1d(np.arange(len(labels)), rows)] = "Unknown"
    given = study.copy()
    given.obs["cell_type"] = labels
    return given if others else given[np.sort(rows)].copy()


def extended(model: cl.model.Celler, given: ad.AnnData, seed: int) -> tuple[cl.model.Celler, bool]:
    """The extended model, and whether it warned of a type that takes too many cells."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wider = cl.model.Celler.load_query_data(given, model, extend_labels=True)
        wider.train(seed=seed, show_progress=False)
    return wider, any("new types take cells of others" in str(warning.message) for warning in caught)


def scores(before: cl.model.Celler, after: cl.model.Celler, test: ad.AnnData, new: list[str]) -> dict[str, float]:
    """What is lost, known and taken on the test cells of a study."""
    truth = test.obs["cell_type"].to_numpy()
    is_new, labels = np.isin(truth, new), after.predict(test)
    options = {"average": "macro", "zero_division": 0}
    old = [name for name in before.classes_ if (truth == name).any()]
    f1 = f1_score(truth[~is_new], before.predict(test[~is_new].copy()), labels=old, **options)
    lost = f1 - f1_score(truth[~is_new], labels[~is_new], labels=old, **options)
    present = [name for name in new if (truth == name).any()]
    known = f1_score(truth, labels, labels=present, **options)
    taken = max((labels[truth != name] == name).mean() for name in new)
    return {"before": f1, "lost": 100 * lost, "new": known, "taken": 100 * taken}


def main() -> None:
    """Write a row per extension, print means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--out", type=Path, default=Path("extend.csv"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in options.pairs:
        for seed in range(options.seeds):
            reference, query = pair(name, options.data, seed)
            of_reference, of_query = (halves(adata.obs["cell_type"].to_numpy(), seed) for adata in (reference, query))
            for new in NEW[name.partition("+")[0]]:
                known = reference[of_reference[0]]
                model = trained(known[~known.obs["cell_type"].isin(new)].copy(), seed)
                for variant, (n_new, others) in VARIANTS.items():
                    given = given_cells(query[of_query[0]], new, n_new, others, seed)
                    wider, is_said = extended(model, given, seed)
                    row = {"pair": name, "new": "+".join(new), "seed": seed, "given": variant, "said": is_said}
                    for study, test in (("reference", reference[of_reference[1]]), ("query", query[of_query[1]])):
                        found = scores(model, wider, test.copy(), new)
                        row |= {f"{study} {key}": value for key, value in found.items()}
                    rows.append(row)
                    print(pd.DataFrame([row]).round(2).to_string(index=False, header=len(rows) == 1), flush=True)
                    pd.DataFrame(rows).to_csv(options.out, index=False)
    table = pd.DataFrame(rows)
    numbers = [key for key in table if key.split()[0] in ("reference", "query", "said")]
    for keys in (["given", "pair"], ["given"]):
        print(table.groupby(keys, sort=False)[numbers].mean().round(2).to_string(), end="\n\n")
    print(table.groupby("given", sort=False)[numbers].max().round(2).to_string())


if __name__ == "__main__":
    main()
