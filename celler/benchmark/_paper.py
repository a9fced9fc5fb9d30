"""The paper's tables 3 and 2 from their public files, next to the figures that were published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._check import checked
from celler._utils._messages import closest, column, warn
from celler.benchmark._compare import mean_and_sd
from celler.benchmark.methods import METHODS
from celler.data._gene_names import gene_names
from celler.metrics import summary
from celler.model import Celler

__all__ = ["level_scores", "level_table", "paper_cells", "paper_table"]
#: The column of obs that :func:`paper_cells` gives the labels.
LABELS_KEY = "cell_type"
GENE_KEYS = ["gene_name", "Gene Symbol"]
NOT_GIVEN = "not given"


class Published(NamedTuple):
    """A row of table 3 as it was published, mean ± sd where one was given."""

    method: str
    f1: str
    precision: str
    source: str
    split: str  # what was trained on and tested on


class PaperSet(NamedTuple):
    """A data set of table 3."""

    labels_keys: tuple[str, ...]  # the first that obs has holds the labels
    n_cells: tuple[int, int]  # of reference and query
    splits: dict[str | None, str]  # each value of train_on, and the split that it gives; the first is the default
    published: tuple[Published, ...]


def _rows(source: str, split: str, *rows: tuple[str, str, str]) -> tuple[Published, ...]:
    return tuple(Published(*row, source, split) for row in rows)


_PAPER = "the paper, arXiv:2504.00020, table 3"
_SCDIVA = "scDiVa's authors, arXiv:2602.03477, table 4"
_CELLPLM = "CellPLM's authors, ICLR 2024, table 4"
_TOSICA = "TOSICA's files"
_HEALTHY, _PATIENTS = "healthy to patients", "patients to healthy"
SETS = {
    "hpancreas": PaperSet(
        ("Celltype", "celltype", "cell_type"),
        (10_600, 4_218),
        {None: _TOSICA},
        (
            *_rows(
                _PAPER,
                _TOSICA,
                ("CellTypist", "0.708 ± 0.023", "0.736 ± 0.025"),
                ("ACTINN", "0.705 ± 0.005", "0.709 ± 0.006"),
                ("SingleCellNet", "0.739 ± 0.006", "0.761 ± 0.004"),
                ("TOSICA", "0.656", "0.661"),
                ("scBERT", "0.685 ± 0.003", "0.699 ± 0.007"),
                ("scGPT", "0.718 ± 0.003", "0.735 ± 0.001"),
                ("Celler, the paper", "0.767 ± 0.010", "0.755 ± 0.010"),
            ),
            *_rows(_CELLPLM, _TOSICA, ("CellPLM", "0.749", NOT_GIVEN)),
            *_rows(
                _SCDIVA,
                NOT_GIVEN,
                ("UCE", "0.801", NOT_GIVEN),
                ("scDiVa", "0.792", NOT_GIVEN),
                ("GeneCompass", "0.780", NOT_GIVEN),
                ("CellFM", "0.778", NOT_GIVEN),
                ("GeneMamba", "0.771", NOT_GIVEN),
                ("scGPT", "0.763", NOT_GIVEN),
                ("Geneformer", "0.745", NOT_GIVEN),
                ("scFoundation", "0.711", NOT_GIVEN),
            ),
        ),
    ),
    "ms": PaperSet(
        ("celltype", "Factor Value[inferred cell type - authors labels]", "cell_type"),
        (7_844, 13_468),
        {"healthy": _HEALTHY, "patients": _PATIENTS},
        (
            # The paper's text has the numbers of scGPT's files the other way round; which was trained is not known.
            *_rows(
                _PAPER,
                "13,468 to 7,844 by its text; files: the reverse",
                ("CellTypist", "0.667 ± 0.002", "0.693 ± 0.001"),
                ("ACTINN", "0.628 ± 0.012", "0.634 ± 0.009"),
                ("SingleCellNet", "0.637 ± 0.001", "0.700 ± 0.001"),
                ("TOSICA", "0.578", "0.664"),
                ("scBERT", "0.599 ± 0.001", "0.604 ± 0.004"),
                ("scGPT", "0.703 ± 0.002", "0.729 ± 0.002"),
                ("Celler, the paper", "0.799 ± 0.004", "0.841 ± 0.002"),
            ),
            *_rows("scGPT's Tutorial_Annotation.ipynb, one run", _HEALTHY, ("scGPT", "0.732", "0.775")),
            *_rows(_CELLPLM, _HEALTHY, ("CellPLM", "0.766", NOT_GIVEN)),
            *_rows(
                _SCDIVA,
                NOT_GIVEN,
                ("scDiVa", "0.727", NOT_GIVEN),
                ("UCE", "0.708", NOT_GIVEN),
                ("CellFM", "0.705", NOT_GIVEN),
                ("GeneCompass", "0.704", NOT_GIVEN),
                ("scFoundation", "0.681", NOT_GIVEN),
                ("scGPT", "0.663", NOT_GIVEN),
                ("Geneformer", "0.622", NOT_GIVEN),
                ("GeneMamba", "0.534", NOT_GIVEN),
            ),
        ),
    ),
}


@checked
def paper_cells(
    dataset: str, reference: AnnData, query: AnnData, *, train_on: Literal["healthy", "patients"] | None = None
) -> tuple[AnnData, AnnData]:
    """Give a public data set one name for its labels, and gene symbols as ``var_names``.

    Parameters
    ----------
    dataset
        ``"hpancreas"`` or ``"ms"``. Both hold log1p-normalised values of 3,000 genes.
    reference
        TOSICA's ``demo_train.h5ad``, or scGPT's ``c_data.h5ad``. Not changed.
    query
        TOSICA's ``demo_test.h5ad``, or scGPT's ``filtered_ms_adata.h5ad``. Not changed.
    train_on
        For ``"ms"`` alone. ``"healthy"``, the default, goes from the 7,844 healthy cells of ``c_data`` to 13,468 of
        patients, as scGPT's files do; ``"patients"`` goes from 13,468 to 7,844, as the paper's text has it.

    Returns
    -------
    Copies of the cells to train on and of those to test, with labels in ``obs["cell_type"]``, with a warning if the
    numbers of cells are not those of the public files.

    Raises
    ------
    ValueError
        If ``dataset`` or ``train_on`` is not one of these, or reference and query of ``"ms"`` are exchanged.
    KeyError
        If obs has none of the columns that hold the labels in the public files.
    """
    split = _split(dataset, train_on)
    keys, n_published = SETS[dataset][:2]
    n_cells = reference.n_obs, query.n_obs
    if n_cells != n_published:
        theirs, ours = ("{:,} and {:,}".format(*each) for each in (n_published, n_cells))
        if n_cells == n_published[::-1]:
            other = " To train on the patients pass train_on='patients'." * (dataset == "ms")
            raise ValueError(f"{dataset}: reference and query are exchanged, they hold {ours} cells.{other}")
        warn(
            f"{dataset}: the public files have {theirs} cells, these {ours}; the published figures are for other cells."
        )
    named = _named(reference, keys, "reference"), _named(query, keys, "query")
    return named[::-1] if split == _PATIENTS else named


@checked
def paper_table(
    dataset: str, rows: pd.DataFrame | None = None, *, train_on: Literal["healthy", "patients"] | None = None
) -> pd.DataFrame:
    """Return the paper's table 3, measured and published.

    Parameters
    ----------
    dataset
        ``"hpancreas"`` or ``"ms"``.
    rows
        Table of :func:`celler.benchmark.run`; ``None`` for the published figures alone.
    train_on
        As in :func:`celler.benchmark.paper_cells`: the split that the rows were measured with.

    Returns
    -------
    A row per method with macro ``F1`` and ``precision``, mean ± sd over seeds, their ``source`` and the ``split``.

    Raises
    ------
    ValueError
        If ``dataset`` or ``train_on`` is unknown.

    Notes
    -----
    Published figures are those of :cite:t:`Zhao25`, and later ones of :cite:t:`Wen24` and :cite:t:`Wang26`. On MS they
    compare only where the split is the same.
    """
    split = _split(dataset, train_on)
    lines = []
    if rows is not None:
        measured = rows[rows["error"].isna()].groupby("method", sort=False)
        source = f"measured here, {measured.size().max() if len(measured) else 0} seeds"
        lines = [(METHODS[name].title, *_shown(part), source, split) for name, part in measured]
    lines += SETS[dataset].published
    return pd.DataFrame(lines, columns=list(Published._fields)).set_index("method").rename(columns={"f1": "F1"})


@checked
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


@checked
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


def _split(dataset: str, train_on: str | None) -> str:
    """Return the split that ``train_on`` stands for; raise ``ValueError`` where the data set has no such split."""
    if dataset not in SETS:
        names = " or ".join(SETS)
        raise ValueError(f"dataset={dataset!r} was given; {names} is needed.{closest(dataset, SETS)}")
    splits = SETS[dataset].splits
    default, *_ = splits
    if train_on is not None and train_on not in splits:
        names = "no other split than that of its files" if None in splits else " or ".join(map(repr, splits))
        raise ValueError(f"train_on={train_on!r} was given; {dataset} has {names}.{closest(train_on, splits)}")
    return splits[train_on or default]


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
