"""Heads: widths, and the decoder's starting point."""

import numpy as np
import pytest
import torch
from network_cases import SMALL
from pretraining_cases import N_BINS, N_GENES
from scipy import sparse
from scipy.special import softmax
from torch import nn

from celler.network._config import NetworkConfig
from celler.network._heads import AtlasHead, GeneDecoder, VGGHead, context_of


@pytest.mark.parametrize("d_model", [1, 2, 3, 5, 7, 16])
def test_vgg_head_of_any_width(d_model):
    config = NetworkConfig(**SMALL | {"d_model": d_model, "n_heads": 1, "head": "vgg"})
    head = VGGHead(config)
    assert head(torch.randn(4, d_model)).shape == (4, 5)
    widths = [layer.kernel_size for layer in head if isinstance(layer, nn.Conv1d)]
    assert widths == [(3,)] * 4


def test_context_of_visible_genes():
    values = torch.tensor([[3, 7, 0], [5, 5, 9]], dtype=torch.uint8)
    is_visible = torch.tensor([[True, True, False], [True, False, True]])
    expected = [[0.3, np.log1p(2) / 5], [0.5, np.log1p(2) / 5]]
    np.testing.assert_allclose(context_of(values, is_visible, 11), expected, rtol=1e-6)


def test_gene_decoder_starts_from_the_means(rng):
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


def test_atlas_head_matches_its_formula(rng):
    config = NetworkConfig(**SMALL | {"head": "atlas", "n_types": 4, "n_classes": 3, "encoder": "base"})
    head, d_model = AtlasHead(config), config.d_model
    vectors = rng.normal(size=(4, d_model))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    member = np.array([[1, 0, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    weight, bias, embedding = rng.normal(size=(3, d_model)), rng.normal(size=3), rng.normal(size=(5, d_model))
    with torch.no_grad():
        for place, values in (
            (head.vectors, vectors),
            (head.member, member),
            (head.solved.weight, weight),
            (head.solved.bias, bias),
        ):
            place.copy_(torch.from_numpy(values))
        found = head(torch.from_numpy(embedding).float())
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    of_types = softmax(16 * unit @ vectors.T, axis=1) @ member
    solved = softmax((unit @ weight.T + bias) / 2, axis=1)
    np.testing.assert_allclose(found, (np.log(of_types) + np.log(solved)) / 2, atol=1e-5)
    # Longer embeddings are no surer.
    np.testing.assert_allclose(head(torch.from_numpy(9 * embedding).float()).detach(), found, atol=1e-5)


def test_atlas_head_of_a_class_without_resemblance_is_finite():
    config = NetworkConfig(**SMALL | {"head": "atlas", "n_types": 2, "n_classes": 2, "encoder": "base"})
    head = AtlasHead(config)  # no type is a member of a class
    assert torch.isfinite(head(torch.randn(3, config.d_model))).all()
