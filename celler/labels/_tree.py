"""Labels: the classes of a label column and the parent of each, from columns, mappings or an ontology."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from celler._utils._check import checked
from celler._utils._messages import closest
from celler._utils._text import as_categories, is_missing, means_no_label, text_of
from celler.labels._cell_types import cell_type_names
from celler.labels._ontology import N_LISTED, Ontology, Term, cell_ontology, read_obo

#: What pandas calls values that are no names of classes: times of a measurement, and numbers of no order.
NO_LABELS = ("datetime", "datetime64", "date", "time", "timedelta", "timedelta64", "period", "complex")


@dataclass(frozen=True)
class LabelTree:
    """The classes of a label column and, if given, the parent of each.

    Parameters
    ----------
    classes
        Names of the C classes, sorted.
    parents
        Parent of each class; empty without levels.

    Examples
    --------
    >>> tree = cl.labels.LabelTree.from_obo("cl-basic.obo", adata.obs["cell_type"], ["T cell", "B cell"])
    >>> Celler.setup_anndata(adata, "cell_type", parents=tree)
    """

    classes: tuple[str, ...]
    parents: tuple[str, ...] = ()

    @classmethod
    def from_labels(cls, labels: np.ndarray, unlabeled_category: str, parents: np.ndarray | None = None) -> LabelTree:
        """Collect the classes of ``labels (n,)`` except ``unlabeled_category``, and their ``parents (n,)``.

        Raises
        ------
        ValueError
            The cells of a class have two parents or none.
        """
        is_labelled = labels != unlabeled_category
        classes = tuple(sorted(set(labels[is_labelled])))
        if parents is None:
            return cls(classes)
        found = {name: set(parents[labels == name]) - {unlabeled_category} for name in classes}
        return cls(classes).with_parents(parent_mapping(found, "parent_labels_key"))

    @classmethod
    @checked
    def from_obo(
        cls,
        path: str | os.PathLike[str],
        labels: Iterable[str] | Mapping[str, str],
        parents: Sequence[str] | None = None,
        *,
        unlabeled_category: str = "Unknown",
    ) -> LabelTree:
        """Find classes and their parents in an ontology, such as ``cl-basic.obo`` of the Cell Ontology.

        A term is found by its id, name or exact synonym in any case. Parents get the ontology's names.

        Parameters
        ----------
        path
            A local file in OBO format; terms, synonyms and ``is_a`` are read.
        labels
            Names of the classes, such as ``adata.obs["cell_type"]``, or a mapping from class to term.
        parents
            Terms that may be a parent; a class gets the nearest above it, or itself. ``None``: the one directly above.
        unlabeled_category
            Label to skip; missing labels are skipped too.

        Returns
        -------
        LabelTree
            The classes, each with its parent.

        Raises
        ------
        ValueError
            The ontology lacks a label or a parent, a class has no parent or several, or ``is_a`` is circular.
        FileNotFoundError
            The file does not exist.
        """
        ontology = read_obo(path)
        parent_of = _parents_by(ontology, ontology.find, labels, parents, unlabeled_category)
        return cls(tuple(sorted(parent_of))).with_parents(parent_of)

    @classmethod
    @checked
    def from_cell_ontology(
        cls,
        labels: Iterable[str] | Mapping[str, str],
        parents: Sequence[str] | None = None,
        *,
        unlabeled_category: str = "Unknown",
    ) -> LabelTree:
        """Find classes and their parents in the Cell Ontology that comes with Celler.

        A term is found as :func:`celler.labels.find_ids` finds it. Parents get the ontology's names.

        Parameters
        ----------
        labels
            Names of the classes, such as ``adata.obs["cell_type"]``, or a mapping from class to term.
        parents
            Terms that may be a parent; a class gets the nearest above it, or itself. ``None``: the one directly above.
        unlabeled_category
            Label to skip; missing labels are skipped too.

        Returns
        -------
        LabelTree
            The classes, each with its parent.

        Raises
        ------
        ValueError
            A label or a parent is unknown or may be several terms, or a class has no parent or several.

        Examples
        --------
        >>> LabelTree.from_cell_ontology(["CD14+ Monocytes", "NK"], ["lymphocyte", "monocyte"]).parent_of
        {'CD14+ Monocytes': 'monocyte', 'NK': 'lymphocyte'}
        """
        find = cell_type_names().term
        parent_of = _parents_by(cell_ontology(), find, labels, parents, unlabeled_category)
        return cls(tuple(sorted(parent_of))).with_parents(parent_of)

    @checked
    def with_parents(self, parents: Mapping[str, str] | pd.Series | LabelTree) -> LabelTree:
        """Return the same classes with a parent each.

        Parameters
        ----------
        parents
            Parent by class; other classes in it are ignored.

        Raises
        ------
        ValueError
            A class has no parent or two, parents form a cycle, or a parent is a class with another parent.
        """
        parent_of = parent_mapping(parents)
        if missing := [name for name in self.classes if name not in parent_of]:
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
        """Parent of each class; empty without levels."""
        return dict(zip(self.classes, self.parents, strict=True)) if self.parents else {}

    @property
    def levels(self) -> dict[str, tuple[str, ...]]:
        """Names at each level that can be predicted, finest first."""
        fine = {"class": self.classes}
        return fine | {"parent": tuple(sorted(set(self.parents)))} if self.parents else fine

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Return the code of each label ``(n,)``, -1 for other labels."""
        return pd.Index(self.classes).get_indexer(pd.Index(labels)).astype(np.int64)

    def roll_up(self, probabilities: np.ndarray, level: str) -> np.ndarray:
        """Sum the probabilities of classes ``(N, C)`` to those of a level ``(N, n)``."""
        if level not in self.levels:
            hint = "" if self.parents else " For parents, pass parent_labels_key or parents to setup_anndata."
            raise ValueError(f"level={level!r} was given; there is {sorted(self.levels)}.{hint}")
        if level == "class":
            return probabilities
        return probabilities @ self._is_member.astype(probabilities.dtype)

    def agreeing_parents(self, probabilities: np.ndarray, is_class: np.ndarray) -> np.ndarray:
        """Sum ``probabilities (N, C)`` to parents ``(N, parents)`` that agree with the labels.

        Where a cell is labelled with its most probable class ``is_class (N,)``, only the parent of that class
        is kept: without a class of half of the probability, another parent may have the largest sum.
        """
        parents = self.roll_up(probabilities, "parent")
        is_own = self._is_member[probabilities.argmax(axis=1)]
        return np.where(is_own | ~is_class[:, None], parents, 0)

    @property
    def _is_member(self) -> np.ndarray:
        """Whether each class belongs to each parent ``(C, parents)``."""
        return np.array(self.parents)[:, None] == np.array(self.levels["parent"])[None, :]


def as_strings(values: pd.Series, key: str, unlabeled_category: str) -> np.ndarray:
    """Labels as an object array of str ``(n,)``; those that mean "no label" become ``unlabeled_category``.

    Floats are refused: a score is not a class, and 1.0 would be another class than 1.
    """
    column = as_categories(values, f"adata.obs[{key!r}]")
    kind = pd.api.types.infer_dtype(pd.Categorical(values).categories, skipna=True)
    if kind in NO_LABELS:
        example = pd.Categorical(values).categories[0]
        raise ValueError(
            f"adata.obs[{key!r}] holds values of kind {kind} (for example {example}); labels are text, categories or "
            f"integers. If they are classes: adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)."
        )
    if floats := [value for value in pd.Categorical(values).categories if isinstance(value, float | np.floating)]:
        raise ValueError(
            f"adata.obs[{key!r}] holds numbers with a decimal point (for example {floats[0]!r}); labels are "
            f"text, categories or integers. If they are classes, write them as text first: "
            f"adata.obs[{key!r}] = adata.obs[{key!r}].astype('Int64').astype('string')."
        )
    names = [unlabeled_category if means_no_label(name, unlabeled_category) else name for name in column.categories]
    return np.array([*names, unlabeled_category], dtype=object)[column.codes]


def parent_mapping(parents: Mapping[str, Any] | pd.Series | LabelTree, argument: str = "parents") -> dict[str, str]:
    """Parent by class as a dict of str; an error names a class with two parents or none."""
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
        texts = map(text_of, several)
        found.setdefault(text_of(name) or "", set()).update(text for text in texts if text and not is_missing(text))
    for name, names in found.items():
        if len(names) != 1:
            what = f"the parents {sorted(names)}" if names else "no parent"
            raise ValueError(
                f"{argument} gives class {name!r} {what}; each class needs exactly one. Correct it, or rename "
                "a class that means two things."
            )
    return {name: names.pop() for name, names in found.items()}


def _check_levels(name: str, parent_of: Mapping[str, str], classes: Sequence[str]) -> None:
    """Raise if the parents of ``name`` form a cycle or its parent is a class of another parent."""
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


def indices_of(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Sorted positions of the names among the classes."""
    if isinstance(names, str):
        raise TypeError(f"candidates={names!r} is one string; pass a list of class names.")
    for name in names:
        if name not in classes:
            raise ValueError(f"candidates names {name!r}, which the model has not learned.{closest(name, classes)}")
    if not len(names):
        raise ValueError("candidates is empty; name at least one class, or pass None for all.")
    return np.array(sorted({list(classes).index(name) for name in names}))


# ---- the ontology ----
def _parents_by(
    ontology: Ontology,
    find: Callable[[str], Term],
    labels: Iterable[str] | Mapping[str, str],
    parents: Sequence[str] | None,
    unlabeled: str,
) -> dict[str, str]:
    """Name of the parent of each label."""
    term_of = _terms(find, labels, unlabeled, "labels")
    candidates = None
    if parents is not None:
        candidates = {term.id: term for term in _terms(find, parents, "", "parents").values()}
    return {name: _parent_term(ontology, name, term, candidates) for name, term in term_of.items()}


def _terms(
    find: Callable[[str], Term], labels: Iterable[str] | Mapping[str, str], unlabeled: str, argument: str
) -> dict[str, Term]:
    """Term of each label; one error lists all labels without a term."""
    if isinstance(labels, str):
        raise TypeError(f"{argument}={labels!r} is one string; pass a list of names.")
    names = labels if isinstance(labels, Mapping) else {label: label for label in labels}
    found, problems = {}, []
    for label, name in names.items():
        if (text := text_of(label)) is None or means_no_label(text, unlabeled):
            continue
        try:
            found[text] = find(text_of(name) or "")
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = f" And {len(problems) - N_LISTED} more." * (len(problems) > N_LISTED)
        hint = " Where your names differ, pass labels as a mapping {label: term}."
        raise ValueError(" ".join(problems[:N_LISTED]) + more + hint * (argument == "labels"))
    if not found:
        raise ValueError(f"{argument} is empty; name at least one.")
    return found


def _parent_term(ontology: Ontology, label: str, term: Term, candidates: Mapping[str, Term] | None) -> str:
    """Name of the one parent of ``term``."""
    if is_open := candidates is None:
        candidates = {i: ontology.terms[i] for i in term.is_a if i in ontology.terms}
    nearest = ontology.nearest(term, candidates)
    if len(nearest) == 1:
        return nearest[0].name or nearest[0].id
    which = label if label == term.name else f"{label} = {term}"
    above = [str(other) for other in ontology.above(term).values() if other is not term]
    listed = ", ".join(above[:N_LISTED]) or "none"
    if nearest:
        both = " and of ".join(map(str, nearest))
        way = f"Leave one out of parents, or add {term.name!r} itself to them."
        if is_open:
            way = f"Choose one with parents=[...]; the terms above it: {listed}."
        raise ValueError(f"{which!r} is a kind of {both}; each class needs one parent. {way}")
    raise ValueError(f"{which!r} is under none of the parents; the terms above it: {listed}. Add one.")
