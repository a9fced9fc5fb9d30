"""Losses, Celler's defaults and rivals on six long-tailed tasks: the tables and the figure of the ablation page.

    python docs/benchmarks/ablation.py DATA --out ablation [--sets a,b] [--variants 'a;b'] [--seeds 3]

DATA is a folder with the files named in ``SETS``; all hold counts. A run that was stopped goes on from ``rows.csv``,
and ``--seeds 0`` only prints what it has. Every variant of a set and seed trains on the same cells.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import stats

from celler.benchmark import ablation, ablation_figure, ablation_table
from celler.benchmark._ablation import VARIANTS
from celler.benchmark._compare import mean_and_sd

#: Columns with coarser types, of which each set may have some.
PARENTS = ("level_1_class", "level_2_subclass", "level_1_ClassAnn", "level_3_Subclass")
SHOWN = {"f1": "Macro-F1", "tail recall": "Tail recall", "head recall": "Head recall", "accuracy": "Accuracy"}
#: Variants that differ in one part: the second is the baseline.
STEPS = {
    "Balanced softmax": "Cross-entropy",
    "Logit adjustment": "Cross-entropy",
    "GInf": "Balanced softmax",
    **{f"GInf + HDM, n = {n}": "GInf" for n in (3, 5, 10, 20, "all")},
    "GInf + HDM": "GInf",
    "GInf + HDM + cells": "GInf + HDM",
    "Default without base": "Cross-entropy",
    "Default": "Cross-entropy",
}
DRAWN = ("Cross-entropy", "Logistic regression", "Balanced softmax", "GInf", "GInf + HDM, n = 20", "Default")


@dataclass(frozen=True)
class Set:
    """Files of a set, and its split: by groups as they are or thinned, else half of each type, thinned."""

    files: tuple[str, ...]
    group_key: str | None = None
    imbalance: float = 100.0


SETS = {
    "forebrain": Set(("forebrain_a_2237", "forebrain_b_2237"), "batch", 1),
    "cord blood": Set(("cbmc_cite_8617_nogenes",)),
    "kidney": Set(("human_kidney_5685_nogenes",)),
    "blood": Set(("pbmc4k_4271_nogenes",)),
    "motor cortex": Set(("mouse_motor_cortex_11444_44types",), "batch", 1),
    "motor cortex, thinned": Set(("mouse_motor_cortex_11444_44types",), "batch", 1000),
}


def cells(data: Path, one: Set) -> ad.AnnData:
    """Read the cells of a set, without those of failed quality."""
    adata = ad.concat([ad.read_h5ad(data / f"{name}.h5ad") for name in one.files])
    adata.obs_names_make_unique()
    if "is_qc_class" in adata.obs:
        adata = adata[~adata.obs["is_qc_class"].astype(bool)].copy()
    return adata


def over_sets(rows: pd.DataFrame) -> pd.DataFrame:
    """Each variant's means over its sets and the differences to cross-entropy, ± sd over seeds."""
    table = ablation_table(rows)
    texts = pd.DataFrame({"Sets": rows.groupby("variant")["dataset"].nunique()}, index=table.index.rename("Recipe"))
    for score, title in SHOWN.items():
        texts[title] = [mean_and_sd(mean, np.nan, 1) for mean in table[score, "mean"]]
    for score, title in SHOWN.items():
        pairs = zip(table[score, "gain"], table[score, "gain sd"], strict=True)
        texts[f"Δ {title}"] = [mean_and_sd(*pair, 1, "+") for pair in pairs]
    return texts


def by_set(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """One score of each variant on each set, mean ± sd over its seeds, whose number is in brackets if not all."""
    variants, n_seeds = list(rows["variant"].unique()), rows["seed"].nunique()
    texts = pd.DataFrame(index=pd.Index(variants, name=SHOWN[score]))
    for name, part in rows.groupby("dataset", sort=False):
        table = ablation_table(part)[score]
        n_own = part.groupby("variant")["seed"].nunique()
        for variant, pair in table[["mean", "sd"]].iterrows():
            note = "" if n_own[variant] == n_seeds else f" ({n_own[variant]})"
            texts.loc[variant, name] = mean_and_sd(*pair, 1) + note
    return texts.fillna("–")


def steps(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """Differences of variants that differ in one part, with 95 % intervals: over classes, and over the sets' means."""
    column = score.removeprefix("tail ")
    rows = rows if score == column else rows[rows["frequency"] == "tail"]
    of_class = (
        rows.groupby(["dataset", "class", "variant", "seed"], sort=False)[column].first().unstack("variant") * 100
    )
    found = {step: base for step, base in STEPS.items() if {step, base} <= set(of_class)}
    gains = pd.DataFrame({f"{step} − {base}": of_class[step] - of_class[base] for step, base in found.items()})
    gains = gains.groupby(["dataset", "class"], sort=False).mean()
    by_dataset = gains.groupby("dataset", sort=False)
    texts = {name: part.apply(with_interval) for name, part in by_dataset}
    texts["mean of sets"] = by_dataset.mean().apply(with_interval)
    return pd.DataFrame(texts).rename_axis(f"Δ {SHOWN[score]}")


def with_interval(differences: pd.Series) -> str:
    """The mean and half of its 95 % interval by Student's t."""
    known = differences.dropna()
    half = stats.t.ppf(0.975, len(known) - 1) * known.sem() if len(known) > 1 else np.nan
    return mean_and_sd(known.mean(), half, 1, "+")


def main() -> None:
    """Train what is missing, print the tables of all that is stored, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("ablation"))
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS))
    parser.add_argument("--variants", type=lambda text: text.split(";"), default=list(VARIANTS), help="separated by ;")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "rows.csv"
    for name in options.sets if options.seeds else []:
        ablation(
            {name: cells(options.data, SETS[name])},
            "cell_type",
            variants={variant: VARIANTS[variant] for variant in options.variants},
            group_key=SETS[name].group_key,
            parent_keys=PARENTS,
            imbalance=SETS[name].imbalance,
            seeds=range(options.seeds),
            file=file,
        )
    rows = pd.read_csv(file)
    order = [list(VARIANTS).index(variant) for variant in rows["variant"]]
    rows = rows.assign(order=order).sort_values("order", kind="stable")
    rows = rows[rows["dataset"].isin(options.sets)]
    tables = {"means": over_sets(rows)} | {f"sets_{score}": by_set(rows, score) for score in SHOWN}
    tables |= {f"steps_{score}": steps(rows, score) for score in ("f1", "tail recall")}
    for name, table in tables.items():
        print(f"\n{table.to_string()}")
        table.to_csv(options.out / f"{name.replace(' ', '_')}.csv")
    drawn = rows[rows["variant"].isin(DRAWN)]
    ablation_figure(drawn).savefig(options.out / "ablation.png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
