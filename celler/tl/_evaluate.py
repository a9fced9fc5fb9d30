"""Evaluation: agreement of predicted labels with the truth, overall and by class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._check import checked
from celler._utils._messages import counted, listed, warn
from celler.metrics import expected_calibration_error, per_class, summary
from celler.tl._columns import label_column, share_column, table_of


class Pair(NamedTuple):
    """Labels as text ``(n,)`` of the cells that have both, and the ``rows (n,)`` of these cells."""

    truth: np.ndarray
    prediction: np.ndarray
    rows: np.ndarray


def read_pair(
    data: AnnData | pd.DataFrame,
    truth_key: str,
    prediction_key: str,
    arguments: tuple[str, str] = ("truth_key", "prediction_key"),
    warns: bool = True,
) -> Pair:
    """Both labels of the cells that have both; ``warns`` of the number left out."""
    truth = label_column(data, truth_key, arguments[0])
    prediction = label_column(data, prediction_key, arguments[1])
    rows = np.flatnonzero((truth.codes >= 0) & (prediction.codes >= 0))
    if not len(rows):
        raise ValueError(
            f"No cell has a label in both {truth_key!r} and {prediction_key!r}; pass columns of the same cells."
        )
    if warns and len(rows) < len(truth):
        of = f"{len(truth) - len(rows):,} of {len(truth):,} cells"
        warn(f"Left out {of}, no label in {truth_key!r} or {prediction_key!r}.")
    return Pair(np.asarray(truth[rows], dtype=str), np.asarray(prediction[rows], dtype=str), rows)


def read_parents(
    data: AnnData | pd.DataFrame, parents: Mapping[str, str] | pd.Series | str, cells: Pair
) -> dict[str, str]:
    """Parent of every class of the truth, from a mapping or a column with the parent of each cell."""
    if isinstance(parents, Mapping | pd.Series):
        found = pd.Series(parents, dtype=object)
        pairs = pd.DataFrame({"class": found.index.astype(str), "parent": found.to_numpy()})
        given = "parents"
    else:
        column = label_column(data, parents, "parents")[cells.rows]
        pairs = pd.DataFrame({"class": cells.truth, "parent": np.asarray(column, dtype=object)})
        given = f"parents={parents!r}"
    pairs = pairs.dropna().astype(str).drop_duplicates()
    of_class = pairs.groupby("class")["parent"].agg(sorted)
    names = {name: of_class.get(name, []) for name in np.unique(cells.truth).tolist()}
    if missing := [name for name in names if not names[name]]:
        raise ValueError(f"{given} has no parent for {listed(missing)}; name one for each class.")
    for name, several in names.items():
        if len(several) > 1:
            raise ValueError(
                f"{given} gives class {name!r} {listed(several)} as parents; each class needs exactly one."
            )
    return dict(zip(pairs["class"], pairs["parent"], strict=True))


class Evaluation(NamedTuple):
    """Agreement of predictions with the truth.

    Attributes
    ----------
    summary
        One number per metric, see :func:`celler.metrics.summary`; also ``rejected_share`` with rejected cells,
        ``backed_off_share`` with backed-off ones, ``ece`` with a confidence, ``parent_*`` with parents.
    per_class
        One row per class of the truth, see :func:`celler.metrics.per_class`; ``reference_cells`` are there if
        ``reference_counts`` were given.
    per_parent
        The same for the parents, or ``None``.
    """

    summary: dict[str, float]
    per_class: pd.DataFrame
    per_parent: pd.DataFrame | None = None

    def __repr__(self) -> str:
        title, scores, table = _printed(self)
        rows = [f"  {name:<{max(map(len, scores))}}  {score}" for name, score in scores.items()]
        return "\n".join([title, *rows, "", table.to_string(index_names=False)])

    def _repr_html_(self) -> str:
        title, scores, table = _printed(self)
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{score}</td></tr>" for name, score in scores.items())
        return f"<b>{title}</b><table>{cells}</table>{table.to_html(index_names=False, border=0)}"


#: What a printed evaluation says first.
SCORES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1 (mean over classes)",
    "f1_head": "mean F1 of head classes",
    "f1_medium": "mean F1 of medium classes",
    "f1_tail": "mean F1 of tail classes",
    "recall_tail": "mean recall of tail classes",
    "ece": "calibration error",
    "rejected_share": "share of cells rejected",
    "backed_off_share": "share of cells backed off to a parent",
    "parent_accuracy": "accuracy of parents",
    "parent_macro_f1": "macro-F1 of parents",
}


def in_words(scores: Mapping[str, float], words: Mapping[str, str]) -> dict[str, float]:
    """Return the scores that exist by the ``words`` for them, in their order."""
    return {text: scores[name] for name, text in words.items() if np.isfinite(scores.get(name, np.nan))}


def _printed(result: Evaluation) -> tuple[str, dict[str, str], pd.DataFrame]:
    """Return the title, the scores by what they are, and the table by class, all with three digits."""
    table = result.per_class
    title = f"Evaluation of {counted(int(table['query_cells'].sum()), 'cells')} of {counted(len(table), 'classes')}"
    known = {text: f"{score:.3f}" for text, score in in_words(result.summary, SCORES).items()}
    counts = [name for name in table if name.endswith("_cells")]
    shown = table.astype(dict.fromkeys(counts, int)).rename(columns=lambda name: name.replace("_", " "))
    for name in shown.select_dtypes("number"):
        shown[name] = shown[name].map("{:,.0f}".format if name.endswith(" cells") else "{:.3f}".format)
    return title, known, shown


@checked
def evaluate(
    adata: AnnData | pd.DataFrame,
    truth: str,
    prediction: str,
    *,
    mapping: Mapping[str, str] | pd.Series | None = None,
    reference_counts: Mapping[str, int] | pd.Series | None = None,
    parents: Mapping[str, str] | pd.Series | str | None = None,
    confidence: str | None = None,
    unknown_label: str = "Unknown",
) -> Evaluation:
    """Compare predicted labels with the truth, by scikit-learn's metrics where it has them.

    Cells without a truth or a prediction are left out with a warning. A cell predicted as ``unknown_label`` is
    rejected: it counts as missed, and "Unknown" is no class with an F1 of zero, unless the truth has it.

    Parameters
    ----------
    adata
        The cells, or a table with the columns named here, such as ``adata.obs``.
    truth
        Column with the true labels.
    prediction
        Column with the predicted labels.
    mapping
        Common name of labels that are named differently, or of those that are finer on one side, such as
        ``{"CD14+ Mono": "CD14 Mono"}``. Labels of both columns are replaced by it, and names in ``reference_counts``
        and ``parents``.
    reference_counts
        Training cells of each class, which decide what is head, medium and tail:
        ``reference.obs["cell_type"].value_counts()``. ``None`` is the cells of the truth.
    parents
        Parent by class, or a column with the parent of each cell's true class. A predicted class without a
        parent is its own. A cell predicted as a parent is backed off: it counts as missed among the classes
        and by its label among the parents. ``None`` is no parent level.
    confidence
        Column with the probability of the predicted label, for the calibration error. ``None`` is
        ``<prediction>_confidence`` if it exists. Missing values are left out.
    unknown_label
        Label of rejected cells.

    Returns
    -------
    Evaluation
        The summary and the tables by class and by parent.

    Raises
    ------
    KeyError
        A column does not exist.
    ValueError
        No cell has both labels, none has a label that ``mapping`` names, or a class has no parent or two.

    Examples
    --------
    >>> result = cl.tl.evaluate(query, "cell_type", "celler", mapping={"CD14+ Mono": "CD14 Mono"})
    >>> result
    >>> result.summary["macro_f1"]
    """
    rename = {str(old): str(new) for old, new in dict({} if mapping is None else mapping).items()}
    cells = _renamed(read_pair(adata, truth, prediction, arguments=("truth", "prediction")), rename)
    if parents is None:
        _check_names(cells, unknown_label)
    elif isinstance(parents, Mapping | pd.Series):
        parents = pd.Series(dict(parents), dtype=object).rename(index=lambda name: rename.get(str(name), str(name)))
    has_reference = reference_counts is not None
    counts = dict(pd.Series(cells.truth).value_counts() if reference_counts is None else reference_counts)
    counts = dict(pd.Series(counts, dtype=int).groupby(lambda name: rename.get(str(name), str(name)), sort=False).sum())
    is_rejected = (cells.prediction == unknown_label) & (unknown_label not in set(cells.truth))
    parent_of = {} if parents is None else read_parents(adata, parents, cells)
    is_parent = np.isin(cells.prediction, list(set(parent_of.values()) - {*parent_of, *cells.truth}))
    scores, table = _compare(cells, counts, is_rejected | is_parent, has_reference)
    for name, is_so in (("rejected_share", is_rejected), ("backed_off_share", is_parent)):
        if is_so.any():
            scores[name] = float(is_so.mean())
    scores |= _calibration(adata, prediction, confidence, cells, ~is_rejected & ~is_parent)
    if parents is None:
        return Evaluation(scores, table)
    # a predicted class without a parent is its own
    counts = dict(pd.Series(counts, dtype=int).groupby(lambda name: parent_of.get(name, name)).sum())
    of_parents, parent_table = _compare(_renamed(cells, parent_of), counts, is_rejected, has_reference)
    scores |= {f"parent_{name}": score for name, score in of_parents.items()}
    return Evaluation(scores, table, parent_table)


def _renamed(cells: Pair, rename: Mapping[str, str]) -> Pair:
    """Replace labels of both sides that ``rename`` has."""
    if not rename:
        return cells
    truth, prediction = (np.array([rename.get(name, name) for name in labels.tolist()]) for labels in cells[:2])
    return Pair(truth, prediction, cells.rows)


def _check_names(cells: Pair, unknown_label: str) -> None:
    """Warn where no predicted label is a name of the truth, or some are but for signs, so that cells count as wrong."""
    given, predicted = set(cells.truth.tolist()), set(cells.prediction.tolist()) - {unknown_label}
    if predicted and not given & predicted:
        warn(
            f"No predicted label ({listed(sorted(predicted))}) is a name of the truth ({listed(sorted(given))}), so "
            "all count as wrong. Where only names differ, pass mapping=, a dict from one name to the other."
        )
        return
    of_key = {_plain(name): name for name in sorted(given - predicted)}
    alike = {name: of_key[_plain(name)] for name in sorted(predicted - given) if _plain(name) in of_key}
    if alike:
        warn(
            "Some labels of the prediction and of the truth differ in signs, blanks, case or 'cell' alone, and count "
            f"as different types. If they are the same, pass mapping={alike}."
        )


def _plain(name: str) -> str:
    """``CD14+ Monocytes`` and ``CD14 monocytes`` -> ``cd14monocytes``; ``B cells`` -> ``b``; CD16- keeps its sign."""
    signed = re.sub(r"-(?=\s|$)", "minus", name.casefold())
    return re.sub(r"cells?$", "", re.sub(r"[\W_]", "", signed))


def _compare(
    cells: Pair, counts: Mapping[str, int], is_rejected: np.ndarray, has_reference: bool
) -> tuple[dict[str, float], pd.DataFrame]:
    """Compute the metrics of one level; the label of rejected cells is no class."""
    truth, prediction, _ = cells
    classes = sorted({*truth, *prediction[~is_rejected]})
    scores, table = summary(truth, prediction, counts, classes), per_class(truth, prediction, counts)
    return scores, table if has_reference else table.drop(columns="reference_cells")


def _calibration(
    data: AnnData | pd.DataFrame, prediction: str, confidence: str | None, cells: Pair, is_labelled: np.ndarray
) -> dict[str, float]:
    """Compute the calibration error of the cells with a label and a confidence, if there are any."""
    key = f"{prediction}_confidence" if confidence is None else confidence
    if confidence is None and key not in table_of(data)[0].columns:
        return {}
    shares = share_column(data, key, "confidence")[cells.rows]
    is_counted = is_labelled & ~np.isnan(shares)
    if not is_counted.any():
        return {}
    is_correct = (cells.truth == cells.prediction)[is_counted]
    return {"ece": expected_calibration_error(shares[is_counted], is_correct)}
