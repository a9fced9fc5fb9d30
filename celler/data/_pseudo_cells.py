"""Pseudo-cells: cells drawn from mean expression profiles of cell types, to learn genes from public atlases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from celler._utils._compile import compiled
from celler._utils._distributed import rank_and_size
from celler._utils._prefetch import prefetch
from celler._utils._random import STEP, uniform
from celler.data._tokenizer import TARGET_SUM

#: Cells that share a gene-wise shift, as cells of one study do.
GROUP = 32
#: Values of a minibatch at most: a panel of all genes has fewer cells.
MAX_VALUES = 1_200_000


@dataclass(frozen=True)
class CellProfiles:
    """Mean expression of K cell types in G genes; each profile generates cells.

    Parameters
    ----------
    share
        Share of a type's counts that each gene has ``(K, G)``; NaN where its data set did not measure the gene.
    genes, types
        Names of the genes ``(G,)`` and of the types ``(K,)``.
    datasets
        Code of each type's data set ``(K,)``, from 0; types are only told apart within a data set.
    """

    share: np.ndarray
    genes: pd.Index
    types: np.ndarray
    datasets: np.ndarray

    @property
    def is_same_dataset(self) -> np.ndarray:
        """Whether two types are of one data set ``(K, K)``."""
        return self.datasets[:, None] == self.datasets[None, :]


@dataclass(frozen=True)
class Simulation:
    """How a profile becomes cells.

    Parameters
    ----------
    depth
        Least and most counts of a cell in the panel, drawn evenly on a log scale.
    shift
        Largest standard deviation of the log-normal factor of a gene that 32 cells share.
    hidden
        Largest share of a cell's expressed genes that are not seen.
    panel
        Least and most genes of a panel, drawn evenly on a log scale.
    all_genes, variable
        Share of minibatches with all genes, and of panels drawn by how much a gene varies between types.
    """

    depth: tuple[float, float] = (60, 15_000)
    shift: float = 0.9
    hidden: float = 0.2
    panel: tuple[int, int] = (300, 4000)
    all_genes: float = 0.05
    variable: float = 0.5


class PseudoCells(NamedTuple):
    """B cells drawn from profiles."""

    expression: Tensor  # log1p of counts per 10,000 (B, P)
    genes: Tensor  # of the panel (P,)
    types: Tensor  # codes (B,)
    is_hidden: Tensor  # values to predict (B, P); `expression` holds them

    def to(self, device: torch.device) -> PseudoCells:
        """Return the same with every tensor on ``device``."""
        return PseudoCells(*(part.to(device) for part in self))


@dataclass(eq=False)
class PseudoCellLoader:
    """Minibatches of pseudo-cells without end; an epoch has ``n_minibatches``.

    Each minibatch depends on the seed and its number alone. The genes ``panel (P,)`` are those of every minibatch,
    where they are given.
    """

    profiles: CellProfiles
    simulation: Simulation
    n_minibatches: int
    batch_size: int
    mask_ratio: float
    seed: int
    panel: np.ndarray | None = None
    n_given: int = 0

    def __post_init__(self) -> None:
        share = self.profiles.share
        self.share = np.nan_to_num(share)
        codes = self.profiles.datasets
        self.ambient = np.stack([self.share[codes == code].mean(0) for code in range(codes.max() + 1)])
        logs = np.log1p(TARGET_SUM * self.share)
        by_dataset = [logs[codes == code].var(0, dtype=np.float64) for code in range(codes.max() + 1)]
        variance = np.mean(by_dataset, axis=0) + 1e-4
        self.variable = variance / variance.sum()

    def __len__(self) -> int:
        return self.n_minibatches

    def __iter__(self) -> Iterator[PseudoCells]:
        numbers = range(self.n_given, self.n_given + self.n_minibatches)
        self.n_given += self.n_minibatches
        return prefetch(map(self._minibatch, numbers), 2)

    def _minibatch(self, number: int) -> PseudoCells:
        rng = np.random.default_rng((self.seed, number, rank_and_size()[0]))
        panel = self._panel(rng) if self.panel is None else self.panel
        n_cells = min(self.batch_size, max(GROUP, MAX_VALUES // len(panel)))
        types = rng.integers(len(self.share), size=n_cells)
        counts = draw_counts(self, types, panel, rng)
        expressed = counts.sum(1, keepdims=True)
        expression = np.log1p(counts * (TARGET_SUM / np.maximum(expressed, 1)))
        is_hidden = rng.random(counts.shape, dtype=np.float32) < self.mask_ratio
        return PseudoCells(*map(torch.from_numpy, (expression, panel, types, is_hidden)))

    def _panel(self, rng: np.random.Generator) -> np.ndarray:
        """Genes of a minibatch, ascending."""
        n_genes, how = self.share.shape[1], self.simulation
        n = int(np.exp(rng.uniform(np.log(how.panel[0]), np.log(how.panel[1]))))
        if rng.random() < how.all_genes or n >= n_genes:
            return np.arange(n_genes)
        by = self.variable if rng.random() < how.variable else None
        return np.sort(rng.choice(n_genes, n, replace=False, p=by))


def draw_counts(loader: PseudoCellLoader, types: np.ndarray, panel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw counts ``(B, P)`` of cells of ``types (B,)`` in the genes ``panel (P,)``.

    A cell's rates are its profile mixed with its data set's mean (ambient counts), times a factor of each gene that 32
    cells share, times a factor of each gene and cell, Gamma(2) / 2; the counts are Poisson at a drawn depth.
    """
    how, n_cells = loader.simulation, len(types)
    n_groups = -(-n_cells // GROUP)
    spread = rng.random((n_groups, 1), dtype=np.float32) * np.float32(how.shift)
    factors = np.exp(rng.standard_normal((n_groups, len(panel)), dtype=np.float32) * spread)
    return _draw(
        loader.share,
        loader.ambient,
        (types, loader.profiles.datasets[types], panel),
        factors,
        rng.beta(1, 10, n_cells),
        np.exp(rng.uniform(np.log(how.depth[0]), np.log(how.depth[1]), n_cells)),
        (rng.random(n_cells) * how.hidden, rng.integers(2**63, size=n_cells).astype(np.uint64)),
    )


@compiled
def _draw(share, mean, of_cell, factors, ambient, depth, draws):  # type: ignore[no-untyped-def]
    """Return counts ``(B, P)``; see :func:`draw_counts`."""
    (types, datasets, panel), (hidden, seeds) = of_cell, draws
    counts = np.zeros((len(types), len(panel)), np.float32)
    rates = np.empty(len(panel), np.float64)
    for b in range(len(types)):
        own, others, factor, state = share[types[b]], mean[datasets[b]], factors[b // GROUP], seeds[b]
        total = 0.0
        for p in range(len(panel)):
            rate = ((1 - ambient[b]) * own[panel[p]] + ambient[b] * others[panel[p]]) * factor[p]
            if rate > 0:  # the sum of two exponential draws is Gamma(2)
                state, u = state + STEP, uniform(state)
                state, v = state + STEP, uniform(state)
                rate *= -np.log(max(u * v, 1e-300)) / 2
            rates[p] = rate
            total += rate
        if total > 0:
            for p in range(len(panel)):
                state, u = state + STEP, uniform(state)
                if u >= 1 - rates[p] * depth[b] / total:  # below that there is no count: exp(-x) >= 1 - x
                    state, v = state + STEP, uniform(state)
                    if v >= hidden[b]:
                        v = (v - hidden[b]) / (1 - hidden[b])  # even between 0 and 1 again
                        counts[b, p] = _poisson(rates[p] * depth[b] / total, u, v)
    return counts


@compiled
def _poisson(mean, u, v):  # type: ignore[no-untyped-def]
    """Return a Poisson draw of two uniform ones: by inversion of ``u``, or for a large mean by the normal limit."""
    if mean > 30:
        normal = np.sqrt(-2 * np.log(max(u, 1e-300))) * np.cos(2 * np.pi * v)
        return max(0.0, np.round(mean + np.sqrt(mean) * normal))
    n, probability = 0, np.exp(-mean)
    cumulative = probability
    while u > cumulative and n < 200:
        n += 1
        probability *= mean / n
        cumulative += probability
    return n
