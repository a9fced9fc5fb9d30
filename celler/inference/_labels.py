"""Labels: outputs of the network become names, probabilities and the columns of an annotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from celler._utils._version import __version__
from celler.inference._calibration import Decision, margin, second_best
from celler.inference._members import agreement
from celler.inference._outputs import Outputs
from celler.labels._tree import LabelTree, indices_of

#: Threshold of back-off where none is given: of the blood, cord-blood and cortex cells backed off at it, half
#: had the right class and 94 to 100 % the right parent.
BACKOFF_THRESHOLD = 0.7
UNKNOWN_LABEL = "Unknown"


@dataclass(frozen=True)
class Question:
    """Options of a call that labels cells; see :meth:`celler.model.Celler.predict` for each option."""

    level: str = "class"
    threshold: float | None = None
    unknown_label: str = UNKNOWN_LABEL
    candidates: list[str] | None = None
    false_alarm_rate: float | None = None
    backoff: bool = False

    @property
    def least(self) -> float | None:
        """Least probability of a label; ``None`` for no bound."""
        return BACKOFF_THRESHOLD if self.backoff and self.threshold is None else self.threshold

    def check(self, tree: LabelTree, *, soft: bool = False) -> None:
        """Raise for options that contradict each other or the classes, before any work is done."""
        if self.backoff and self.level != "class":
            raise ValueError(
                f"backoff=True goes from the class to its parent; level={self.level!r} was given. Leave one out."
            )
        if self.backoff and not tree.parents:
            raise ValueError(
                "backoff=True needs parents, and the model has none; give setup_anndata a parent_labels_key or "
                "parents before training."
            )
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} was given; a probability between 0 and 1 is needed.")
        tree.roll_up(np.zeros((0, len(tree.classes))), self.level)  # raises for an unknown level
        if self.candidates is not None:
            indices_of(self.candidates, tree.classes)
        of_labels = {
            "backoff": self.backoff,
            "threshold": self.threshold is not None,
            "false_alarm_rate": self.false_alarm_rate is not None,
            "unknown_label": self.unknown_label != UNKNOWN_LABEL,
        }
        given = [name for name, is_given in of_labels.items() if is_given]
        if soft and given:
            raise ValueError(
                f"soft=True gives the probabilities of one level, which {' and '.join(given)} cannot change; leave "
                f"{'it' if len(given) == 1 else 'them'} out, or soft."
            )


@dataclass(frozen=True)
class Labels:
    """Labels of N cells."""

    probabilities: np.ndarray  # (N, names of the level); rows sum to 1
    names: np.ndarray  # (N,)
    levels: np.ndarray  # "class", "parent" or "unknown" (N,)


def probabilities_of(
    outputs: Outputs, decision: Decision, tree: LabelTree, candidates: list[str] | None = None
) -> np.ndarray:
    """Probabilities of the classes ``(N, C)``; equal ones for a cell without counts."""
    codes = None if candidates is None else indices_of(candidates, tree.classes)
    if outputs.propagation is None:
        probabilities = decision.probabilities(outputs.logits, codes)
    else:
        probabilities = outputs.propagation.probabilities.copy()
    is_possible = probabilities[~outputs.has_counts] > 0
    probabilities[~outputs.has_counts] = is_possible / is_possible.sum(axis=1, keepdims=True)
    return probabilities


def label(outputs: Outputs, decision: Decision, tree: LabelTree, question: Question) -> Labels:
    """Label each cell, once for all that a method returns or writes."""
    of_class = probabilities_of(outputs, decision, tree, question.candidates)
    levels = ["class", "parent"] if question.backoff else [question.level]
    parts = [tree.roll_up(of_class, level) for level in levels]
    is_sure = [_is_sure(part, outputs, question.least) for part in parts]
    names = [np.array(tree.levels[level])[part.argmax(axis=1)] for level, part in zip(levels, parts, strict=True)]
    return Labels(
        parts[0], np.select(is_sure, names, question.unknown_label).astype(str), np.select(is_sure, levels, "unknown")
    )


def _is_sure(probabilities: np.ndarray, outputs: Outputs, least: float | None) -> np.ndarray:
    """Cells ``(N,)`` that get a label: probable enough, with counts and not too novel."""
    if least is None:
        return ~outputs.is_unknown
    return ~outputs.is_unknown & ~(probabilities.max(axis=1) < least)


def annotation_columns(
    outputs: Outputs, labels: Labels, tree: LabelTree, key: str, question: Question
) -> dict[str, Any]:
    """Columns of obs: label, confidence, margin and second-best class, and novelty and parent where there are any."""
    probabilities, unknown = labels.probabilities, question.unknown_label
    columns = {
        key: _categorical(labels.names, tree, ["class", "parent"][: 1 + question.backoff], unknown),
        f"{key}_confidence": probabilities.max(axis=1),
        f"{key}_margin": margin(probabilities),
        f"{key}_second": pd.Categorical(second_best(probabilities, tree.classes), list(tree.classes)),
    }
    if outputs.member_codes is not None:
        share = agreement(outputs.member_codes, probabilities.argmax(axis=1))
        columns[f"{key}_agreement"] = np.where(outputs.has_counts, share, np.nan)
    if outputs.novelty is not None:
        columns[f"{key}_novelty"] = outputs.novelty
    if tree.parents:
        parents = tree.agreeing_parents(probabilities, labels.levels == "class")
        best = np.array(tree.levels["parent"])[parents.argmax(axis=1)]
        names = np.where(_is_sure(parents, outputs, question.least), best, unknown)
        columns[f"{key}_parent"] = _categorical(names, tree, ["parent"], unknown)
        columns[f"{key}_parent_confidence"] = parents.max(axis=1)
    if question.backoff:
        columns[f"{key}_level"] = pd.Categorical(labels.levels, ["class", "parent", "unknown"])
    return columns


def _categorical(names: np.ndarray, tree: LabelTree, levels: list[str], unknown_label: str) -> pd.Categorical:
    """Names with every name of ``levels`` as a category, used or not, and the unknown label last where used."""
    categories = [name for level in levels for name in tree.levels[level]]
    if (names == unknown_label).any():
        categories.append(unknown_label)
    return pd.Categorical(names, list(dict.fromkeys(categories)))


def annotation_record(outputs: Outputs, decision: Decision, tree: LabelTree, question: Question) -> dict[str, Any]:
    """Entry of uns that records how the labels were made."""
    spread, how = outputs.propagation, outputs.adaptation
    return {
        "celler_version": __version__,
        "classes": list(tree.classes),
        "parents": list(tree.parents),
        "temperature": decision.temperature,
        "threshold": _or_none(question.least),
        "unknown_label": question.unknown_label,
        "novelty_threshold": _or_none(outputs.novelty_threshold),
        "backoff": question.backoff,
        "shift": how.shift,
        "expected_accuracy": _or_none(how.expected_accuracy),
        "novelty_location": how.novelty.location,
        "novelty_spread": how.novelty.spread,
        "encoder_share": _or_none(outputs.encoder_share),
        "propagation": "none"
        if spread is None
        else {"labelled_cells": spread.n_labelled, "cells": spread.n_cells, "neighbor_weight": spread.neighbor_weight},
        "false_alarm_rate": _or_none(question.false_alarm_rate),
    }


def _or_none(value: float | None) -> float | str:
    """Return a value that an h5ad file can hold."""
    return "none" if value is None else value
