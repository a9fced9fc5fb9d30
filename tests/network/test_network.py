"""The network's laws as a set function, its experts, its state_dict and its extension."""

import math

import numpy as np
import pytest
import torch
from network_cases import KINDS, SMALL, assert_same, network
from torch import nn

from celler.network._config import NetworkConfig
from celler.network._network import NetworkOutput, build_network, encoder_share, extend_network
from celler.training._plan import TrainingConfig, TrainingPlan


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_forward_with_more_padding(tokens, options):
    model = network(**options)
    padding = (torch.zeros(5, 7).int(), torch.zeros(5, 7).byte(), torch.zeros(5, 7))
    padded = [
        torch.cat([part, more], 1)
        for part, more in zip(tokens, (*padding, torch.ones(5, 7, dtype=torch.bool)), strict=True)
    ]
    assert_same(model(*padded), model(*tokens))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_forward_with_tokens_in_another_order(tokens, options, rng):
    """Among the genes of a cell; padding stays behind them."""
    model, n_tokens = network(**options), (~tokens[-1]).sum(1).tolist()
    order = torch.tensor([[*rng.permutation(n), *range(n, 12)] for n in n_tokens])
    assert_same(model(*(part.gather(1, order) for part in tokens)), model(*tokens))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_forward_with_another_gene_in_padding(tokens, options):
    gene_ids, *rest = tokens
    garbage = torch.where(rest[-1], torch.tensor(39, dtype=torch.int32), gene_ids)
    model = network(**options)
    assert_same(model(garbage, *rest), model(gene_ids, *rest))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_forward_with_another_gene_or_value(tokens, options):
    gene_ids, values, expression, is_padding = tokens
    model = network(**options)
    embedding = model(*tokens).embedding
    genes, bins = gene_ids.clone(), values.clone()
    genes[0, 0] = (genes[0, 0] + 1) % 40
    bins[0, 0] = bins[0, 0] % 10 + 1
    more = expression.clone()
    more[0, 0] += 1
    is_additive = options["encoder"] == "additive"  # which reads the expression and not its bin
    by_value = (gene_ids, values, more) if is_additive else (gene_ids, bins, expression)
    for changed in ((genes, values, expression), by_value):
        other = model(*changed, is_padding).embedding
        assert (other[0] - embedding[0]).abs().max() > 1e-3
        torch.testing.assert_close(other[1:], embedding[1:])


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_forward_of_an_empty_cell(options):
    model = network(**options).train()
    empty = (torch.zeros(2, 1).int(), torch.zeros(2, 1).byte(), torch.zeros(2, 1))
    output = model(*empty, torch.ones(2, 1, dtype=torch.bool))
    assert all(part.isfinite().all() for part in output[:2])
    output.logits.logsumexp(1).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("group_size", [1, 2, 5, 16])
def test_forward_with_other_cells_in_the_minibatch(tokens, group_size, monkeypatch):
    """Neither in its minibatch nor in the group of like length with which it attends."""
    monkeypatch.setattr("celler.network._encoders.GROUP_SIZE", group_size)
    model = network()
    together = model(*tokens)
    for cell in range(5):
        alone = model(*(part[[cell]] for part in tokens))
        assert_same((alone.embedding[0], alone.logits[0]), (together.embedding[cell], together.logits[cell]))


def test_logits_are_the_mean_log_probability(tokens):
    output = network()(*tokens)
    mean = output.expert_logits.log_softmax(-1).mean(0)
    torch.testing.assert_close(output.logits.softmax(1), mean.softmax(1))
    assert output.expert_logits.shape == (2, 5, 5)
    assert network(use_evidence=False)(*tokens).expert_logits.shape == (1, 5, 5)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_forward_gradient_reaches_every_parameter(tokens, options):
    model = network(**options).train()
    output = model(*tokens)
    weights = torch.arange(1.0, 6.0)
    (output.expert_logits.softmax(-1) * weights).sum().backward()
    silent = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()
    ]
    assert silent == []


def test_forward_under_autocast(tokens):
    for options in KINDS:
        model = network(**options)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(*tokens)
        assert output.expert_logits.dtype == output.embedding.dtype == torch.float32
        torch.testing.assert_close(output.logits, model(*tokens).logits, rtol=0.1, atol=0.2)


def test_build_network_depends_on_the_seed_alone():
    before = torch.get_rng_state()
    one, same, other = (build_network(NetworkConfig(**SMALL), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, same.state_dict()[name])
    assert not torch.equal(one.encoder.gene, other.encoder.gene)


def test_build_network_starts_with_the_loss_of_a_guess(tokens):
    """Initial logits are small: cross-entropy near log C."""
    for options in KINDS:
        logits = build_network(NetworkConfig(**SMALL | options), seed=0).eval()(*tokens).logits
        loss = nn.functional.cross_entropy(logits, torch.arange(5))
        assert loss.item() == pytest.approx(math.log(5), abs=0.3)


@pytest.mark.parametrize("through", ["memory", "file", "lightning"])
def test_state_dict_restores_the_encoder_share(tokens, tmp_path, through):
    model, other = network(), build_network(NetworkConfig(**SMALL), 1)
    model.encoder_share = 1 / 3
    state = model.state_dict()
    if through == "file":
        torch.save(state, tmp_path / "weights.pt")
        state = torch.load(tmp_path / "weights.pt", weights_only=True)
    if through == "lightning":
        plan = TrainingPlan(model, np.ones(5), TrainingConfig(max_epochs=1, batch_size=1))
        state = {name.removeprefix("network."): part for name, part in plan.state_dict().items()}
        del state["class_counts"]
    other.load_state_dict(state)
    assert other.encoder_share == 1 / 3
    assert torch.equal(model(*tokens).logits, other.eval()(*tokens).logits)


def test_load_state_dict_without_the_encoder_share():
    model = network()
    old = {name: part for name, part in model.state_dict().items() if "extra_state" not in name}
    model.encoder_share = 0.25
    for module, prefix in ((model, ""), (nn.ModuleList([model]), "0.")):
        module.load_state_dict({prefix + name: part for name, part in old.items()})
        assert model.encoder_share == 0.25


def test_extend_network_keeps_the_encoder_share(tokens):
    model = network()
    model.encoder_share = 0.125
    places = np.arange(5) + 1
    wider = extend_network(model, 42, places, 6, seed=0)
    assert wider.encoder_share == 0.125
    logits = wider.eval()(*tokens).logits[:, places]
    assert torch.equal(logits, model(*tokens).logits)


def test_logits_are_the_weighted_mean(rng):
    experts = torch.as_tensor(rng.normal(size=(2, 5, 3)))
    embedding = torch.zeros(5, 2)
    torch.testing.assert_close(NetworkOutput(experts, embedding).logits, experts.mean(0))
    expected = 0.2 * experts[0] + 0.8 * experts[1]
    torch.testing.assert_close(NetworkOutput(experts, embedding, 0.2).logits, expected)
    torch.testing.assert_close(NetworkOutput(experts[:1], embedding, 0.2).logits, experts[0])


def test_encoder_share_grows_with_the_cells():
    for knows_genes, least in ((False, 0.05), (True, 0.25)):
        shares = [encoder_share(n, knows_genes=knows_genes) for n in (0, 1000, 10**9)]
        np.testing.assert_allclose(shares, [least, (least + 0.5) / 2, 0.5], atol=1e-6)
