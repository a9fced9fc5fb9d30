"""Masked genes: the loss in NumPy, its validation, and the start from principal components."""

from itertools import islice

import numpy as np
import pytest
import torch
from pretraining_cases import N_BINS, N_GENES, hidden
from scipy import sparse
from sklearn.decomposition import PCA
from toy import pretrained

from celler.data._samplers import OrderedSampler
from celler.data._sources import InMemoryCells
from celler.data._tokenizer import TokenBatch, Tokenizer
from celler.losses import CrossEntropy
from celler.network._config import NetworkConfig
from celler.network._heads import GeneDecoder
from celler.network._network import build_network
from celler.training._masked import (
    MaskedLoss,
    MaskedTask,
    PretrainingConfig,
    PretrainingPlan,
    start_from_components,
)
from celler.training._masking import MaskedMinibatch, Masking
from celler.training._plan import TrainingConfig, TrainingPlan


@pytest.fixture
def counts(rng):
    return sparse.csr_matrix(rng.poisson(0.7, size=(12, N_GENES)).astype(np.float32))


@pytest.mark.parametrize("encoder", ["additive", "latent"])
def test_masked_loss_matches_numpy(counts, encoder):
    """Squared error of the bins over their variance, plus the binary cross-entropy of presence."""
    config = NetworkConfig(N_GENES, 3, N_BINS, encoder, d_model=16)
    network, decoder = build_network(config, 0).eval(), GeneDecoder(config).eval()
    decoder.bin_variance.fill_(0.25)
    _, masked = hidden(counts)
    loss = MaskedLoss(network.encoder, decoder)
    value, there, absent = (part.detach().double().numpy() for part in loss.outputs(masked))
    asked, is_absent = masked.is_hidden.numpy(), masked.is_absent.numpy()
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
def test_validation_loss_in_other_minibatches(counts, encoder):
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


def test_masked_loss_with_more_padding(counts):
    config = NetworkConfig(N_GENES, 3, N_BINS, d_model=16)
    network, decoder = build_network(config, 0).eval(), GeneDecoder(config).eval()
    _, masked = hidden(counts)
    pad = torch.nn.functional.pad
    wider = masked._replace(
        gene_ids=pad(masked.gene_ids, (0, 2)),
        bins=pad(masked.bins, (0, 2), value=0.7),
        is_hidden=pad(masked.is_hidden, (0, 2)),
        position=pad(masked.position, (0, 2)),
        absent=pad(masked.absent, (0, 2)),
        is_absent=pad(masked.is_absent, (0, 2)),
    )
    loss = MaskedLoss(network.encoder, decoder)
    torch.testing.assert_close(loss(wider)[0], loss(masked)[0])


def test_start_from_components_matches_scikit_learn(rng):
    X = sparse.random_array((60, N_GENES), density=0.4, rng=rng, format="csr", dtype=np.float64)
    network = build_network(NetworkConfig(N_GENES, 2, d_model=8), 0)
    start_from_components(network, lambda rows: X[rows], 60, 0)
    scores = X.toarray() @ network.encoder.gene.detach().numpy()
    expected = PCA(8).fit_transform(X.toarray())
    for j in range(8):
        assert abs(np.corrcoef(scores[:, j], expected[:, j])[0, 1]) > 0.999
    np.testing.assert_allclose(scores.std(axis=0, ddof=1), 1, rtol=1e-3)


def test_masked_task_adds_its_loss_to_a_step():
    model = pretrained(setup={"labels_key": "cell_type"}, max_epochs=1)
    seen = []
    decoder, encoder = model._state.pretrained.decoder, model.module.encoder

    def record(minibatch):
        seen.append(minibatch)
        return minibatch

    model.adata.obs["few"] = None
    minibatches = masked_minibatches(model)
    task = MaskedTask(decoder, map(record, minibatches), weight=2.5)
    labels, counts = torch.tensor([0, 1, 2]), np.array([5.0, 5.0, 5.0, 5.0])
    tokens = model._state.tokenizer(model.adata.X[:3], np.arange(80, dtype=np.int32))
    model.module.eval()
    losses = []
    for masked_task in (None, task):
        config = TrainingConfig(1, 3, loss=CrossEntropy(), masked_task=masked_task, replay=None)
        plan = TrainingPlan(model.module, counts, config)
        losses.append(plan.loss_of((tokens, labels, labels, None)).item())
    expected, _ = MaskedLoss(encoder, decoder)(seen[0])
    assert losses[1] - losses[0] == pytest.approx(2.5 * expected.item(), rel=1e-4)


def masked_minibatches(model):
    from celler.model._pretrain import masked_loaders, unlabelled_cells
    from celler.training._plan import PretrainingConfig

    return masked_loaders(
        model._state,
        unlabelled_cells(model._state, model._registered, None),
        0.0,
        PretrainingConfig(1, 32),
    )[0]


def test_minibatches_of_the_task_are_endless_and_differ_by_epoch():
    minibatches = masked_minibatches(pretrained(max_epochs=1))
    n = len(minibatches)
    tasks = [MaskedTask(torch.nn.Identity(), minibatches, 1.0) for _ in range(2)]
    first, second = (list(islice(task._minibatches, 2 * n)) for task in tasks)
    assert len(first) == 2 * n
    hidden = [np.concatenate([m.gene_ids[:, 0] for m in part]) for part in (first[:n], first[n:])]
    assert not np.array_equal(*hidden)
    assert len(second) == 2 * n
