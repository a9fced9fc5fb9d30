"""Label cells without a reference: how often celler-base is right on labelled sets, and what it takes for unknown.

    python docs/benchmarks/without_reference.py DATA [--sets pbmc3k,baron] [--out table.csv] [--lost] [--speed]
    python docs/benchmarks/without_reference.py DATA --held-back

DATA is a folder of the labelled .h5ad files. The sets' labels mean the Cell Ontology terms of ``LABELS``. A label is
right at the finest level where it is that term or a kind of it, and at the broad level where both are of the same kind
in ``BROAD``. For each type, the atlases' types above and below it are then taken away, and the novelty of its cells is
compared with that of the others. ``--speed`` also times 100,000 cells, drawn from the first set with replacement.
"""

import argparse
import time
import warnings
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score

from celler.data import _tissues
from celler.data._atlas_types import AtlasTypes, read_atlas_types
from celler.data._pseudo_cells import PseudoCellLoader, Simulation, draw_counts
from celler.data._tissues import above
from celler.model import Celler

BLOOD = {
    "T": ["CL:0000084"],
    "B": ["CL:0000236", "CL:0000945", "CL:0000786", "CL:0000980"],
    "NK": ["CL:0000623"],
    "monocyte": ["CL:0000576"],
    "DC": ["CL:0000451"],
    "platelet": ["CL:0000233", "CL:0000556"],
}
PANCREAS = {
    "alpha": ["CL:0000171"],
    "beta": ["CL:0000169"],
    "delta": ["CL:0000173"],
    "ductal": ["CL:0002079"],
    "stellate": ["CL:0000499", "CL:0002410", "CL:0000057"],
    "macrophage": ["CL:0000235", "CL:0000576", "CL:0000766"],
}
BRAIN = {
    "neuron": ["CL:0000540", "CL:0000047", "CL:0011020"],
    "astrocyte": ["CL:0000127"],
    "oligodendrocyte": ["CL:0000128", "CL:0002453"],
    "microglia or macrophage": ["CL:0000129", "CL:0000235"],
    "endothelial": ["CL:0000115"],
    "smooth muscle": ["CL:0000192", "CL:0000669"],
}
LUNG = {
    "plasma": ["CL:0000786"],
    "mast": ["CL:0000097"],
    "lymphocyte": ["CL:0000542"],
    "epithelial": ["CL:0000066"],
    "fibroblast": ["CL:0000057", "CL:0000499"],
    "myeloid": ["CL:0000766", "CL:0000763"],
    "vascular": ["CL:0000115", "CL:0000669", "CL:0000192"],
}
#: File, tissue, kinds and the term of each label.
SETS = {
    "pbmc3k": (
        "pbmc3k_annotated",
        "blood",
        BLOOD,
        {
            "Naive CD4 T": "CL:0000895",
            "Memory CD4 T": "CL:0000897",
            "CD14+ Mono": "CL:0000860",
            "B": "CL:0000236",
            "CD8 T": "CL:0000625",
            "FCGR3A+ Mono": "CL:0000875",
            "NK": "CL:0000623",
            "DC": "CL:0000451",
            "Platelet": "CL:0000233",
        },
    ),
    "pbmc_10x_3tech": (
        "pbmc_10x_3tech_1200",
        "blood",
        BLOOD,
        {
            "T_CD4": "CL:0000624",
            "Mono_CD14": "CL:0000860",
            "T_CD8": "CL:0000625",
            "B": "CL:0000236",
            "Mono_CD16": "CL:0000875",
            "NK": "CL:0000623",
            "DC": "CL:0000451",
            "MK": "CL:0000233",
            "HSC": "CL:0000037",
        },
    ),
    "onek1k": (
        "onek1k_40donors_7811",
        "blood",
        BLOOD,
        {
            "CD4 naive/central memory T": "CL:0000624",
            "memory B": "CL:0000787",
            "classical monocyte": "CL:0000860",
            "non-classical monocyte": "CL:0000875",
        },
    ),
    "hpbmc": (
        "hpbmc_reference",
        "blood",
        BLOOD,
        {
            "CD4 T": "CL:0000624",
            "CD14 Mono": "CL:0000860",
            "B": "CL:0000236",
            "CD8 T": "CL:0000625",
            "CD16 Mono": "CL:0000875",
            "NK": "CL:0000623",
            "DC": "CL:0000451",
            "MK": "CL:0000233",
            "HSC": "CL:0000037",
        },
    ),
    "baron": ("pancreas_baron_175", "pancreas", PANCREAS, {}),
    "hpancreas_mini": ("hpancreas_mini_reference", "pancreas", PANCREAS, {}),
    "hpancreas_query": ("hpancreas_mini_query", "pancreas", PANCREAS, {}),
    "pancreas_3studies": ("pancreas_3studies_beta_ductal_528", "pancreas", PANCREAS, {}),
    "zeisel": (
        "mouse_cortex_zeisel_550",
        "brain",
        BRAIN,
        {
            "Astrocyte1": "CL:0000127",
            "Astrocyte2": "CL:0000127",
            "Endothelial2": "CL:0000115",
            "Hippocampus_Excitatory": "CL:0000540",
            "Interneuron": "CL:0000540",
            "Oligo_MF": "CL:0000128",
            "Oligo_Mature": "CL:0000128",
            "Pvm": "CL:0000235",
            "S1_Excitatory_L23": "CL:0000540",
            "S1_Excitatory_L45a": "CL:0000540",
            "Vsmc": "CL:0000192",
        },
    ),
    "motor_cortex": ("mouse_motor_cortex_11444_44types", "brain", BRAIN, {}),
    "lung_merfish": (
        "lung_merfish_3177",
        "lung",
        LUNG,
        {
            "Lymphocyte": "CL:0000542",
            "Epithelial": "CL:0000066",
            "Fibroblast": "CL:0000057",
            "Myeloid": "CL:0000766",
            "Vascular": "CL:0000115",
            "Plasma": "CL:0000786",
            "Mast": "CL:0000097",
        },
    ),
}
OF_PANCREAS = {
    "alpha": "CL:0000171",
    "beta": "CL:0000169",
    "delta": "CL:0000173",
    "ductal": "CL:0002079",
    "PSC": "CL:0002410",
    "macrophage": "CL:0000235",
}
#: Starts of the labels of the motor cortex that are no neurons.
OF_CORTEX = {
    "Astro": "CL:0000127",
    "Oligo": "CL:0000128",
    "OPC": "CL:0002453",
    "Macrophage": "CL:0000235",
    "Endo": "CL:0000115",
}


def terms_of(name: str, labels: np.ndarray) -> np.ndarray:
    """Cell Ontology term of each label of a set."""
    table = SETS[name][3]
    if SETS[name][1] == "pancreas":
        table = OF_PANCREAS
    if name == "motor_cortex":
        known = {label: next((i for start, i in OF_CORTEX.items() if label.startswith(start)), "CL:0000540")
                 for label in np.unique(labels)}  # fmt: skip
        table = known
    return np.array([table[label] for label in labels], object)


def kind_of(term: str, kinds: dict[str, list[str]]) -> str:
    """The first of the kinds that a term is of, or "other"."""
    higher = above(term)
    return next((kind for kind, roots in kinds.items() if higher & set(roots)), "other")


def is_right(found: np.ndarray, terms: np.ndarray, kinds: dict[str, list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each cell is right at the finest and at the broad level."""
    fine = np.array([term in above(one) for one, term in zip(found, terms, strict=True)])
    wanted = [kind_of(term, kinds) for term in terms]
    broad = np.array([kind_of(one, kinds) == kind for one, kind in zip(found, wanted, strict=True)])
    return fine, broad


def scores(name: str, model: Celler, adata: ad.AnnData, terms: np.ndarray) -> dict[str, float | str]:
    """Accuracies and macro recalls at both levels, and the share of cells that are called unknown."""
    kinds = SETS[name][2]
    names = model.predict(adata)
    ids = model._state.ids
    found = np.array([ids.get(one, one) for one in names], object)
    fine, broad = is_right(found, terms, kinds)
    if SETS[name][1] == "pancreas":  # a stellate cell may be a stromal one there
        fine = broad
    of_kind = np.array([kind_of(term, kinds) for term in terms])
    recall = {kind: float(broad[of_kind == kind].mean()) for kind in np.unique(of_kind)}
    counted = [value for kind, value in recall.items() if kind != "other"]
    novelty, known = model.get_novelty(adata), model._state.trained().novelty
    assert known is not None
    alarms = {f"alarms_{rate}": float((novelty > known.threshold(rate)).mean()) for rate in (0.01, 0.05, 0.2)}
    return {
        "set": name,
        "cells": adata.n_obs,
        "genes": len(model.genes_),
        "broad_accuracy": broad.mean(),
        "broad_macro": float(np.mean(counted)),
        "fine_accuracy": fine.mean(),
        **alarms,
        "recall": ", ".join(f"{kind} {value:.2f}" for kind, value in recall.items()),
    }


def novelty_of_lost(name: str, adata: ad.AnnData, terms: np.ndarray) -> list[dict[str, float | str]]:
    """AUROC of the novelty of each type's cells where the atlases of the tissue do not have the type."""
    every, rows = read_atlas_types(), []
    tissue = SETS[name][1]
    for term in np.unique(terms):
        own = every.of(tissue)
        is_lost = np.array([term in above(key) or key in above(term) for key in own.keys])
        left = set(own.keys[~is_lost])
        has_home = np.array([any(one in above(key) or key in above(one) for key in left) for one in terms])
        is_term = terms == term
        if is_term.sum() < 10 or not (has_home & ~is_term).any():
            continue
        with without(every, own.table.index[is_lost]):
            novelty = Celler.from_pretrained("celler-base", tissue=tissue).get_novelty(adata)
        kept = is_term | has_home
        auroc = roc_auc_score(is_term[kept], novelty[kept])
        rows.append({"set": name, "type": term, "cells": int(is_term.sum()), "auroc": auroc})
    return rows


class without:
    """A block in which the atlases lack some types, by index of their table."""

    def __init__(self, every: AtlasTypes, lost: pd.Index) -> None:
        kept = np.flatnonzero(~every.table.index.isin(lost))
        self.part = AtlasTypes(
            every.table.iloc[kept], every.datasets, every.genes, every.levels[:, kept], every.step, every.is_measured
        )

    def __enter__(self) -> None:
        self.before = _tissues.read_atlas_types
        _tissues.read_atlas_types = lambda: self.part

    def __exit__(self, *_: object) -> None:
        _tissues.read_atlas_types = self.before


def held_back() -> pd.DataFrame:
    """Share of an atlas's pseudo-cells that are too novel for its tissue's other atlases, which have their types."""
    every, rng, rows = read_atlas_types(), np.random.default_rng(0), []
    for tissue, codes in every.tissues.items():
        own = every.of(tissue)
        for code in codes:
            is_lost, keys = own.table["dataset"].to_numpy() == code, own.keys
            left = set(keys[~is_lost])
            has_home = np.array([any(key in above(one) or one in above(key) for one in left) for key in keys])
            known = np.flatnonzero(is_lost & has_home)
            if len(known) < 4:
                continue
            genes = np.sort(rng.choice(np.flatnonzero(every.is_measured[code]), 3000, replace=False))
            part = replace(own, table=own.table.iloc[known], levels=own.levels[:, known])
            panel, types = np.arange(len(genes)), np.repeat(np.arange(len(known)), 60)
            loader = PseudoCellLoader(part.profiles(genes), Simulation(depth=(300, 8000)), 1, 512, 0.0, 1, panel=panel)
            counts = np.concatenate([draw_counts(loader, block, panel, rng) for block in np.array_split(types, 4)])
            adata = ad.AnnData(csr_matrix(counts[counts.any(axis=1)]), var=pd.DataFrame(index=every.genes[genes]))
            with without(every, own.table.index[is_lost]):
                model = Celler.from_pretrained("celler-base", tissue=tissue)
                novelty, fitted = model.get_novelty(adata), model._state.trained().novelty
            assert fitted is not None
            alarms = {rate: float((novelty > fitted.threshold(rate)).mean()) for rate in (0.01, 0.05, 0.2)}
            rows.append({"tissue": tissue, "atlas": every.datasets["name"][code]} | alarms)
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def speed(name: str, adata: ad.AnnData) -> None:
    """Print the time of the first call, and of 100,000 cells."""
    start = time.perf_counter()
    model = Celler.from_pretrained("celler-base", tissue=SETS[name][1])
    model.predict(adata)
    print(f"{name}: {time.perf_counter() - start:.1f} s for {adata.n_obs:,} cells with loading and solving")
    many = adata[np.random.default_rng(0).integers(adata.n_obs, size=100_000)].copy()
    many.obs_names_make_unique()
    start, cpu = time.perf_counter(), time.process_time()
    model.annotate(many)
    print(
        f"{100_000 / (time.perf_counter() - start):,.0f} cells/s, {100_000 / (time.process_time() - cpu):,.0f} a core"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--lost", action="store_true", help="also take each type away from the atlases")
    parser.add_argument("--held-back", action="store_true", help="false alarms on each atlas by its tissue's others")
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    if args.held_back:
        print(held_back().describe().round(3).to_string())
        return
    table, lost = [], []
    for name in args.sets.split(","):
        file, tissue, _, _ = SETS[name]
        adata = ad.read_h5ad(args.data / f"{file}.h5ad")
        terms = terms_of(name, adata.obs["cell_type"].astype(str).to_numpy())
        if args.speed:
            speed(name, adata)
            return
        table.append(scores(name, Celler.from_pretrained("celler-base", tissue=tissue), adata, terms))
        print(pd.DataFrame(table[-1:]).round(3).to_string(index=False, header=len(table) == 1), flush=True)
        if args.lost:
            lost += novelty_of_lost(name, adata, terms)
    if args.lost:
        found = pd.DataFrame(lost)
        print(found.round(3).to_string(index=False))
        print(f"mean AUROC {found['auroc'].mean():.3f}")
    if args.out is not None:
        pd.DataFrame(table).to_csv(args.out, index=False)


if __name__ == "__main__":
    main()
