"""Hard Data Mining over cells: confidently misclassified training cells are trained again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from celler._utils._check import check_fields
from celler._utils._distributed import merged

__all__ = ["HardCells", "Replay"]
N_WAITING = 200  # minibatches whose outcomes stay on the device before they are searched for errors
PASS = np.dtype([("index", "i8"), ("label", "i4"), ("prediction", "i4"), ("log_probability", "f4")])
LISTED = np.dtype([*PASS.descr, ("n_epochs", "i4")])


@dataclass(frozen=True)
class Replay:
    """Which cells of an epoch are trained again in the next, section Hard Data Mining of the paper.

    Parameters
    ----------
    n_per_class
        Number of cells, of those wrongly assigned to a class, with the highest probabilities.
    max_share
        Largest share of the training cells to replay. Above it, classes give their surest cells in turn.
    patience
        Replays in a row after which a cell that is still wrong leaves the replay, until an epoch gets it right.

    Examples
    --------
    >>> model.train(replay=cl.mining.Replay(n_per_class=50))
    """

    n_per_class: int = 20
    max_share: float = 0.02
    patience: int = 3

    def __post_init__(self) -> None:
        check_fields(self)


class HardCells:
    """Hard cells of a training: watches the passes of an epoch and chooses the cells of the next.

    A cell is hard if one of its passes was wrong. Cells are known by their index in the source, so a source
    may stream. With torch.distributed the errors of all ranks are gathered, and all ranks choose the same.

    Parameters
    ----------
    replay
        The rule by which cells are chosen.
    class_counts
        Training cells of each class ``(C,)``.

    Attributes
    ----------
    replayed
        Index of the cells chosen after the last epoch, the most confident of every class first.
    found
        The last epoch's most confident errors, up to ``n_per_class`` per predicted class, replayed or not: an
        array of ``index, label, prediction, log_probability``.
    listed
        ``found`` of all epochs, with the number of epochs ``n_epochs``. A network that has memorised wrong
        labels no longer shows them, so early epochs count.
    """

    def __init__(self, replay: Replay, class_counts: np.ndarray) -> None:
        self.replay, self.class_counts = replay, class_counts
        self.replayed, self.found = np.empty(0, np.int64), np.empty(0, PASS)
        self.listed, self._replayed_labels = np.empty(0, LISTED), np.empty(0, np.int64)
        self._n_failed: dict[int, int] = {}
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._wrong: list[np.ndarray] = []

    def watch(self, index: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Record a minibatch: ``index (B,)`` of its cells, ``labels (B,)`` and ``logits (B, C)``."""
        logits = logits.detach().float()
        best, prediction = logits.max(dim=1)
        self._waiting.append((index, labels, prediction, best - logits.logsumexp(dim=1)))
        if len(self._waiting) == N_WAITING:
            self._collect_errors()

    def choose(self) -> None:
        """End an epoch: set ``found``, ``listed``, and ``replayed`` for the next one."""
        self._collect_errors()
        wrong = np.concatenate([*self._wrong, np.empty(0, PASS)])
        self._wrong.clear()
        self._count_failures(wrong["index"])
        n = self.replay.n_per_class
        self.found = surest(merged(surest(wrong, n)), n)
        self.listed = tallied(self.listed, self.found)
        eligible = wrong[~np.isin(wrong["index"], self._gone)]
        chosen = surest(merged(surest(eligible, n)), n)
        chosen = within(chosen, int(self.replay.max_share * self.class_counts.sum()))
        self.replayed, self._replayed_labels = chosen["index"], chosen["label"]

    def to_plain(self) -> dict[str, Any]:
        """Return the state that the next epochs depend on, as tensors and numbers."""
        chosen = {"replayed": self.replayed, "replayed_labels": self._replayed_labels}
        columns = {name: self.listed[name] for name in LISTED.names or ()} | chosen
        plain = {name: torch.tensor(values.copy()) for name, values in columns.items()}
        return plain | {"n_failed": self._n_failed}

    def restore(self, plain: dict[str, Any]) -> None:
        """Restore the state of :meth:`to_plain`."""
        self.replayed = plain["replayed"].numpy()
        self._replayed_labels = plain["replayed_labels"].numpy()
        self.listed = np.empty(len(plain["index"]), LISTED)
        for name in LISTED.names or ():
            self.listed[name] = plain[name].numpy()
        self._n_failed = plain["n_failed"]

    def report(self) -> dict[str, float]:
        """Return ``replayed_share`` of the training cells and ``replayed_<code>`` cells of each class."""
        counts = np.bincount(self._replayed_labels, minlength=len(self.class_counts))
        by_class = {f"replayed_{code}": float(n) for code, n in enumerate(counts)}
        return {"replayed_share": float(counts.sum() / self.class_counts.sum())} | by_class

    def n_failed(self, index: np.ndarray) -> np.ndarray:
        """Return the number of epochs in a row, up to the last, that each replayed cell was wrong ``(N,)``."""
        return np.array([self._n_failed.get(cell, 0) for cell in index.tolist()], np.int64)

    @property
    def _gone(self) -> np.ndarray:
        """Index of the cells that left the replay until an epoch gets them right."""
        patience = self.replay.patience
        return np.array([cell for cell, n in self._n_failed.items() if n >= patience], np.int64)

    def _count_failures(self, wrong: np.ndarray) -> None:
        """Count one failure more for replayed and left cells among the ``wrong``, reset all others."""
        tried = np.concatenate([self.replayed, self._gone])
        failed = np.unique(merged(np.intersect1d(tried, wrong))).tolist()
        self._n_failed = {cell: self._n_failed.get(cell, 0) + 1 for cell in failed}

    def _collect_errors(self) -> None:
        """Keep the wrong passes of the waiting minibatches, with one transfer from the device."""
        if not self._waiting:
            return
        columns = [torch.cat(parts).cpu().numpy() for parts in zip(*self._waiting, strict=True)]
        self._waiting.clear()
        passes = np.empty(len(columns[0]), PASS)
        for name, values in zip(PASS.names or (), columns, strict=True):
            passes[name] = values
        self._wrong.append(passes[passes["label"] != passes["prediction"]])


def surest(passes: np.ndarray, n_per_class: int) -> np.ndarray:
    """Return the ``n_per_class`` most probable cells of each predicted class, a cell once per class.

    Sorted by class, then probability, then index.
    """
    order = _sorted(passes, passes["prediction"]).drop_duplicates(["prediction", "index"])
    return passes[order.groupby("prediction").head(n_per_class).index]


def tallied(listed: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Add one epoch to ``listed`` for the passes ``found``, and keep the higher probability.

    Sorted by predicted class and index, each pair once.
    """
    both = pd.concat([pd.DataFrame(listed), pd.DataFrame(found).assign(n_epochs=1)])
    kept = {"label": "first", "log_probability": "max", "n_epochs": "sum"}
    total = both.groupby(["prediction", "index"], as_index=False).agg(kept)
    return total[list(LISTED.names or ())].to_records(index=False).astype(LISTED).view(np.ndarray)


def rank_in_class(passes: np.ndarray) -> np.ndarray:
    """Position of each pass within its predicted class ``(N,)``."""
    return pd.DataFrame(passes).groupby("prediction").cumcount().to_numpy()


def within(passes: np.ndarray, n_most: int) -> np.ndarray:
    """At most ``n_most`` cells, one pass each: the first of every class before the second of any."""
    order = _sorted(passes, rank_in_class(passes)).drop_duplicates("index")
    return passes[order.index[:n_most]]


def _sorted(passes: np.ndarray, first: np.ndarray) -> pd.DataFrame:
    """Sort by ``first``, then by falling probability, then by index."""
    columns = ["first", "log_probability", "index"]
    return pd.DataFrame(passes).assign(first=first).sort_values(columns, ascending=[True, False, True])
