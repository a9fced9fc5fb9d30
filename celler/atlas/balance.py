"""Balance: how often an epoch shows the cells of each class when rare ones come more often than they are."""

from __future__ import annotations

import numpy as np

#: Most times that one cell comes in an epoch.
MAX_COPIES = 16


def check_balance(class_balance: float) -> None:
    """Raise ``ValueError`` unless 0 <= ``class_balance`` <= 1."""
    if not 0 <= class_balance <= 1:
        raise ValueError(
            f"class_balance={class_balance} was given; 0 (cells as often as they are) to 1 (classes equally often) "
            "is needed."
        )


def n_drawn(class_counts: np.ndarray, class_balance: float) -> np.ndarray:
    r"""How many cells of each class an epoch has ``(C,)``, as many together as ``class_counts (C,)`` has.

    Class c with n_c cells has a share proportional to :math:`n_c^{1 - b}` with b = ``class_balance``, but no more than
    16 times its cells.
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


def drawn_rows(
    index: np.ndarray, labels: np.ndarray, wanted: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Rows of an epoch, ascending ``(n,)``: ``wanted (C,)`` of each class, a row as often as its others or once more.

    index: the rows that there are, ascending ``(n,)``. labels: their classes' codes ``(n,)``.
    """
    of_class = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=len(wanted)))
    parts = []
    for rows, n in zip(np.split(index[of_class], ends[:-1]), wanted.tolist(), strict=True):
        n_whole, n_rest = divmod(n, max(1, len(rows)))
        parts += [np.repeat(rows, n_whole), rng.choice(rows, n_rest, replace=False)]
    return np.sort(np.concatenate(parts))
