"""The paper's tables 3 and 2 from the files that people have, beside the figures that were published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._messages import closest, column, warn
from celler.benchmark._compare import mean_and_sd
from celler.benchmark.methods import METHODS
from celler.data._genes import gene_names
from celler.metrics import summary
from celler.model import Celler

__all__ = ["level_scores", "level_table", "paper_cells", "paper_table"]
#: The column of obs that :func:`paper_cells` gives the labels.
LABELS_KEY = "cell_type"
GENE_KEYS = ["gene_name", "Gene Symbol"]
NOT_GIVEN = "not given"


class Published(NamedTuple):
    """Macro-F1 and macro-precision that someone published of a method; NaN where they did not."""

    method: str
    f1: float
    precision: float
    source: str


@dataclass(frozen=True)
class PaperSet:
    """A data set of the paper's table 3, as its public files have it.

    labels_keys: columns of obs that may hold the types, the first that is there is taken.
    n_cells: of reference and query.
    """

    labels_keys: tuple[str, ...]
    n_cells: tuple[int, int]
    published: tuple[Published, ...]


#: Figures with a source that was read. The paper's own table 3 was not, so its rows are not given.
_CELLER = Published("Celler, the paper", np.nan, np.nan, "arXiv:2504.00020, table 3")
_TUTORIAL = "scGPT's Tutorial_Annotation.ipynb, its output, one run"
_SCDIVA = "measured by the authors of scDiVa, arXiv:2602.03477, table 4"
SETS = {
    "hpancreas": PaperSet(
        ("Celltype", "celltype", "cell_type"),
        (10_600, 4_218),
        (
            _CELLER,
            Published("scGPT", 0.763, np.nan, _SCDIVA),
            Published("scDiVa", 0.792, np.nan, _SCDIVA),
        ),
    ),
    "ms": PaperSet(
        ("celltype", "Factor Value[inferred cell type - authors labels]", "cell_type"),
        (7_844, 13_468),
        (
            _CELLER,
            Published("scGPT", 0.732, 0.775, _TUTORIAL),
            Published("scGPT", 0.663, np.nan, _SCDIVA),
            Published("scDiVa", 0.727, np.nan, _SCDIVA),
        ),
    ),
}


def paper_cells(dataset: str, reference: AnnData, query: AnnData) -> tuple[AnnData, AnnData]:
    """Copies of a set's files with labels in ``obs["cell_type"]`` and gene symbols as ``var_names``.

    ``"hpancreas"``: TOSICA's ``demo_train.h5ad`` and ``demo_test.h5ad``. ``"ms"``: scGPT's
    ``c_data.h5ad`` and ``filtered_ms_adata.h5ad``. Both hold log1p-normalised values of 3,000 genes.
    Warns where there are not as many cells as the paper has.
    """
    if dataset not in SETS:
        raise ValueError(
            f"dataset={dataset!r} was given; there is {' and '.join(SETS)}.{closest(dataset, SETS)}"
        )
    n_cells = reference.n_obs, query.n_obs
    if n_cells != SETS[dataset].n_cells:
        warn(
            "{}: the paper has {:,} and {:,} cells, these files {:,} and {:,}; what was published is of "
            "other cells.".format(dataset, *SETS[dataset].n_cells, *n_cells)
        )
    keys = SETS[dataset].labels_keys
    return _named(reference, keys, "reference"), _named(query, keys, "query")


def paper_table(dataset: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's table 3: macro F1 and precision, mean ± sd over seeds, and what was published.

    rows: of :func:`celler.benchmark.run`.
    """
    measured = rows[rows["error"].isna()].groupby("method", sort=False)
    n_seeds = measured.size().max() if len(measured) else 0
    lines = [
        (
            METHODS[name].title,
            mean_and_sd(part["macro_f1"].mean(), part["macro_f1"].std(), 3),
            mean_and_sd(part["macro_precision"].mean(), part["macro_precision"].std(), 3),
            f"measured here, {n_seeds} seeds",
        )
        for name, part in measured
    ]
    for method, f1, precision, source in SETS[dataset].published:
        shown = [NOT_GIVEN if np.isnan(score) else f"{score:.3f}" for score in (f1, precision)]
        lines.append((method, shown[0], shown[1], source))
    table = pd.DataFrame(lines, columns=["method", "F1", "precision", "source"])
    return table.set_index("method")


def level_scores(
    organs: Mapping[str, tuple[AnnData, AnnData]],
    labels_key: str,
    parent_labels_key: str,
    *,
    seeds: int | Sequence[int] = 5,
    max_epochs: int | None = None,
) -> pd.DataFrame:
    """Celler trained on the reference of each organ, and its query labelled at both levels.

    organs: name -> reference and query, such as the files of Celler-75.
    labels_key, parent_labels_key: columns of obs with the subclasses and their parents, in all.
    max_epochs: as in :meth:`celler.model.Celler.train`.

    Returns a row per organ, level (``parent`` or ``class``) and seed: ``accuracy``, ``macro_f1``,
    ``macro_precision``.
    """
    rows = []
    for organ, (reference, query) in organs.items():
        keys = {"parent": parent_labels_key, "class": labels_key}
        truth = {
            level: column(query.obs, key, f"{level} labels", f"the query of {organ}")
            for level, key in keys.items()
        }
        for seed in range(seeds) if isinstance(seeds, int) else seeds:
            copy = reference.copy()
            Celler.setup_anndata(copy, labels_key=labels_key, parent_labels_key=parent_labels_key)
            model = Celler(copy)
            model.train(max_epochs, seed=seed, show_progress=False)
            for level, values in truth.items():
                labels = model.predict(query, level=level)
                scores = summary(values.to_numpy().astype(str), labels, {})
                kept = {key: scores[key] for key in ("accuracy", "macro_f1", "macro_precision")}
                rows.append({"organ": organ, "level": level, "seed": seed} | kept)
                print(f"{organ}, seed {seed}, {level}: macro-F1 {kept['macro_f1']:.3f}", flush=True)
    return pd.DataFrame(rows)


def level_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's table 2: F1, precision and accuracy by organ and level, mean ± sd over seeds.

    rows: of :func:`celler.benchmark.level_scores`. The paper's own figures could not be read: not given.
    """
    groups = rows.groupby(["organ", "level"], sort=False)
    names = {"macro_f1": "F1", "macro_precision": "precision", "accuracy": "accuracy"}
    shown = {
        title: [mean_and_sd(part[score].mean(), part[score].std(), 3) for _, part in groups]
        for score, title in names.items()
    }
    return pd.DataFrame(shown, index=groups.size().index).assign(**{"the paper": NOT_GIVEN})


def _named(adata: AnnData, labels_keys: Sequence[str], what: str) -> AnnData:
    """A copy with the labels under one name, and gene symbols where they are given and unique."""
    found = [key for key in labels_keys if key in adata.obs]
    key = found[0] if found else labels_keys[0]
    labels = column(adata.obs, key, "the labels' column", f"{what}.obs")
    copy = adata.copy()
    copy.obs[LABELS_KEY] = labels
    gene_key = next((name for name in GENE_KEYS if name in adata.var), None)
    names = gene_names(adata.var, gene_key).astype(str)
    is_unclear = (names == "") | names.duplicated(keep=False)
    copy.var_names = pd.Index(np.where(is_unclear, adata.var_names, names))
    return copy
