"""Every method on nine public tasks: the tables and figures of the benchmark page.

    python docs/benchmarks/shared_tasks.py DATA --out benchmark [--methods a,b] [--tasks a,b] [--seeds 3]
                                           [--earlier folder]

DATA is a folder with the files named in ``TASKS``; all hold counts. Where a task splits one set of cells at random,
the split changes with the seed, else only the method's draws do, and a method without any runs once. A run that was
stopped goes on. The tables are of all rows in the folder of ``--out``, the last of each task, method and seed, so
methods can be run one after the other; ``--seeds 0`` only prints. ``--earlier`` is the folder of an earlier Celler.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from celler import benchmark
from celler.benchmark._compare import RUNS, mean_and_sd
from celler.benchmark.methods import METHODS

Task = Iterator[tuple[ad.AnnData, ad.AnnData, list[int]]]


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


def forebrain(data: Path, seeds: list[int]) -> Task:
    """Fetal forebrain, from one sample of a donor to the other, types with two reference cells or more."""
    adata = ad.concat([ad.read_h5ad(data / f"forebrain_{part}_2237.h5ad") for part in "ab"])
    adata = adata[~adata.obs["is_qc_class"].astype(bool)].copy()
    is_reference = (adata.obs["batch"] == "10X353_7").to_numpy()
    counts = adata.obs["cell_type"][is_reference].value_counts()
    is_kept = adata.obs["cell_type"].isin(counts.index[counts >= 2]).to_numpy()
    yield adata[is_reference & is_kept].copy(), adata[~is_reference & is_kept].copy(), seeds


def tcells(data: Path, seeds: list[int]) -> Task:
    """T-cell states of tumours, from every second donor to the others."""
    yield *every_second(ad.read_h5ad(data / "tcells_compocyte_861.h5ad"), "donor"), seeds


def cortex44(data: Path, seeds: list[int]) -> Task:
    """Mouse motor cortex, 44 types, from every second library to the others."""
    yield *every_second(ad.read_h5ad(data / "mouse_motor_cortex_11444_44types.h5ad"), "batch"), seeds


def lung_merfish(data: Path, seeds: list[int]) -> Task:
    """Human lung, a spatial panel of 479 genes, a fifth of each type as the reference."""
    yield from stratified(data / "lung_merfish_3177.h5ad", 0.2, seeds)


def cbmc_longtail(data: Path, seeds: list[int]) -> Task:
    """Cord blood, half of each type as the query, the other half thinned to 100 : 1."""
    adata = ad.read_h5ad(data / "cbmc_cite_8617_nogenes.h5ad")
    adata = adata[~adata.obs["is_qc_class"].astype(bool)].copy()
    for seed in seeds:
        yield *benchmark.long_tail_split(adata, "cell_type", seed=seed), [seed]


def every_second(adata: ad.AnnData, key: str) -> tuple[ad.AnnData, ad.AnnData]:
    """Every second donor or library, sorted as text, as the reference, the others as the query."""
    names = adata.obs[key].astype(str)
    is_reference = names.isin(sorted(names.unique())[::2]).to_numpy()
    return adata[is_reference].copy(), adata[~is_reference].copy()


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


#: The scores of the page, and the decimals they are printed with. ``query_f1`` is macro-F1 over the query's types
#: alone: on ``forebrain`` the reference has three more.
SCORES = {
    **dict.fromkeys(["macro_f1", "query_f1", "recall_tail", "accuracy", "ece"], 3),
    **{"fit_seconds": 1, "cells_per_second": 0, "peak_memory_mb": 0},
}
LESS_IS_BETTER = {"ece", "fit_seconds", "peak_memory_mb"}
OURS = ("celler", "celler_additive", "celler_transductive")
#: Methods that draw nothing: on a fixed split each seed gives the same.
DETERMINISTIC = {"logreg", "xgboost", "celltypist"}
TASKS: dict[str, Callable[[Path, list[int]], Task]] = {
    task.__name__: task
    for task in (
        *(pbmc_5p, onek1k, endocrine, pbmc3k, forebrain),
        *(tcells, cortex44, lung_merfish, cbmc_longtail),
    )
}


def run(task: str, data: Path, methods: list[str], n_seeds: int, folder: Path) -> None:
    """Run on one task what is missing in its folder."""
    for reference, query, seeds in TASKS[task](data, list(range(n_seeds))):
        print(f"{task}: {reference.n_obs:,} reference cells, {query.n_obs:,} query cells")
        for method in methods:
            own = seeds[:1] if method in DETERMINISTIC else seeds
            benchmark.run(reference, query, "cell_type", [method], own, folder=folder)


def stored(out: Path, tasks: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The last row of each task, method and seed in the folders of the tasks, and the rows of their types."""
    rows, classes = [], []
    for task in tasks:
        if not (out / task / RUNS).exists():
            continue
        part = pd.read_csv(out / task / RUNS, dtype={"key": str}).drop_duplicates(["method", "seed"], keep="last")
        of_types = benchmark.class_scores(part, out / task)
        query_f1 = of_types.groupby(["method", "seed"])["f1"].mean().rename("query_f1")
        rows.append(part.join(query_f1, on=["method", "seed"]).assign(task=task))
        classes.append(of_types.assign(task=task))
    if not rows:
        raise FileNotFoundError(f"{out} has no rows of {', '.join(tasks)}; run methods on them first.")
    return pd.concat(rows, ignore_index=True), pd.concat(classes, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd over seeds, ``(task, method)`` by ``(score, "mean" | "sd")``, tasks in the order of the table."""
    by = table.groupby(["task", "method"], sort=False)[list(SCORES)].agg(["mean", "std"])
    return by.rename(columns={"std": "sd"}, level=1)


def over_tasks(means: pd.DataFrame) -> pd.Series:
    """Mean over the tasks that have the score, ``(methods,)``; missing for a method that lacks one of them."""
    return means.dropna(axis=1, how="all").mean(axis=1, skipna=False)


def by_task(table: pd.DataFrame, score: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean and sd over seeds of one score, each methods by tasks."""
    tasks = table.index.unique("task")
    means, spreads = (table[score, part].unstack("task")[tasks] for part in ("mean", "sd"))
    return means, spreads


def markdown(table: pd.DataFrame, score: str) -> str:
    """One score of a summary: methods by tasks, mean ± sd over seeds, best in the mean over tasks first."""
    means, spreads = by_task(table, score)
    overall = over_tasks(means).sort_values(ascending=score in LESS_IS_BETTER)
    means, spreads = means.loc[overall.index], spreads.loc[overall.index]
    columns = {
        task: [mean_and_sd(*pair, SCORES[score]) for pair in zip(means[task], spreads[task], strict=True)]
        for task in means
    }
    columns["mean"] = [mean_and_sd(mean, np.nan, SCORES[score]) for mean in overall]
    return grid(score, [METHODS[method].title for method in overall.index], columns)


def leads(table: pd.DataFrame, score: str, earlier: pd.DataFrame | None = None) -> str:
    """Celler less each task's best peer, less the peer of the best mean, and less an earlier Celler."""
    means, spreads = by_task(table, score)
    means = means.dropna(axis=1, how="all")
    peers, ours = means.drop(index=list(OURS), errors="ignore"), means.loc["celler"]
    best, single = peers.idxmax(), over_tasks(peers).idxmax()
    rivals = {
        "best peer": (best, means, spreads),
        METHODS[single].title: (dict.fromkeys(means, single), means, spreads),
    }
    if earlier is not None:
        rivals["earlier Celler"] = (dict.fromkeys(means, "celler"), *by_task(earlier, score))
    columns = {"Celler": with_mean(ours, spreads.loc["celler"], SCORES[score])}
    for rival, (method_of, of_rival, spreads_of_rival) in rivals.items():
        theirs, sds = (
            pd.Series({task: part[task][method] for task, method in method_of.items() if task in part})
            for part in (of_rival, spreads_of_rival)
        )
        columns[rival] = with_mean(theirs.reindex(ours.index), sds, SCORES[score])
        lead = (ours - theirs).reindex(ours.index)
        columns[f"Celler − {rival}"] = with_mean(lead, sds * np.nan, SCORES[score], "+")
    columns["best peer is"] = [*(METHODS[best[task]].title for task in means), ""]
    return grid(score, [*means, "mean"], columns)


def with_mean(means: pd.Series, spreads: pd.Series, decimals: int, sign: str = "") -> list[str]:
    """The text of each task, and of the mean over tasks, which is missing if one is."""
    spreads = spreads.reindex(means.index)
    texts = [mean_and_sd(*pair, decimals, sign) for pair in zip(means, spreads, strict=True)]
    return [*texts, mean_and_sd(means.mean(skipna=False), np.nan, decimals, sign)]


def costs(table: pd.DataFrame, earlier: pd.DataFrame | None = None) -> str:
    """Celler's fit time as a share of scANVI's, and its speed of prediction beside an earlier Celler's."""
    fit, speed = (
        by_task(table, score)[0].reindex([*OURS, "scanvi"]).T for score in ("fit_seconds", "cells_per_second")
    )
    parts = {
        "Celler, fit s": (fit["celler"], 1),
        "scANVI, fit s": (fit["scanvi"], 1),
        "share of scANVI's": (fit["celler"] / fit["scanvi"], 2),
        "Celler, cells/s": (speed["celler"], 0),
    }
    if earlier is not None:
        before = {score: by_task(earlier, score)[0].loc["celler"].reindex(fit.index) for score in SCORES}
        parts |= {
            "earlier, fit s": (before["fit_seconds"], 1),
            "earlier, cells/s": (before["cells_per_second"], 0),
            "share of earlier cells/s": (speed["celler"] / before["cells_per_second"], 2),
        }
    columns = {name: with_mean(values, values * np.nan, decimals) for name, (values, decimals) in parts.items()}
    return grid("cost", [*fit.index, "mean"], columns)


def grid(corner: str, rows: list[str], columns: dict[str, list[str]]) -> str:
    """A Markdown table of texts, a column for each entry."""
    lines = [f"| {corner} | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    lines += [f"| {' | '.join(cells)} |" for cells in zip(rows, *columns.values(), strict=True)]
    return "\n".join(lines)


def report(table: pd.DataFrame, earlier: pd.DataFrame | None = None) -> str:
    """All tables: each score, then Celler's leads and its cost."""
    means = summary(table)
    before = None if earlier is None else summary(earlier)
    texts = [markdown(means, score) for score in SCORES if table[score].notna().any()]
    methods = set(table["method"])
    if "celler" in methods and methods - set(OURS):
        texts += [leads(means, score, before) for score in ("macro_f1", "query_f1", "recall_tail", "accuracy")]
        texts.append(costs(means, before))
    return "\n\n".join(texts)


def main() -> None:
    """Run what is missing, print the tables of all that is stored, write them and both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmark"))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--earlier", type=Path)
    options = parser.parse_args()
    tasks = options.tasks.split(",")
    for task in tasks if options.seeds else []:
        run(task, options.data, options.methods.split(","), options.seeds, options.out / task)
    table, classes = stored(options.out, tasks)
    table.to_csv(options.out / RUNS, index=False)
    text = report(table, stored(options.earlier, tasks)[0] if options.earlier else None)
    print(f"\n{text}")
    (options.out / "tables.md").write_text(text + "\n", encoding="utf-8")
    figures = {"macro_f1": benchmark.score_figure(table), "class_f1": benchmark.class_figure(classes)}
    for name, figure in figures.items():
        figure.savefig(options.out / f"{name}.png", dpi=150)
    print(f"\nwrote {', '.join(str(options.out / f'{name}.png') for name in figures)}")


if __name__ == "__main__":
    main()
