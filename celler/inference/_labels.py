"""Labelling: from the network's outputs to probabilities, labels and the columns of obs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from celler._utils._version import __version__
from celler.inference._calibration import Decision, choose, margin, second_best
from celler.inference._outputs import Outputs
from celler.labels import LabelTree, indices_of

#: Threshold of back-off where none is given: of the blood, cord-blood and cortex cells backed off at it, half
#: had the right class and 94 to 100 % the right parent.
BACKOFF_THRESHOLD = 0.7


def check_question(
    tree: LabelTree,
    level: str,
    threshold: float | None,
    candidates: list[str] | None,
    *,
    backoff: bool = False,
) -> None:
    """Raise what labelling would raise, on no cells at all: before the forward pass, not after it."""
    if backoff and level != "class":
        raise ValueError(
            f"backoff=True goes from the class to its parent; level={level!r} was given. Leave one of them out."
        )
    if backoff and not tree.parents:
        raise ValueError(
            "backoff=True needs parents, and the model has none; give setup_anndata a parent_labels_key or "
            "parents before training."
        )
    shape = (0, len(tree.classes))
    nothing = Outputs(np.zeros(shape, np.float32), np.zeros((0, 0)), np.zeros(0, bool))
    probabilities = level_probabilities(nothing, Decision(), tree, level, candidates)
    label_cells(nothing, probabilities, tree.levels[level], threshold, "")


def level_probabilities(
    outputs: Outputs, decision: Decision, tree: LabelTree, level: str, candidates: list[str] | None
) -> np.ndarray:
    """``(N, classes of the level)``, rows sum to 1; equal for a cell without counts."""
    codes = None if candidates is None else indices_of(candidates, tree.classes)
    if outputs.propagation is None:
        probabilities = decision.probabilities(outputs.logits, codes)
    else:
        probabilities = outputs.propagation.probabilities.copy()
    is_possible = probabilities[~outputs.has_counts] > 0
    probabilities[~outputs.has_counts] = is_possible / is_possible.sum(axis=1, keepdims=True)
    return tree.roll_up(probabilities, level)


def label_cells(
    outputs: Outputs,
    probabilities: np.ndarray,
    names: tuple[str, ...],
    threshold: float | None,
    unknown_label: str,
) -> np.ndarray:
    """Names ``(N,)``; ``unknown_label`` below the threshold, for a cell too novel or without counts."""
    labels = choose(probabilities, names, threshold, unknown_label).astype(object)
    labels[outputs.is_unknown] = unknown_label
    return labels.astype(str)


def label_levels(
    outputs: Outputs,
    probabilities: np.ndarray,
    tree: LabelTree,
    threshold: float | None,
    unknown_label: str,
    *,
    backoff: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Names ``(N,)`` and their level: the class and, with ``backoff``, the parent where only that is sure.

    probabilities: of the classes ``(N, C)``. The level is "class", "parent" or "unknown".
    """
    levels = ["class", "parent"][: 1 + backoff]
    is_sure, names = [], []
    for level in levels:
        rolled_up = tree.roll_up(probabilities, level)
        # Codes in place of names: a parent, or the unknown label, may have the name of a class.
        numbers = tuple(map(str, range(rolled_up.shape[1])))
        codes = label_cells(outputs, rolled_up, numbers, threshold, "-1").astype(int)
        is_sure.append(codes >= 0)
        names.append(np.array(tree.levels[level])[codes])
    return np.select(is_sure, names, unknown_label), np.select(is_sure, levels, "unknown")


def annotation_columns(
    outputs: Outputs,
    decision: Decision,
    tree: LabelTree,
    key: str,
    threshold: float | None,
    unknown_label: str,
    *,
    backoff: bool,
) -> dict[str, Any]:
    """The obs columns of an annotation: label, confidence, margin, second-best label, and where the model has
    them novelty and those of the parent."""
    how = (threshold, unknown_label)
    probabilities = level_probabilities(outputs, decision, tree, "class", None)
    labels, levels = label_levels(outputs, probabilities, tree, *how, backoff=backoff)
    columns = {
        key: categorical(labels, tree, ["class", "parent"][: 1 + backoff], unknown_label),
        f"{key}_confidence": probabilities.max(axis=1),
        f"{key}_margin": margin(probabilities),
        f"{key}_second": pd.Categorical(
            second_best(probabilities, tree.classes), list(tree.classes)
        ),
    }
    if outputs.novelty is not None:
        columns[f"{key}_novelty"] = outputs.novelty
    if tree.parents:
        parents = tree.agreeing_parents(probabilities, levels == "class")
        names = label_cells(outputs, parents, tree.levels["parent"], *how)
        columns[f"{key}_parent"] = categorical(names, tree, ["parent"], unknown_label)
        columns[f"{key}_parent_confidence"] = parents.max(axis=1)
    if backoff:
        columns[f"{key}_level"] = pd.Categorical(levels, ["class", "parent", "unknown"])
    return columns


def categorical(
    labels: np.ndarray, tree: LabelTree, levels: list[str], unknown_label: str
) -> pd.Categorical:
    """Labels with every name of ``levels`` as a category, used or not, and the unknown label last where used."""
    names = [name for level in levels for name in tree.levels[level]]
    if (labels == unknown_label).any():
        names.append(unknown_label)
    return pd.Categorical(labels, list(dict.fromkeys(names)))


def annotation_record(
    outputs: Outputs,
    decision: Decision,
    tree: LabelTree,
    threshold: float | None,
    unknown_label: str,
    *,
    backoff: bool,
) -> dict[str, Any]:
    """The uns entry of an annotation: how its labels came about."""
    spread = outputs.propagation
    return {
        "celler_version": __version__,
        "classes": list(tree.classes),
        "parents": list(tree.parents),
        "temperature": decision.temperature,
        "threshold": "none" if threshold is None else threshold,
        "unknown_label": unknown_label,
        "novelty_threshold": "none"
        if outputs.novelty_threshold is None
        else outputs.novelty_threshold,
        "backoff": backoff,
        "shift": outputs.shift,
        "propagation": "none"
        if spread is None
        else {
            "labelled_cells": spread.n_labelled,
            "cells": spread.n_cells,
            "neighbor_weight": spread.neighbor_weight,
        },
    }
