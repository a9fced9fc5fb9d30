"""Counts for tests, and how they are normalised."""

import numpy as np


def umi_counts(rng, n_obs=60, n_vars=300) -> np.ndarray:
    rates = rng.gamma(0.4, 3.0, n_vars) * rng.lognormal(0, 0.4, (n_obs, 1))
    return rng.poisson(rates).astype(float)


def per_10k(counts, total=1e4):
    return counts / counts.sum(axis=1, keepdims=True) * total
