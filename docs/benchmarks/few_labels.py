"""A few labelled cells of each type, all others unlabelled: macro-F1 on the unlabelled ones.

    python docs/benchmarks/few_labels.py DATA --out f.csv [--methods a,b] [--labels 2,5,10] [--seeds 5] [--figure a.png]

DATA is a folder with the files of ``SETS``, all of counts. A method is a function in ``METHODS`` from labelled and
unlabelled cells and a seed to the labels of the latter; scANVI takes minutes a run. Finished rows are kept in the
file, and a run that was stopped goes on.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from celler.benchmark.methods import Fit
from celler.benchmark.methods._scanvi import N_STEPS
from celler.benchmark.methods._sklearn import logreg
from celler.metrics import summary
from celler.model import Celler
from celler.pl._colors import color_classes

SETS = {
    "cbmc": "cbmc_cite_8617_nogenes.h5ad",
    "onek1k": "onek1k_40donors_7811.h5ad",
    "endocrine": "mouse_endocrinogenesis_3696.h5ad",
    "pbmc3k": "pbmc3k_annotated.h5ad",
}
Answers = dict[str, np.ndarray]
#: Columns of the figure, and how their lines look.
STYLES = {
    "celler": "o-",
    "celler, propagate": "o--",
    "celler, pretrain": "s-",
    "celler, pretrain and propagate": "s--",
    "scANVI": "^-",
    "logistic regression": "v:",
}


def with_celler(labelled: ad.AnnData, unlabelled: ad.AnnData, seed: int) -> Answers:
    """One network, asked without and with propagation."""
    Celler.setup_anndata(labelled, labels_key="cell_type")
    model = Celler(labelled)
    model.train(seed=seed, show_progress=False)
    return {
        "celler": model.predict(unlabelled),
        "celler, propagate": model.predict(unlabelled, propagate=True),
    }


def with_pretraining(labelled: ad.AnnData, unlabelled: ad.AnnData, seed: int) -> Answers:
    """Pretrained on all cells, then trained on the labelled ones; asked both ways."""
    both = ad.concat([labelled, unlabelled])
    both.obs["cell_type"] = labelled.obs["cell_type"].reindex(both.obs_names).fillna("Unknown")
    Celler.setup_anndata(both, labels_key="cell_type")
    model = Celler(both)
    model.load_encoder(pretrained(Path(labelled.uns["file"]), seed))
    model.train(seed=seed, show_progress=False)
    return {
        "celler, pretrain": model.predict(unlabelled),
        "celler, pretrain and propagate": model.predict(unlabelled, propagate=True),
    }


@lru_cache(len(SETS))
def pretrained(file: Path, seed: int) -> Celler:
    """A model that learned from all cells of a file; it sees no labels, so one serves all numbers of them."""
    adata = read(file)
    Celler.setup_anndata(adata)
    model = Celler(adata)
    model.pretrain(seed=seed, show_progress=False)
    return model


def with_scanvi(labelled: ad.AnnData, unlabelled: ad.AnnData, seed: int) -> Answers:
    """scANVI from an SCVI of all cells, the genes, steps and epochs of the benchmark's."""
    base = scvi_of(Path(labelled.uns["file"]), seed)
    adata = base.adata.copy()
    adata.obs["few"] = labelled.obs["cell_type"].reindex(adata.obs_names).fillna("Unknown")
    scvi.settings.seed = seed
    model = scvi.model.SCANVI.from_scvi_model(base, "Unknown", "few", adata=adata)
    model.train(max_epochs=10, n_samples_per_label=100, enable_progress_bar=False)
    found = pd.Series(model.predict(), adata.obs_names)
    return {"scANVI": found[unlabelled.obs_names].to_numpy().astype(str)}


@lru_cache(len(SETS))
def scvi_of(file: Path, seed: int) -> scvi.model.SCVI:
    """SCVI of all cells of a file. They are one batch: labelled and unlabelled cells differ in nothing else."""
    scvi.settings.seed = seed
    adata = read(file)
    if adata.n_vars > 2000:
        sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=2000, subset=True)
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata, n_layers=2, n_latent=30, gene_likelihood="nb")
    n_epochs = min(400, round(N_STEPS / (0.9 * adata.n_obs / 128)))
    model.train(max_epochs=n_epochs, enable_progress_bar=False)
    return model


def peer(fit: Fit, name: str) -> Callable[[ad.AnnData, ad.AnnData, int], Answers]:
    """A method of the benchmark under its name."""

    def label(labelled: ad.AnnData, unlabelled: ad.AnnData, seed: int) -> Answers:
        soft = fit(labelled, "cell_type", unlabelled, seed)(unlabelled)
        return {name: soft.columns[soft.to_numpy().argmax(axis=1)].to_numpy().astype(str)}

    return label


#: By name; what a function answers may have several columns of the table, such as two ways to ask one network.
METHODS: dict[str, Callable[[ad.AnnData, ad.AnnData, int], Answers]] = {
    "celler": with_celler,
    "pretrained": with_pretraining,
    "logreg": peer(logreg, "logistic regression"),
    "scanvi": with_scanvi,
}


def read(file: Path) -> ad.AnnData:
    """The cells of a file, without those of its classes that are no types."""
    adata = ad.read_h5ad(file)
    if "is_qc_class" in adata.obs:
        adata = adata[~adata.obs["is_qc_class"].astype(bool)].copy()
    return adata


def split(file: Path, n_labels: int, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """``n_labels`` random cells of each type, and all others."""
    adata = read(file)
    types, rng = adata.obs["cell_type"].astype(str).to_numpy(), np.random.default_rng(seed)
    drawn = [rng.choice(np.flatnonzero(types == name), n_labels, replace=False) for name in np.unique(types)]
    is_labelled = np.zeros(adata.n_obs, bool)
    is_labelled[np.concatenate(drawn)] = True
    adata.obs, adata.uns["kind"] = pd.DataFrame({"cell_type": types}, adata.obs_names), "counts"
    adata.uns["file"] = str(file)
    return adata[is_labelled].copy(), adata[~is_labelled].copy()


def main() -> None:
    """Run what is missing, and print mean ± sd over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("few_labels.csv"))
    parser.add_argument("--methods", default="celler,logreg")
    parser.add_argument("--labels", default="2,5,10")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    methods = options.methods.split(",")
    runs = ["set", "n_labels", "seed", "run"]
    done = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame(columns=runs)
    known = set(done[runs].itertuples(index=False, name=None))
    wanted = [
        (name, int(n_labels), seed, method)
        for seed in range(options.seeds)
        for n_labels in options.labels.split(",")
        for name in SETS
        for method in methods
    ]
    for name, n_labels, seed, method in [run for run in wanted if run not in known]:
        file = options.data / SETS[name]
        if not file.exists():
            print(f"{file} is missing, {name} is left out")
            continue
        labelled, unlabelled = split(file, n_labels, seed)
        truth = unlabelled.obs.pop("cell_type").to_numpy().astype(str)
        counts = dict.fromkeys(np.unique(truth), n_labels)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes with two cells
            answers = METHODS[method](labelled, unlabelled, seed)
        seconds = round(time.perf_counter() - start, 1)
        for answer, labels in answers.items():
            found = summary(truth, labels, counts)
            row = {"set": name, "n_labels": n_labels, "seed": seed, "run": method, "method": answer}
            row |= {
                "macro_f1": found["macro_f1"],
                "accuracy": found["accuracy"],
                "seconds": seconds,
            }
            pd.DataFrame([row]).to_csv(options.out, mode="a", header=not options.out.exists(), index=False)
            print(row, flush=True)
    table = pd.read_csv(options.out)
    by = table.groupby(["n_labels", "method", "set"])["macro_f1"].agg(["mean", "std"])
    text = by["mean"].map("{:.3f}".format) + by["std"].map(lambda sd: "" if sd != sd else f" ± {sd:.3f}")
    print(text.unstack("set").to_string())
    if options.figure:
        curves(table).savefig(options.figure, dpi=150)


def curves(table: pd.DataFrame) -> Figure:
    """Macro-F1 against labelled cells of a type, a panel for each set, mean and sd over draws."""
    figure, panels = plt.subplots(1, len(SETS), figsize=(12, 3.4), layout="constrained")
    colors = color_classes(list(STYLES))
    for panel, name in zip(panels, SETS, strict=True):
        for method, style in STYLES.items():
            rows = table[(table["set"] == name) & (table["method"] == method)]
            found = rows.groupby("n_labels")["macro_f1"].agg(["mean", "std"])
            panel.errorbar(
                found.index, found["mean"], found["std"], fmt=style, color=colors[method],
                ms=5, capsize=2, label=method,
            )  # fmt: skip
        panel.set(xscale="log", xlabel="labelled cells of a type", title=name)
        panel.set_xticks([2, 5, 10], ["2", "5", "10"])
        panel.minorticks_off()
    panels[0].set_ylabel("macro-F1")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    main()
