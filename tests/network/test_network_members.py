"""Members of a network: each is what a network alone would be, and their logits are averaged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from network_cases import KINDS, SMALL, network

from celler.network._config import NetworkConfig
from celler.network._folded import FoldedBase
from celler.network._network import GeneTransformer, build_network, extend_network

MANY = [{"encoder": "additive", "use_evidence": False}, *KINDS]


def member_alone(model: GeneTransformer, k: int) -> GeneTransformer:
    """The network with one of its members, number ``k``, in place of all."""
    weights, prefix = model.state_dict(), "" if model.sum is None else "sum."
    kept = {name: value for name, value in weights.items() if not name.startswith("members.")}
    if k:
        own = f"members.{k - 1}."
        kept |= {prefix + name.removeprefix(own): value for name, value in weights.items() if name.startswith(own)}
    alone = GeneTransformer(replace(model.config, n_members=1)).eval()
    alone.load_state_dict(kept)
    return alone


@pytest.mark.parametrize("options", MANY, ids=str)
@torch.no_grad()
def test_logits_are_the_mean_of_networks_with_one_member(tokens, options):
    model = network(**options, n_members=3)
    model.encoder_share, model.sum_share = 0.35, 0.6
    output, alone = model(*tokens), [member_alone(model, k)(*tokens) for k in range(3)]
    each = np.stack([one.logits.double().numpy() for one in alone])
    np.testing.assert_allclose(output.logits.double(), each.mean(0), rtol=1e-4, atol=1e-5)
    own = output.member_logits.double().numpy()
    apart = output.logits.double().numpy() + output.member_share * (own - own.mean(0))
    np.testing.assert_allclose(apart, each, rtol=1e-4, atol=1e-5)
    assert np.ptp(each, axis=0).max() > 0.01


@pytest.mark.parametrize("options", MANY, ids=str)
def test_one_member_is_the_network_as_it_was(options):
    """A saved model of earlier versions has no other weights."""
    one, three = (build_network(NetworkConfig(**SMALL | options | {"n_members": n}), 0) for n in (1, 3))
    assert not any(name.startswith("members") for name in one.state_dict())
    for name, weights in one.named_parameters():
        assert torch.equal(weights, three.get_parameter(name)), name


@torch.no_grad()
def test_folded_base_has_all_members(tokens):
    model = network(encoder="base", head="linear", n_members=3)
    gene_ids, _, expression, is_padding = tokens
    lengths = (~is_padding).sum(1)
    starts = (lengths.cumsum(0) - lengths).int()
    actual, expected = FoldedBase(model)(gene_ids[~is_padding].int(), expression[~is_padding], starts), model(*tokens)
    torch.testing.assert_close(actual.expert_logits, expected.expert_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert actual.n_members == 3


@pytest.mark.parametrize("options", KINDS, ids=str)
@torch.no_grad()
def test_extend_network_keeps_the_logits_of_members(tokens, options):
    model, places = network(**options, n_members=2), np.array([1, 2, 4, 5, 6])
    wider = extend_network(model, 43, places, 7, seed=0).eval()
    expected = model(*tokens).expert_logits
    torch.testing.assert_close(wider(*tokens).expert_logits[..., places], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"encoder": "scgpt"}, {"encoder": "base", "use_evidence": False}], ids=str)
def test_config_without_a_part_of_their_own_has_no_members(options):
    with pytest.raises(ValueError, match="n_members=2 was given with encoder="):
        NetworkConfig(**SMALL | options | {"n_members": 2})
