"""Rivals: losses and corrections of logits that cost nothing, to compare with GInf and Hard Data Mining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Generator, Tensor

from celler.losses import ClassLoss, Loss, at_least_float32

__all__ = [
    "Adjustment",
    "ClassWeighted",
    "HeldOut",
    "HierarchicalCrossEntropy",
    "LogitAdjustment",
    "PairwiseCorrection",
]


class HeldOut(NamedTuple):
    """Logits ``(n, C)`` and codes ``(n,)`` of reference cells, by the same training on the other half of them."""

    logits: np.ndarray
    codes: np.ndarray


class Adjustment(Protocol):
    """Interface of a correction of logits after training."""

    def __call__(self, logits: np.ndarray, class_counts: np.ndarray, held_out: Callable[[], HeldOut]) -> np.ndarray:
        """Correct logits.

        Parameters
        ----------
        logits
            Logits ``(N, C)`` of the query.
        class_counts
            Reference cells of each class ``(C,)``.
        held_out
            Trains once more, and returns logits of reference cells that this training has not seen.

        Returns
        -------
        numpy.ndarray
            Scores ``(N, C)``; the highest is the label.
        """
        ...


@dataclass(frozen=True)
class LogitAdjustment:
    r"""Post-hoc logit adjustment of Menon et al. (2021): :math:`z - \tau \log \pi`.

    Parameters
    ----------
    tau
        Strength, no unit; 1 is consistent for the balanced error.
    """

    tau: float = 1.0

    def __call__(self, logits: np.ndarray, class_counts: np.ndarray, held_out: Callable[[], HeldOut]) -> np.ndarray:
        """Return the adjusted logits, see :class:`Adjustment`."""
        return logits - self.tau * np.log(class_counts / class_counts.sum())


@dataclass(frozen=True)
class PairwiseCorrection:
    r"""Pairwise correction among the top classes, after REPAIR of Wang et al. (arXiv:2604.01506).

    Parameters
    ----------
    n_top
        k, the classes that are compared anew, those of the highest logits.
    l2
        Strength of the penalty on the weights, which are fitted to held-out cells, each class with the same weight.

    Notes
    -----
    .. math:: r_y = z_y + a_y + \frac{1}{k - 1} \sum_{j \ne y} \theta^\top \phi_{yj}, \quad
        \phi_{yj} = (z_y - z_j,\ \text{rank}_j - \text{rank}_y,\ \log N_y - \log N_j)
    """

    n_top: int = 5
    l2: float = 1.0

    def __call__(self, logits: np.ndarray, class_counts: np.ndarray, held_out: Callable[[], HeldOut]) -> np.ndarray:
        """Return the scores of the top classes, minus infinity for the others, see :class:`Adjustment`."""
        known = held_out()
        top, score, features = self._shortlist(known.logits, class_counts)
        is_label = top == known.codes[:, None]
        rows = is_label.any(1)
        weights = self._fit(top[rows], score[rows], features[rows], is_label[rows], len(class_counts))
        top, score, features = self._shortlist(logits, class_counts)
        scores = np.full(logits.shape, -np.inf)
        np.put_along_axis(scores, top, corrected(weights, top, score, features), axis=1)
        return scores

    def _shortlist(self, logits: np.ndarray, class_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Top classes ``(n, k)``, the best first, their logits, and means of the features over rivals ``(n, k, 3)``."""
        n_top = min(self.n_top, logits.shape[1])
        top = np.argsort(-logits, axis=1, kind="stable")[:, :n_top]
        score = np.take_along_axis(logits, top, axis=1)
        rank = np.broadcast_to(-np.arange(n_top, dtype=float), top.shape)
        parts = np.stack([score, rank, np.log(class_counts)[top]], axis=-1)
        rivals = (parts.sum(1, keepdims=True) - parts) / max(1, n_top - 1)
        return top, score, parts - rivals

    def _fit(
        self, top: np.ndarray, score: np.ndarray, features: np.ndarray, is_label: np.ndarray, n_classes: int
    ) -> np.ndarray:
        """Weights ``(C + 3,)``: the offset of each class, then those of the features."""
        codes = top[is_label]
        counts = np.bincount(codes, minlength=n_classes)
        importance = len(codes) / (np.count_nonzero(counts) * counts[codes])

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            log_p = log_softmax(corrected(weights, top, score, features), axis=1)
            slope = importance[:, None] * (np.exp(log_p) - is_label)
            of_class = np.bincount(top.ravel(), slope.ravel(), minlength=n_classes)
            of_feature = np.einsum("nk,nkf->f", slope, features)
            gradient = np.concatenate([of_class, of_feature]) + self.l2 * weights
            return float(self.l2 / 2 * weights @ weights - importance @ log_p[is_label]), gradient

        start = np.zeros(n_classes + features.shape[-1])
        return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B").x)


def corrected(weights: np.ndarray, top: np.ndarray, score: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Scores ``(n, k)`` of the classes ``top``."""
    n_features = features.shape[-1]
    return np.asarray(score + weights[:-n_features][top] + features @ weights[-n_features:])


@dataclass(frozen=True)
class ClassWeighted(ClassLoss):
    r"""Cross-entropy in which each class weighs the same, :math:`n / (C N_y)` a cell: balanced sampling in the mean."""

    def among(self, shifted: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
        weight = class_counts.to(shifted)
        weight = weight.sum() / (len(weight) * weight)
        return F.cross_entropy(shifted, labels, reduction="none") * weight[labels]


@dataclass(frozen=True)
class HierarchicalCrossEntropy(Loss):
    r"""Cross-entropy of the class and of each of its ancestors; a node has the sum of its classes' probabilities.

    Parameters
    ----------
    ancestors
        Code of the ancestor of each class, a tuple for each level above the classes.
    """

    ancestors: tuple[tuple[int, ...], ...] = ()

    def of(self, obs: pd.DataFrame, labels_key: str, parent_keys: Sequence[str]) -> HierarchicalCrossEntropy:
        """Return the loss with the ancestors in the columns ``parent_keys`` that ``obs`` has."""
        first = obs.groupby(labels_key, observed=True).first()  # sorted, as the codes of the classes
        levels = [np.unique(first[key].astype(str), return_inverse=True)[1] for key in parent_keys if key in obs]
        return replace(self, ancestors=tuple(tuple(level.tolist()) for level in levels))

    def __call__(
        self, logits: Tensor, labels: Tensor, class_counts: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Compute the loss of each cell, see :class:`celler.losses.Loss`."""
        log_p = at_least_float32(logits).log_softmax(-1)
        loss = F.nll_loss(log_p, labels, reduction="none")
        for level in self.ancestors:
            codes = torch.tensor(level, device=labels.device)
            is_same = codes[labels][:, None] == codes
            loss = loss - log_p.masked_fill(~is_same, -torch.inf).logsumexp(-1)
        return loss
