"""Tokens that the tests of the network share."""

import numpy as np
import pytest
import torch


@pytest.fixture
def tokens(rng):
    """Five cells of 6, 9, 1, 0 and 12 tokens, padded to 12."""
    n_tokens = np.array([6, 9, 1, 0, 12])
    is_padding = np.arange(12) >= n_tokens[:, None]
    gene_ids = np.array([rng.permutation(40)[:12] for _ in n_tokens])
    values = rng.integers(1, 11, size=is_padding.shape)
    expression = rng.gamma(1.0, size=is_padding.shape).astype(np.float32)
    for part in (gene_ids, values, expression):
        part[is_padding] = 0
    parts = (gene_ids.astype(np.int32), values.astype(np.uint8), expression, is_padding)
    return tuple(map(torch.from_numpy, parts))
