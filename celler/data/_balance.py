"""Balance: the cells of an epoch, drawn by class so that rare ones come more often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Times that a cell comes in an epoch at most.
MAX_COPIES = 16


@dataclass(frozen=True)
class ClassBalance:
    """Draws rows of a source by their ``labels (n_cells,)``; ``strength`` is the ``class_balance`` of ``train``."""

    labels: np.ndarray
    strength: float

    def drawn(self, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """As many rows as ``index (n,)``, which ascend and repeat; with strength 0 these themselves."""
        if self.strength == 0:
            return index
        labels = self.labels[index]
        return drawn_rows(index, labels, n_drawn(np.bincount(labels), self.strength), rng)


def n_drawn(class_counts: np.ndarray, class_balance: float) -> np.ndarray:
    r"""Cells of each class in an epoch ``(C,)``, in all as many as ``class_counts (C,)``.

    A class of n cells gets a share proportional to :math:`n^{1 - b}`, b being ``class_balance``, and at most 16 n.
    """
    share, most = class_counts ** (1.0 - class_balance), MAX_COPIES * class_counts.astype(float)
    share[class_counts == 0] = 0
    total, is_full = class_counts.sum(), np.zeros(len(share), bool)
    drawn = share * total / share.sum()
    while (drawn > most).any():  # what full classes cannot take goes to the others
        is_full |= drawn > most
        free = total - most[is_full].sum()
        drawn = np.where(is_full, most, share * free / share[~is_full].sum())
    return np.diff(np.cumsum(drawn).round().astype(np.int64), prepend=0)


def drawn_rows(index: np.ndarray, labels: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``wanted (C,)`` rows of each class, all equally often or once more, of the ascending rows ``index (n,)``."""
    of_class = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=len(wanted)))
    parts = []
    for rows, n in zip(np.split(index[of_class], ends[:-1]), wanted.tolist(), strict=True):
        n_whole, n_rest = divmod(n, max(1, len(rows)))
        parts += [np.repeat(rows, n_whole), rng.choice(rows, n_rest, replace=False)]
    return np.sort(np.concatenate(parts))
