"""Does it help to show rare types more often from a store? python docs/benchmarks/store_balance.py DATA [--seeds 3]

DATA is a folder with the files of ``SETS``. Half of each set's cells are for training, thinned so that types run from
100 to 1, and half for scoring; ``class_balance`` is the only difference. Needs the atlas extra.
"""

import argparse
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, recall_score

import celler as cl

SETS = {
    "cord blood": "cbmc_cite_8617_nogenes.h5ad",
    "kidney": "human_kidney_5685_nogenes.h5ad",
    "endocrinogenesis": "mouse_endocrinogenesis_3696.h5ad",
}
BALANCES = (0.0, 0.25, 0.5, 1.0)


def halves(file: Path, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """A long-tailed half to learn from, and the other."""
    adata = ad.read_h5ad(file)
    if "is_qc_class" in adata.obs:
        adata = adata[~adata.obs["is_qc_class"].astype(bool)].copy()
    rng = np.random.default_rng(seed)
    half = np.flatnonzero(rng.random(adata.n_obs) < 0.5)
    types = adata.obs["cell_type"].astype(str).to_numpy()
    train = half[cl.benchmark.thin(types[half], 100, at_least=3, rng=rng)]
    test = np.setdiff1d(np.arange(adata.n_obs), train)
    return adata[train].copy(), adata[test].copy()


def scores(train: ad.AnnData, test: ad.AnnData, store: Path, seed: int) -> list[dict]:
    """Macro-F1 and the recall of the rarer half of the types, a row for each balance."""
    cl.atlas.build({"set": train}, store, labels_key="cell_type", test_size=0.0)
    truth = test.obs["cell_type"].astype(str).to_numpy()
    rare = train.obs["cell_type"].value_counts().index[-(train.obs["cell_type"].nunique() // 2) :]
    rows = []
    for balance in BALANCES:
        dm = cl.atlas.DataModule(store, labels_key="cell_type", class_balance=balance)
        model = cl.model.Celler(registry=dm.registry)
        model.train(datamodule=dm, seed=seed, accelerator="cpu", show_progress=False)
        labels = model.predict(test)
        recall = recall_score(truth, labels, labels=list(rare), average="macro", zero_division=0)
        row = {"class_balance": balance, "macro_f1": f1_score(truth, labels, average="macro")}
        rows.append(row | {"recall of the rarer half": recall})
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for name, file in SETS.items():
        if not (args.data / file).is_file():
            raise SystemExit(f"{args.data / file} is missing.")
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                found = scores(*halves(args.data / file, seed), Path(folder) / "store", seed)
            rows += [{"set": name, "seed": seed} | row for row in found]
            print(rows[-len(found) :], flush=True)
    table = pd.DataFrame(rows).drop(columns="seed").groupby(["set", "class_balance"])
    print(table.agg(["mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    main()
