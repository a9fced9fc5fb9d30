"""Labelling: from the network's outputs to probabilities, labels and the columns of obs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from celler.decision import Decision, choose, margin, second_best
from celler.labels import LabelTree, indices_of
from celler.model.forward import Outputs


def check_question(
    tree: LabelTree, level: str, threshold: float | None, candidates: list[str] | None
) -> None:
    """Raise what labelling would raise, on no cells at all: before the forward pass, not after it."""
    shape = (0, len(tree.classes))
    nothing = Outputs(np.zeros(shape, np.float32), np.zeros((0, 0)), np.zeros(0, bool))
    probabilities = level_probabilities(nothing, Decision(), tree, level, candidates)
    label_cells(nothing, probabilities, tree.levels[level], threshold, "")


def level_probabilities(
    outputs: Outputs, decision: Decision, tree: LabelTree, level: str, candidates: list[str] | None
) -> np.ndarray:
    """``(N, classes of the level)``, rows sum to 1; equal for a cell without counts."""
    codes = None if candidates is None else indices_of(candidates, tree.classes)
    probabilities = decision.probabilities(outputs.logits, codes)
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


def annotation_columns(
    outputs: Outputs,
    decision: Decision,
    tree: LabelTree,
    key: str,
    threshold: float | None,
    unknown_label: str,
) -> dict[str, Any]:
    """The obs columns of an annotation: label, confidence, margin, second-best label, and where the model has
    them novelty and parent."""
    probabilities = level_probabilities(outputs, decision, tree, "class", None)
    labels = label_cells(outputs, probabilities, tree.classes, threshold, unknown_label)
    columns = {
        key: pd.Categorical(labels),
        f"{key}_confidence": probabilities.max(axis=1),
        f"{key}_margin": margin(probabilities),
        f"{key}_second": pd.Categorical(second_best(probabilities, tree.classes)),
    }
    if outputs.novelty is not None:
        columns[f"{key}_novelty"] = outputs.novelty
    if tree.parents:
        parents = tree.roll_up(probabilities, "parent")
        names = tree.levels["parent"]
        columns[f"{key}_parent"] = pd.Categorical(
            label_cells(outputs, parents, names, threshold, unknown_label)
        )
    return columns


def annotation_record(
    outputs: Outputs,
    decision: Decision,
    tree: LabelTree,
    threshold: float | None,
    unknown_label: str,
) -> dict[str, Any]:
    """The uns entry of an annotation: how its labels came about."""
    return {
        "classes": list(tree.classes),
        "temperature": decision.temperature,
        "threshold": "none" if threshold is None else threshold,
        "unknown_label": unknown_label,
        "novelty_threshold": "none"
        if outputs.novelty_threshold is None
        else outputs.novelty_threshold,
        "shift": outputs.shift,
    }
