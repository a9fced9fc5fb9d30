"""Comparison: methods trained on one reference, asked for one query, a row per method and seed."""

from __future__ import annotations

import pickle
import platform
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import joblib
import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.metrics import roc_auc_score

from celler._utils._messages import closest, column, warn
from celler.benchmark._process import CELLS, Measured, run_alone
from celler.benchmark.methods import METHODS
from celler.data._expression import ExpressionReader, check_values
from celler.data._genes import align_genes, check_unique
from celler.labels import as_strings
from celler.metrics import expected_calibration_error, per_class
from celler.metrics import summary as overall

__all__ = ["class_scores", "run", "summary", "summary_text"]
#: The column of obs that holds the labels of a reference, whatever it is called in the user's.
LABELS_KEY = "label"
UNLABELED = "Unknown"


@dataclass(frozen=True)
class Cells:
    """reference: counts or logarithms, labels and gene names. query: the same without labels.
    truth: labels ``(N,)`` of the query."""

    reference: AnnData
    query: AnnData
    truth: np.ndarray

    @classmethod
    def of(
        cls,
        reference: AnnData,
        query: AnnData,
        labels_key: str,
        query_labels_key: str | None,
        layer: str | None,
    ) -> Cells:
        """Copies of what methods need. Cells without a label are left out, with a warning; genes are
        matched by name, and those that the reference lacks are left out."""
        labels = _labels(reference, labels_key, "labels_key", "reference")
        argument = "labels_key" if query_labels_key is None else "query_labels_key"
        truth = _labels(query, query_labels_key or labels_key, argument, "query")
        is_learned, is_scored = labels != UNLABELED, truth != UNLABELED
        check_unique(reference.var_names, "the reference's genes")
        genes = align_genes(query.var_names, reference.var_names, query.var)
        place = np.flatnonzero(genes.gene_map >= 0)
        place = place[np.argsort(genes.gene_map[place])]
        known = _plain(reference, is_learned, layer, np.arange(reference.n_vars))
        asked = _plain(query, is_scored, layer, place)
        known.obs[LABELS_KEY] = labels[is_learned]
        known.var_names = reference.var_names.astype(str)
        asked.var_names = known.var_names[np.sort(genes.gene_map[place])]
        return cls(known, asked, truth[is_scored])

    @property
    def kinds(self) -> set[str]:
        """What the values are, such as counts or log1p."""
        return {self.reference.uns["kind"], self.query.uns["kind"]}

    @property
    def reference_counts(self) -> dict[str, int]:
        """Cells of each type of the reference."""
        return dict(self.reference.obs[LABELS_KEY].value_counts())

    @cached_property
    def fingerprint(self) -> str:
        """A hash that changes with any value, gene, label or the order of cells."""
        parts = [list(self.reference.obs[LABELS_KEY]), list(self.truth)]
        for adata in (self.reference, self.query):
            X = adata.X
            parts += [adata.uns["kind"], list(adata.var_names), X.data, X.indices, X.indptr]
        return str(joblib.hash(parts))


def _labels(adata: AnnData, key: str, argument: str, what: str) -> np.ndarray:
    """Labels as text, ``Unknown`` where there is none; warns of those, raises where there are no others."""
    values = column(adata.obs, key, argument, f"{what}.obs")
    labels = as_strings(values, key, UNLABELED).astype(str)
    n_unlabeled = int((labels == UNLABELED).sum())
    if n_unlabeled == len(labels):
        raise ValueError(f"{what}.obs[{key!r}] labels no cell; name a column with cell types.")
    if n_unlabeled:
        warn(
            f"{n_unlabeled:,} of the {what}'s {len(labels):,} cells have no label; they are left out."
        )
    return labels


def _plain(adata: AnnData, is_kept: np.ndarray, layer: str | None, columns: np.ndarray) -> AnnData:
    """The kept cells' values as CSR float32, and what they are in ``uns["kind"]``; no obs, no var."""
    reader = ExpressionReader(adata, layer)
    X = reader.matrix()
    check_values(X, reader)
    X = X[is_kept][:, columns]
    obs = pd.DataFrame(index=adata.obs_names[is_kept].astype(str))
    return AnnData(X, obs=obs, uns={"kind": reader.state.kind})


#: What names a result; ``key`` is a hash of the cells, the versions and the code.
KEY = ["method", "seed", "key"]
MEANS = [f"{score}_{group}" for score in ("recall", "f1") for group in ("head", "medium", "tail")]
#: Each score, and the decimals it is printed with.
DECIMALS = {
    **dict.fromkeys(["accuracy", "macro_f1", "macro_precision", "macro_recall", *MEANS], 3),
    **dict.fromkeys(["ece", "rejection_auroc"], 3),
    **{"fit_seconds": 1, "cells_per_second": 0, "peak_memory_mb": 0},
}
COLUMNS = ["method", "seed", *DECIMALS, "error", "versions", "key"]
RUNS, CLASSES = "runs.csv", "classes.csv"


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
    """Train methods on a reference, ask each for the labels of a query, and compare with those it has.

    Each method and seed has a process of its own, which never sees the query's labels and does its
    own preprocessing while the clock runs. A method whose package is missing, or that cannot use the
    values, is skipped with a warning; one that fails gets a row with the reason in ``error``. Neither
    AnnData is changed.

    labels_key, query_labels_key: column of obs with the types, of the reference and of the query;
        ``None`` is the same. Cells without a label, or labelled ``Unknown``, are left out.
    methods: names from ``celler.benchmark.methods.METHODS``; the default is all.
    seeds: how many, or which.
    layer: entry of ``layers`` with the counts, in both; ``None`` is ``X``.
    folder: where finished rows go, and from where a run that was stopped goes on: ``runs.csv``, and
        ``classes.csv`` with a row per type, see :func:`celler.benchmark.class_scores`. Rows of other
        cells, versions or code may stand there too; they are not mixed in.

    Returns a row per method and seed. ``accuracy``. ``macro_f1``, ``macro_precision``, ``macro_recall``
    over the types of the query and those predicted. Means of ``f1`` and ``recall`` over the head, medium
    and tail types (:func:`celler.metrics.frequency_groups`) that the reference has. ``ece``:
    calibration error of the best probability. ``rejection_auroc``: how well the best score tells cells
    of types that the reference lacks from the others, where there are such. ``fit_seconds``;
    ``cells_per_second`` at prediction; ``peak_memory_mb``: MiB beyond packages and cells. ``error``,
    ``versions``, and ``key``, which is another with other cells, versions or code.
    """
    _check_names(methods)
    cells = Cells.of(reference, query, labels_key, query_labels_key, layer)
    plan = pd.DataFrame(
        [
            (method, seed, _key(cells, method, versions), versions)
            for method, versions in _usable(methods, cells).items()
            for seed in (range(seeds) if isinstance(seeds, int) else seeds)
        ],
        columns=[*KEY, "versions"],
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    known = set(_stored(folder / RUNS)[KEY].itertuples(index=False, name=None))
    is_known = [name in known for name in plan[KEY].itertuples(index=False, name=None)]
    failed = []
    for row, classes in _finished(plan[~np.array(is_known, bool)], cells):
        if classes is None:
            failed.append(row)
        else:  # a row without its classes would be lost; classes without their row are not looked at
            _append(folder / CLASSES, classes)
            _append(folder / RUNS, pd.DataFrame([row], columns=COLUMNS))
    stored = _stored(folder / RUNS).drop_duplicates(KEY).to_dict("records")
    return plan[KEY].merge(pd.DataFrame([*stored, *failed], columns=COLUMNS))[COLUMNS]


def class_scores(rows: pd.DataFrame, folder: Path | str = "benchmark") -> pd.DataFrame:
    """The scores of each type behind the rows that :func:`celler.benchmark.run` returned.

    Columns ``method``, ``seed`` and those of :func:`celler.metrics.per_class`; ``frequency`` is ``unseen``
    for types that the reference lacks.
    """
    file = Path(folder) / CLASSES
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; pass the folder that run() was given.")
    classes = _stored(file).drop_duplicates([*KEY, "class"], keep="last")
    return rows[KEY].merge(classes).drop(columns="key")


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds of each score by method, best macro-F1 first.

    Columns ``(score, "mean" | "sd")``. Rows may come from several calls of
    :func:`celler.benchmark.run`, told apart by a column ``task``. Failed runs are left out.
    """
    by = [name for name in ("task", "method") if name in rows]
    table = rows[rows["error"].isna()].groupby(by, sort=False)[list(DECIMALS)].agg(["mean", "std"])
    table = table.rename(columns={"std": "sd"}, level=1).sort_values(
        ("macro_f1", "mean"), ascending=False, kind="stable"
    )
    if "task" in rows:
        table = table.loc[[task for task in rows["task"].unique() if task in table.index]]
    return table


def summary_text(table: pd.DataFrame) -> str:
    """A :func:`celler.benchmark.summary` to read: mean ± sd of the scores that there are."""
    shown = pd.DataFrame(index=table.index)
    for score, decimals in DECIMALS.items():
        parts = table[score].itertuples(index=False)
        if table[score, "mean"].notna().any():
            shown[score] = [mean_and_sd(mean, sd, decimals) for mean, sd in parts]
    return shown.to_string()


def mean_and_sd(mean: float, sd: float, decimals: int) -> str:
    """``0.912 ± 0.003``; a dash where there is no mean, no spread where there is one seed."""
    if np.isnan(mean):
        return "–"
    spread = "" if np.isnan(sd) else f" ± {sd:,.{decimals}f}"
    return f"{mean:,.{decimals}f}{spread}"


def _check_names(methods: Iterable[str]) -> None:
    if isinstance(methods, str):
        raise TypeError(f"methods={methods!r} is one string; pass a list of names.")
    for name in methods:
        if name not in METHODS:
            raise ValueError(
                f"methods names {name!r}, which there is not.{closest(name, METHODS)} "
                f"There are: {', '.join(METHODS)}."
            )


def _usable(methods: Iterable[str], cells: Cells) -> dict[str, str]:
    """Versions of the packages of each method that can run; warns of those that cannot."""
    usable = {}
    other = cells.kinds - {"counts", "expected counts"}
    warn = partial(warnings.warn, category=UserWarning, stacklevel=3)
    for name in methods:
        method = METHODS[name]
        if method.needs_counts and other:
            warn(
                f"{method.title} needs counts and is skipped: the cells hold {min(other)} values. Pass "
                "the layer with the counts, if there is one."
            )
            continue
        try:
            usable[name] = f"{method.versions()}, Python {platform.python_version()}"
        except PackageNotFoundError as error:
            warn(
                f"{error.name} is not installed, {method.title} is skipped: "
                "pip install 'celler[benchmark]'"
            )
    return usable


def _key(cells: Cells, method: str, versions: str) -> str:
    """A hash of everything that a result depends on but the seed."""
    root = Path(__file__).parents[1]
    folder = root / "benchmark" / "methods"
    files = [folder / f"{name}.py" for name in (method, "shared", "variable")]
    if "celler" in METHODS[method].packages:  # its version stays while it is worked on
        files += sorted([*root.glob("*.py"), *root.glob("model/*.py")])
    code = [file.read_text(encoding="utf-8") for file in files]
    return str(joblib.hash([cells.fingerprint, versions, code]))[:12]


def _stored(file: Path) -> pd.DataFrame:
    """What :func:`_append` wrote; a type called NA is no missing value, a key of digits no number."""
    if not file.exists():
        return pd.DataFrame(columns=COLUMNS)
    text = dict.fromkeys(["key", "class"], str)
    return pd.read_csv(file, dtype=text, keep_default_na=False, na_values=[""])


def _append(file: Path, table: pd.DataFrame) -> None:
    table.to_csv(file, mode="a", header=not file.exists(), index=False)


def _finished(
    todo: pd.DataFrame, cells: Cells
) -> Iterator[tuple[dict[str, Any], pd.DataFrame | None]]:
    """The row of each run and the table of its classes, ``None`` where it failed; says how it goes."""
    start = time.perf_counter()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / CELLS).write_bytes(pickle.dumps((cells.reference, cells.query)))
        for n, one in enumerate(todo.to_dict("records"), start=1):
            title = METHODS[one["method"]].title
            print(f"[{n}/{len(todo)}] {title}, seed {one['seed']}: ", end="", flush=True)
            try:
                module = f"celler.benchmark.methods.{one['method']}"
                measured = run_alone(module, LABELS_KEY, one["seed"], folder)
            except RuntimeError as error:
                print(f"failed, {error}", flush=True)
                yield one | {"error": str(error)}, None
                continue
            row, classes = _score(one, cells, measured)
            left = (time.perf_counter() - start) / n * (len(todo) - n) / 60
            print(
                f"macro-F1 {row['macro_f1']:.3f}, {row['fit_seconds']:.1f} s; {left:.0f} min left",
                flush=True,
            )
            yield row, classes


def _score(
    one: dict[str, Any], cells: Cells, measured: Measured
) -> tuple[dict[str, Any], pd.DataFrame]:
    """A method's answer compared with the truth: over all cells, and type by type."""
    scores = measured.scores.to_numpy()
    best, labels = scores.max(axis=1), np.asarray(measured.scores.columns)[scores.argmax(axis=1)]
    counts, truth = cells.reference_counts, cells.truth
    table = per_class(truth, labels, counts)
    table.loc[table["reference_cells"] == 0, "frequency"] = "unseen"
    means = table.groupby("frequency")[["recall", "f1"]].mean()
    row = one | overall(truth, labels, counts)
    row |= {
        name: means[score].get(group, np.nan)
        for name in MEANS
        for score, group in [name.split("_")]
    }
    row["ece"] = row["rejection_auroc"] = np.nan
    if ((scores >= 0) & (scores <= 1)).all():
        row["ece"] = expected_calibration_error(best, truth == labels)
    is_unseen = ~np.isin(truth, list(counts))
    if is_unseen.any() and not is_unseen.all():
        row["rejection_auroc"] = float(roc_auc_score(is_unseen, -best))
    row |= {
        "fit_seconds": measured.fit_seconds,
        "cells_per_second": len(truth) / measured.predict_seconds,
        "peak_memory_mb": measured.peak_memory_mb,
    }
    names = {name: one[name] for name in ("method", "seed", "key")}
    return row, table.reset_index().assign(**names)
