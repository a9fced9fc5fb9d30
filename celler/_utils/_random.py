"""Random: numbers that follow from a number alone, in compiled code."""

from __future__ import annotations

import numpy as np

from celler._utils._compile import compiled

STEP = np.uint64(0x9E3779B97F4A7C15)  #: between the states of SplitMix64


@compiled
def mixed(state):  # type: ignore[no-untyped-def]
    """Return the number, uint64, that the generator SplitMix64 makes of a ``state``; the next one is a STEP further."""
    x = state + STEP
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def uniform(state):  # type: ignore[no-untyped-def]
    """Return a number in [0, 1) of a ``state``."""
    # By way of int64, so that the CPU makes several at once.
    return np.float64(np.int64(mixed(state) >> np.uint64(11))) * 2.0**-53
