"""What values are, for data of every kind, and counts per 10,000 against a dense quotient."""

import numpy as np
import pytest
from kinds import per_10k, umi_counts
from scipy import sparse

from celler._utils._counts import check_values, cp10k, detect


def full_length(rng, n_obs, n_vars):
    """Smart-seq counts: lognormal, up to 1e5 and beyond."""
    return np.floor(rng.lognormal(3, 3, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < 0.4))


def rsem(rng, n_obs, n_vars):
    """Expected counts: most whole, some shared among genes in fractions of a read."""
    counts = full_length(rng, n_obs, n_vars)
    return counts + (rng.random(counts.shape) < 0.3) * rng.random(counts.shape).round(2)


def bins(counts, n_bins=51):
    """scGPT's binning, by its own words: quantiles of the non-zeros, then digitize."""
    binned = np.zeros_like(counts)
    for row, out in zip(counts, binned, strict=True):
        edges = np.quantile(row[row > 0], np.linspace(0, 1, n_bins - 1))
        out[row > 0] = np.digitize(row[row > 0], edges)
    return binned


def by_length(counts, rng):
    """Reads per length of each gene, as TPM and FPKM have them."""
    return counts / rng.lognormal(0, 0.7, counts.shape[1])


def corrected(counts, rng):
    """Counts without ambient RNA: a little of each is taken away, as SoupX and DecontX do."""
    return counts * rng.uniform(0.6, 0.98, counts.shape)


def by_deviation(X):
    """``sc.pp.scale(zero_center=False)``, by its own words."""
    return by(X, X.std(axis=0, ddof=1))


def by(X, scale):
    return X / np.where(scale > 0, scale, 1)


#: name: (kind, made of counts (60, 300) and an rng)
KINDS = {
    "counts": ("counts", lambda c, rng: c),
    "shallow counts": ("counts", lambda c, rng: rng.binomial(c.astype(int), 0.05)),
    "binary": ("binary", lambda c, rng: np.minimum(c, 1)),
    "binary CP10K": ("binary", lambda c, rng: per_10k(np.minimum(c, 1))),
    "negative zero": ("counts", lambda c, rng: np.where(c == 0, -0.0, c)),
    "beyond 2^31": ("counts", lambda c, rng: c * 2.0**33),
    "all zero": ("counts", lambda c, rng: c * 0),
    "Smart-seq": ("counts", lambda c, rng: full_length(rng, *c.shape)),
    "RSEM": ("expected counts", lambda c, rng: rsem(rng, *c.shape)),
    "RSEM, small": ("expected counts", lambda c, rng: np.minimum(rsem(rng, *c.shape), 25.5)),
    "CP10K": ("normalised", lambda c, rng: per_10k(c)),
    "CP10K, some genes": ("normalised", lambda c, rng: per_10k(c)[:, :40]),
    "proportions": ("normalised", lambda c, rng: per_10k(c, 1)),
    "to the median": ("normalised", lambda c, rng: per_10k(c, np.median(c.sum(axis=1)))),
    "to a small sum": ("normalised", lambda c, rng: per_10k(c, 50)),
    "log1p of counts": ("log1p", lambda c, rng: np.log1p(c)),
    "log1p of shallow counts": (
        "log1p", lambda c, rng: np.log1p(rng.binomial(c.astype(int), 0.1)),
    ),
    "log1p of CP10K": ("log1p", lambda c, rng: np.log1p(per_10k(c))),
    "log1p of CPM": ("log1p", lambda c, rng: np.log1p(per_10k(c, 1e6))),
    "log1p of CP10K, some genes": ("log1p", lambda c, rng: np.log1p(per_10k(c))[:, :40]),
    "log1p, three decimals": ("log1p", lambda c, rng: np.log1p(per_10k(c)).round(3)),
    "log1p of full-length CP10K": (
        "log1p", lambda c, rng: np.log1p(per_10k(rsem(rng, *c.shape))),
    ),
    "log1p, two decimals": ("log1p", lambda c, rng: np.log1p(per_10k(c)).round(2)),
    "log1p, half precision": ("log1p", lambda c, rng: np.log1p(per_10k(c)).astype(np.float16)),
    "log1p of two sums": (
        "log1p", lambda c, rng: np.log1p(np.vstack([per_10k(c[:30]), per_10k(c[30:], 1e6)])),
    ),
    "log1p of SCT": ("log1p", lambda c, rng: np.log1p(rng.binomial(c.astype(int), 0.7))),
    "log1p of length-normalised": ("log1p", lambda c, rng: np.log1p(per_10k(by_length(c, rng), 1e6))),
    "log1p of length-normalised, some genes": (
        "log1p", lambda c, rng: np.log1p(per_10k(by_length(c, rng), 1e6))[:, :150],
    ),
    "log1p of corrected": ("log1p", lambda c, rng: np.log1p(per_10k(corrected(c, rng)))),
    "log1p of corrected, some genes": ("log1p", lambda c, rng: np.log1p(per_10k(corrected(c, rng)))[:, :100]),
    "corrected": ("normalised", lambda c, rng: corrected(c, rng)),
    "corrected, small": ("expected counts", lambda c, rng: corrected(np.minimum(c, 6), rng)),
    "corrected, per gene": (
        "expected counts", lambda c, rng: np.maximum(np.minimum(c, 20) - rng.uniform(0.01, 0.15, c.shape[1]), 0),
    ),
    "corrected CP10K": ("normalised", lambda c, rng: per_10k(corrected(c, rng))),
    "denoised proportions": ("normalised", lambda c, rng: per_10k(c + rng.random(c.shape[1]), 1)),
    "denoised proportions, some genes": (
        "normalised", lambda c, rng: per_10k(c + rng.random(c.shape[1]), 1)[:, :100],
    ),
    "TPM": ("normalised", lambda c, rng: per_10k(by_length(c, rng), 1e6)),
    "FPKM": ("normalised", lambda c, rng: by_length(per_10k(c, 1e6), rng)),
    "counts and CP10K": ("normalised", lambda c, rng: np.vstack([c[:30], per_10k(c[30:])])),
    "log10 of CP10K": ("log10", lambda c, rng: np.log10(1 + per_10k(c))),
    "log10 of CPM, some genes": ("log10", lambda c, rng: np.log10(1 + per_10k(c, 1e6))[:, :80]),
    "square roots": ("sqrt", lambda c, rng: np.sqrt(c)),
    "square roots of CP10K": ("sqrt", lambda c, rng: np.sqrt(per_10k(c))),
    "log2 of counts": ("log2", lambda c, rng: np.log2(1 + c)),
    "log2 of CP10K": ("log2", lambda c, rng: np.log2(1 + per_10k(c))),
    "log2 of CP10K, some genes": ("log2", lambda c, rng: np.log2(1 + per_10k(c))[:, :40]),
    "log2 of full-length TPM": (
        "log2", lambda c, rng: np.log2(1 + per_10k(rsem(rng, *c.shape), 1e6)),
    ),
    "log2 of TPM, some genes": (
        "log2", lambda c, rng: np.log2(1 + per_10k(rsem(rng, *c.shape), 1e6))[:, :150],
    ),
    "bins": ("binned", lambda c, rng: bins(c)),
    "scaled": ("scaled", lambda c, rng: (c - c.mean(axis=0)) / (c.std(axis=0) + 1)),
    "centred logarithms": ("scaled", lambda c, rng: np.log1p(c) - np.log1p(c).mean(axis=0)),
    "scaled, not centred": ("scaled", lambda c, rng: by_deviation(np.log1p(per_10k(c)))),
    "scaled, clipped": ("scaled", lambda c, rng: np.minimum(by_deviation(np.log1p(per_10k(c))), 10)),
    "scaled, some cells": ("scaled", lambda c, rng: by_deviation(np.log1p(per_10k(c)))[:45]),
    "scaled counts": ("scaled", lambda c, rng: by_deviation(c)),
    "by root mean square, as in R": (
        "scaled", lambda c, rng: by(np.log1p(c), np.sqrt((np.log1p(c) ** 2).sum(0) / (len(c) - 1))),
    ),
    "by largest": ("scaled", lambda c, rng: by(np.log1p(per_10k(c)), np.log1p(per_10k(c)).max(0))),
    "unit length": (
        "scaled", lambda c, rng: np.log1p(c) / np.sqrt((np.log1p(c) ** 2).sum(1, keepdims=True)),
    ),
    "counts and logarithms": ("mixed", lambda c, rng: np.vstack([c[:30], np.log1p(per_10k(c[30:]))])),
    "a tenth counts": ("mixed", lambda c, rng: np.vstack([c[:6], np.log1p(per_10k(c[6:]))])),
    "a tenth logarithms": ("mixed", lambda c, rng: np.vstack([np.log1p(per_10k(c[:6])), c[6:]])),
    "shallow counts and logarithms": (
        "mixed", lambda c, rng: np.vstack([c[:30, :20], np.log1p(per_10k(c[30:, :20]))]),
    ),
    "CP10K and logarithms": ("mixed", lambda c, rng: np.vstack([per_10k(c[:30]), np.log1p(per_10k(c[30:]))])),
    "two bases": (
        "mixed", lambda c, rng: np.vstack([np.log2(1 + per_10k(c[:30])), np.log1p(per_10k(c[30:]))]),
    ),
    "counts and length-normalised logarithms": (
        "mixed", lambda c, rng: np.vstack([c[:30], np.log1p(per_10k(by_length(c[30:], rng), 1e6))]),
    ),
    "NaN": ("not finite", lambda c, rng: np.where(c == c.max(), np.nan, c)),
    "infinite": ("not finite", lambda c, rng: np.where(c == c.max(), np.inf, c)),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_detect_with_values_of_every_kind(case, dtype, rng):
    kind, change = KINDS[case]
    X = change(umi_counts(rng), rng).astype(dtype)
    state = detect(sparse.csr_matrix(X))
    assert state.kind == kind, state.evidence
    assert state.is_log == (kind in ("log1p", "log2", "log10"))
    assert state.is_usable == (kind not in ("scaled", "mixed", "not finite"))


@pytest.mark.parametrize("case", ["counts", "CP10K", "log1p of CP10K", "log2 of CP10K"])
def test_detect_with_one_cell(case, rng):
    kind, change = KINDS[case]
    X = sparse.csr_matrix(change(umi_counts(rng), rng).astype(np.float32))
    assert detect(X[:1]).kind == kind


def test_detect_with_counts_that_share_a_maximum(rng):
    counts = np.minimum(umi_counts(rng), 5)
    counts[:5] = np.minimum(counts[:5], 4)
    assert detect(sparse.csr_matrix(counts)).kind == "counts"


def test_detect_with_stored_zeros_leaves_the_matrix_alone(rng):
    X = sparse.csr_matrix(umi_counts(rng) + 1)
    X.data[::3] = 0
    before = X.copy()
    assert detect(X).kind == "counts"
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(X, name), getattr(before, name))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("is_log", [False, True])
def test_cp10k_is_a_dense_quotient(rng, dtype, is_log):
    counts = umi_counts(rng).astype(dtype)
    counts[3] = 0
    values = np.log1p(counts.astype(float)) if is_log else counts
    actual = cp10k(sparse.csr_matrix(values), is_log=is_log)
    sums = counts.sum(axis=1, dtype=float, keepdims=True)
    expected = np.divide(counts * 1e4, sums, out=np.zeros(counts.shape), where=sums > 0)
    np.testing.assert_allclose(actual.toarray(), expected, rtol=1e-12 if not is_log else 1e-9)


@pytest.mark.parametrize(("value", "message"), [(-1.5, "-1.5; negative"), (np.nan, "nan; NaN and")])
def test_check_values_names_the_first_bad_value(value, message):
    with pytest.raises(ValueError, match=f"X holds the value {message}.* Pass this.$"):
        check_values(np.array([1, value, -np.inf]), "X", lambda: " Pass this.")
    check_values(np.array([0.0, 3.5]), "X", lambda: pytest.fail("the advice costs time"))
