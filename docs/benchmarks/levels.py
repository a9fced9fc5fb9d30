"""Two levels of labels: what back-off gives, whether levels agree, and whether a parent term in the loss pays.

    python docs/benchmarks/levels.py DATA --out levels.csv [--seeds 3]

DATA is a folder with the files named in ``TASKS``; all hold counts. The parent term is the loss of the
parents, whose share of the softmax is the sum of their classes', added to the default loss with a weight.
"""

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from torch import Generator, Tensor

from celler.benchmark import long_tail_split
from celler.losses import DEFAULT
from celler.metrics import expected_calibration_error
from celler.model import Celler

THRESHOLDS = (0.5, 0.7, 0.9)
#: Weights of the parent term; 0 is the default loss.
WEIGHTS = (0.0, 0.5, 2.0)


def blood(folder: Path, seeds: int) -> Iterator[tuple[int, ad.AnnData, ad.AnnData]]:
    """10x 3' to 5' chemistry and other donors."""
    reference = ad.read_h5ad(folder / "hpbmc_reference.h5ad")
    query = ad.read_h5ad(folder / "pbmc_10x_3tech_1200.h5ad")
    query = query[query.obs["batch"] == "10x_5p"].copy()
    query.obs["cell_type"] = query.obs["cell_type_harmonised"]
    for seed in range(seeds):
        yield seed, reference.copy(), query


def cord_blood(folder: Path, seeds: int) -> Iterator[tuple[int, ad.AnnData, ad.AnnData]]:
    """Half of each type as the query, the other half thinned to 100 : 1."""
    adata = ad.read_h5ad(folder / "cbmc_cite_8617_nogenes.h5ad")
    adata = adata[~adata.obs["is_qc_class"].astype(bool)].copy()
    for seed in range(seeds):
        yield seed, *long_tail_split(adata, "cell_type", seed=seed)


def cortex(folder: Path, seeds: int) -> Iterator[tuple[int, ad.AnnData, ad.AnnData]]:
    """A fifth of each type as the reference, 110 cells."""
    adata = ad.read_h5ad(folder / "mouse_cortex_zeisel_550.h5ad")
    for seed in range(seeds):
        reference, query = train_test_split(
            np.arange(adata.n_obs),
            train_size=0.2,
            stratify=adata.obs["cell_type"],
            random_state=seed,
        )
        yield seed, adata[np.sort(reference)].copy(), adata[np.sort(query)].copy()


# fmt: off
TASKS = {
    "blood": (blood, {
        "T": ["CD4 T", "CD8 T"], "NK": ["NK"], "B": ["B"], "Monocyte": ["CD14 Mono", "CD16 Mono"],
        "Dendritic": ["DC"], "Megakaryocyte": ["MK"], "Progenitor": ["HSC"],
    }),
    "cord blood": (cord_blood, {
        "T": ["Memory CD4 T", "Naive CD4 T", "CD8 T"], "NK": ["NK"], "B": ["B"],
        "Monocyte": ["CD14+ Mono", "CD16+ Mono"], "Dendritic": ["DC", "pDCs"], "Progenitor": ["CD34+"],
        "Erythroid": ["Eryth"], "Megakaryocyte": ["Mk"], "Mouse": ["Mouse"],
    }),
    "cortex": (cortex, {
        "Astrocyte": ["Astrocyte1", "Astrocyte2"], "Oligodendrocyte": ["Oligo_MF", "Oligo_Mature"],
        "Excitatory": ["Hippocampus_Excitatory", "S1_Excitatory_L23", "S1_Excitatory_L45a"],
        "Interneuron": ["Interneuron"], "Vascular": ["Endothelial2", "Vsmc"], "Macrophage": ["Pvm"],
    }),
}
# fmt: on


@dataclass(frozen=True)
class WithParents:
    """The default loss plus ``weight`` times the balanced softmax of the parents."""

    parent_codes: tuple[int, ...]
    weight: float

    def __call__(self, logits: Tensor, labels: Tensor, counts: Tensor, generator: Generator | None = None) -> Tensor:
        """``logits (B, C)``, ``labels (B,)``, ``class_counts (C,)`` -> loss per cell ``(B,)``."""
        loss = DEFAULT(logits, labels, counts, generator)
        parents = torch.tensor(self.parent_codes, device=labels.device)
        scores = logits.float() + counts.log()
        is_sibling = parents[None, :] == parents[labels][:, None]
        siblings = scores.masked_fill(~is_sibling, -torch.inf).logsumexp(1)
        return loss + self.weight * (scores.logsumexp(1) - siblings)


def score(probabilities: pd.DataFrame, truth: np.ndarray, parent_of: dict[str, str]) -> dict:
    """Metrics of both levels and of back-off, from the probabilities of the classes."""
    names, p = probabilities.columns.to_numpy(), probabilities.to_numpy()
    of_class = pd.Series(parent_of)
    parents = probabilities.T.groupby(of_class).sum().T
    label, parent = names[p.argmax(1)], parents.columns.to_numpy()[parents.to_numpy().argmax(1)]
    is_inside = of_class[names].to_numpy()[None, :] == parent[:, None]
    top_down = names[np.where(is_inside, p, -1).argmax(1)]
    true_parent = of_class[truth].to_numpy()
    row = {
        "class accuracy": accuracy_score(truth, label),
        "class macro-F1": f1_score(truth, label, average="macro"),
        "class macro-F1, top-down": f1_score(truth, top_down, average="macro"),
        "parent accuracy": accuracy_score(true_parent, parent),
        "parent macro-F1": f1_score(true_parent, parent, average="macro"),
        "parent macro-F1, bottom-up": f1_score(true_parent, of_class[label].to_numpy(), average="macro"),
        "levels disagree": (of_class[label].to_numpy() != parent).mean(),
        "class ECE": expected_calibration_error(p.max(1), label == truth),
        "parent ECE": expected_calibration_error(parents.max(axis=1).to_numpy(), parent == true_parent),
    }
    for threshold in THRESHOLDS:
        is_class = p.max(1) >= threshold
        is_parent = ~is_class & (parents.max(axis=1).to_numpy() >= threshold)
        row |= {
            f"{threshold}: class": is_class.mean(),
            f"{threshold}: class right": (label == truth)[is_class].mean(),
            f"{threshold}: parent": is_parent.mean(),
            f"{threshold}: parent right": (parent == true_parent)[is_parent].mean(),
            f"{threshold}: their class right": (label == truth)[is_parent].mean(),
            f"{threshold}: unknown": (~is_class & ~is_parent).mean(),
        }
    return row


def main() -> None:
    """Write a row per task, seed and weight; print means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("levels.csv"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"{options.data} is no folder; pass the one with the data.")
    warnings.simplefilter("ignore")  # small classes, and means over no cells at a low threshold
    rows = []
    for task, (splits, groups) in TASKS.items():
        parent_of = {name: parent for parent, names in groups.items() for name in names}
        for seed, reference, query in splits(options.data, options.seeds):
            Celler.setup_anndata(reference, labels_key="cell_type")
            names, codes = np.unique(list(parent_of.values()), return_inverse=True)
            code_of = dict(zip(parent_of, codes.tolist(), strict=True))
            for weight in WEIGHTS:
                model = Celler(reference)
                codes = tuple(code_of[name] for name in model.classes_)
                loss = WithParents(codes, weight) if weight else None
                model.train(loss=loss, seed=seed, show_progress=False)
                probabilities = model.predict(query, soft=True)
                known = {name: parent_of[name] for name in model.classes_}
                truth = query.obs["cell_type"].to_numpy().astype(str)
                row = {"task": task, "seed": seed, "weight": weight}
                rows.append(row | score(probabilities, truth, known))
                pd.DataFrame(rows).to_csv(options.out, index=False)
    table = pd.DataFrame(rows).drop(columns="seed")
    print((100 * table.groupby(["task", "weight"], sort=False).mean()).round(1).T.to_string())


if __name__ == "__main__":
    main()
