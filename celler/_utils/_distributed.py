"""Distributed: rank and number of processes, and values put together over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import distributed


def merged(part: np.ndarray) -> np.ndarray:
    """The parts of all ranks, one after the other; ``part`` itself where there is one process."""
    n_ranks = rank_and_size()[1]
    if n_ranks == 1:
        return part
    parts: list[Any] = [None] * n_ranks
    distributed.all_gather_object(parts, part)
    return np.concatenate(parts)


def rank_and_size() -> tuple[int, int]:
    """Rank of the process and number of ranks under torch.distributed; (0, 1) without it."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
