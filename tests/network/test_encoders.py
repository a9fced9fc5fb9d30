"""Encoders against plain attention per token, torch's own layers and sums written out."""

import itertools

import numpy as np
import pytest
import torch
from network_cases import SMALL, network
from torch import nn

from celler.network._config import NetworkConfig
from celler.network._encoders import Block, TransformerEncoder, groups_by_length, weighted_sum
from celler.network._network import build_network


def test_groups_by_length_hold_each_cell_once(rng):
    for n_cells in (1, 15, 16, 17, 32, 70):
        n_tokens = torch.as_tensor(rng.integers(0, 30, size=n_cells))
        order, groups = groups_by_length(torch.arange(30) >= n_tokens[:, None])
        assert torch.equal(torch.cat([rows for rows, _ in groups]), order)
        assert order.sort().values.tolist() == list(range(n_cells))
        assert [n for _, n in groups] == [max(1, n_tokens[rows].max()) for rows, _ in groups]
        longest = [n for _, n in groups]
        assert longest == sorted(longest)
        assert max(len(rows) for rows, _ in groups) <= 16


@pytest.mark.parametrize("group_size", [2, 16])
def test_latent_encoder_matches_attention_over_each_token(tokens, group_size, monkeypatch):
    """Keys of gene + bin, values of gene, softmax over the cell's tokens, per cell, head and latent."""
    monkeypatch.setattr("celler.network._encoders.GROUP_SIZE", group_size)
    encoder = network(encoder="latent").encoder
    gene_ids, values, _, is_padding = tokens
    actual = encoder.attend(gene_ids.long(), values.long(), is_padding)
    expected = torch.zeros(5, 3, 16)
    with torch.no_grad():
        for cell, head, latent in itertools.product(range(5), range(4), range(3)):
            real = ~is_padding[cell]
            genes = encoder.gene[gene_ids[cell][real].long()]
            bins = encoder.value[values[cell][real].long()]
            columns = slice(4 * head, 4 * head + 4)
            keys = encoder.key_projection(genes + bins)[:, columns]
            weights = (keys @ encoder.query[head, latent]).softmax(0)
            seen = weights @ encoder.value_projection(genes)[:, columns]
            expected[cell, latent, columns] = seen
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_block_matches_torchs_encoder_layer(rng):
    config = NetworkConfig(**SMALL)
    block = Block(config).eval()
    layer = nn.TransformerEncoderLayer(
        16, 4, dim_feedforward=64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    pairs = {
        "self_attn.in_proj_": "in_projection.",
        "self_attn.out_proj.": "out_projection.",
        "linear1.": "feed.0.",
        "linear2.": "feed.2.",
        "norm1.": "attention_norm.",
        "norm2.": "feed_norm.",
    }
    ours = block.state_dict()
    layer.load_state_dict(
        {theirs + kind: ours[own + kind] for theirs, own in pairs.items() for kind in ("weight", "bias")}
    )
    x = torch.as_tensor(rng.normal(size=(3, 7, 16)), dtype=torch.float32)
    is_token = torch.ones(3, 7, dtype=torch.bool)
    is_token[1, 4:] = False
    expected = layer(x, src_key_padding_mask=~is_token)
    actual = block(x, is_token[:, None, None, :])
    torch.testing.assert_close(actual[is_token], expected[is_token], rtol=1e-4, atol=1e-5)


def test_transformer_encoder_returns_the_cell_token(tokens):
    """Written out cell by cell without padding: gene + bin, cell token first, norm, block, norm."""
    encoder = network(encoder="transformer", n_layers=2).encoder
    assert isinstance(encoder, TransformerEncoder)
    gene_ids, values, expression, is_padding = tokens
    actual = encoder(gene_ids.long(), values.long(), expression, is_padding)
    for cell in range(5):
        real = ~is_padding[cell]
        own = encoder.gene[gene_ids[cell][real].long()] + encoder.value[values[cell][real].long()]
        x = encoder.token_norm(torch.cat([encoder.cell_token[None], own]))[None]
        for block in encoder.blocks:
            x = block(x)
        torch.testing.assert_close(actual[cell], encoder.norm(x[0, 0]), rtol=1e-4, atol=1e-5)


def test_latent_encoder_with_a_shut_gate(tokens):
    model = build_network(NetworkConfig(**SMALL), seed=0).eval()  # the gate still shut
    gene_ids, _, expression, _ = tokens
    dense = np.zeros((5, 40), np.float32)
    np.add.at(dense, (np.arange(5)[:, None], gene_ids), expression)
    summed = torch.as_tensor(dense) @ model.encoder.gene
    expected = nn.functional.layer_norm(summed, (16,))
    torch.testing.assert_close(model(*tokens).embedding, expected, rtol=1e-4, atol=1e-5)


def test_evidence_table_is_linear_in_expression(tokens):
    model = network()
    gene_ids, _, expression, _ = tokens
    dense = np.zeros((5, 40))
    np.add.at(dense, (np.arange(5)[:, None], gene_ids), expression)
    table = {name: p.detach().double() for name, p in model.evidence.named_parameters()}
    expected = torch.as_tensor(dense) @ table["weight"] + table["bias"]
    torch.testing.assert_close(model(*tokens).expert_logits[1].double(), expected, rtol=1e-5, atol=1e-5)


def test_biases_of_the_evidence_table_fade_below_enough_expression(tokens):
    """By the share of it that a cell has; all of them where nothing is said, as in models of before."""
    model = network()
    with torch.no_grad():
        model.evidence.bias.copy_(torch.tensor([-3.0, 0.0, 1.0, 2.0, 5.0])[: len(model.evidence.bias)])
    gene_ids, _, expression, _ = tokens
    total, whole = expression.sum(1), model.evidence(gene_ids, expression)
    model.evidence.enough.fill_(total.max())
    share = total / total.max()
    expected = whole - (1 - share)[:, None] * model.evidence.bias
    torch.testing.assert_close(model.evidence(gene_ids, expression), expected, rtol=1e-5, atol=1e-5)
    model.evidence.enough.fill_(total.min() / 2)
    assert torch.equal(model.evidence(gene_ids, expression), whole)


def test_latent_encoder_opens_its_gate(tokens):
    """The attention stream starts silent, but its gate gets a gradient from the first step on."""
    model = build_network(NetworkConfig(**SMALL, encoder="latent"), seed=0).train()
    model(*tokens).expert_logits[0].softmax(-1)[:, 0].sum().backward()
    assert model.encoder.gate.grad.any()
    assert not model.encoder.query.grad.any()


def test_additive_encoder_is_the_normalised_sum(tokens):
    encoder = network(encoder="additive").encoder
    gene_ids, values, expression, is_padding = tokens
    summed = (encoder.gene[gene_ids.long()] * expression[:, :, None]).sum(1)
    expected = nn.functional.layer_norm(summed, (16,), encoder.norm.weight, encoder.norm.bias)
    actual = encoder(gene_ids.long(), values.long(), expression, is_padding)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_weighted_sum_gradient_matches_torch():
    """Padding repeats gene 0, and a gene may be the only one of its cell."""
    generator = torch.Generator().manual_seed(0)
    gene_ids = torch.tensor([[3, 1, 0, 0], [2, 5, 6, 1]])
    table = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    expression = torch.rand(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, x: weighted_sum(t, gene_ids, x), (table, expression))
    summed = (table[gene_ids] * expression[:, :, None]).sum(1)
    torch.testing.assert_close(weighted_sum(table, gene_ids, expression), summed)
