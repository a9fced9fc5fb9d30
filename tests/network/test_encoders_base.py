"""The encoder of the base against softmax attention written out in float64, and its laws."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from network_cases import network
from torch import nn
from torch.func import functional_call

from celler.network._config import NetworkConfig
from celler.network._encoders import MAX_SCORE, BaseEncoder

BASE = {"encoder": "base", "n_latents": 4, "n_layers": 2}


@pytest.fixture
def encoder(rng) -> BaseEncoder:
    """With scores from far below to above the largest one."""
    found = network(**BASE).encoder
    with torch.no_grad():
        found.score.copy_(torch.as_tensor(rng.normal(0, 3, size=(40, 4))))
        found.score[:3] = MAX_SCORE + torch.arange(12).reshape(3, 4)
        found.slope.copy_(torch.tensor([-0.4, 1.3]))
    return found


def softmax_attention(encoder: BaseEncoder, gene_ids: np.ndarray, expression: np.ndarray) -> torch.Tensor:
    """Embedding ``(D,)`` of one cell of these tokens ``(T,)`` without padding, in float64."""
    own = deepcopy(encoder).double().eval()
    gene, x = own.gene[torch.as_tensor(gene_ids).long()], torch.as_tensor(expression, dtype=torch.float64)
    score = own.score[torch.as_tensor(gene_ids).long()].clamp(max=6)
    n_latents, width = len(own.latent), gene.shape[1]
    latents = []
    for k in range(n_latents):
        # The slope of the first half of the latents and that of the second.
        weights = (score[:, k] + own.slope[2 * k // n_latents] * x).softmax(0)
        read = own.read.weight[32 * k : 32 * k + 32]
        contents = weights @ (width**0.5 * gene @ read.T)
        latents.append(own.latent[k] + contents @ own.write[k] + (weights @ x) * own.level[k])
    seen = torch.stack(latents)[None]
    for block in own.blocks:
        seen = block(seen)
    attended = own.pool(own.attention_norm(seen.flatten()))
    return (own.sum_norm(x @ gene) + own.gate * attended).detach()


def test_base_encoder_is_softmax_attention(tokens, encoder):
    gene_ids, values, expression, is_padding = tokens
    actual = encoder(gene_ids.long(), values.long(), expression, is_padding)
    for cell in np.flatnonzero((~is_padding).any(1)):
        real = ~is_padding[cell]
        expected = softmax_attention(encoder, gene_ids[cell][real].numpy(), expression[cell][real].numpy())
        torch.testing.assert_close(actual[cell].double(), expected, rtol=1e-4, atol=1e-4)


def test_base_encoder_attends(tokens, encoder):
    """Its scores, values and gate matter, so that the comparison above compares something."""
    plain = encoder(tokens[0].long(), tokens[1].long(), *tokens[2:])
    for name in ("score", "slope", "level", "write", "gate", "latent"):
        changed = deepcopy(encoder)
        with torch.no_grad():
            getattr(changed, name).mul_(-0.5).add_(0.1)
        other = changed(tokens[0].long(), tokens[1].long(), *tokens[2:])
        assert (other[0] - plain[0]).abs().max() > 1e-3, name


def test_embed_panel_matches_tokens(tokens, encoder, rng):
    """Dense values of a panel in any order, zeros included, and the expressed genes alone."""
    gene_ids, values, expression, is_padding = tokens
    genes = torch.as_tensor(rng.permutation(40))
    dense = torch.zeros(5, 40)
    for cell in range(5):
        real = ~is_padding[cell]
        dense[cell, gene_ids[cell][real].long()] = expression[cell][real]
    expected = encoder(gene_ids.long(), values.long(), expression, is_padding)
    actual = encoder.embed_panel(genes, dense[:, genes])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_embed_panel_without_a_gene(encoder, rng):
    """A gene that no cell expresses changes nothing, whether it is in the panel or not."""
    dense = torch.as_tensor(rng.gamma(1.0, size=(6, 40)), dtype=torch.float32)
    dense[:, 7:20] = 0
    kept = torch.tensor([*range(7), *range(20, 40)])
    actual = encoder.embed_panel(kept, dense[:, kept])
    torch.testing.assert_close(actual, encoder.embed_panel(torch.arange(40), dense), rtol=1e-5, atol=1e-5)


def test_base_encoder_does_not_see_a_gene_without_a_score(tokens, encoder):
    gene_ids, values, expression, is_padding = tokens
    unseen = gene_ids[4, 4].item()
    assert unseen != 0  # which stands in padding
    with torch.no_grad():
        encoder.gene[unseen] = 0
        encoder.score[unseen] = -torch.inf
    is_gone = gene_ids == unseen
    without = [part.masked_fill(is_gone, 0) for part in (gene_ids, values, expression)]
    actual = encoder(gene_ids.long(), values.long(), expression, is_padding)
    expected = encoder(without[0].long(), without[1].long(), without[2], is_padding | is_gone)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_base_encoder_of_unseen_genes_alone(encoder):
    """The embedding of such a cell is that of an empty one, and finite."""
    with torch.no_grad():
        encoder.gene.zero_()
        encoder.score.fill_(-torch.inf)
    expression = torch.tensor([[2.0, 5.0], [0.0, 0.0]])
    one, empty = encoder.embed_panel(torch.arange(2), expression)
    assert one.isfinite().all()
    assert torch.equal(one, empty)


def test_fixed_gives_the_same_bits(tokens):
    model = network(**BASE)
    expected = model(*tokens)
    with model.fixed():
        for _ in range(2):
            actual = model(*tokens)
            assert torch.equal(actual.expert_logits, expected.expert_logits)
            assert torch.equal(actual.embedding, expected.embedding)


def test_fixed_is_left_after_an_error(tokens):
    model = network(**BASE)
    before = model(*tokens).embedding
    with pytest.raises(InterruptedError), model.fixed():
        raise InterruptedError
    with torch.no_grad():
        model.encoder.gene.add_(torch.linspace(-1, 1, 16))
    after = model(*tokens).embedding
    assert (after - before).abs().max() > 1e-3
    with model.fixed():
        assert torch.equal(model(*tokens).embedding, after)


def test_fixed_of_another_encoder(tokens):
    model = network(encoder="additive")
    with model.fixed():
        inside = model(*tokens).logits
    assert torch.equal(inside, model(*tokens).logits)


class Dense(nn.Module):
    """The encoder on all genes."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, dense):
        return self.encoder.embed_panel(torch.arange(dense.shape[1]), dense)


@pytest.mark.parametrize("how", ["tokens", "panel"])
def test_base_encoder_gradient_matches_differences(how):
    """Padding repeats gene 0, and the score of one gene is capped."""
    config = NetworkConfig(n_genes=5, n_classes=2, d_model=4, n_latents=2, n_layers=1, n_heads=4, encoder="base")
    torch.manual_seed(0)
    encoder = BaseEncoder(config).double()
    with torch.no_grad():
        encoder.score[1, 0] = MAX_SCORE + 1
        encoder.level.normal_()
    names = ("gene", "score", "slope", "gate", "latent")
    weights = [getattr(encoder, name).detach().clone().requires_grad_() for name in names]
    gene_ids = torch.tensor([[3, 1, 0], [2, 4, 1]])
    expression = torch.tensor([[0.7, 2.1, 0.0], [1.2, 0.4, 3.0]], dtype=torch.float64)
    dense = torch.zeros(2, 5, dtype=torch.float64).scatter_add(1, gene_ids, expression)

    def embed(*given):
        named = dict(zip(names, given, strict=True))
        if how == "tokens":
            return functional_call(encoder, named, (gene_ids, gene_ids, expression, expression == 0))
        return functional_call(Dense(encoder), {f"encoder.{k}": v for k, v in named.items()}, (dense,))

    assert torch.autograd.gradcheck(embed, weights)
