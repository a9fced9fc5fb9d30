"""Labels: what an obs column says, which classes there are, and their parents."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from celler._utils._messages import closest, similar

__all__ = ["LabelTree"]
#: A quoted synonym and its scope; quotes within are written \".
SYNONYM = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(EXACT|BROAD|NARROW|RELATED)?')
N_LISTED = 8


@dataclass
class Term:
    """A term as the file has it; ``is_a`` are ids."""

    id: str
    name: str = ""
    is_a: list[str] = field(default_factory=list)
    exact: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    other_ids: list[str] = field(default_factory=list)
    is_obsolete: bool = False
    replaced_by: str = ""

    def __str__(self) -> str:
        return f"{self.name or 'unnamed'} ({self.id})"


class Ontology:
    """Terms by id, with what it takes to look one up."""

    def __init__(self, terms: Iterable[Term]) -> None:
        self.terms = {term.id: term for term in terms}
        self._ids = {i.casefold(): t for t in self.terms.values() for i in (t.id, *t.other_ids)}
        self._by_name: dict[str, list[Term]] = {}
        self._by_synonym: dict[str, list[Term]] = {}
        self._by_loose: dict[str, list[Term]] = {}
        for term in self.terms.values():
            for table, names in (
                (self._by_name, [term.name]),
                (self._by_synonym, term.exact),
                (self._by_loose, term.loose),
            ):
                for key in {_plain(name) for name in names if name}:
                    table.setdefault(key, []).append(term)

    def find(self, name: str) -> Term:
        """The term with this id, name or exact synonym, whatever the case of the letters.

        Raises ``ValueError`` where there is none, more than one, or an obsolete one.
        """
        by_id = self._ids.get(name.strip().casefold())
        found = [by_id] if by_id is not None else []
        for table in (self._by_name, self._by_synonym):
            named = table.get(_plain(name), [])
            found = found or [t for t in named if not t.is_obsolete] or named
        if not found:
            raise ValueError(self._not_found(name))
        if len(found) > 1:
            raise ValueError(
                f"{name!r} is the name of {' and of '.join(map(str, found))}; pass one of these ids."
            )
        if found[0].is_obsolete:
            raise ValueError(f"{name!r} is {found[0]}, which is obsolete.{self._advice(found[0])}")
        return found[0]

    def above(self, term: Term) -> dict[str, Term]:
        """``term`` and all terms it is, by id; terms that the file does not hold are left out.

        Raises ``ValueError`` where ``is_a`` leads back to a term.
        """
        reached: dict[str, Term] = {}
        path: list[str] = []
        waiting = [(term, False)]
        while waiting:
            current, is_done = waiting.pop()
            if is_done:
                path.pop()
                continue
            if current.id in path:
                circle = [*path[path.index(current.id) :], current.id]
                names = " is a ".join(str(self.terms[i]) for i in circle)
                raise ValueError(f"is_a goes round in a circle: {names}. Correct the file.")
            if current.id in reached:
                continue
            reached[current.id] = current
            path.append(current.id)
            waiting.append((current, True))
            waiting += [(self.terms[i], False) for i in current.is_a if i in self.terms]
        return reached

    def nearest(self, term: Term, candidates: Mapping[str, Term]) -> list[Term]:
        """The ``candidates`` among ``term`` and what it is, less those that stand above another of them."""
        own = [other for i, other in candidates.items() if i in self.above(term)]
        higher = {i for other in own for i in self.above(other) if i != other.id}
        return [other for other in own if other.id not in higher]

    def _not_found(self, name: str) -> str:
        loose = self._by_loose.get(_plain(name), [])
        if loose:
            return (
                f"{name!r} is no name or exact synonym of a term, only a related, broad or narrow one of "
                f"{' and of '.join(map(str, loose[:N_LISTED]))}. If that is meant, pass its name or id."
            )
        usable = [term for term in self.terms.values() if term.name and not term.is_obsolete]
        name_of = {_plain(known): t.name for t in usable for known in (*t.exact, t.name)}
        close = similar(_plain(name), name_of)
        hint = f" Closest: {name_of[close[0]]!r}." if close else ""
        return f"{name!r} is no id, name or exact synonym of a term.{hint}"

    def _advice(self, term: Term) -> str:
        new = self.terms.get(term.replaced_by)
        return f" It was replaced by {new}: pass that." if new else " Pass another term."


def read_obo(path: str | os.PathLike[str]) -> Ontology:
    """Terms of an OBO file such as ``cl-basic.obo``: ids, names, synonyms, ``is_a``, obsolete ones.

    Other stanzas, tags, comments and trailing qualifiers are skipped. Raises ``FileNotFoundError``, or
    ``ValueError`` for a file without terms.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; pass an OBO file, such as cl-basic.obo of the Cell Ontology. "
            "Celler downloads nothing."
        )
    terms: list[Term] = []
    is_term = False
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        line = line.strip()
        if line.startswith("["):
            is_term = line.casefold() == "[term]"
            terms += [Term("")] if is_term else []
        elif is_term and ":" in line:
            tag, _, value = line.partition(":")
            _read_tag(terms[-1], tag.strip(), value.strip())
    if not any(term.id for term in terms):
        raise ValueError(
            f"{path} has no [Term] with an id, so it is not an OBO file (or an empty one); ontologies come in "
            "several formats, pass the one whose name ends in .obo."
        )
    return Ontology(term for term in terms if term.id)


def _read_tag(term: Term, tag: str, value: str) -> None:
    """Take over one ``tag: value`` of a term."""
    if tag == "name":
        term.name = _unescaped(value)
    elif tag == "synonym":
        if match := SYNONYM.match(value):
            # A synonym without a scope is a related one, says the format.
            names = term.exact if match[2] == "EXACT" else term.loose
            names.append(_unescaped(match[1]))
    elif tag == "is_obsolete":
        term.is_obsolete = value.casefold().startswith("true")
    elif tag in ("id", "is_a", "alt_id", "replaced_by"):
        identifier = re.split(r"[\s!{]", value, maxsplit=1)[0]
        if tag == "id":
            term.id = identifier
        elif tag == "replaced_by":
            term.replaced_by = identifier
        elif identifier:
            (term.is_a if tag == "is_a" else term.other_ids).append(identifier)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _plain(name: str) -> str:
    """Letters in one case and single spaces, as names are compared."""
    return " ".join(name.casefold().split())


def as_strings(values: pd.Series, key: str, unlabeled_category: str) -> np.ndarray:
    """Labels as an object array of str ``(n,)``; missing values become ``unlabeled_category``.

    Integers and booleans become their decimal string. Floats are refused: a score or a numeric
    covariate is not a class, and 1.0 would silently become another class than 1.
    """
    is_missing = values.isna().to_numpy()
    present = values[~is_missing]
    examples = present.unique().tolist()
    floats = [value for value in examples if isinstance(value, float)]
    if floats:
        raise ValueError(
            f"adata.obs[{key!r}] holds numbers with a decimal point (for example {floats[0]!r}); labels are "
            f"text, categories or integers. If they are classes, write them as text first: "
            f"adata.obs[{key!r}] = adata.obs[{key!r}].astype('Int64').astype('string')."
        )
    labels = np.full(len(values), unlabeled_category, dtype=object)
    labels[~is_missing] = [str(value) for value in present]
    return labels


@dataclass(frozen=True)
class LabelTree:
    """The classes in sorted order and, where given, the parent of each.

    classes: C names, sorted. parents: the C classes' parents, or empty without levels.
    """

    classes: tuple[str, ...]
    parents: tuple[str, ...] = ()

    @classmethod
    def from_labels(
        cls, labels: np.ndarray, unlabeled_category: str, parents: np.ndarray | None = None
    ) -> LabelTree:
        """Classes of the labelled cells; ``parents (n,)`` gives each cell's parent.

        Raises ``ValueError`` for a class whose cells have two parents or none.
        """
        is_labelled = labels != unlabeled_category
        classes = tuple(sorted(set(labels[is_labelled])))
        if parents is None:
            return cls(classes)
        parent_of = {}
        for name in classes:
            found = sorted(set(parents[labels == name]) - {unlabeled_category})
            if len(found) != 1:
                what = f"the parents {found}" if found else "no parent"
                raise ValueError(
                    f"parent_labels_key gives class {name!r} {what}; each class needs exactly one. Correct "
                    "the column, or rename the class where it means two things."
                )
            parent_of[name] = found[0]
        return cls(classes).with_parents(parent_of)

    @classmethod
    def from_obo(
        cls,
        path: str | os.PathLike[str],
        labels: Iterable[str] | Mapping[str, str],
        parents: Sequence[str] | None = None,
        *,
        unlabeled_category: str = "Unknown",
    ) -> LabelTree:
        """The tree of ``labels`` in a local ontology, such as ``cl-basic.obo`` of the Cell Ontology.

        A term is found by its id, name or exact synonym, whatever the case of the letters; parents get
        the ontology's names.

        path: a file in OBO format, of which terms, synonyms and ``is_a`` are read.
        labels: names of the classes, such as ``adata.obs["cell_type"]``; where the data have names of
            their own, a mapping from class to term.
        parents: terms that may be a parent. Of those a class stands under, or is, the nearest is taken:
            the one above no other. ``None`` is the term directly above each class.
        unlabeled_category: this label, and missing ones, are no classes.

        Raises ``ValueError`` for a label or parent that the ontology lacks, for a class under two of the
        parents, of which neither is above the other, or under none, and for a circle of ``is_a``.
        """
        ontology = read_obo(path)
        term_of = _terms(ontology, labels, unlabeled_category, "labels")
        if parents is None:
            candidates = None
        else:
            candidates = {
                term.id: term for term in _terms(ontology, parents, "", "parents").values()
            }
        parent_of = {
            name: _parent_term(ontology, name, term, candidates) for name, term in term_of.items()
        }
        return cls(tuple(sorted(parent_of))).with_parents(parent_of)

    def with_parents(self, parents: Mapping[str, str] | pd.Series | LabelTree) -> LabelTree:
        """The same classes with a parent each; entries of other classes are left out.

        Raises ``ValueError`` for a class without a parent or with two, for a cycle, and for a class that
        is the parent of another while it has another parent itself.
        """
        parent_of = parent_mapping(parents)
        missing = [name for name in self.classes if name not in parent_of]
        if missing:
            listed = [f"{name!r}.{closest(name, parent_of)}" for name in missing[:N_LISTED]]
            raise ValueError(
                f"parents has no entry for {len(missing)} of {len(self.classes)} classes: {' '.join(listed)} "
                "Name a parent for each; a class may be its own."
            )
        for name in self.classes:
            _check_levels(name, parent_of, self.classes)
        return LabelTree(self.classes, tuple(parent_of[name] for name in self.classes))

    @property
    def parent_of(self) -> dict[str, str]:
        """Parent by class; empty without levels."""
        return dict(zip(self.classes, self.parents, strict=True)) if self.parents else {}

    @property
    def levels(self) -> dict[str, tuple[str, ...]]:
        """Class names of each level that can be predicted, finest first."""
        fine = {"class": self.classes}
        return fine | {"parent": tuple(sorted(set(self.parents)))} if self.parents else fine

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Codes ``(n,)`` of the labels, −1 for whatever is not a class."""
        return pd.Index(self.classes).get_indexer(pd.Index(labels)).astype(np.int64)

    def roll_up(self, probabilities: np.ndarray, level: str) -> np.ndarray:
        """``(N, C)`` -> ``(N, classes of the level)``: a parent is the sum of its children."""
        if level not in self.levels:
            hint = (
                ""
                if self.parents
                else " Give setup_anndata a parent_labels_key or parents to have parents."
            )
            raise ValueError(f"level={level!r} was given; there is {sorted(self.levels)}.{hint}")
        if level == "class":
            return probabilities
        return probabilities @ self._is_member.astype(probabilities.dtype)

    def agreeing_parents(self, probabilities: np.ndarray, is_class: np.ndarray) -> np.ndarray:
        """``(N, C)`` -> ``(N, parents)``; where the class is given, its parent is the only one that is not 0.

        is_class: ``(N,)``, cells that are labelled with their most probable class. Where no class has half of
        the probability the parent of the largest sum may be another's, and the levels would contradict.
        """
        parents = self.roll_up(probabilities, "parent")
        is_own = self._is_member[probabilities.argmax(axis=1)]
        return np.where(is_own | ~is_class[:, None], parents, 0)

    @property
    def _is_member(self) -> np.ndarray:
        """Whether each class is of each parent ``(C, parents)``."""
        return np.array(self.parents)[:, None] == np.array(self.levels["parent"])[None, :]


def parent_mapping(parents: Mapping[str, str] | pd.Series | LabelTree) -> dict[str, str]:
    """Parent by class as a plain dict of str, or an error that names the class with two parents or none."""
    if isinstance(parents, LabelTree):
        if not parents.parents:
            raise ValueError("parents is a LabelTree without parents; see LabelTree.with_parents.")
        return parents.parent_of
    if not isinstance(parents, Mapping | pd.Series):
        hint = " A column of obs is named by parent_labels_key." * isinstance(parents, str)
        raise TypeError(
            f"parents is a {type(parents).__name__}; a dict or Series from class to parent, or a "
            f"celler.labels.LabelTree, is needed.{hint}"
        )
    found: dict[str, set[str]] = {}
    for name, parent in parents.items():
        several = parent if isinstance(parent, list | tuple | set | np.ndarray) else [parent]
        found.setdefault(str(name), set()).update(str(one) for one in several if not pd.isna(one))
    for name, names in found.items():
        if len(names) != 1:
            what = f"the parents {sorted(names)}" if names else "no parent"
            raise ValueError(f"parents gives class {name!r} {what}; each class needs exactly one.")
    return {name: names.pop() for name, names in found.items()}


def _check_levels(name: str, parent_of: Mapping[str, str], classes: Sequence[str]) -> None:
    """Raise where the parents above ``name`` lead back to it, or its parent is a class elsewhere."""
    chain = [name]
    while parent_of.get(chain[-1], chain[-1]) != chain[-1]:
        chain.append(parent_of[chain[-1]])
        if chain[-1] in chain[:-1]:
            circle = " -> ".join(map(repr, chain[chain.index(chain[-1]) :]))
            raise ValueError(f"the parents go round in a cycle: {circle}. Correct one of them.")
    parent = parent_of[name]
    if parent in classes and parent_of[parent] != parent:
        raise ValueError(
            f"{parent!r} is the parent of {name!r} and a class too, whose parent is {parent_of[parent]!r}: the "
            f"levels would contradict each other. Make {parent!r} its own parent, or give {name!r} the "
            f"parent {parent_of[parent]!r}."
        )


def _terms(
    ontology: Ontology, labels: Iterable[str] | Mapping[str, str], unlabeled: str, argument: str
) -> dict[str, Term]:
    """Term of each label, or one error with all labels that have none."""
    if isinstance(labels, str):
        raise TypeError(f"{argument}={labels!r} is one string; pass a list of names.")
    names = labels if isinstance(labels, Mapping) else {label: label for label in labels}
    found, problems = {}, []
    for label, name in names.items():
        if pd.isna(label) or str(label) == unlabeled:
            continue
        try:
            found[str(label)] = ontology.find(str(name))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = f" And {len(problems) - N_LISTED} more." * (len(problems) > N_LISTED)
        hint = " Where your names differ, pass labels as a mapping {label: term}."
        raise ValueError(" ".join(problems[:N_LISTED]) + more + hint * (argument == "labels"))
    if not found:
        raise ValueError(f"{argument} is empty; name at least one.")
    return found


def _parent_term(
    ontology: Ontology, label: str, term: Term, candidates: Mapping[str, Term] | None
) -> str:
    """Name of the one parent of ``term``."""
    is_open = candidates is None
    if candidates is None:
        candidates = {i: ontology.terms[i] for i in term.is_a if i in ontology.terms}
    nearest = ontology.nearest(term, candidates)
    if len(nearest) == 1:
        return nearest[0].name or nearest[0].id
    which = label if label == term.name else f"{label} = {term}"
    above = [str(other) for other in ontology.above(term).values() if other is not term]
    listed = ", ".join(above[:N_LISTED]) or "nothing"
    if nearest:
        both = " and of ".join(map(str, nearest))
        way = (
            f"Say which with parents=[...]; above it stand {listed}."
            if is_open
            else f"Leave one out of parents, or add {term.name!r} itself to them."
        )
        raise ValueError(f"{which!r} is a kind of {both}; each class needs one parent. {way}")
    raise ValueError(
        f"{which!r} stands under none of the parents; above it stand {listed}. Add one."
    )


def indices_of(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Position of each name among the classes, or a ValueError that suggests the closest class."""
    if isinstance(names, str):
        raise TypeError(f"candidates={names!r} is one string; pass a list of class names.")
    for name in names:
        if name not in classes:
            raise ValueError(
                f"candidates names {name!r}, which the model has not learned.{closest(name, classes)}"
            )
    if not len(names):
        raise ValueError("candidates is empty; name at least one class, or pass None for all.")
    return np.array(sorted({list(classes).index(name) for name in names}))
