"""Pseudo-cells against the laws of what they are drawn from: Poisson, Dirichlet, log-normal and uniform numbers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
import torch

from celler.data._pseudo_cells import GROUP, CellProfiles, PseudoCellLoader, Simulation, _poisson, draw_counts

PLAIN = Simulation(depth=(2000, 2000), shift=0, hidden=0, panel=(400, 400))


def profiles(share: np.ndarray, datasets: list[int] | None = None) -> CellProfiles:
    """Of types ``(K, G)``; each is a data set of its own, where none are given."""
    datasets = list(range(len(share))) if datasets is None else datasets
    genes = pd.Index([f"gene {i}" for i in range(share.shape[1])])
    types = np.array([f"type {k}" for k in range(len(share))], object)
    return CellProfiles(share.astype(np.float32), genes, types, np.array(datasets))


def loader(share: np.ndarray, simulation: Simulation = PLAIN, datasets: list[int] | None = None, **options):
    how = {"n_minibatches": 3, "batch_size": 64, "mask_ratio": 0.15, "seed": 0} | options
    return PseudoCellLoader(profiles(share, datasets), simulation, **how)


def drawn(share: np.ndarray, simulation: Simulation, n_cells: int = 4000, datasets: list[int] | None = None):
    """Counts ``(n_cells, G)`` of the first type in all genes."""
    return draw_counts(
        loader(share, simulation, datasets),
        np.zeros(n_cells, np.int64),
        np.arange(share.shape[1]),
        np.random.default_rng(0),
    ).astype(np.float64)


def flat(n_genes: int = 400) -> np.ndarray:
    """One type that has all genes alike, alone in its data set: what is ambient is its own."""
    return np.full((1, n_genes), 1 / n_genes)


def test_counts_follow_the_profile(rng):
    share = rng.dirichlet(np.full(400, 2.0))[None]
    share[0, :40] = 0
    share /= share.sum()
    counts = drawn(share, PLAIN)
    assert not counts[:, :40].any()
    error = counts.std(0)[40:] / 4000**0.5
    ratio = (counts.mean(0)[40:] - 2000 * share[0, 40:]) / error
    assert abs(ratio.mean()) < 0.5
    assert np.abs(ratio).max() < 5


def test_total_counts_are_poisson():
    """The rates are scaled to the depth, so that their draw does not show."""
    total = drawn(flat(), PLAIN).sum(1)
    assert abs(total.mean() - 2000) < 5 * (2000 / 4000) ** 0.5
    assert total.var() == pytest.approx(2000, rel=0.1)
    expected = scipy.stats.norm(2000.5, 2000**0.5).cdf
    assert scipy.stats.kstest(total + np.random.default_rng(1).random(4000), expected).pvalue > 1e-3


def test_counts_of_a_gene_are_overdispersed():
    """Equal Gamma(2) shares of the total are Dirichlet, so one is Beta(2, 2 (G - 1)), with counts of that mixture."""
    counts, n = drawn(flat(), PLAIN), 400
    share = scipy.stats.beta(2, 2 * (n - 1))
    expected = 2000 * share.mean() + 2000**2 * share.var()
    assert counts.var(0).mean() == pytest.approx(expected, rel=0.02)
    assert expected > 3 * counts.mean()
    for k in range(4):
        # the mean of a Poisson probability over a Beta distribution
        log_weight = k * np.log(2000) - scipy.special.gammaln(k + 1)
        log_weight += scipy.special.betaln(2 + k, 2 * n - 2) - scipy.special.betaln(2, 2 * n - 2)
        probability = np.exp(log_weight) * scipy.special.hyp1f1(2 + k, 2 * n + k, -2000)
        assert (counts == k).mean() == pytest.approx(probability, abs=0.002)


def test_ambient_counts_are_of_the_mean_of_the_dataset():
    """A share of Beta(1, 10) of a cell's counts, of which half is the other type's here."""
    share = np.zeros((3, 600))
    share[0, :200], share[1, 200:400], share[2, 400:] = 1 / 200, 1 / 200, 1 / 200
    counts = drawn(share, PLAIN, datasets=[0, 0, 1])
    foreign = counts[:, 200:400].sum(1) / counts.sum(1)
    assert not counts[:, 400:].any()
    assert foreign.mean() == pytest.approx(1 / 22, abs=0.003)
    quantiles = scipy.stats.beta(1, 10).ppf([0.25, 0.5, 0.75]) / 2
    np.testing.assert_allclose(np.quantile(foreign, [0.25, 0.5, 0.75]), quantiles, atol=0.006)


def test_unmeasured_genes_have_no_counts():
    share = flat().repeat(2, 0)
    share[0, :100] = np.nan
    counts = drawn(share, PLAIN, n_cells=100)
    assert not counts[:, :100].any()
    assert (counts[:, 100:] > 0).mean() > 0.5


def test_cells_of_a_group_share_a_shift():
    """Log factors with a standard deviation even between 0 and ``shift``, so a variance of a third of its square."""
    deep = {"depth": (20_000, 20_000), "hidden": 0}
    logs = {}
    for shift in (0.0, 0.6):
        counts = drawn(flat(), Simulation(shift=shift, **deep), n_cells=64 * GROUP)
        logs[shift] = np.log(counts.reshape(64, GROUP, 400).mean(1))
    spread = logs[0.6].var(1) - logs[0.0].var()
    assert spread.mean() == pytest.approx(0.6**2 / 3, rel=0.25)
    assert scipy.stats.kstest(np.sqrt(spread.clip(0)) / 0.6, "uniform").pvalue > 1e-3
    between = np.corrcoef(logs[0.6])[np.triu_indices(64, 1)]
    assert abs(between.mean()) < 0.01


def test_hidden_genes_are_drawn_by_cell():
    """A share of its expressed genes that is even between 0 and ``hidden``; the counts of the others stay."""
    deep = {"depth": (40_000, 40_000), "shift": 0}
    all_seen, part = (drawn(flat(), Simulation(hidden=hidden, **deep)) for hidden in (0.0, 0.5))
    share = 1 - (part > 0).mean(1) / (all_seen > 0).mean()
    assert scipy.stats.kstest(share / 0.5, "uniform").pvalue > 1e-4
    seen = part[part > 0]
    error = all_seen.std() / len(seen) ** 0.5
    assert abs(seen.mean() - all_seen[all_seen > 0].mean()) < 6 * error
    assert seen.std() == pytest.approx(all_seen[all_seen > 0].std(), rel=0.02)


def test_depths_are_even_on_a_log_scale():
    total = drawn(flat(), Simulation(depth=(1000, 50_000), shift=0, hidden=0)).sum(1)
    place = (np.log(total) - np.log(1000)) / np.log(50)
    assert scipy.stats.kstest(place, "uniform").pvalue > 1e-3
    assert -0.05 < place.min() < 0.05 < 0.95 < place.max() < 1.05


@pytest.mark.parametrize("mean", [1e-4, 0.3, 1.0, 4.7, 29.9])
def test_poisson_inverts_the_distribution(mean):
    u = np.append(np.linspace(0, 1, 2003)[1:-1], 1 - 1e-9)
    actual = [_poisson(mean, each, 0.5) for each in u]
    np.testing.assert_array_equal(actual, scipy.stats.poisson.ppf(u, mean))


@pytest.mark.parametrize("mean", [31.0, 400.0])
def test_poisson_of_a_large_mean(mean, rng):
    counts = np.array([_poisson(mean, *pair) for pair in rng.random((20_000, 2))])
    assert counts.mean() == pytest.approx(mean, abs=5 * (mean / 20_000) ** 0.5)
    assert counts.var() == pytest.approx(mean, rel=0.05)
    for q in (0.05, 0.5, 0.95):
        below = (counts <= scipy.stats.poisson.ppf(q, mean)).mean()
        assert below == pytest.approx(scipy.stats.poisson.cdf(scipy.stats.poisson.ppf(q, mean), mean), abs=0.02)


def many(n_types: int = 5, n_genes: int = 2000) -> np.ndarray:
    return np.random.default_rng(7).dirichlet(np.full(n_genes, 0.3), n_types)


def test_minibatch_holds_what_was_drawn():
    given = loader(many(), Simulation(panel=(300, 900), all_genes=0), batch_size=1300)
    cells = given._minibatch(0)
    expression = cells.expression.numpy()
    total = np.expm1(expression.astype(np.float64)).sum(1)
    np.testing.assert_allclose(total[total > 0], 1e4, rtol=1e-4)
    assert cells.expression.dtype == torch.float32
    assert expression.shape == cells.is_hidden.shape == (1300, len(cells.genes))
    assert cells.is_hidden.double().mean().item() == pytest.approx(0.15, abs=0.002)
    n_cells = np.bincount(cells.types.numpy(), minlength=5)
    assert scipy.stats.chisquare(n_cells).pvalue > 1e-3
    moved = cells.to(torch.device("meta"))
    assert {part.device.type for part in moved} == {"meta"}
    assert [part.shape for part in moved] == [part.shape for part in cells]


def test_panels_are_even_on_a_log_scale():
    given = loader(many(), Simulation(panel=(100, 1500), all_genes=0))
    panels = [given._panel(np.random.default_rng(seed)) for seed in range(400)]
    sizes = np.array([len(panel) for panel in panels])
    assert sizes.min() >= 100
    assert sizes.max() < 1500
    assert scipy.stats.kstest(np.log(sizes / 100) / np.log(15), "uniform").pvalue > 1e-3
    assert all((np.diff(panel) > 0).all() for panel in panels)


@pytest.mark.parametrize("simulation", [Simulation(all_genes=1), Simulation(panel=(2000, 9000), all_genes=0)])
def test_panel_of_all_genes(simulation):
    panel = loader(many(), simulation)._panel(np.random.default_rng(0))
    np.testing.assert_array_equal(panel, np.arange(2000))


def test_panels_by_variance_hold_what_tells_types_apart():
    """Within a data set: a gene that differs between data sets alone is no such gene."""
    share = np.full((4, 1000), 1e-3)
    share[[0, 2], :100] = 4e-3
    share[:2, 900:] = 4e-3
    counted = {}
    for variable in (0.0, 1.0):
        given = loader(share, Simulation(panel=(200, 201), all_genes=0, variable=variable), [0, 0, 1, 1])
        panels = np.concatenate([given._panel(np.random.default_rng(seed)) for seed in range(50)])
        counted[variable] = np.bincount(panels // 100, minlength=10) / 50
    np.testing.assert_allclose(counted[0.0], 20, atol=3)
    assert counted[1.0][0] > 95
    assert counted[1.0][9] == pytest.approx(counted[1.0][1:9].mean(), abs=3)


def test_given_panel_is_that_of_every_minibatch():
    panel = np.array([4, 5, 17])
    for cells in loader(many(), panel=panel):
        np.testing.assert_array_equal(cells.genes, panel)
        assert cells.expression.shape == (64, 3)


def test_large_panels_have_fewer_cells(monkeypatch):
    monkeypatch.setattr("celler.data._pseudo_cells.MAX_VALUES", 100_000)
    sizes = [len(loader(many(), panel=np.arange(n), batch_size=256)._minibatch(0).types) for n in (100, 1000, 2000)]
    assert sizes == [256, 100, 50]
    monkeypatch.setattr("celler.data._pseudo_cells.MAX_VALUES", 1)
    assert len(loader(many(), panel=np.arange(10))._minibatch(0).types) == GROUP


def assert_same_cells(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_minibatches_depend_on_seed_and_number_alone():
    """Not on the epoch, the thread or what was drawn before."""
    how = Simulation(panel=(100, 1500))
    whole = list(loader(many(), how, n_minibatches=4))
    assert len(whole) == len(loader(many(), how, n_minibatches=4)) == 4
    by_epoch = loader(many(), how, n_minibatches=2)
    assert_same_cells([*by_epoch, *by_epoch], whole)
    alone = loader(many(), how)
    assert_same_cells([alone._minibatch(number) for number in (3, 1)], [whole[3], whole[1]])
    with ThreadPoolExecutor(4) as threads:
        assert_same_cells(threads.map(alone._minibatch, range(4)), whole)
    other = loader(many(), how, seed=1)._minibatch(0)
    assert not torch.equal(other.types, whole[0].types)
    assert not torch.equal(whole[1].types, whole[0].types)


def test_minibatches_of_processes_differ(monkeypatch):
    first = loader(many())._minibatch(0)
    monkeypatch.setattr("celler.data._pseudo_cells.rank_and_size", lambda: (1, 2))
    assert not torch.equal(loader(many())._minibatch(0).types, first.types)


def test_types_of_one_dataset():
    found = profiles(flat().repeat(4, 0), [0, 1, 0, 1]).is_same_dataset
    expected = [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    np.testing.assert_array_equal(found, np.array(expected, bool))
