"""The network against plain per-token attention and torch's own layers, and its laws as a set function."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from celler.network._config import NetworkConfig
from celler.network._encoders import Block, TransformerEncoder, groups_by_length, weighted_sum
from celler.network._heads import VGGHead
from celler.network._network import GeneTransformer, build_network, extend_network
from celler.training._plan import TrainingConfig, TrainingPlan

SMALL = {"n_genes": 40, "n_classes": 5, "n_bins": 11, "d_model": 16, "n_heads": 4, "n_latents": 3}
KINDS = [
    {"encoder": encoder, "head": head}
    for encoder, head in itertools.product(("additive", "latent", "transformer"), ("mlp", "vgg"))
]


def network(**options) -> GeneTransformer:
    """In evaluation mode, with no weight left at the zero it starts from."""
    model = build_network(NetworkConfig(**SMALL | options), seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(generator=torch.Generator().manual_seed(len(parameter)))
    return model


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


def assert_same(one, other):
    for part, expected in zip(one, other, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)


# ---- a cell is a set ----


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_padding_changes_nothing(tokens, options):
    model = network(**options)
    padding = (torch.zeros(5, 7).int(), torch.zeros(5, 7).byte(), torch.zeros(5, 7))
    padded = [
        torch.cat([part, more], 1)
        for part, more in zip(tokens, (*padding, torch.ones(5, 7, dtype=torch.bool)), strict=True)
    ]
    assert_same(model(*padded), model(*tokens))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_order_of_tokens_changes_nothing(tokens, options, rng):
    """Among the genes of a cell; padding stays behind them."""
    model, n_tokens = network(**options), (~tokens[-1]).sum(1).tolist()
    order = torch.tensor([[*rng.permutation(n), *range(n, 12)] for n in n_tokens])
    assert_same(model(*(part.gather(1, order) for part in tokens)), model(*tokens))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_gene_of_a_padded_place_changes_nothing(tokens, options):
    gene_ids, *rest = tokens
    garbage = torch.where(rest[-1], torch.tensor(39, dtype=torch.int32), gene_ids)
    model = network(**options)
    assert_same(model(garbage, *rest), model(gene_ids, *rest))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_gene_and_value_of_a_real_token_matter(tokens, options):
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
def test_an_empty_cell_is_finite_and_its_gradient_too(options):
    model = network(**options).train()
    empty = (torch.zeros(2, 1).int(), torch.zeros(2, 1).byte(), torch.zeros(2, 1))
    output = model(*empty, torch.ones(2, 1, dtype=torch.bool))
    assert all(part.isfinite().all() for part in output[:2])
    output.logits.logsumexp(1).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("group_size", [1, 2, 5, 16])
def test_the_companions_of_a_cell_change_nothing(tokens, group_size, monkeypatch):
    """Neither in its minibatch nor in the group of like length with which it attends."""
    monkeypatch.setattr("celler.network._encoders.GROUP_SIZE", group_size)
    model = network()
    together = model(*tokens)
    for cell in range(5):
        alone = model(*(part[[cell]] for part in tokens))
        assert_same(
            (alone.embedding[0], alone.logits[0]), (together.embedding[cell], together.logits[cell])
        )


def test_groups_have_each_cell_once_and_room_for_it(rng):
    for n_cells in (1, 15, 16, 17, 32, 70):
        n_tokens = torch.as_tensor(rng.integers(0, 30, size=n_cells))
        order, groups = groups_by_length(torch.arange(30) >= n_tokens[:, None])
        assert torch.equal(torch.cat([rows for rows, _ in groups]), order)
        assert order.sort().values.tolist() == list(range(n_cells))
        assert [n for _, n in groups] == [max(1, n_tokens[rows].max()) for rows, _ in groups]
        longest = [n for _, n in groups]
        assert longest == sorted(longest)
        assert max(len(rows) for rows, _ in groups) <= 16


# ---- attention and blocks, written out ----


@pytest.mark.parametrize("group_size", [2, 16])
def test_latent_attention_is_attention_over_each_token(tokens, group_size, monkeypatch):
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


def test_a_block_is_torchs_pre_norm_encoder_layer(rng):
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
        {
            theirs + kind: ours[own + kind]
            for theirs, own in pairs.items()
            for kind in ("weight", "bias")
        }
    )
    x = torch.as_tensor(rng.normal(size=(3, 7, 16)), dtype=torch.float32)
    is_token = torch.ones(3, 7, dtype=torch.bool)
    is_token[1, 4:] = False
    expected = layer(x, src_key_padding_mask=~is_token)
    actual = block(x, is_token[:, None, None, :])
    torch.testing.assert_close(actual[is_token], expected[is_token], rtol=1e-4, atol=1e-5)


def test_the_paper_encoder_returns_the_cell_token(tokens):
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


def test_the_additive_stream_is_the_weighted_sum_of_gene_embeddings(tokens):
    model = build_network(NetworkConfig(**SMALL), seed=0).eval()  # the gate still shut
    gene_ids, _, expression, _ = tokens
    dense = np.zeros((5, 40), np.float32)
    np.add.at(dense, (np.arange(5)[:, None], gene_ids), expression)
    summed = torch.as_tensor(dense) @ model.encoder.gene
    expected = nn.functional.layer_norm(summed, (16,))
    torch.testing.assert_close(model(*tokens).embedding, expected, rtol=1e-4, atol=1e-5)


def test_evidence_is_linear_in_expression(tokens):
    model = network()
    gene_ids, _, expression, _ = tokens
    dense = np.zeros((5, 40))
    np.add.at(dense, (np.arange(5)[:, None], gene_ids), expression)
    table = {name: p.detach().double() for name, p in model.evidence.named_parameters()}
    expected = torch.as_tensor(dense) @ table["weight"] + table["bias"]
    torch.testing.assert_close(
        model(*tokens).expert_logits[1].double(), expected, rtol=1e-5, atol=1e-5
    )


# ---- experts ----


def test_combined_logits_are_the_mean_log_probability(tokens):
    output = network()(*tokens)
    mean = output.expert_logits.log_softmax(-1).mean(0)
    torch.testing.assert_close(output.logits.softmax(1), mean.softmax(1))
    assert output.expert_logits.shape == (2, 5, 5)
    assert network(use_evidence=False)(*tokens).expert_logits.shape == (1, 5, 5)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_gradient_reaches_every_parameter(tokens, options):
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


def test_a_shut_gate_opens(tokens):
    """The attention stream starts silent, but its gate gets a gradient from the first step on."""
    model = build_network(NetworkConfig(**SMALL, encoder="latent"), seed=0).train()
    model(*tokens).expert_logits[0].softmax(-1)[:, 0].sum().backward()
    assert model.encoder.gate.grad.any()
    assert not model.encoder.query.grad.any()


def test_output_is_float32_under_autocast_and_close(tokens):
    for options in KINDS:
        model = network(**options)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(*tokens)
        assert output.expert_logits.dtype == output.embedding.dtype == torch.float32
        torch.testing.assert_close(output.logits, model(*tokens).logits, rtol=0.1, atol=0.2)


# ---- shapes, seeds, settings ----


@pytest.mark.parametrize("d_model", [1, 2, 3, 5, 7, 16])
def test_the_vgg_head_takes_any_width(d_model):
    config = NetworkConfig(**SMALL | {"d_model": d_model, "n_heads": 1, "head": "vgg"})
    head = VGGHead(config)
    assert head(torch.randn(4, d_model)).shape == (4, 5)
    widths = [layer.kernel_size for layer in head if isinstance(layer, nn.Conv1d)]
    assert widths == [(3,)] * 4


def test_initial_weights_come_from_the_seed_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    one, same, other = (build_network(NetworkConfig(**SMALL), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, same.state_dict()[name])
    assert not torch.equal(one.encoder.gene, other.encoder.gene)


def test_the_loss_of_a_new_network_is_that_of_a_guess(tokens):
    """Initial logits are small: cross-entropy near log C."""
    for options in KINDS:
        logits = build_network(NetworkConfig(**SMALL | options), seed=0).eval()(*tokens).logits
        loss = nn.functional.cross_entropy(logits, torch.arange(5))
        assert loss.item() == pytest.approx(math.log(5), abs=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_layers": 0}, "n_layers=0 was given; at least 1"),
        ({"d_model": 0}, "d_model=0 was given; at least 1"),
        ({"n_heads": 0}, "n_heads=0 was given; at least 1"),
        ({"n_latents": 0}, "n_latents=0 was given; at least 1"),
        ({"encoder": "latent", "d_model": 30}, "d_model=30 is not a multiple of n_heads=4; take d_model=32"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0 was given"),
        ({"dropout_rate": -0.1}, "dropout_rate=-0.1 was given"),
        ({"encoder": "lstm"}, r"encoder='lstm' was given; choose from \['additive', 'latent', 'scgpt'"),
        ({"head": "linear"}, r"head='linear' was given; choose from \['mlp', 'vgg'\]"),
    ],
)  # fmt: skip
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**SMALL | options)


def test_the_additive_encoder_is_the_normalised_sum(tokens):
    encoder = network(encoder="additive").encoder
    gene_ids, values, expression, is_padding = tokens
    summed = (encoder.gene[gene_ids.long()] * expression[:, :, None]).sum(1)
    expected = nn.functional.layer_norm(summed, (16,), encoder.norm.weight, encoder.norm.bias)
    actual = encoder(gene_ids.long(), values.long(), expression, is_padding)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_weighted_sum_is_that_of_torch():
    """Padding repeats gene 0, and a gene may be the only one of its cell."""
    generator = torch.Generator().manual_seed(0)
    gene_ids = torch.tensor([[3, 1, 0, 0], [2, 5, 6, 1]])
    table = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    expression = torch.rand(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, x: weighted_sum(t, gene_ids, x), (table, expression))
    summed = (table[gene_ids] * expression[:, :, None]).sum(1)
    torch.testing.assert_close(weighted_sum(table, gene_ids, expression), summed)


@pytest.mark.parametrize("through", ["memory", "file", "lightning"])
def test_state_dict_restores_the_share_of_the_encoder(tokens, tmp_path, through):
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


def test_load_state_dict_without_the_share_keeps_the_present_one():
    model = network()
    old = {name: part for name, part in model.state_dict().items() if "extra_state" not in name}
    model.encoder_share = 0.25
    for module, prefix in ((model, ""), (nn.ModuleList([model]), "0.")):
        module.load_state_dict({prefix + name: part for name, part in old.items()})
        assert model.encoder_share == 0.25


def test_extend_network_keeps_the_share(tokens):
    model = network()
    model.encoder_share = 0.125
    places = np.arange(5) + 1
    wider = extend_network(model, 42, places, 6, seed=0)
    assert wider.encoder_share == 0.125
    logits = wider.eval()(*tokens).logits[:, places]
    assert torch.equal(logits, model(*tokens).logits)
