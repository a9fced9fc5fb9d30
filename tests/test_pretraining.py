"""Masked pretraining: what is hidden, what the loss is, and what the model says of genes afterwards."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.metrics import f1_score
from toy import SMALL, assert_close, assert_unchanged, cells, fit, pretrained, snapshot, truth

from celler.data._samplers import OrderedSampler
from celler.data._sources import InMemoryCells
from celler.data._tokenizer import TokenBatch, Tokenizer
from celler.model import Celler
from celler.network._config import NetworkConfig
from celler.network._heads import GeneDecoder, context_of
from celler.network._network import build_network
from celler.training._masked import (
    MaskedLoss,
    PretrainingConfig,
    PretrainingPlan,
    start_from_components,
)
from celler.training._masking import MaskedLoader, MaskedMinibatch, Masking, hide

N_GENES, N_BINS = 30, 11
BRIEF = {"max_epochs": 2, "batch_size": 64, "show_progress": False}


@pytest.fixture
def counts(rng):
    return sparse.csr_matrix(rng.poisson(0.7, size=(12, N_GENES)).astype(np.float32))


def tokens_of(counts):
    return Tokenizer(N_BINS)(counts, np.arange(N_GENES, dtype=np.int32))


def hidden(counts, seed=0, mask_ratio=0.3, keep_genes=False):
    tokens = tokens_of(counts)
    options = {"mask_ratio": mask_ratio, "n_genes": N_GENES, "n_bins": N_BINS}
    generator = torch.Generator().manual_seed(seed)
    batch = torch.full((len(tokens.gene_ids),), -1)
    return tokens, hide(tokens, batch, **options, keep_genes=keep_genes, generator=generator)


# ---- what is hidden ----


@pytest.mark.parametrize("seed", range(3))
def test_seen_and_hidden_genes_are_the_cell(counts, seed):
    _, masked = hidden(counts, seed)
    bins = np.zeros(counts.shape)
    tokens = tokens_of(counts)
    for i in range(len(bins)):
        real = ~tokens.padding_mask[i]
        bins[i, tokens.gene_ids[i][real]] = tokens.values[i][real]
        seen = ~masked.tokens.padding_mask[i]
        shown, asked = masked.tokens.gene_ids[i][seen], masked.gene_ids[i][masked.is_asked[i]]
        assert not set(shown.tolist()) & set(asked.tolist())
        rebuilt = np.zeros(N_GENES)
        rebuilt[shown] = masked.tokens.values[i][seen]
        rebuilt[asked] = masked.bins[i][masked.is_asked[i]] * (N_BINS - 1)
        np.testing.assert_allclose(rebuilt, bins[i], atol=1e-5)
        assert len(asked) == max(1, round(0.3 * int(real.sum())))
        absent = masked.absent[i][masked.is_absent[i]]
        assert (bins[i, absent] == 0).all()


def test_the_genes_may_stay_in_sight_without_their_values(counts):
    tokens, masked = hidden(counts, keep_genes=True)
    np.testing.assert_array_equal(masked.tokens.gene_ids, tokens.gene_ids)
    values = masked.tokens.values.gather(1, masked.position)
    assert (values[masked.is_asked] == 0).all()
    assert (masked.tokens.expression.gather(1, masked.position)[masked.is_asked] == 0).all()
    np.testing.assert_array_equal(
        tokens.gene_ids.gather(1, masked.position)[masked.is_asked],
        masked.gene_ids[masked.is_asked],
    )


def test_a_cell_of_one_gene_keeps_it():
    _, masked = hidden(sparse.csr_matrix(np.eye(3, N_GENES, dtype=np.float32)))
    assert not masked.is_asked.any()
    assert (masked.tokens.values[:, 0] > 0).all()


def test_context_is_the_lowest_visible_bin_and_the_number_of_genes():
    values = torch.tensor([[3, 7, 0], [5, 5, 9]], dtype=torch.uint8)
    is_visible = torch.tensor([[True, True, False], [True, False, True]])
    expected = [[0.3, np.log1p(2) / 5], [0.5, np.log1p(2) / 5]]
    np.testing.assert_allclose(context_of(values, is_visible, 11), expected, rtol=1e-6)


def test_validation_masks_are_always_the_same_and_training_masks_are_not(counts):
    source = InMemoryCells(counts, np.zeros(counts.shape[0], np.int64))
    masking = Masking(Tokenizer(N_BINS), "additive", mask_ratio=0.3, seed=0)
    sampler = OrderedSampler(np.arange(5), 5)
    fixed = MaskedLoader(source, sampler, masking, is_fixed=True)
    drawn = MaskedLoader(source, sampler, masking)
    for minibatches, is_alike in ((fixed, True), (drawn, False)):
        assert len(minibatches) == 1
        (first,), (second,) = list(minibatches), list(minibatches)
        assert np.array_equal(first.gene_ids, second.gene_ids) == is_alike


# ---- the loss ----


@pytest.mark.parametrize("encoder", ["additive", "latent"])
def test_loss_against_numpy(counts, encoder):
    """Squared error of the bins over their variance, plus the binary cross-entropy of presence."""
    config = NetworkConfig(N_GENES, 3, N_BINS, encoder, d_model=16)
    network, decoder = build_network(config, 0).eval(), GeneDecoder(config).eval()
    decoder.bin_variance.fill_(0.25)
    _, masked = hidden(counts)
    loss = MaskedLoss(network.encoder, decoder)
    value, there, absent = (part.detach().double().numpy() for part in loss.outputs(masked))
    asked, is_absent = masked.is_asked.numpy(), masked.is_absent.numpy()
    squared = (value - masked.bins.double().numpy())[asked] ** 2
    nats = np.concatenate(
        [
            -np.log(1 / (1 + np.exp(-there[asked]))),
            -np.log(1 - 1 / (1 + np.exp(-absent[is_absent]))),
        ]
    )
    expected = squared.mean() / 0.25 + nats.mean()
    np.testing.assert_allclose(loss(masked)[0].item(), expected, rtol=1e-5)


@pytest.mark.parametrize("encoder", ["additive", "transformer"])
def test_validation_loss_does_not_depend_on_the_minibatches(counts, encoder):
    """Each hidden gene counts the same; a mean over minibatches would give those of a small one more weight."""
    config = NetworkConfig(N_GENES, 3, N_BINS, encoder, d_model=16)
    network, decoder = build_network(config, 0).eval(), GeneDecoder(config).eval()
    source = InMemoryCells(counts, np.full(counts.shape[0], -1))
    masking = Masking(Tokenizer(N_BINS), encoder, mask_ratio=0.3, seed=0)
    block = masking(next(iter(source.blocks(OrderedSampler(np.arange(12), 12)))), (0,))
    logged: list[float] = []
    for sizes in ([12], [11, 1], [4, 4, 4]):
        plan = PretrainingPlan(network, decoder, PretrainingConfig(1))
        plan.log = lambda name, value: logged.append(value) if name == "validation_loss" else None
        stops = np.cumsum(sizes)
        for start, stop in zip(stops - sizes, stops, strict=True):
            tokens = TokenBatch(*(part[start:stop] for part in block.tokens))
            plan.validation_step(MaskedMinibatch(tokens, *(p[start:stop] for p in block[1:])), 0)
        plan.on_validation_epoch_end()
    torch.testing.assert_close(logged[1:], logged[:1] * 2)
    torch.testing.assert_close(logged[0], MaskedLoss(network.encoder, decoder)(block)[0])


def test_the_decoder_starts_from_each_genes_mean(rng):
    bins = sparse.csr_matrix(sparse.random_array((4000, N_GENES), density=0.3, rng=rng))
    config = NetworkConfig(N_GENES, 3, N_BINS, d_model=16)
    decoder = GeneDecoder(config)
    decoder.start_from(bins)
    dense = bins.toarray()
    there = dense > 0
    mean = np.array([dense[there[:, j], j].mean() for j in range(N_GENES)])
    odds = there.mean(axis=0) / (1 - there.mean(axis=0)) / there.mean()
    np.testing.assert_allclose(decoder.gene_bias.detach()[:, 0], mean, rtol=1e-2)
    np.testing.assert_allclose(decoder.gene_bias.detach()[:, 1], np.log(odds), atol=1e-2)
    residual = (dense - mean)[there]
    np.testing.assert_allclose(decoder.bin_variance, residual.var(), rtol=1e-2)


def test_padding_changes_no_loss(counts):
    config = NetworkConfig(N_GENES, 3, N_BINS, d_model=16)
    network, decoder = build_network(config, 0).eval(), GeneDecoder(config).eval()
    _, masked = hidden(counts)
    pad = torch.nn.functional.pad
    wider = masked._replace(
        gene_ids=pad(masked.gene_ids, (0, 2)),
        bins=pad(masked.bins, (0, 2), value=0.7),
        is_asked=pad(masked.is_asked, (0, 2)),
        position=pad(masked.position, (0, 2)),
        absent=pad(masked.absent, (0, 2)),
        is_absent=pad(masked.is_absent, (0, 2)),
    )
    loss = MaskedLoss(network.encoder, decoder)
    torch.testing.assert_close(loss(wider)[0], loss(masked)[0])


def test_gene_embeddings_start_from_the_principal_components(rng):
    X = sparse.random_array((60, N_GENES), density=0.4, rng=rng, format="csr", dtype=np.float64)
    network = build_network(NetworkConfig(N_GENES, 2, d_model=8), 0)
    start_from_components(network, lambda rows: X[rows], 60, 0)
    scores = X.toarray() @ network.encoder.gene.detach().numpy()
    expected = PCA(8).fit_transform(X.toarray())
    for j in range(8):
        assert abs(np.corrcoef(scores[:, j], expected[:, j])[0, 1]) > 0.999
    np.testing.assert_allclose(scores.std(axis=0, ddof=1), 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_epochs", 0, "max_epochs=0"),
        ("batch_size", 2.5, "batch_size=2.5"),
        ("mask_ratio", 1.0, "mask_ratio=1.0"),
        ("learning_rate", 0.0, "learning_rate=0.0"),
    ],
)
def test_bad_configurations(option, value, message):
    with pytest.raises(ValueError, match=message):
        PretrainingConfig(**({"max_epochs": 1} | {option: value}))


# ---- the model ----


def test_hidden_values_are_learned():
    model = pretrained(cells(600, depth=1.0), max_epochs=30)
    history = model.pretraining_history
    assert list(history.columns) == ["train_loss", "validation_correlation", "validation_loss"]
    assert history["validation_loss"].min() < 0.8 * history["validation_loss"].iloc[0]
    assert history["validation_correlation"].max() > 0.5


@pytest.mark.parametrize("encoder", ["additive", "latent", "transformer"])
def test_training_starts_from_the_pretrained_encoder(encoder):
    """With a learning rate of next to nothing the encoder is still that of the pretraining."""
    adata = cells()
    model = pretrained(adata, {"labels_key": "cell_type"}, {"encoder": encoder}, max_epochs=1)
    before = model.get_latent_representation(adata)
    model.train(max_epochs=1, learning_rate=1e-12, refit=False, show_progress=False)
    after = model.get_latent_representation(adata, correct_shift=False)
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_unlabelled_cells_help_where_labels_are_few():
    adata = cells(1500)
    labels = adata.obs["cell_type"].astype(object)
    keep = labels.groupby(labels).head(3).index
    adata.obs["few"] = labels.where(labels.index.isin(keep), np.nan)
    scores = []
    for is_pretrained in (False, True):
        Celler.setup_anndata(adata, "few")
        model = Celler(adata, **SMALL)
        if is_pretrained:
            model.pretrain(max_epochs=30, show_progress=False)
        model.train(max_epochs=60, show_progress=False)
        scores.append(f1_score(truth(adata), model.predict(adata), average="macro"))
    assert scores[1] > scores[0] + 0.02


def test_labels_are_not_needed_and_do_not_matter():
    with_labels = pretrained(setup={"labels_key": "cell_type"})
    without = pretrained()
    query = cells(50, seed=1)
    np.testing.assert_array_equal(
        without.get_latent_representation(query), with_labels.get_latent_representation(query)
    )
    with pytest.raises(RuntimeError, match="not trained"):
        without.predict(query)


def test_counts_and_logarithms_teach_the_same():
    adata, log = cells(), cells()
    total = log.X.sum(axis=1)
    log.X = sparse.csr_matrix(np.log1p(log.X.toarray() / np.asarray(total).reshape(-1, 1) * 1e4))
    embeddings = [pretrained(a).get_latent_representation(cells(30, seed=2)) for a in (adata, log)]
    np.testing.assert_allclose(*embeddings, atol=2e-3)


def test_more_cells_by_gene_name():
    adata, more = cells(), cells(200, seed=3)
    before = snapshot(more)
    shuffled = more[:, ::-1].copy()
    both = [pretrained(adata.copy(), adata=other) for other in (more, shuffled)]
    query = cells(30, seed=2)
    np.testing.assert_array_equal(*(m.get_latent_representation(query) for m in both))
    alone = pretrained(adata.copy()).get_latent_representation(query)
    assert not np.allclose(both[0].get_latent_representation(query), alone)
    assert_unchanged(more, before)


def test_same_seed_same_weights_and_a_second_call_continues():
    first, second = pretrained(), pretrained()
    query = cells(30, seed=2)
    embedding = first.get_latent_representation(query)
    np.testing.assert_array_equal(embedding, second.get_latent_representation(query))
    first.pretrain(**BRIEF)
    assert len(first.pretraining_history) == 4
    assert not np.allclose(first.get_latent_representation(query), embedding)


def test_the_batch_enters_the_decoder_alone():
    adata = cells()
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    model = pretrained(adata, {"batch_key": "donor"}, max_epochs=5)
    decoder = model._state.pretrained.decoder
    assert decoder.batch.shape == (3, 32)
    assert decoder.batch[1:].abs().sum() > 0
    query = cells(30, seed=2)
    other = query.copy()
    other.obs["donor"] = "a"
    np.testing.assert_array_equal(
        model.get_latent_representation(query), model.get_latent_representation(other)
    )
    assert not model.predict_expression(query).equals(model.predict_expression(other))


def test_save_and_load_before_and_after_training(tmp_path):
    adata, query = cells(), cells(40, seed=2)
    model = pretrained(adata, {"labels_key": "cell_type"})
    model.save(tmp_path / "a")
    loaded = Celler.load(tmp_path / "a", adata)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(query), model.get_latent_representation(query)
    )
    pd.testing.assert_frame_equal(loaded.pretraining_history, model.pretraining_history)
    with pytest.raises(RuntimeError, match="not trained"):
        loaded.predict(query)
    model.train(max_epochs=2, refit=False, show_progress=False)
    model.save(tmp_path / "b")
    loaded = Celler.load(tmp_path / "b")
    assert_close(loaded.predict(query, soft=True), model.predict(query, soft=True))
    pd.testing.assert_frame_equal(
        loaded.predict_expression(query), model.predict_expression(query), rtol=1e-5
    )


def test_a_trained_model_is_not_pretrained_any_more():
    model = fit(cells(), max_epochs=1)
    with pytest.raises(RuntimeError, match="pretrain first"):
        model.pretrain()
    with pytest.raises(RuntimeError, match="was not pretrained"):
        model.predict_expression(cells())


@pytest.mark.parametrize("validation_size", [-0.1, 1.0])
def test_bad_validation_size(validation_size):
    with pytest.raises(ValueError, match=f"validation_size={validation_size}"):
        pretrained(validation_size=validation_size)


def test_without_validation():
    model = pretrained(validation_size=0)
    assert list(model.pretraining_history.columns) == ["train_loss"]
