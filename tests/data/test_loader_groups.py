"""Groups of minibatches in the token loader."""

import numpy as np
import torch
from scipy import sparse

from celler.data._loader import TokenLoader, grouped
from celler.data._samplers import ShuffledSampler
from celler.data._sources import InMemoryCells
from celler.data._tokenizer import Tokenizer


def test_grouped_shares_a_matrix_and_starts_small():
    source = InMemoryCells(sparse.csr_matrix(np.eye(70)), np.zeros(70, np.int64))
    blocks = [source[np.arange(k, k + 2)] for k in range(0, 70, 2)]
    groups = list(grouped(blocks, n_cells=16))
    assert [len(group) for group in groups] == [1, 2, 4, 8, 8, 8, 4]
    assert [id(block) for group in groups for block in group] == [id(block) for block in blocks]
    other = InMemoryCells(source.X.copy(), source.labels)
    mixed = [source[np.arange(2)], other[np.arange(2)], other[np.arange(2)]]
    assert [len(group) for group in grouped(mixed)] == [1, 2]


def test_token_loader_pins_a_group_at_once(rng, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda part: pinned.append(part) or part.clone())
    X = sparse.csr_matrix(rng.poisson(1.0, size=(12, 5)), dtype=np.float32)
    source, rows = InMemoryCells(X, np.arange(12)), np.arange(12)
    on_cpu, on_gpu = (
        TokenLoader(source, Tokenizer(), ShuffledSampler(rows, 4, 0), False, device=torch.device(device))
        for device in ("cpu", "cuda")
    )
    plain, moved = (list(loader) for loader in (on_cpu, on_gpu))
    assert len(pinned) == 2 * 6  # a group of one minibatch and one of two
    for one, other in zip(plain, moved, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
