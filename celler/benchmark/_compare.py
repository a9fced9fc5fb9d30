"""Comparison: methods trained on one reference label the same query, a row per method and seed."""

from __future__ import annotations

import io
import pickle
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import joblib
import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.metrics import roc_auc_score

from celler._utils._check import checked
from celler._utils._messages import agreed, closest, column, warn
from celler._utils._write import append_rows, explained, whole_rows
from celler.benchmark._process import CELLS, Measured, run_alone
from celler.benchmark.methods import METHODS
from celler.data._expression import ExpressionReader, check_values
from celler.data._gene_names import check_names, gene_names
from celler.data._genes import align_genes
from celler.labels._tree import as_strings
from celler.metrics import expected_calibration_error, per_class
from celler.metrics import summary as overall

__all__ = ["class_scores", "run", "summary", "summary_text"]
#: The column of obs that holds the labels of a reference here, whatever its name in the user's.
LABELS_KEY = "label"
UNLABELED = "Unknown"
#: What identifies a result; ``key`` is a hash of the cells, the versions and the code.
KEY = ["method", "seed", "key"]
GROUPS = ("head", "medium", "tail")
#: Each score, and the decimals to print.
DECIMALS = {
    **dict.fromkeys(["accuracy", "macro_f1", "macro_precision", "macro_recall"], 3),
    **{f"{score}_{group}": 3 for score in ("recall", "f1") for group in GROUPS},
    **dict.fromkeys(["ece", "rejection_auroc"], 3),
    **{"fit_seconds": 1, "cells_per_second": 0, "peak_memory_mb": 0},
}
COLUMNS = ["method", "seed", *DECIMALS, "error", "versions", "key"]
RUNS, CLASSES = "runs.csv", "classes.csv"


@dataclass(frozen=True)
class Cells:
    """A reference with labels, a query without them, and the query's labels ``truth (n_obs,)``."""

    reference: AnnData
    query: AnnData
    truth: np.ndarray

    @classmethod
    def of(
        cls, reference: AnnData, query: AnnData, labels_key: str, query_labels_key: str | None, layer: str | None
    ) -> Cells:
        """Copy values, labels and gene names; drop cells without a label and genes new to the reference."""
        labels = _labels(reference, labels_key, "labels_key", "reference")
        argument = "labels_key" if query_labels_key is None else "query_labels_key"
        truth = _labels(query, query_labels_key or labels_key, argument, "query")
        is_learned, is_scored = labels != UNLABELED, truth != UNLABELED
        names = gene_names(reference.var, None)
        check_names(names, reference.var, None)
        columns = np.flatnonzero(names != "")
        gene_map = align_genes(gene_names(query.var, None), names[columns], query.var).gene_map
        place = np.argsort(gene_map, kind="stable")[(gene_map < 0).sum() :]
        known = _plain(reference, is_learned, layer, columns)
        known.obs[LABELS_KEY] = labels[is_learned]
        known.var_names = names[columns]
        unlabeled = _plain(query, is_scored, layer, place)
        unlabeled.var_names = known.var_names[gene_map[place]]
        return cls(known, unlabeled, truth[is_scored])

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash that changes with any value, gene, label or the order of cells."""
        parts = [list(self.reference.obs[LABELS_KEY]), list(self.truth)]
        for adata in (self.reference, self.query):
            X = adata.X
            parts += [adata.uns["kind"], list(adata.var_names), X.data, X.indices, X.indptr]
        return str(joblib.hash(parts))


def _labels(adata: AnnData, key: str, argument: str, what: str) -> np.ndarray:
    """Return labels as text, ``Unknown`` where there is none, with a warning; raise if no cell has one."""
    labels = as_strings(column(adata.obs, key, argument, f"{what}.obs"), key, UNLABELED).astype(str)
    n_unlabeled = int((labels == UNLABELED).sum())
    if n_unlabeled == len(labels):
        raise ValueError(f"{what}.obs[{key!r}] labels no cell; name a column with cell types.")
    if n_unlabeled:
        warn(
            f"{n_unlabeled:,} of the {what}'s {len(labels):,} cells {agreed(n_unlabeled, 'have')} no label; "
            f"{agreed(n_unlabeled, 'they are')} left out."
        )
    return labels


def _plain(adata: AnnData, is_kept: np.ndarray, layer: str | None, columns: np.ndarray) -> AnnData:
    """Copy the values of cells and genes as CSR float32 and their kind in ``uns``; no obs, no var."""
    reader = ExpressionReader(adata, layer)
    X = reader.matrix()
    check_values(X, reader)
    obs = pd.DataFrame(index=adata.obs_names[is_kept].astype(str))
    return AnnData(X[is_kept][:, columns], obs=obs, uns={"kind": reader.state.kind})


@checked
def run(
    reference: AnnData,
    query: AnnData,
    labels_key: str,
    methods: Sequence[str] = tuple(METHODS),
    seeds: int | Sequence[int] = 3,
    *,
    query_labels_key: str | None = None,
    layer: str | None = None,
    folder: Path | str = "benchmark",
) -> pd.DataFrame:
    """Train methods on a reference and compare the labels they give to a query with its own.

    Each method and seed runs in a process of its own, which never sees the query's labels; its preprocessing counts as
    its time. A method whose package is missing, or that cannot use the values, is skipped with a warning; one that
    fails gets a row with the reason in ``error``.

    Parameters
    ----------
    reference
        Cells with labels to train on. Not changed.
    query
        Cells with labels to compare with. Not changed.
    labels_key
        Column of obs with the cell types. Cells without a label, or with the label ``Unknown``, are left out.
    methods
        Names from ``celler.benchmark.methods.METHODS``, by default all.
    seeds
        Number of seeds, or the seeds.
    query_labels_key
        Column of the query's obs with the cell types; ``None`` for ``labels_key``.
    layer
        Layer with the counts, in both; ``None`` for ``X``.
    folder
        Folder for ``runs.csv`` and ``classes.csv``, to which each finished run adds its rows. A stopped call continues
        from them. Rows of other cells, versions or code are kept apart.

    Returns
    -------
    A row per method and seed with ``versions``, ``key``, ``error`` and the scores:

    - ``accuracy``, and ``macro_f1``, ``macro_precision`` and ``macro_recall`` over the types of the query and those
      predicted;
    - means of ``f1_*`` and ``recall_*`` over the reference's types by :func:`celler.metrics.frequency_groups`;
    - ``ece``, the calibration error of the highest probability;
    - ``rejection_auroc``, how well the highest score separates cells of types that the reference lacks from others;
    - ``fit_seconds``, ``cells_per_second`` of prediction, and ``peak_memory_mb``, MiB beyond packages and cells.

    Raises
    ------
    ValueError
        If a method has no entry in ``METHODS``, or no cell has a label.
    KeyError
        If a column or the layer does not exist.

    Examples
    --------
    >>> rows = cl.benchmark.run(reference, query, "cell_type", ["celler", "logreg"])  # doctest: +SKIP
    >>> print(cl.benchmark.summary_text(cl.benchmark.summary(rows)))  # doctest: +SKIP
    """
    cells = Cells.of(reference, query, labels_key, query_labels_key, layer)
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    usable = [(method, _key(cells, method, versions), versions) for method, versions in _usable(methods, cells).items()]
    planned = [(method, seed, key, versions) for method, key, versions in usable for seed in seeds]
    plan = pd.DataFrame(planned, columns=[*KEY, "versions"])
    folder = Path(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    known = set(_stored(folder / RUNS)[KEY].itertuples(index=False, name=None))
    is_known = [name in known for name in plan[KEY].itertuples(index=False, name=None)]
    failed = []
    for row, classes in _finished(plan[~np.array(is_known, bool)], cells):
        if classes is None:
            failed.append(row)
        else:  # in this order: classes without their row do no harm, a row without its classes would
            append_rows(folder / CLASSES, classes)
            append_rows(folder / RUNS, pd.DataFrame([row], columns=COLUMNS))
    stored = _stored(folder / RUNS).drop_duplicates(KEY).to_dict("records")
    return plan[KEY].merge(pd.DataFrame([*stored, *failed], columns=COLUMNS))[COLUMNS]


@checked
def class_scores(rows: pd.DataFrame, folder: Path | str = "benchmark") -> pd.DataFrame:
    """Read the scores of each type behind the rows of a comparison.

    Parameters
    ----------
    rows
        Table of :func:`celler.benchmark.run`.
    folder
        Folder that :func:`celler.benchmark.run` wrote to.

    Returns
    -------
    A row per type with ``method``, ``seed`` and the columns of :func:`celler.metrics.per_class`; ``frequency`` is
    ``unseen`` for types that the reference lacks.

    Raises
    ------
    FileNotFoundError
        If the folder has no ``classes.csv``.
    """
    file = Path(folder) / CLASSES
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; pass the folder that run() was given.")
    classes = _stored(file).drop_duplicates([*KEY, "class"], keep="last")
    return rows[KEY].merge(classes).drop(columns="key")


@checked
def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation of each score over seeds, best macro-F1 first.

    Parameters
    ----------
    rows
        Table of :func:`celler.benchmark.run`, or several with a column ``task``. Failed runs are left out.

    Returns
    -------
    A row per method, or task and method, with the columns ``(score, "mean" | "sd")``.
    """
    by = [name for name in ("task", "method") if name in rows]
    table = rows[rows["error"].isna()].groupby(by, sort=False)[list(DECIMALS)].agg(["mean", "std"])
    table = table.rename(columns={"std": "sd"}, level=1).sort_values(
        ("macro_f1", "mean"), ascending=False, kind="stable"
    )
    if "task" in rows:
        table = table.loc[[task for task in rows["task"].unique() if task in table.index]]
    return table


@checked
def summary_text(table: pd.DataFrame) -> str:
    """Return a summary as text, "mean ± sd" of each score that has a value.

    Parameters
    ----------
    table
        Table of :func:`celler.benchmark.summary`.
    """
    shown = pd.DataFrame(index=table.index)
    for score, decimals in DECIMALS.items():
        if table[score, "mean"].notna().any():
            shown[score] = [mean_and_sd(mean, sd, decimals) for mean, sd in table[score].itertuples(index=False)]
    return shown.to_string()


def mean_and_sd(mean: float, sd: float, decimals: int, sign: str = "") -> str:
    """Return ``0.912 ± 0.003``; a dash for a missing mean, no spread for a missing sd."""
    if np.isnan(mean):
        return "–"
    spread = "" if np.isnan(sd) else f" ± {sd:,.{decimals}f}"
    return f"{mean:{sign},.{decimals}f}{spread}"


def _usable(methods: Sequence[str], cells: Cells) -> dict[str, str]:
    """Return the versions of the packages of each method that can run; warn about the others."""
    usable = {}
    other = {cells.reference.uns["kind"], cells.query.uns["kind"]} - {"counts", "expected counts"}
    for name in methods:
        if name not in METHODS:
            raise ValueError(
                f"methods names {name!r}, which does not exist.{closest(name, METHODS)} Methods: {', '.join(METHODS)}."
            )
        method = METHODS[name]
        if method.needs_counts and other:
            warn(
                f"{method.title} needs counts and is skipped: the cells hold {min(other)} values. "
                "Pass the layer with the counts, if there is one."
            )
            continue
        try:
            usable[name] = f"{method.versions()}, Python {platform.python_version()}"
        except PackageNotFoundError as error:
            warn(f"{error.name} is not installed, {method.title} is skipped: pip install 'celler[benchmark]'")
    return usable


def _key(cells: Cells, method: str, versions: str) -> str:
    """Hash all that a result depends on but the seed."""
    code = [file.read_bytes() for file in _code(method)]
    return str(joblib.hash([cells.fingerprint, versions, code]))[:12]


def _code(method: str) -> list[Path]:
    """Return the files that decide what a method returns: its own, and of Celler's all code and data."""
    ours = Path(__file__).parents[1]
    origin = getattr(find_spec(METHODS[method].module), "origin", "")
    files = {Path(origin or ""), ours / "benchmark" / "methods" / "_sklearn.py"}
    if "celler" in METHODS[method].packages:  # its version stays the same while it is developed
        others = {"atlas", "benchmark", "cli", "datasets.py", "pl", "pp", "tl"}
        files |= {f for f in ours.rglob("*") if f.relative_to(ours).parts[0] not in others}
        files = {file for file in files if file.parent.name != "__pycache__"}
    return sorted(file for file in files if file.is_file())


def _stored(file: Path) -> pd.DataFrame:
    """Read the rows of earlier runs; a type called NA is no missing value, a key of digits no number."""
    text = whole_rows(file)
    if not text:
        return pd.DataFrame(columns=COLUMNS)
    known: dict[str, Any] = {"dtype": {"key": str, "class": str}, "keep_default_na": False, "na_values": [""]}
    return read_rows(file, KEY, **known)


def read_rows(file: Path, needed: Sequence[str], **options: Any) -> pd.DataFrame:
    """Read a CSV file of ours, whose last row a killed run may have cut short."""
    try:
        rows = pd.read_csv(io.BytesIO(whole_rows(file)), **options)
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}. Move it away to run everything anew.") from error
    if missing := [name for name in needed if name not in rows]:
        raise ValueError(
            f"{file} has no column {', '.join(missing)}; it is not from this command. Name another folder, or move it "
            "away."
        )
    return rows


def _finished(todo: pd.DataFrame, cells: Cells) -> Iterator[tuple[dict[str, Any], pd.DataFrame | None]]:
    """Run and print each; give its row and the table of its types, ``None`` if it failed."""
    start = time.perf_counter()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / CELLS).write_bytes(pickle.dumps((cells.reference, cells.query)))
        for n, one in enumerate(todo.to_dict("records"), start=1):
            name, seed, method = one["method"], one["seed"], METHODS[one["method"]]
            print(f"[{n}/{len(todo)}] {method.title}, seed {seed}: ", end="", flush=True)
            try:
                measured = run_alone(f"{method.module}:{name}", method.imports, LABELS_KEY, seed, folder)
            except RuntimeError as error:
                print(f"failed, {error}", flush=True)
                yield one | {"error": str(error)}, None
                continue
            row, classes = _score(one, cells, measured)
            left = (time.perf_counter() - start) / n * (len(todo) - n) / 60
            print(f"macro-F1 {row['macro_f1']:.3f}, {row['fit_seconds']:.1f} s; {left:.0f} min left", flush=True)
            yield row, classes


def _score(one: dict[str, Any], cells: Cells, measured: Measured) -> tuple[dict[str, Any], pd.DataFrame]:
    """Compare scores with the truth, over all cells and for each type; a score without a value is left out."""
    scores = measured.scores.to_numpy()
    best, labels = scores.max(axis=1), np.asarray(measured.scores.columns)[scores.argmax(axis=1)]
    truth, counts = cells.truth, dict(cells.reference.obs[LABELS_KEY].value_counts())
    table = per_class(truth, labels, counts)
    table.loc[table["reference_cells"] == 0, "frequency"] = "unseen"
    means = table.groupby("frequency")[["recall", "f1"]].mean().reindex(GROUPS)
    row = one | overall(truth, labels, counts)
    row |= {f"{score}_{group}": means.loc[group, score] for score in means for group in GROUPS}
    if ((scores >= 0) & (scores <= 1)).all():
        row["ece"] = expected_calibration_error(best, truth == labels)
    is_unseen = ~np.isin(truth, list(counts))
    if is_unseen.any() and not is_unseen.all():
        row["rejection_auroc"] = float(roc_auc_score(is_unseen, -best))
    row["cells_per_second"] = len(truth) / measured.predict_seconds
    row |= {"fit_seconds": measured.fit_seconds, "peak_memory_mb": measured.peak_memory_mb}
    return row, table.reset_index().assign(**{name: one[name] for name in KEY})
