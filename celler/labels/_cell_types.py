"""Cell Ontology ids for the names that people give to cell types; a name with two meanings gets none."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import pandas as pd

from celler._utils._check import checked
from celler._utils._text import text_of
from celler.labels._abbreviations import ABBREVIATIONS, AMBIGUOUS
from celler.labels._ontology import Ontology, Term, cell_ontology
from celler.labels._spelling import parted, spelling, without_cell

COLUMNS = ["cl_id", "cl_name", "found_by", "candidates"]
IDENTIFIER = re.compile(r"(?:https?://.*/)?CL[:_](\d{7})", re.IGNORECASE)
N_CANDIDATES = 3
#: A candidate shares at least this part of its words, weighed by how rare they are (cosine).
MIN_SIMILARITY = 0.4
#: The number of a cluster, such as "C42", which some ontology's synonyms are too.
CODE = re.compile(r"[A-Za-z]\d+")
#: Markers whose plus sign is often left out.
CD4_OR_CD8 = re.compile(r"\bCD[48]\b")
#: A shorter word is taken as it is written.
MIN_TYPO = 5


@checked
def find_ids(labels: Iterable[str]) -> pd.DataFrame:
    """Find the Cell Ontology id of each name of a cell type.

    A name is looked up as id, name, exact synonym and common abbreviation, then in other spelling: case, plural,
    punctuation, order of words, ``+`` for "positive", an added or missing "cell". Nothing is guessed: a name with two
    meanings, such as ``"alpha"``, and an unknown one get no id but candidates.

    Parameters
    ----------
    labels
        Names, such as a list, ``adata.obs["cell_type"]`` or its categories; missing ones are skipped.

    Returns
    -------
    pandas.DataFrame
        One row for each distinct label, the index. ``cl_id`` and ``cl_name`` are empty where ``found_by`` is
        ``"ambiguous"`` or ``"unknown"``; otherwise that is ``"id"``, ``"name"``, ``"synonym"``, ``"abbreviation"`` or
        ``"spelling"``. ``candidates`` lists the terms that may be meant.

    Raises
    ------
    TypeError
        ``labels`` is one string or a table, or holds something other than text.

    Notes
    -----
    The terms are those of the release of the Cell Ontology that comes with Celler (CC BY 4.0, see
    :cite:t:`Diehl16`); the abbreviations were collected by Celler.

    Examples
    --------
    >>> cl.labels.find_ids(["CD14+ Monocytes", "NK", "alpha"])[["cl_id", "found_by"]]
                          cl_id      found_by
    label
    CD14+ Monocytes  CL:0001054      spelling
    NK               CL:0000623  abbreviation
    alpha                           ambiguous
    >>> adata.obs["cl_id"] = adata.obs["cell_type"].map(cl.labels.find_ids(adata.obs["cell_type"])["cl_id"])
    """
    names = cell_type_names()
    rows = {label: names.find(label).row() for label in _distinct(labels)}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS, dtype=object)
    return table.rename_axis("label")


def ids_of(labels: Iterable[str]) -> dict[str, str]:
    """Cell Ontology id of each distinct label, an empty string where it has none."""
    names = cell_type_names()
    return {label: names.find(label, with_candidates=False).row()[0] for label in _distinct(labels)}


def _distinct(labels: Iterable[str]) -> list[str]:
    """Distinct labels in the order of appearance, without missing ones."""
    if isinstance(labels, str | bytes):
        raise TypeError(f"labels={labels!r} is one string; pass a list of names.")
    if isinstance(labels, pd.DataFrame) or not isinstance(labels, Iterable):
        raise TypeError(
            f"labels is a {type(labels).__name__}; a list of names or a column, such as adata.obs['cell_type'], "
            "is needed."
        )
    values = labels if isinstance(labels, pd.Series | pd.Index | pd.Categorical) else list(labels)
    column = pd.Series(values, dtype=None if len(values) else object).dropna()
    for value in column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column:
        if not isinstance(value, str | bytes):
            raise TypeError(
                f"labels holds {value!r} ({type(value).__name__}); names of cell types are needed. Numbers of "
                "clusters have no id: name them first."
            )
    texts = dict.fromkeys(text_of(label) for label in column.unique())
    return [text for text in texts if text is not None]


@dataclass(frozen=True)
class Match:
    """Terms that a name may mean, and how they were found; there is one term unless it is ambiguous or unknown."""

    found_by: str
    terms: tuple[Term, ...]

    @property
    def is_found(self) -> bool:
        """Whether the name means one term."""
        return self.found_by not in ("ambiguous", "unknown")

    def row(self) -> tuple[str, str, str, str]:
        """Values of the columns of :func:`find_ids`."""
        if self.is_found:
            return self.terms[0].id, self.terms[0].name, self.found_by, ""
        return "", "", self.found_by, "; ".join(map(str, self.terms))


class CellTypeNames:
    """Names of the terms of an ontology in every spelling, with the short names of the field."""

    def __init__(self, ontology: Ontology) -> None:
        self.ontology = ontology
        term_named = {term.name: term for term in ontology.terms.values()}
        self._short: dict[str, list[Term]] = {}
        for name, short_names in ABBREVIATIONS.items():
            written = {text for short in short_names for text in (short, CD4_OR_CD8.sub(r"\g<0>+", short))}
            for key in set(map(spelling, written)):
                self._short.setdefault(key, []).append(term_named[name])
        self._unclear = {spelling(name): tuple(term_named[one] for one in means) for name, means in AMBIGUOUS.items()}

    @cached_property
    def _spelled(self) -> dict[str, dict[str, list[Term]]]:
        """Terms by spelled name and by spelled synonym."""
        spelled: dict[str, dict[str, list[Term]]] = {"name": {}, "exact": {}}
        for term in self.ontology.terms.values():
            for kind, names in (("name", [term.name]), ("exact", term.exact)):
                for key in {spelling(name) for name in names}:
                    spelled[kind].setdefault(key, []).append(term)
        return spelled

    @cached_property
    def _cell_added(self) -> dict[str, dict[str, list[Term]]]:
        """The same without the word "cell"."""
        added: dict[str, dict[str, list[Term]]] = {"name": {}, "exact": {}}
        for kind, spelled in self._spelled.items():
            for key, terms in spelled.items():
                added[kind].setdefault(without_cell(key), []).extend(terms)
        return added

    @cached_property
    def _variants(self) -> list[tuple[frozenset[str], Term]]:
        """Words of each name of each term."""
        tables = [*self._cell_added.values(), self._short]
        return [(frozenset(key.split()), term) for table in tables for key, terms in table.items() for term in terms]

    @cached_property
    def _weights(self) -> dict[str, float]:
        """Weight of each word, the larger the rarer."""
        counts = Counter(word for words, _ in self._variants for word in words)
        return {word: math.log(1 + len(self._variants) / count) for word, count in counts.items()}

    def find(self, label: str, *, with_candidates: bool = True) -> Match:
        """Find the term that a label means; candidates for an unknown one take most of the time."""
        if identifier := IDENTIFIER.fullmatch(label.strip()):
            term = self.ontology.terms.get(f"CL:{identifier[1]}")
            return Match("id", (term,)) if term else Match("unknown", ())
        for text in dict.fromkeys([label, parted(label)]):
            if match := self._find_named(text):
                return Match("ambiguous", match.terms) if CODE.fullmatch(label.strip()) else match
        return Match("unknown", tuple(self._similar(spelling(parted(label)))) if with_candidates else ())

    def term(self, label: str) -> Term:
        """Return the term that a label means; raise unless there is one."""
        match = self.find(label)
        if match.is_found:
            return match.terms[0]
        if match.found_by == "ambiguous":
            raise ValueError(f"{label!r} may be {' or '.join(map(str, match.terms))}; pass one of these ids.")
        closest = f" Closest: {', '.join(map(str, match.terms))}." * bool(match.terms)
        raise ValueError(f"{label!r} is no id, name, synonym or short name of the Cell Ontology.{closest}")

    def _find_named(self, label: str) -> Match | None:
        """Match of a name, a synonym, a short name, or of another spelling of one, in this order."""
        if terms := self.ontology.named("name", label):
            return _match("name", terms)
        key = spelling(label)
        synonyms = self.ontology.named("exact", label)
        return self._find_spelled(key, synonyms, self._spelled) or self._find_spelled(
            without_cell(key), synonyms, self._cell_added
        )

    def _find_spelled(
        self, key: str, synonyms: list[Term], spelled: Mapping[str, Mapping[str, list[Term]]]
    ) -> Match | None:
        """Match of a spelling; ``synonyms`` are the terms that the label itself is a synonym of."""
        if key in self._unclear:
            return Match("ambiguous", self._unclear[key])
        if terms := [*synonyms, *self._short.get(key, [])]:
            return _match("synonym" if synonyms else "abbreviation", terms)
        terms = spelled["name"].get(key) or spelled["exact"].get(key, [])
        return _match("spelling", terms) if terms else None

    def _similar(self, key: str) -> list[Term]:
        """Terms whose names share most words with a spelling, best first."""
        words = {self._known(word) for word in without_cell(key).split() if not word.isdigit()} & self._weights.keys()
        size = self._size(words)
        scored: dict[str, float] = {}
        for others, term in self._variants:
            if shared := words & others:
                score = self._size(shared) ** 2 / (size * self._size(others))
                scored[term.id] = max(score, scored.get(term.id, MIN_SIMILARITY))
        best = sorted(scored, key=lambda i: (-scored[i], len(self.ontology.terms[i].name), i))
        return [self.ontology.terms[i] for i in best if scored[i] > MIN_SIMILARITY][:N_CANDIDATES]

    def _size(self, words: Iterable[str]) -> float:
        """Length of the vector of words."""
        return math.sqrt(sum(self._weights[word] ** 2 for word in words))

    def _known(self, word: str) -> str:
        """Return the word itself, or the known word that it resembles."""
        if word in self._weights or len(word) < MIN_TYPO:
            return word
        return next(iter(difflib.get_close_matches(word, self._weights, 1, 0.8)), word)


@cache
def cell_type_names() -> CellTypeNames:
    """Names of the Cell Ontology that comes with Celler, read once."""
    return CellTypeNames(cell_ontology())


def _match(found_by: str, terms: Iterable[Term]) -> Match:
    """Match of terms: ambiguous if they differ."""
    distinct = tuple({term.id: term for term in terms}.values())
    return Match(found_by if len(distinct) == 1 else "ambiguous", distinct)
