"""The loader: a minibatch on another device."""

import pytest
import torch
from training_cases import toy_minibatches

from celler.data._tokenizer import TokenBatch


@pytest.mark.parametrize("embedding", [None, torch.zeros(80, 2)])
def test_minibatch_to_a_device(embedding):
    moved = next(iter(toy_minibatches()[0]))._replace(embedding=embedding).to(torch.device("meta"))
    parts = [*moved.tokens, moved.labels, moved.source_index]
    parts += [] if moved.embedding is None else [moved.embedding]
    assert {part.device.type for part in parts} == {"meta"}
    assert (moved.embedding is None) == (embedding is None)
    assert isinstance(moved.tokens, TokenBatch)
