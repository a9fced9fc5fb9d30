"""Heads: widths, and the decoder's starting point."""

import numpy as np
import pytest
import torch
from network_cases import SMALL
from pretraining_cases import N_BINS, N_GENES
from scipy import sparse
from torch import nn

from celler.network._config import NetworkConfig
from celler.network._heads import GeneDecoder, VGGHead, context_of


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
