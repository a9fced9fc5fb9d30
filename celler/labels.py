"""Labels: what an obs column says, which classes there are, and their parents."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from celler.names import closest
from celler.ontology import N_LISTED, Ontology, Term, read_obo

__all__ = ["LabelTree"]


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
