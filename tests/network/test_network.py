"""The network's laws as a set function, its experts, its state_dict and its extension."""

import math
from copy import deepcopy

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
    reads_bins = options["encoder"] in ("latent", "transformer")  # and the others the expression
    by_value = (gene_ids, bins, expression) if reads_bins else (gene_ids, values, more)
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


def test_load_state_dict_without_enough_expression():
    model, other = network(), network()
    model.evidence.enough.fill_(7.0)
    state = model.state_dict()
    other.load_state_dict(state)
    assert other.evidence.enough == 7
    other.load_state_dict({name: part for name, part in state.items() if name != "evidence.enough"})
    assert other.evidence.enough == 7


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


def test_logits_of_three_experts(rng):
    """The encoder against the sum and the evidence table, which share what is left."""
    experts = torch.as_tensor(rng.normal(size=(3, 5, 4)))
    output = NetworkOutput(experts, torch.zeros(5, 2), 0.25, 0.4)
    torch.testing.assert_close(output.own_logits, 0.4 * experts[1] + 0.6 * experts[2])
    torch.testing.assert_close(output.logits, 0.25 * experts[0] + 0.3 * experts[1] + 0.45 * experts[2])
    two = NetworkOutput(experts[:2], torch.zeros(5, 2), 0.25, 0.4)
    assert torch.equal(two.own_logits, experts[1])
    torch.testing.assert_close(two.logits, 0.25 * experts[0] + 0.75 * experts[1])


def test_experts_beside_the_base(tokens):
    """A sum of gene embeddings of its own width, with the weights of no other expert, and the evidence table."""
    model = network(encoder="base", d_sum=8)
    output = model(*tokens)
    assert output.expert_logits.shape == (3, 5, 5)
    assert model.sum.encoder.gene.shape == (40, 8)
    alone = network(encoder="base", use_evidence=False)
    assert alone.sum is None
    assert alone(*tokens).expert_logits.shape == (1, 5, 5)
    for k, name in enumerate(("encoder.", "sum.", "evidence.")):
        changed = deepcopy(model)
        with torch.no_grad():
            for other, weights in changed.named_parameters():
                if other.startswith(name):
                    weights.add_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
        same = (changed(*tokens).expert_logits == output.expert_logits).flatten(1).all(1)
        assert same.tolist() == [n != k for n in range(3)], name


def test_forward_of_a_known_embedding(tokens):
    for options in KINDS:
        model = network(**options)
        expected = model(*tokens)
        assert_same(model(*tokens, expected.embedding)[:2], expected[:2])


@pytest.mark.parametrize("through", ["memory", "file"])
def test_state_dict_restores_both_shares(tokens, tmp_path, through):
    model, other = network(encoder="base"), build_network(NetworkConfig(**SMALL | {"encoder": "base"}), 1)
    model.encoder_share, model.sum_share = 1 / 3, 1 / 7
    state = model.state_dict()
    if through == "file":
        torch.save(state, tmp_path / "weights.pt")
        state = torch.load(tmp_path / "weights.pt", weights_only=True)
    other.load_state_dict(state)
    assert (other.encoder_share, other.sum_share) == (1 / 3, 1 / 7)
    assert torch.equal(model(*tokens).logits, other.eval()(*tokens).logits)


def test_load_state_dict_of_before_the_base():
    """It held the encoder's share alone, as a scalar."""
    model = network()
    state = model.state_dict() | {"_extra_state": torch.tensor(0.3, dtype=torch.float64)}
    model.load_state_dict(state)
    assert (model.encoder_share, model.sum_share) == (0.3, 0.0)


@pytest.mark.parametrize("options", [{"encoder": "base"}, *KINDS], ids=str)
def test_extend_network_changes_no_known_class(tokens, options):
    """With new genes beside the cell's own, which no expert sees before they are trained."""
    model = network(**options)
    model.encoder_share, model.sum_share = 0.25, 0.75
    if options == {"encoder": "base"}:  # one known gene and one unknown
        with torch.no_grad():
            model.encoder.gene[7], model.encoder.score[7] = 0, -torch.inf
    places = np.array([1, 2, 4, 5, 6])
    wider = extend_network(model, 43, places, 7, seed=0).eval()
    assert (wider.encoder_share, wider.sum_share) == (0.25, 0.75)
    expected = model(*tokens).expert_logits
    torch.testing.assert_close(wider(*tokens).expert_logits[..., places], expected, rtol=1e-5, atol=1e-5)
    if options["encoder"] in ("latent", "transformer"):  # whose values by bin are those of any gene
        return
    more = (torch.tensor([[40, 42]]).int(), torch.tensor([[3, 9]]).byte(), torch.tensor([[1.0, 4.0]]))
    with_new = [torch.cat([part, new.expand(5, 2)], 1) for part, new in zip(tokens, more, strict=False)]
    with_new.append(torch.cat([tokens[-1], torch.zeros(5, 2, dtype=torch.bool)], 1))
    actual = wider(*with_new).expert_logits[..., places]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_encoder_share_grows_with_the_cells():
    for knows_genes, least in ((False, 0.05), (True, 0.25)):
        shares = [encoder_share(n, knows_genes=knows_genes) for n in (0, 1000, 10**9)]
        np.testing.assert_allclose(shares, [least, (least + 0.5) / 2, 0.5], atol=1e-6)
