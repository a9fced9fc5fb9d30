"""Fixtures that several test files use."""

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """The one source of random numbers in a test; the same numbers in every run."""
    return np.random.default_rng(0)
