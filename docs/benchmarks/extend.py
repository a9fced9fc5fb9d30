"""Two new classes are added to a trained model: what it forgets of the others, and how well it knows the new ones.

    python docs/benchmarks/extend.py DATA_FOLDER [--seeds 3] [--refit]

Half of the cells of ``cbmc_cite_8617_nogenes.h5ad`` (without ``is_qc_class``, 12 classes) train, half test. A model
learns 10 classes; its extension sees the training cells of the other two, and ``n_old`` of the old cells that were
drawn at random, and no more. "anew" is a model trained on all training cells at once. Macro-F1 over the 10 old classes
and over the 2 new ones; "before" is the first model on the test cells of its classes.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

import celler as cl

FILE = "cbmc_cite_8617_nogenes.h5ad"
KEY = "cell_type"
PAIRS = {
    "rare": ["DC", "pDCs"],
    "common": ["NK", "B"],
    "largest and small": ["CD14+ Mono", "Eryth"],
    "siblings": ["CD8 T", "CD16+ Mono"],
    "small": ["Mk", "CD34+"],
}


def trained(adata: ad.AnnData, seed: int, refit: bool) -> cl.model.Celler:
    """A model of all labels of ``adata``."""
    cl.model.Celler.setup_anndata(adata, labels_key=KEY)
    model = cl.model.Celler(adata)
    model.train(seed=seed, refit=refit, show_progress=False)
    return model


def macro_f1(model: cl.model.Celler, test: ad.AnnData, names: list[str]) -> float:
    """Macro-F1 over the classes ``names``."""
    labels = model.predict(test)
    return float(f1_score(test.obs[KEY], labels, labels=names, average="macro", zero_division=0))


def halves(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train and to test on, half of each class."""
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(np.flatnonzero(labels == name)) for name in np.unique(labels)]
    train = np.concatenate([part[: len(part) // 2] for part in parts])
    return train, np.concatenate([part[len(part) // 2 :] for part in parts])


def main() -> None:
    """Print a row per pair, seed and number of old cells, then means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS))
    parser.add_argument("--n-old", nargs="+", type=int, default=[0, 200])
    parser.add_argument("--refit", action="store_true")
    options = parser.parse_args()
    if not (options.folder / FILE).is_file():
        sys.exit(f"{options.folder / FILE} is not there; nothing was measured.")
    warnings.simplefilter("ignore")
    cells = ad.read_h5ad(options.folder / FILE)
    cells = cells[~cells.obs["is_qc_class"].astype(bool)].copy()
    cells.obs[KEY] = cells.obs[KEY].astype(str)
    labels, rows = cells.obs[KEY].to_numpy(), []
    for seed in range(options.seeds):
        train, test = halves(labels, seed)
        anew = trained(cells[train].copy(), seed, options.refit)
        for pair in options.pairs:
            new = PAIRS[pair]
            is_new = np.isin(labels, new)
            old = sorted(set(labels) - set(new))
            reference = trained(cells[train[~is_new[train]]].copy(), seed, options.refit)
            before = macro_f1(reference, cells[test[~is_new[test]]].copy(), old)
            for n_old in options.n_old:
                drawn = np.random.default_rng(seed).choice(train[~is_new[train]], n_old, False)
                given = cells[np.concatenate([train[is_new[train]], drawn])].copy()
                with tempfile.TemporaryDirectory() as folder:
                    reference.save(folder, overwrite=True)
                    model = cl.model.Celler.load_query_data(given, folder, extend_labels=True)
                model.train(seed=seed, refit=options.refit, show_progress=False)
                row = {"pair": pair, "seed": seed, "n_old": n_old, "before": before}
                row["old"] = macro_f1(model, cells[test].copy(), old)
                row["drop"] = before - row["old"]
                row["old_anew"] = macro_f1(anew, cells[test].copy(), old)
                row["new"] = macro_f1(model, cells[test].copy(), new)
                row["new_anew"] = macro_f1(anew, cells[test].copy(), new)
                rows.append(row)
                print(pd.DataFrame([row]).round(3).to_string(index=False), flush=True)
    table = pd.DataFrame(rows).drop(columns="seed")
    print(table.groupby(["pair", "n_old"], sort=False).mean().round(3).to_string())
    print(table.groupby(["pair", "n_old"], sort=False)["drop"].max().round(3).to_string())


if __name__ == "__main__":
    main()
