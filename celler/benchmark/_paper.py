"""The paper's tables 3 and 2 from their public files, next to the figures that were published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class PaperSet(NamedTuple):
    """A data set of table 3."""

    labels_keys: tuple[str, ...]  # the first that obs has holds the labels
    n_cells: tuple[int, int]  # of reference and query
    published: tuple[tuple[str, float, float, str], ...]  # method, macro-F1, macro-precision, source; NaN: not given


#: Only figures from a source that was read. The paper's own table 3 could not be, so it is not given.
_CELLER = ("Celler, the paper", np.nan, np.nan, "arXiv:2504.00020, table 3")
_TUTORIAL = "scGPT's Tutorial_Annotation.ipynb, its output, one run"
_SCDIVA = "measured by the authors of scDiVa, arXiv:2602.03477, table 4"
SETS = {
    "hpancreas": PaperSet(
        ("Celltype", "celltype", "cell_type"),
        (10_600, 4_218),
        (_CELLER, ("scGPT", 0.763, np.nan, _SCDIVA), ("scDiVa", 0.792, np.nan, _SCDIVA)),
    ),
    "ms": PaperSet(
        ("celltype", "Factor Value[inferred cell type - authors labels]", "cell_type"),
        (7_844, 13_468),
        (
            _CELLER,
            ("scGPT", 0.732, 0.775, _TUTORIAL),
            ("scGPT", 0.663, np.nan, _SCDIVA),
            ("scDiVa", 0.727, np.nan, _SCDIVA),
        ),
    ),
}


def paper_cells(dataset: str, reference: AnnData, query: AnnData) -> tuple[AnnData, AnnData]:
    """Give a public data set one name for its labels, and gene symbols as ``var_names``.

    Parameters
    ----------
    dataset
        ``"hpancreas"`` or ``"ms"``. Both hold log1p-normalised values of 3,000 genes.
    reference
        TOSICA's ``demo_train.h5ad``, or scGPT's ``c_data.h5ad``. Not changed.
    query
        TOSICA's ``demo_test.h5ad``, or scGPT's ``filtered_ms_adata.h5ad``. Not changed.

    Returns
    -------
    Copies of reference and query with labels in ``obs["cell_type"]``, with a warning if the numbers of cells are not
    the paper's.

    Raises
    ------
    ValueError
        If ``dataset`` is not one of the two.
    KeyError
        If obs has none of the columns that hold the labels in the public files.
    """
    if dataset not in SETS:
        names = " or ".join(SETS)
        raise ValueError(f"dataset={dataset!r} was given; {names} is needed.{closest(dataset, SETS)}")
    keys, n_published, _ = SETS[dataset]
    n_cells = reference.n_obs, query.n_obs
    if n_cells != n_published:
        theirs, ours = ("{:,} and {:,}".format(*each) for each in (n_published, n_cells))
        warn(f"{dataset}: the paper has {theirs} cells, these files {ours}; the published figures are for other cells.")
    return _named(reference, keys, "reference"), _named(query, keys, "query")


def paper_table(dataset: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's table 3, measured and published.

    Parameters
    ----------
    dataset
        ``"hpancreas"`` or ``"ms"``.
    rows
        Table of :func:`celler.benchmark.run`.

    Returns
    -------
    A row per method with macro ``F1`` and ``precision``, mean ± sd over seeds, and their ``source``.
    """
    measured = rows[rows["error"].isna()].groupby("method", sort=False)
    n_seeds = measured.size().max() if len(measured) else 0
    lines = [(METHODS[name].title, *_shown(part), f"measured here, {n_seeds} seeds") for name, part in measured]
    for method, f1, precision, source in SETS[dataset].published:
        shown = [NOT_GIVEN if np.isnan(score) else f"{score:.3f}" for score in (f1, precision)]
        lines.append((method, *shown, source))
    return pd.DataFrame(lines, columns=["method", "F1", "precision", "source"]).set_index("method")


def level_scores(
    organs: Mapping[str, tuple[AnnData, AnnData]],
    labels_key: str,
    parent_labels_key: str,
    *,
    seeds: int | Sequence[int] = 5,
    max_epochs: int | None = None,
) -> pd.DataFrame:
    """Train Celler on the reference of each organ, and score its query at both levels.

    Parameters
    ----------
    organs
        Reference and query by name, such as the files of Celler-75. Not changed.
    labels_key
        Column of obs with the subclasses, in all.
    parent_labels_key
        Column of obs with their parents, in all.
    seeds
        Number of seeds, or the seeds.
    max_epochs
        Epochs of a training, as in :meth:`celler.model.Celler.train`.

    Returns
    -------
    A row per organ, level (``parent`` or ``class``) and seed with ``accuracy``, ``macro_f1`` and ``macro_precision``.
    """
    rows = []
    keys = {"parent": parent_labels_key, "class": labels_key}
    for organ, (reference, query) in organs.items():
        place = f"the query of {organ}"
        truth = {level: column(query.obs, key, f"{level} labels", place) for level, key in keys.items()}
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
    """Return the paper's table 2, mean ± sd over seeds.

    Parameters
    ----------
    rows
        Table of :func:`celler.benchmark.level_scores`.

    Returns
    -------
    A row per organ and level with ``F1``, ``precision`` and ``accuracy``. The paper's own figures could not be read
    and are "not given".
    """
    groups = rows.groupby(["organ", "level"], sort=False)
    scores = ["macro_f1", "macro_precision", "accuracy"]
    table = pd.DataFrame([_shown(part, scores) for _, part in groups], groups.size().index)
    return table.set_axis(["F1", "precision", "accuracy"], axis=1).assign(**{"the paper": NOT_GIVEN})


def _shown(part: pd.DataFrame, scores: Sequence[str] = ("macro_f1", "macro_precision")) -> list[str]:
    """Return ``mean ± sd`` of each score over the rows."""
    return [mean_and_sd(part[score].mean(), part[score].std(), 3) for score in scores]


def _named(adata: AnnData, labels_keys: Sequence[str], what: str) -> AnnData:
    """Return a copy with the labels under one name, and gene symbols where they are given and unique."""
    key = next((key for key in labels_keys if key in adata.obs), labels_keys[0])
    labels = column(adata.obs, key, "the labels' column", f"{what}.obs")
    copy = adata.copy()
    copy.obs[LABELS_KEY] = labels
    names = gene_names(adata.var, next((name for name in GENE_KEYS if name in adata.var), None)).astype(str)
    is_unclear = (names == "") | names.duplicated(keep=False)
    copy.var_names = pd.Index(np.where(is_unclear, adata.var_names, names))
    return copy
