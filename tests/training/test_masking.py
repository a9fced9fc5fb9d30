"""Masking: which genes are hidden and what is left in sight."""

import numpy as np
import pytest
from pretraining_cases import N_BINS, N_GENES, hidden, tokens_of
from scipy import sparse

from celler.data._samplers import OrderedSampler
from celler.data._sources import InMemoryCells
from celler.data._tokenizer import Tokenizer
from celler.training._masking import MaskedLoader, Masking


@pytest.fixture
def counts(rng):
    return sparse.csr_matrix(rng.poisson(0.7, size=(12, N_GENES)).astype(np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_hide_splits_the_genes_of_a_cell(counts, seed):
    _, masked = hidden(counts, seed)
    bins = np.zeros(counts.shape)
    tokens = tokens_of(counts)
    for i in range(len(bins)):
        real = ~tokens.padding_mask[i]
        bins[i, tokens.gene_ids[i][real]] = tokens.values[i][real]
        seen = ~masked.tokens.padding_mask[i]
        shown, asked = masked.tokens.gene_ids[i][seen], masked.gene_ids[i][masked.is_hidden[i]]
        assert not set(shown.tolist()) & set(asked.tolist())
        rebuilt = np.zeros(N_GENES)
        rebuilt[shown] = masked.tokens.values[i][seen]
        rebuilt[asked] = masked.bins[i][masked.is_hidden[i]] * (N_BINS - 1)
        np.testing.assert_allclose(rebuilt, bins[i], atol=1e-5)
        assert len(asked) == max(1, round(0.3 * int(real.sum())))
        absent = masked.absent[i][masked.is_absent[i]]
        assert (bins[i, absent] == 0).all()


def test_hide_with_genes_in_sight(counts):
    tokens, masked = hidden(counts, keep_genes=True)
    np.testing.assert_array_equal(masked.tokens.gene_ids, tokens.gene_ids)
    values = masked.tokens.values.gather(1, masked.position)
    assert (values[masked.is_hidden] == 0).all()
    assert (masked.tokens.expression.gather(1, masked.position)[masked.is_hidden] == 0).all()
    np.testing.assert_array_equal(
        tokens.gene_ids.gather(1, masked.position)[masked.is_hidden],
        masked.gene_ids[masked.is_hidden],
    )


def test_hide_with_a_single_gene():
    _, masked = hidden(sparse.csr_matrix(np.eye(3, N_GENES, dtype=np.float32)))
    assert not masked.is_hidden.any()
    assert (masked.tokens.values[:, 0] > 0).all()


def test_masked_loader_fixed_or_drawn_anew(counts):
    source = InMemoryCells(counts, np.zeros(counts.shape[0], np.int64))
    masking = Masking(Tokenizer(N_BINS), "additive", mask_ratio=0.3, seed=0)
    sampler = OrderedSampler(np.arange(5), 5)
    fixed = MaskedLoader(source, sampler, masking, is_fixed=True)
    drawn = MaskedLoader(source, sampler, masking)
    for minibatches, is_alike in ((fixed, True), (drawn, False)):
        assert len(minibatches) == 1
        (first,), (second,) = list(minibatches), list(minibatches)
        assert np.array_equal(first.gene_ids, second.gene_ids) == is_alike
