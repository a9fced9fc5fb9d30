"""Hard Data Mining over cells: training cells that are confidently misclassified are trained again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from celler._utils._distributed import merged

__all__ = ["HardCells", "Replay"]
#: Minibatches whose outcomes may wait on the device before they are looked through.
N_WAITING = 200
PASS = np.dtype([("index", "i8"), ("label", "i4"), ("prediction", "i4"), ("log_probability", "f4")])
LISTED = np.dtype([*PASS.descr, ("n_epochs", "i4")])


@dataclass(frozen=True)
class Replay:
    """Which cells of an epoch are trained once more in the next, section Hard Data Mining of the paper.

    n_per_class: of the cells wrongly assigned to a class, how many; those the model was surest of.
    max_share: most cells replayed, as a share of the training cells. Beyond it every class gives its
        surest cell first, then every class its second, and so on.
    patience: a cell that was replayed in this many epochs in a row and is misclassified still is
        likely mislabelled: it leaves the replay until an epoch gets it right.
    """

    n_per_class: int = 20
    max_share: float = 0.02
    patience: int = 3

    def __post_init__(self) -> None:
        for name in ("n_per_class", "patience"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name}={getattr(self, name)} was given; at least 1 is needed.")
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share={self.max_share} was given; 0 < it <= 1 is needed.")


class HardCells:
    """Watches the training passes of an epoch and chooses the cells that the next one trains again.

    A cell is hard where any of its passes was wrong. Cells are known by their index in the source
    alone, so a source may stream; with torch.distributed the ranks' findings are merged, and each
    rank holds the same choice.

    ``replayed`` is the index of the cells chosen at the end of the last epoch, every class's surest
    first. ``found`` holds that epoch's surest wrong passes, up to ``n_per_class`` for each predicted
    class and whether replayed or not: an array of ``index, label, prediction, log_probability``.
    ``listed`` sums ``found`` over the epochs so far, with ``n_epochs``, in how many it was there: at
    the end a network knows most wrong labels by heart, and it is the early epochs that give them away.

    class_counts: training cells of each class ``(C,)``.
    """

    def __init__(self, replay: Replay, class_counts: np.ndarray) -> None:
        self.replay, self.class_counts = replay, class_counts
        self.replayed, self.found = np.empty(0, np.int64), np.empty(0, PASS)
        self.listed, self._replayed_labels = np.empty(0, LISTED), np.empty(0, np.int64)
        self._n_failed: dict[int, int] = {}
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._wrong: list[np.ndarray] = []

    def watch(self, index: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Note a minibatch: ``index (B,)`` of its cells, ``labels (B,)`` and ``logits (B, C)``."""
        logits = logits.detach().float()
        best, prediction = logits.max(dim=1)
        self._waiting.append((index, labels, prediction, best - logits.logsumexp(dim=1)))
        if len(self._waiting) == N_WAITING:
            self._look_through()

    def choose(self) -> None:
        """At the end of an epoch: set ``found``, ``listed``, and ``replayed`` for the next one."""
        self._look_through()
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
        """What the next epochs depend on, as tensors and numbers."""
        chosen = {"replayed": self.replayed, "replayed_labels": self._replayed_labels}
        columns = {name: self.listed[name] for name in LISTED.names or ()} | chosen
        plain = {name: torch.tensor(values.copy()) for name, values in columns.items()}
        return plain | {"n_failed": self._n_failed}

    def restore(self, plain: dict[str, Any]) -> None:
        """Set what :meth:`to_plain` gave."""
        self.replayed = plain["replayed"].numpy()
        self._replayed_labels = plain["replayed_labels"].numpy()
        self.listed = np.empty(len(plain["index"]), LISTED)
        for name in LISTED.names or ():
            self.listed[name] = plain[name].numpy()
        self._n_failed = plain["n_failed"]

    def report(self) -> dict[str, float]:
        """``replayed_share`` of the training cells, and of which class: ``replayed_<code>`` cells."""
        counts = np.bincount(self._replayed_labels, minlength=len(self.class_counts))
        by_class = {f"replayed_{code}": float(n) for code, n in enumerate(counts)}
        return {"replayed_share": float(counts.sum() / self.class_counts.sum())} | by_class

    def n_failed(self, index: np.ndarray) -> np.ndarray:
        """In how many epochs in a row, up to the last, each cell was wrong after a replay, ``(N,)``."""
        return np.array([self._n_failed.get(cell, 0) for cell in index.tolist()], np.int64)

    @property
    def _gone(self) -> np.ndarray:
        """Index of the cells that left the replay: not before they are right once will they return."""
        patience = self.replay.patience
        return np.array([cell for cell, n in self._n_failed.items() if n >= patience], np.int64)

    def _count_failures(self, wrong: np.ndarray) -> None:
        """One more for each cell that was replayed, or has left, and is among the ``wrong``."""
        tried = np.concatenate([self.replayed, self._gone])
        failed = np.unique(merged(np.intersect1d(tried, wrong))).tolist()
        self._n_failed = {cell: self._n_failed.get(cell, 0) + 1 for cell in failed}

    def _look_through(self) -> None:
        """Keep the wrong passes of the waiting minibatches; one transfer from the device for all."""
        if not self._waiting:
            return
        columns = [torch.cat(parts).cpu().numpy() for parts in zip(*self._waiting, strict=True)]
        self._waiting.clear()
        passes = np.empty(len(columns[0]), PASS)
        for name, values in zip(PASS.names or (), columns, strict=True):
            passes[name] = values
        self._wrong.append(passes[passes["label"] != passes["prediction"]])


def surest(passes: np.ndarray, n_per_class: int) -> np.ndarray:
    """For each predicted class the ``n_per_class`` cells of highest probability, a cell once per class.

    Sorted by class, the surest first; of equal probabilities the lower index.
    """
    order = np.lexsort((passes["index"], -passes["log_probability"], passes["prediction"]))
    passes = passes[order]
    _, first = np.unique(passes[["prediction", "index"]], return_index=True)
    passes = passes[np.sort(first)]
    return passes[rank_in_class(passes) < n_per_class]


def tallied(listed: np.ndarray, found: np.ndarray) -> np.ndarray:
    """``listed`` with one more epoch for what was ``found``, and the higher of the probabilities.

    By predicted class and index, each pair once.
    """
    new = np.empty(len(found), LISTED)
    for name in PASS.names or ():
        new[name] = found[name]
    new["n_epochs"] = 1
    both = np.concatenate([listed, new])
    both = both[np.lexsort((both["index"], both["prediction"]))]
    if not len(both):
        return both
    _, first = np.unique(both[["prediction", "index"]], return_index=True)
    total = both[first]
    total["n_epochs"] = np.add.reduceat(both["n_epochs"], first)
    total["log_probability"] = np.maximum.reduceat(both["log_probability"], first)
    return total


def rank_in_class(passes: np.ndarray) -> np.ndarray:
    """Position of each pass among those of its predicted class, which lie together, ``(N,)``."""
    _, first, counts = np.unique(passes["prediction"], return_index=True, return_counts=True)
    return np.arange(len(passes)) - np.repeat(first, counts)


def within(passes: np.ndarray, n_most: int) -> np.ndarray:
    """One pass of at most ``n_most`` cells: each class's surest before any class's second."""
    order = np.lexsort((passes["index"], -passes["log_probability"], rank_in_class(passes)))
    passes = passes[order]
    _, first = np.unique(passes["index"], return_index=True)
    return passes[np.sort(first)][:n_most]
