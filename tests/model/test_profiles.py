"""learn_profiles: the base learns more types from their means, in a model's genes, and nothing else moves."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from base_cases import N_GENES, SYMBOLS, fit_known, known_cells, untrained
from scipy import sparse
from toy import QUICK, SMALL, assert_equal_frames, assert_unchanged, cells, snapshot

from celler.model import Celler
from celler.model._profiles import read_profiles

BRIEF = {"max_epochs": 1, "batch_size": 32, "show_progress": False}


@pytest.fixture(autouse=True)
def _short_epochs(monkeypatch):
    monkeypatch.setattr("celler.model._profiles.EPOCH", 6)


@pytest.fixture
def profiles(rng) -> ad.AnnData:
    """Mean counts of six types in two data sets; the last ten genes are not the model's."""
    X = rng.gamma(0.5, 2.0, size=(6, N_GENES)).astype(np.float32)
    names = [*SYMBOLS[10:][::-1], *(f"Xq{i}zz" for i in range(10))]
    obs = pd.DataFrame({"atlas": np.repeat(["lung", "liver"], 3)}, index=[f"type {k}" for k in range(6)])
    return ad.AnnData(X, obs, pd.DataFrame(index=names))


@pytest.fixture
def model() -> Celler:
    return untrained(known_cells())


def test_read_profiles_are_shares_of_what_was_measured(model, profiles):
    """In the order of the model's genes, NaN where no type has a value; a total counts the genes that it lacks too."""
    profiles.X[0, 3] = np.nan
    profiles.X[:, 5] = np.nan
    found = read_profiles(model._state, profiles, "atlas")
    table = profiles.to_df()
    expected = table.div(table.sum(axis=1), axis=0).reindex(columns=list(SYMBOLS))
    is_measured, expected = expected.notna().any().to_numpy(), expected.fillna(0).to_numpy()
    expected[:, ~is_measured] = np.nan
    np.testing.assert_allclose(found.share, expected, rtol=1e-5)
    assert np.isnan(found.share).all(0).sum() == 11
    assert list(found.genes) == list(SYMBOLS)
    assert list(found.types) == list(profiles.obs_names)
    assert found.datasets.tolist() == [0, 0, 0, 1, 1, 1]
    assert read_profiles(model._state, profiles, None).datasets.tolist() == [0] * 6


def test_read_profiles_of_a_sparse_matrix_or_another_scale(model, profiles):
    expected = read_profiles(model._state, profiles, None).share
    profiles.X = sparse.csr_matrix(profiles.X * np.arange(1, 7, dtype=np.float32)[:, None])
    np.testing.assert_allclose(read_profiles(model._state, profiles, None).share, expected, rtol=1e-5)


def test_learn_profiles_moves_the_base(model, profiles):
    before = {name: weights.clone() for name, weights in model.module.state_dict().items()}
    was, given = snapshot(profiles), profiles
    curves = model.learn_profiles(given, "atlas", **BRIEF | {"max_epochs": 2})
    assert_unchanged(profiles, was)
    assert list(curves.index) == [0, 1]
    assert np.isfinite(curves).all().all()
    after = model.module.state_dict()
    is_in_panel = np.isin(SYMBOLS, profiles.var_names)
    moved = (after["encoder.gene"] != before["encoder.gene"]).any(1).numpy()
    assert moved[is_in_panel].all()
    for name in before:
        assert torch.equal(after[name], before[name]) or name.startswith("encoder."), name
    assert "has learned 6 more types" in repr(model)
    model.learn_profiles(given, "atlas", **BRIEF)
    assert "has learned 12 more types" in repr(model)


def test_learn_profiles_then_train(profiles, tmp_path):
    query = known_cells(150, seed=1)
    model = untrained(known_cells())
    model.learn_profiles(profiles, **BRIEF)
    gene = model.module.encoder.gene.detach().clone()
    model.train(**QUICK)
    assert torch.equal(model.module.encoder.gene, gene)
    predicted = model.predict(query, soft=True)
    assert (predicted.idxmax(axis=1) == query.obs["cell_type"].astype(str)).mean() > 0.9
    assert not np.allclose(fit_known().predict(query, soft=True), predicted, atol=1e-4)
    model.save(tmp_path)
    loaded = Celler.load(tmp_path)
    assert_equal_frames(loaded.predict(query, soft=True), predicted)
    assert "has learned 6 more types" in repr(loaded)


def test_learn_profiles_depends_on_the_seed(profiles):
    tables = []
    for seed in (0, 0, 1):
        model = untrained(known_cells())
        model.learn_profiles(profiles, **BRIEF, seed=seed)
        tables.append(model.module.encoder.gene.detach())
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_learn_profiles_of_a_model_without_the_base(profiles):
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(RuntimeError, match=re.escape("encoder='additive', and profiles teach the base alone")):
        Celler(adata, **SMALL).learn_profiles(profiles)


def test_learn_profiles_after_training(profiles):
    with pytest.raises(RuntimeError, match="this Celler is trained"):
        fit_known(max_epochs=1).learn_profiles(profiles)


def with_negative(profiles):
    profiles.X[2, 1] = -1


def with_infinite(profiles):
    profiles.X[2, 1] = np.inf


def with_empty_row(profiles):
    profiles.X[2] = np.nan


def with_foreign_genes(profiles):
    profiles.var_names = [f"Xw{i}" for i in range(N_GENES)]


def with_single_type(profiles):
    profiles.obs["single"] = ["a"] * 5 + ["b"]


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (with_negative, None, "negative or infinite"),
        (with_infinite, None, "negative or infinite"),
        (with_empty_row, None, "a row without any"),
        (with_foreign_genes, None, "gene"),
        (with_single_type, "single", "single cell type"),
    ],
)
def test_learn_profiles_of_bad_values(model, profiles, change, key, words):
    change(profiles)
    before = model.module.encoder.gene.detach().clone()
    with pytest.raises(ValueError, match=words):
        model.learn_profiles(profiles, key, **BRIEF)
    assert torch.equal(model.module.encoder.gene, before)


def test_learn_profiles_of_another_type_or_column(model, profiles):
    with pytest.raises(TypeError, match="profiles=<DataFrame> was given"):
        model.learn_profiles(profiles.to_df())
    with pytest.raises(KeyError, match="nothing"):
        model.learn_profiles(profiles, "nothing")
