"""Splitting: which donors are kept for testing, so that no donor is in both parts."""

from __future__ import annotations

import numpy as np

#: Weight of a class that one part lacks although two donors have it, against a share that is off by 1.
MISSING_IN_TEST, MISSING_IN_TRAIN = 1.0, 10.0
MAX_STEPS = 2000


def split_groups(counts: np.ndarray, test_size: float, rng: np.random.Generator) -> np.ndarray:
    """Groups of cells, such as donors, that go to the test part ``(G,)`` bool.

    Moves one group at a time, to and fro, as long as it helps: the test part should hold ``test_size``
    of all cells and of each class, every class that several groups have should be in both parts, and
    none should be in the test part alone. Where that cannot be, the test part is empty.

    counts: ``(G, C + 1)`` cells of each class and group; the last column is cells without a label.
    """
    n_groups = len(counts)
    is_test = np.zeros(n_groups, bool)
    if test_size == 0 or n_groups < 2:
        return is_test
    order = rng.permutation(n_groups)  # among equally good moves, the seed decides
    table = np.column_stack([counts[:, :-1], counts.sum(axis=1)])[order].astype(float)
    table = table[:, table.sum(axis=0) > 0]
    chosen = _climb(table, test_size)
    is_test[order[chosen]] = True
    return is_test


def _climb(table: np.ndarray, test_size: float) -> np.ndarray:
    """The chosen rows of ``table (G, columns)``, the last column of which is all cells."""
    total = table.sum(axis=0)
    is_shared = (table > 0).sum(axis=0) > 1
    chosen = np.zeros(len(table), bool)
    held = np.zeros(table.shape[1])
    best = _badness(held[None], total, is_shared, test_size)[0]
    for _ in range(MAX_STEPS):
        moved = held + np.where(chosen[:, None], -table, table)
        badness = _badness(moved, total, is_shared, test_size)
        row = int(badness.argmin())
        if badness[row] >= best - 1e-12:
            break
        best, held = badness[row], moved[row]
        chosen[row] = ~chosen[row]
    return chosen


def _badness(
    held: np.ndarray, total: np.ndarray, is_shared: np.ndarray, test_size: float
) -> np.ndarray:
    """How far each candidate ``held (n, columns)`` in the test part is from what is wanted."""
    share = held / total
    off = np.abs(share - test_size)
    off += MISSING_IN_TEST * ((held <= 0) & is_shared) + MISSING_IN_TRAIN * (held >= total)
    # all cells count as much as all classes together
    return off[:, :-1].sum(axis=1) / max(1, off.shape[1] - 1) + off[:, -1]
