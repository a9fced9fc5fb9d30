"""The tokenizer against a plain NumPy reference on any matrix, and its laws."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse, stats

from celler.data._token_loops import cells_of
from celler.data._tokenizer import BadValueError, TokenBatch, Tokenizer

QUICK = settings(max_examples=40, deadline=None)


MATRICES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=24)


COUNTS = hnp.arrays(np.int64, MATRICES, elements=st.sampled_from([0, 0, 0, 1, 1, 2, 3, 7, 4000]))


FLOATS = hnp.arrays(np.float32, MATRICES, elements=st.one_of(st.just(0.0), st.floats(0, 20, width=32)))


def identity(X) -> np.ndarray:
    return np.arange(X.shape[1], dtype=np.int32)


def as_sets(batch: TokenBatch) -> list[dict[int, tuple[int, float]]]:
    """Each cell as gene -> (bin, expression); checks what padding looks like on the way."""
    ids, bins, expression, is_padding = (part.numpy() for part in batch)
    assert ids.dtype == np.int32
    assert bins.dtype == np.uint8
    assert expression.dtype == np.float32
    assert is_padding.dtype == bool
    assert not ids[is_padding].any()
    assert not bins[is_padding].any()
    assert not expression[is_padding].any()
    assert (np.diff(is_padding.astype(int), axis=1) >= 0).all(), "padding is on the right"
    cells = []
    for row in range(len(ids)):
        kept = ~is_padding[row]
        parts = (ids[row][kept], bins[row][kept], expression[row][kept])
        cells.append({int(g): (int(b), float(e)) for g, b, e in zip(*parts, strict=True)})
        assert len(cells[-1]) == kept.sum(), "a gene occurs once"
    return cells


def assert_same_tokens(batch: TokenBatch, expected: list[dict[int, tuple[int, float]]]) -> None:
    cells = as_sets(batch)
    assert len(cells) == len(expected)
    for cell, other in zip(cells, expected, strict=True):
        assert {g: b for g, (b, _) in cell.items()} == {g: b for g, (b, _) in other.items()}
        for gene, (_, expression) in other.items():
            assert cell[gene][1] == pytest.approx(expression, rel=2e-5)


def random_counts(rng, n_obs=20, n_vars=150) -> np.ndarray:
    return rng.poisson(rng.gamma(0.3, 3.0, n_vars), (n_obs, n_vars))


def test_reference_matches_numpy(rng):
    """34 bins: the quantiles are multiples of 1/32, where floating point is exact."""
    for values in (rng.gamma(1.0, size=77), np.log1p(rng.poisson(1.0, 300) + 1)):
        edges = np.quantile(values, np.linspace(0, 1, 33))
        np.testing.assert_array_equal(reference.rank_bins(values, 34), np.digitize(values, edges))


@QUICK
@given(COUNTS, st.sampled_from([3, 4, 51, 256]))
def test_tokenizer_of_counts_matches_the_reference(counts, n_bins):
    batch = Tokenizer(n_bins)(sparse.csr_matrix(counts), identity(counts))
    assert_same_tokens(batch, [reference.tokens(row, identity(counts), n_bins) for row in counts])


@QUICK
@given(FLOATS, st.booleans())
def test_tokenizer_of_floats_matches_the_reference(values, is_log):
    batch = Tokenizer()(sparse.csr_matrix(values), identity(values), is_log=is_log)
    expected = [reference.tokens(row, identity(values), 51, is_log=is_log) for row in values]
    assert_same_tokens(batch, expected)


def test_tokenizer_of_many_distinct_values(rng):
    """More than 64 distinct values take another sort."""
    values = rng.gamma(1.0, size=(3, 900)).astype(np.float32)
    batch = Tokenizer()(sparse.csr_matrix(values), identity(values))
    assert_same_tokens(batch, [reference.tokens(row, identity(values), 51) for row in values])


@QUICK
@given(COUNTS, st.sampled_from([None, 1, 4]), st.randoms())
def test_flat_tokens_are_those_without_padding(counts, max_genes, random):
    """Some rows in any order, and any run of them; the highest genes where there are too many."""
    X, tokenizer = sparse.csr_matrix(counts), Tokenizer(max_genes=max_genes)
    rows = np.array([random.randrange(len(counts)) for _ in range(7)])
    first, end = sorted(random.sample(range(8), 2))
    batch = tokenizer(X, identity(X), rows=rows, target_sum=100.0)
    whole = tokenizer.flat(X, identity(X), rows=rows, target_sum=100.0)
    for tokens, kept in ((whole, slice(None)), (whole.cells(first, end), slice(first, end))):
        is_real = ~batch.padding_mask[kept]
        assert torch.equal(tokens.gene_ids, batch.gene_ids[kept][is_real])
        assert torch.equal(tokens.expression, batch.expression[kept][is_real])
        assert tokens.lengths.tolist() == is_real.sum(1).tolist()
        assert tokens.starts.tolist() == (is_real.sum(1).cumsum(0) - is_real.sum(1)).tolist()


def test_tokenizer_worked_by_hand():
    """Five bins: the edges of 1, 2, 3, 4 are 1, 2, 3, 4 and of 1, 1, 1, 5 they are 1, 1, 1, 5."""
    X = sparse.csr_matrix([[1, 2, 3, 4], [1, 1, 5, 1], [7, 0, 0, 0], [2, 2, 2, 0], [0, 0, 0, 0]])
    batch = Tokenizer(5)(X, identity(X), target_sum=10.0)
    np.testing.assert_array_equal(batch.values, [[1, 2, 3, 4], [3, 3, 4, 3], [4, 0, 0, 0], [4, 4, 4, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(batch.expression[0], np.log1p([1.0, 2.0, 3.0, 4.0]), rtol=1e-6)
    np.testing.assert_allclose(batch.expression[2, 0], np.log1p(10.0), rtol=1e-6)


def test_tokenizer_of_counts_or_logarithms(rng):
    counts = sparse.csr_matrix(random_counts(rng))
    size = np.asarray(counts.sum(1))
    log = sparse.csr_matrix(np.log1p(counts.toarray() / size * 1e4), dtype=np.float32)
    raw, normalised = (Tokenizer()(X, identity(counts), is_log=is_log) for X, is_log in ((counts, False), (log, True)))
    assert torch.equal(raw.gene_ids, normalised.gene_ids)
    assert torch.equal(raw.values, normalised.values)
    np.testing.assert_allclose(raw.expression, normalised.expression, rtol=1e-5, atol=1e-6)


def test_tokenizer_of_degenerate_matrices():
    explicit = sparse.csr_matrix(([0.0, -0.0, 3.0], ([0, 0, 1], [0, 1, 1])), shape=(3, 2))
    assert explicit.nnz == 3
    assert [set(cell) for cell in as_sets(Tokenizer()(explicit, identity(explicit)))] == [
        set(), {1}, set(),
    ]  # fmt: skip
    for shape in ((0, 5), (4, 5), (2, 0)):
        batch = Tokenizer(max_genes=3)(sparse.csr_matrix(shape), np.arange(shape[1], dtype=np.int32))
        assert batch.gene_ids.shape == (shape[0], 1)
        assert batch.padding_mask.all()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, np.float64])
def test_tokenizer_of_every_dtype(rng, dtype):
    X = sparse.csr_matrix(random_counts(rng), dtype=np.float32)
    expected = Tokenizer()(X, identity(X))
    wide = X.astype(dtype)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    for part, other in zip(Tokenizer()(wide, identity(X)), expected, strict=True):
        assert torch.equal(part, other)


def test_tokenizer_leaves_its_input(rng):
    X = sparse.csr_matrix(random_counts(rng), dtype=np.float32)
    before = X.copy()
    Tokenizer(max_genes=5)(X, identity(X))
    np.testing.assert_array_equal(X.data, before.data)
    np.testing.assert_array_equal(X.indices, before.indices)


def test_tokenizer_with_unmapped_columns(rng):
    counts = random_counts(rng)
    gene_map = rng.permutation(500)[: counts.shape[1]].astype(np.int32)
    gene_map[::3] = -1
    batch = Tokenizer()(sparse.csr_matrix(counts), gene_map)
    assert_same_tokens(batch, [reference.tokens(row, gene_map, 51) for row in counts])


def test_tokenizer_of_a_cell_that_ends_in_unmapped_columns():
    """What follows its last token must not overwrite the tokens."""
    X = np.array([[1, 2, 3, 5000, 7, 0], [4, 3, 2, 1, 0.5, 6], [2, 2, 2, 2, 2, 2]])
    gene_map = np.array([3, 0, 4, 1, 2, -1], dtype=np.int32)
    batch = Tokenizer()(sparse.csr_matrix(X, dtype=np.float32), gene_map)
    assert_same_tokens(batch, [reference.tokens(row[:5], gene_map[:5], 51) for row in X])


def test_tokenizer_of_wide_indices_copies_none(rng):
    """A matrix of over 2,147,483,647 values has indices of 64 bits: a copy for each minibatch would take minutes."""
    counts = random_counts(rng)
    X = sparse.csr_matrix(counts, dtype=np.float32)
    X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    gene_map = identity(counts)
    gene_map[::3] = -1
    assert cells_of(X, gene_map, None).columns is X.indices
    assert_same_tokens(Tokenizer()(X, gene_map), [reference.tokens(row, gene_map, 51) for row in counts])


@pytest.mark.parametrize("max_genes", [None, 20])
def test_tokenizer_with_permuted_columns(rng, max_genes):
    counts, order = random_counts(rng), rng.permutation(150).astype(np.int32)
    one = Tokenizer(max_genes=max_genes)(sparse.csr_matrix(counts), identity(counts))
    other = Tokenizer(max_genes=max_genes)(sparse.csr_matrix(counts[:, order]), order)
    assert as_sets(one) == as_sets(other)


def test_tokenizer_of_some_rows(rng):
    X, rows = sparse.csr_matrix(random_counts(rng)), np.array([3, 0, 3, 1])
    options = {"token_dropout": 0.3, "seeds": np.arange(4, dtype=np.uint64)}
    of_rows = Tokenizer()(X, identity(X), rows=rows, target_sum=np.arange(1.0, 5.0), **options)
    alone = Tokenizer()(X[rows], identity(X), target_sum=np.arange(1.0, 5.0), **options)
    for part, expected in zip(of_rows, alone, strict=True):
        np.testing.assert_array_equal(part, expected)
    X.data[X.indptr[1]] = -2
    with pytest.raises(BadValueError, match="row 3 holds the value -2") as raised:
        Tokenizer()(X, identity(X), rows=np.array([0, 2, 0, 1]))
    assert raised.value.row == 3
    Tokenizer()(X, identity(X), rows=np.array([0, 2]))


@QUICK
@given(COUNTS, st.integers(1, 8))
def test_tokenizer_with_max_genes(counts, max_genes):
    gene_map = identity(counts)[::-1].copy()
    batch = Tokenizer(max_genes=max_genes)(sparse.csr_matrix(counts), gene_map)
    assert batch.gene_ids.shape[1] <= max_genes
    assert_same_tokens(batch, [reference.tokens(row, gene_map, 51, max_genes=max_genes) for row in counts])


def test_tokenizer_with_seeds(rng):
    counts = random_counts(rng, n_obs=2)
    counts[1] = counts[0]
    X, tokenizer = sparse.csr_matrix(counts), Tokenizer(max_genes=10)
    whole = as_sets(Tokenizer()(X, identity(X)))[0]
    first, second = as_sets(tokenizer(X, identity(X), seeds=np.array([5, 5], np.uint64)))
    assert first == second
    assert len(first) == 10
    assert first.items() <= whole.items(), "what is left out changes neither bin nor expression"
    other, first_again = as_sets(tokenizer(X, identity(X), seeds=np.array([6, 5], np.uint64)))
    assert other != first
    assert first_again == first


@pytest.mark.parametrize(("options", "n_kept"), [({"max_genes": 7}, 7), ({}, 14)])
def test_tokenizer_keeps_genes_uniformly(options, n_kept):
    """4,000 cells of 20 genes; a chi-squared test that a fair choice fails once in a million."""
    n_cells, n_genes = 4000, 20
    X = sparse.csr_matrix(np.tile(np.arange(1.0, n_genes + 1), (n_cells, 1)))
    batch = Tokenizer(**options)(
        X,
        identity(X),
        seeds=np.arange(n_cells, dtype=np.uint64),
        token_dropout=0.0 if options else 0.3,
    )
    assert (~batch.padding_mask).sum(1).eq(n_kept).all()
    kept = np.bincount(batch.gene_ids.numpy().ravel(), minlength=n_genes)
    # Choosing without replacement: the counts' covariance is that of a multinomial times this.
    shrink = (n_genes - n_kept) / (n_genes - 1)
    statistic = ((kept - kept.mean()) ** 2).sum() / kept.mean() / shrink
    assert stats.chi2(n_genes - 1).sf(statistic) > 1e-6
    pairs = np.corrcoef([(batch.gene_ids == gene).any(1).numpy() for gene in range(n_genes)])
    off_diagonal = pairs[~np.eye(n_genes, dtype=bool)]
    assert np.abs(off_diagonal + 1 / (n_genes - 1)).max() < 0.1, "pairs are chosen independently"


@pytest.mark.parametrize(("n", "share", "n_left"), [(10, 0.3, 7), (9, 0.3, 7), (1, 0.9, 1)])
def test_tokenizer_with_token_dropout(n, share, n_left):
    X = sparse.csr_matrix(np.ones((5, n)))
    seeds = np.arange(5, dtype=np.uint64)
    batch = Tokenizer()(X, identity(X), token_dropout=share, seeds=seeds)
    assert (~batch.padding_mask).sum(1).eq(n_left).all()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 2])
def test_tokenizer_of_bad_values(value, column):
    X = np.ones((4, 3), np.float32)
    X[2, column] = value
    with pytest.raises(BadValueError, match=r"row 2 holds the value .*finite values >= 0") as caught:
        Tokenizer()(sparse.csr_matrix(X), np.array([0, 1, -1], np.int32))
    assert caught.value.row == 2
    np.testing.assert_equal(caught.value.value, value)


def test_tokenizer_with_dropout_without_seeds():
    with pytest.raises(ValueError, match="token_dropout was given without seeds"):
        Tokenizer()(sparse.csr_matrix(np.ones((1, 2))), np.array([0, 1], np.int32), token_dropout=0.1)


def test_minibatches_match_single_calls(rng):
    X = sparse.csr_matrix(rng.poisson(0.4, size=(20, 30)), dtype=np.float32)
    rows, seeds = rng.permutation(20)[:17], rng.integers(2**63, size=17).astype(np.uint64)
    gene_map, ends = np.arange(30, dtype=np.int32), [0, 1, 9, 17]
    how = {"token_dropout": 0.3, "target_sum": rng.uniform(1e3, 1e4, 17)}
    together = Tokenizer().minibatches(X, gene_map, [1, 8, 8], rows=rows, seeds=seeds, **how)
    for start, end, found in zip(ends[:-1], ends[1:], together, strict=True):
        part = slice(start, end)
        of_part = {"token_dropout": 0.3, "target_sum": how["target_sum"][part]}
        alone = Tokenizer()(X, gene_map, rows=rows[part], seeds=seeds[part], **of_part)
        assert [each.shape for each in found] == [each.shape for each in alone]
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_tokens_are_kept_while_a_part_of_them_is(rng):
    """Their memory is used again, but not before the last view of it is gone."""
    X = sparse.csr_matrix(random_counts(rng, n_obs=40), dtype=np.float32)
    first = Tokenizer().flat(X, identity(X))
    kept, wanted, place = first.gene_ids[5:9], first.gene_ids[5:9].tolist(), first.gene_ids.data_ptr()
    del first
    others = [Tokenizer().flat(2 * X[::-1], identity(X)) for _ in range(3)]
    assert kept.tolist() == wanted
    assert all(other.gene_ids.data_ptr() != place for other in others)
    del kept
    assert Tokenizer().flat(X, identity(X)).gene_ids.data_ptr() == place


def test_tokens_of_used_memory_are_padded_with_zeros(rng):
    counts = random_counts(rng)
    X = sparse.csr_matrix(counts, dtype=np.float32)
    for _ in range(3):
        batch = Tokenizer()(X, identity(X))
        assert_same_tokens(batch, [reference.tokens(row, identity(counts), 51) for row in counts])
        for part in batch:
            part.fill_(7)
        del batch, part
