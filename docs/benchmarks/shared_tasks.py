"""Every method on five public tasks: the tables and figures of the benchmark page.

    python docs/benchmarks/shared_tasks.py DATA --out benchmark [--methods a,b] [--tasks a,b] [--seeds 3]

DATA is a folder with the files named in ``TASKS``; all hold counts. Where a task splits one set of cells,
the split changes with the seed, else only the method's draws do. A run that was stopped goes on.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from celler import benchmark
from celler.benchmark._compare import mean_and_sd
from celler.benchmark.methods import METHODS

Task = Iterator[tuple[ad.AnnData, ad.AnnData, list[int]]]


def cbmc_longtail(data: Path, seeds: list[int]) -> Task:
    """Cord blood, half of each type as the query, the other half thinned to 100 : 1."""
    adata = ad.read_h5ad(data / "cbmc_cite_8617_nogenes.h5ad")
    adata = adata[~adata.obs["is_qc_class"].astype(bool)].copy()
    for seed in seeds:
        yield *benchmark.long_tail_split(adata, "cell_type", seed=seed), [seed]


def pbmc_5p(data: Path, seeds: list[int]) -> Task:
    """Blood cells, from 10x 3' to 5' chemistry and other donors."""
    query = ad.read_h5ad(data / "pbmc_10x_3tech_1200.h5ad")
    query = query[query.obs["batch"] == "10x_5p"].copy()
    query.obs["cell_type"] = query.obs["cell_type_harmonised"]
    yield ad.read_h5ad(data / "hpbmc_reference.h5ad"), query, seeds


def onek1k(data: Path, seeds: list[int]) -> Task:
    """Blood cells, from the odd donors to the even ones."""
    adata = ad.read_h5ad(data / "onek1k_40donors_7811.h5ad")
    is_odd = adata.obs["donor"].astype(str).str.removeprefix("SAMP").astype(int) % 2 == 1
    yield adata[is_odd].copy(), adata[~is_odd].copy(), seeds


def endocrine(data: Path, seeds: list[int]) -> Task:
    """Pancreatic endocrinogenesis, a continuum, a fifth of each type as the reference."""
    yield from stratified(data / "mouse_endocrinogenesis_3696.h5ad", 0.2, seeds)


def pbmc3k(data: Path, seeds: list[int]) -> Task:
    """Blood cells with all genes, a tenth of each type as the reference."""
    yield from stratified(data / "pbmc3k_annotated.h5ad", 0.1, seeds)


def stratified(file: Path, share: float, seeds: list[int]) -> Task:
    """A share of each type as the reference, the rest as the query."""
    adata = ad.read_h5ad(file)
    for seed in seeds:
        reference, query = train_test_split(
            np.arange(adata.n_obs),
            train_size=share,
            stratify=adata.obs["cell_type"],
            random_state=seed,
        )
        yield adata[np.sort(reference)].copy(), adata[np.sort(query)].copy(), [seed]


#: The scores of the page, and the decimals they are printed with.
SCORES = {
    **dict.fromkeys(["macro_f1", "recall_tail", "accuracy", "ece"], 3),
    **{"fit_seconds": 1, "cells_per_second": 0, "peak_memory_mb": 0},
}
LESS_IS_BETTER = {"ece", "fit_seconds", "peak_memory_mb"}
TASKS: dict[str, Callable[[Path, list[int]], Task]] = {
    task.__name__: task for task in (cbmc_longtail, pbmc_5p, onek1k, endocrine, pbmc3k)
}


def markdown(table: pd.DataFrame, score: str) -> str:
    """One score of a summary: methods by tasks, mean ± sd over seeds, best in the mean over tasks first."""
    tasks = table.index.unique("task")
    means, spreads = (table[score, part].unstack("task")[tasks] for part in ("mean", "sd"))
    overall = means.mean(axis=1).sort_values(ascending=score in LESS_IS_BETTER)
    lines = [
        f"| {score} | {' | '.join(means)} | mean |",
        "| --- |" + " ---: |" * (len(means.T) + 1),
    ]
    for method, mean_over_tasks in overall.items():
        cells = [
            *zip(means.loc[method], spreads.loc[method], strict=True),
            (mean_over_tasks, np.nan),
        ]
        shown = [mean_and_sd(mean, sd, SCORES[score]) for mean, sd in cells]
        lines.append(f"| {METHODS[method].title} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the tables, write them and both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmark"))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows, classes = [], []
    for task in options.tasks.split(","):
        folder = options.out / task
        for reference, query, seeds in TASKS[task](options.data, list(range(options.seeds))):
            print(f"{task}: {reference.n_obs:,} reference cells, {query.n_obs:,} query cells")
            methods = options.methods.split(",")
            part = benchmark.run(reference, query, "cell_type", methods, seeds, folder=folder)
            rows.append(part.assign(task=task))
            if part["error"].isna().any():
                classes.append(benchmark.class_scores(part, folder).assign(task=task))
    table = pd.concat(rows, ignore_index=True)
    table.to_csv(options.out / "runs.csv", index=False)
    summary = benchmark.summary(table)
    shown = [score for score in SCORES if table[score].notna().any()]
    text = "\n\n".join(markdown(summary, score) for score in shown)
    print(f"\n{text}")
    (options.out / "tables.md").write_text(text + "\n", encoding="utf-8")
    figures = {
        "macro_f1": benchmark.score_figure(table),
        "class_f1": benchmark.class_figure(pd.concat(classes, ignore_index=True)),
    }
    for name, figure in figures.items():
        figure.savefig(options.out / f"{name}.png", dpi=150)
    print(f"\nwrote {', '.join(str(options.out / f'{name}.png') for name in figures)}")


if __name__ == "__main__":
    main()
