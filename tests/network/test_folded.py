"""The folded network against the network itself and torch's attention."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from network_cases import network

from celler.network._encoders import MAX_SCORE
from celler.network._folded import FoldedBase, attend, can_fold, normalized, padded


def flat(tokens):
    """The same tokens without padding: genes, expression and starts."""
    gene_ids, _, expression, is_padding = tokens
    lengths = (~is_padding).sum(1)
    starts = (lengths.cumsum(0) - lengths).int()
    return gene_ids[~is_padding].int(), expression[~is_padding], starts


def base(rng, **options):
    """With weights far from those of the start, so that each of them matters."""
    model = network(encoder="base", head="linear", **{"n_latents": 4, "n_layers": 2} | options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.as_tensor(rng.normal(0, 0.3, size=tuple(parameter.shape))))
        model.encoder.score[:3] = MAX_SCORE + 1
        model.encoder.score[5] = -torch.inf
        model.standardize.mean.normal_(generator=torch.Generator().manual_seed(1))
        model.standardize.scale.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    model.encoder_share, model.sum_share = 0.6, 0.3
    if model.evidence is not None:
        model.evidence.enough.fill_(20.0)  # which some cells have
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_classes": 100},
        {"use_evidence": False},
        {"n_latents": 5},
        {"n_latents": 1},
        {"n_layers": 1, "n_heads": 2, "d_sum": 8},
    ],
    ids=str,
)
@torch.no_grad()
def test_folded_base_gives_the_logits_of_the_network(tokens, rng, options):
    """One cell of the five is empty."""
    model = base(rng, **options)
    assert can_fold(model)
    expected, actual = model(*tokens), FoldedBase(model)(*flat(tokens))
    torch.testing.assert_close(actual.expert_logits, expected.expert_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert (actual.encoder_share, actual.sum_share) == (0.6, 0.3)
    assert actual.embedding.shape == (5, 0)


@torch.no_grad()
def test_folded_base_reads_every_weight(tokens, rng):
    """Otherwise the comparison above would miss one that was forgotten."""
    model = base(rng)
    plain = FoldedBase(model)(*flat(tokens)).expert_logits
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        before = weight.clone()
        weight.mul_(0.7).add_(torch.linspace(0.1, 0.4, weight.shape[-1]) if weight.ndim else 0.1)
        changed = FoldedBase(model)(*flat(tokens)).expert_logits
        assert (changed - plain).abs().max() > 1e-4, name
        torch.testing.assert_close(changed, model(*tokens).expert_logits, rtol=1e-4, atol=1e-4)
        weight.copy_(before)


@torch.no_grad()
def test_folded_base_of_empty_cells_alone(tokens, rng):
    model = base(rng)
    nothing = torch.empty(0, dtype=torch.int32), torch.empty(0), torch.zeros(3, dtype=torch.int32)
    is_padding = torch.ones(3, 1, dtype=torch.bool)
    zeros = torch.zeros(3, 1)
    expected = model(zeros.int(), zeros.int(), zeros, is_padding)
    actual = FoldedBase(model)(*nothing)
    torch.testing.assert_close(actual.expert_logits, expected.expert_logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_folded_base_is_in_float32_under_autocast(tokens, rng):
    folded = FoldedBase(base(rng))
    expected = folded(*flat(tokens)).expert_logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(folded(*flat(tokens)).expert_logits, expected)


@pytest.mark.parametrize("options", [{"encoder": "additive", "head": "linear"}, {"encoder": "base", "head": "mlp"}])
def test_can_fold_other_networks(options):
    assert not can_fold(network(**options))


@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_attend_matches_torchs_attention(rng, n_heads):
    projected = torch.as_tensor(rng.normal(size=(3 * 8, 5, 7)))  # (3 D, L, B)
    parts = projected.permute(2, 1, 0).unflatten(2, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(*parts)  # (B, H, L, D / H)
    actual = attend(projected, n_heads)
    torch.testing.assert_close(actual, expected.permute(1, 3, 2, 0).flatten(0, 1))


def test_normalized_is_layer_norm_of_columns(rng):
    x = torch.as_tensor(rng.normal(3, 2, size=(8, 5)))
    torch.testing.assert_close(normalized(x), F.layer_norm(x.T, (8,)).T)


@pytest.mark.parametrize(("n_columns", "expected"), [(1, 16), (16, 16), (17, 32), (0, 0)])
def test_padded_adds_columns_of_zeros(n_columns, expected):
    table = padded(torch.ones(3, n_columns))
    assert table.shape == (3, expected)
    np.testing.assert_array_equal(table.sum(1), np.full(3, n_columns))
