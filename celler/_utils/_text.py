"""Text: names of genes and labels of cells as clean text, whatever wrote them, and what in them means "missing".

Everything public reads names with :func:`as_names` and labels with :func:`as_categories`, so that all have one rule.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from celler._utils._messages import counted, listed, warn

#: What pandas, Python, R, SQL and spreadsheets write for a missing value.
MISSING = frozenset(["", "nan", "NaN", "NAN", "NA", "na", "N/A", "n/a", "#N/A", "<NA>", "None", "NaT", "null", "NULL"])
#: Labels that may mean "no label" but may be types too: said, not changed.
DOUBTFUL = frozenset(
    ["none", "missing", "unassigned", "not assigned", "unlabeled", "unlabelled", "unclassified", "unannotated"]
    + ["undefined", "undetermined", "unidentified", "ambiguous", "doublet", "doublets", "multiplet", "multiplets"]
    + ["low quality", "low-quality", "?", "-", "."]
)
_INVISIBLE = re.compile("[\ufeff\u00ad\u200b-\u200f\u2060\x00]")
_DIRTY = re.compile(r"(?m)^\s|\s$|^b?[\"']|[\ufeff\u00ad\u200b-\u200f\u2060\x00\xa0]")
#: Text of a bytes object, or text with its quotes.
_QUOTED = re.compile(r"b?(['\"])(.*)\1")
_SEPARATOR = re.compile(r"[^\w]|_")


def text_of(value: Any) -> str | None:
    """Text of a value, bytes decoded and whole floats without ``.0``; ``None`` for a missing one.

    Half of a surrogate pair, which no file takes, becomes its escape, as a byte that is no text does.
    """
    if isinstance(value, str):
        return str(value) if value.isascii() else value.encode("utf-8", errors="backslashreplace").decode()
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return f"{value:.0f}"
    return str(value)


# ---- names of genes ----
def as_names(values: pd.Index | pd.Series | Iterable[Any]) -> pd.Index:
    """Names as an index of clean str: a missing name is ``""``, bytes are decoded, blanks and invisible signs go."""
    if isinstance(values, pd.MultiIndex):
        raise TypeError(f"the names are a MultiIndex of {values.nlevels} levels; one text for each gene is needed.")
    names = values.tolist() if isinstance(values, pd.Index | pd.Series) else list(values)
    if not all(type(name) is str for name in names) or not _are_clean(names):
        names = [_clean(name) for name in names]
    return pd.Index(names, dtype=object)


def _are_clean(names: list[str]) -> bool:
    joined = "\n".join(names)
    return joined.isascii() and MISSING.isdisjoint(names) and not _DIRTY.search(joined)


def _clean(value: Any) -> str:
    text = _INVISIBLE.sub("", text_of(value) or "").strip()
    if quoted := _QUOTED.fullmatch(text):
        text = quoted[2].strip()
    return "" if text in MISSING else unicodedata.normalize("NFC", text)


def without_separators(name: str) -> str:
    """``HLA-DRA``, ``HLA.DRA`` and ``HLA_DRA`` -> ``HLA.DRA``, and ``7SK`` -> ``X7SK``, as R's ``make.names`` does."""
    return ("X" if name[:1].isdigit() else "") + _SEPARATOR.sub(".", name)


def found_names(wanted: Sequence[str], names: pd.Index) -> dict[str, str]:
    """Name among ``names`` of each ``wanted`` one: the same, or the only one that differs in separators alone."""
    known = set(names)
    found = {name: name for name in wanted if name in known}
    others = [name for name in wanted if name not in known]
    if others:
        keys = pd.Series(map(without_separators, names), dtype=object)
        is_only = ~keys.duplicated(keep=False).to_numpy()
        of_key = dict(zip(keys[is_only], names[is_only], strict=True))
        found |= {name: of_key[key] for name in others if (key := without_separators(name)) in of_key}
    return found


# ---- labels of cells ----
def is_missing(text: str) -> bool:
    """Whether a text is what a program writes for a missing value."""
    return _INVISIBLE.sub("", text).strip() in MISSING


def means_no_label(text: str, unlabeled: str = "Unknown") -> bool:
    """Whether a label means "no label": missing, "unknown" in any case, or ``unlabeled``."""
    return text == unlabeled or is_missing(text) or text.strip().casefold() == "unknown"


def as_categories(values: pd.Series | pd.Categorical, name: str) -> pd.Categorical:
    """Labels as text, categories in their order and used ones alone; missing values and texts for them are missing.

    Raises ``ValueError`` with the ``name`` of the column where a value is no label, such as a list.
    """
    try:
        column = pd.Categorical(values).remove_unused_categories()
    except TypeError as error:
        kind = next(type(value).__name__ for value in values if isinstance(value, list | dict | set | np.ndarray))
        raise ValueError(f"{name} holds values of type {kind}; a label is text, a category or an integer.") from error
    texts = [text_of(value) for value in column.categories]
    return renamed(column, [None if text is None or is_missing(text) else text for text in texts])


def renamed(column: pd.Categorical, names: Sequence[str | None]) -> pd.Categorical:
    """Return the column with new names by code, equal ones as one category; ``None`` is a missing value."""
    categories = list(dict.fromkeys(name for name in names if name is not None))
    table = np.array([*pd.Index(categories, dtype=object).get_indexer(list(names)), -1], np.int32)
    return pd.Categorical.from_codes(table[column.codes], pd.Index(categories, dtype=object), ordered=column.ordered)


def count_texts(values: pd.Series | pd.Categorical) -> dict[str, int]:
    """Cells of each text in a column, without missing values."""
    column = pd.Categorical(values)
    n_cells = np.bincount(column.codes[column.codes >= 0], minlength=len(column.categories))
    counts: dict[str, int] = {}
    for value, n in zip(column.categories, n_cells.tolist(), strict=True):
        if n and (text := text_of(value)) is not None:
            counts[text] = counts.get(text, 0) + n
    return counts


def alike(names: Iterable[str]) -> list[list[str]]:
    """Group names that differ in blanks, case, invisible signs or Unicode form alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", name)).casefold()
        groups.setdefault(" ".join(text.split()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def warn_of_labels(counts: Mapping[str, int], name: str, unlabeled: str) -> None:
    """Warn of labels that are read as missing, that may mean so, and that differ by nothing one sees.

    ``counts`` has the cells of each text that stands in the column ``name``.
    """
    quoted = lambda labels: listed([f"{label!r} ({counted(counts[label], 'cells')})" for label in labels])
    missing = [label for label in counts if label != unlabeled and means_no_label(label, unlabeled)]
    if missing:
        warn(
            f"{name} has the labels {quoted(missing)}, which mean that a cell has no label: these cells are "
            "unlabelled. If one is a type, rename it."
        )
    classes = [label for label in counts if label not in missing and label != unlabeled]
    doubtful = [label for label in classes if label.strip().casefold() in DOUBTFUL]
    if doubtful:
        warn(
            f"{name} has the labels {quoted(doubtful)}, which are learned as types. If they mean that a cell has no "
            f"type, pass unlabeled_category={doubtful[0]!r} or set these cells to missing."
        )
    warn_of_alike(classes, name)


def warn_of_alike(names: Iterable[str], what: str) -> None:
    """Warn of names that differ in blanks, case or Unicode form alone."""
    if groups := alike(names):
        shown = listed([" and ".join(map(repr, group)) for group in groups])
        warn(
            f"{what} has labels that differ in blanks, upper and lower case or Unicode form alone: {shown}. They are "
            "different types here; give them one name if they are one."
        )
