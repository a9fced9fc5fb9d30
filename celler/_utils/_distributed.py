"""Distributed: rank and number of processes, and objects gathered from all of them."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from torch import distributed

Part = TypeVar("Part")


def rank_and_size() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather_objects(part: Part) -> list[Part]:
    """Return the ``part`` of every process, ordered by rank; ``[part]`` with a single process."""
    n_ranks = rank_and_size()[1]
    if n_ranks == 1:
        return [part]
    parts: list[Any] = [None] * n_ranks
    distributed.all_gather_object(parts, part)
    return parts


def merged(part: np.ndarray) -> np.ndarray:
    """Return the arrays of all processes, joined by rank."""
    return np.concatenate(gather_objects(part))
