"""Cells that the tests of training share."""

import pytest
from training_cases import toy_minibatches


@pytest.fixture(scope="session")
def cells():
    """Minibatches for training and validation, and class counts."""
    return toy_minibatches()
