"""Labels: what an obs column says, which classes there are, and their parents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from celler.names import closest


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
        parent_of = []
        for name in classes:
            found = sorted(set(parents[labels == name]) - {unlabeled_category})
            if len(found) != 1:
                what = f"the parents {found}" if found else "no parent"
                raise ValueError(
                    f"parent_labels_key gives class {name!r} {what}; each class needs exactly one. Correct "
                    "the column, or rename the class where it means two things."
                )
            parent_of.append(found[0])
        return cls(classes, tuple(parent_of))

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
                "" if self.parents else " Give setup_anndata a parent_labels_key to have parents."
            )
            raise ValueError(f"level={level!r} was given; there is {sorted(self.levels)}.{hint}")
        if level == "class":
            return probabilities
        member = np.array(
            [[parent == name for name in self.levels[level]] for parent in self.parents]
        )
        return probabilities @ member.astype(probabilities.dtype)


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
