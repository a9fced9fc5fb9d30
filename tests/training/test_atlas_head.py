"""Atlas head: cells drawn anew are the same, and the solution is that of scikit-learn."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from celler.data._pseudo_cells import CellProfiles
from celler.network._config import NetworkConfig
from celler.network._encoders import BaseEncoder
from celler.training._atlas_head import L2, MIN_OF_TYPE, OF_TYPE, DrawnCells, draw_cells_of, solve_atlas_head


def profiles(rng, n_types: int = 3, n_genes: int = 40) -> CellProfiles:
    share = rng.gamma(0.3, size=(n_types, n_genes))
    share /= share.sum(1, keepdims=True)
    genes = pd.Index([f"g{i}" for i in range(n_genes)])
    return CellProfiles(share, genes, np.array([f"t{i}" for i in range(n_types)]), np.zeros(n_types, int))


@pytest.fixture(scope="module")
def encoder() -> BaseEncoder:
    torch.manual_seed(0)
    return BaseEncoder(NetworkConfig(40, 3, encoder="base", d_model=16, n_heads=2, n_latents=4)).eval()


def directions_of(rng, n_obs: int = 400, n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    codes = rng.integers(n_classes, size=n_obs)
    X = rng.normal(size=(n_obs, 8)) + 2 * np.eye(n_classes, 8)[codes]
    return codes, X.astype(np.float32)


def solved(codes, X, may_be, n_alike=None):
    n_alike = np.ones(len(may_be)) if n_alike is None else n_alike
    return solve_atlas_head(DrawnCells(codes, torch.from_numpy(X)), may_be, n_alike)


def probabilities(X, weight, bias) -> np.ndarray:
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    return torch.softmax(torch.from_numpy(X) @ weight.T + bias, 1).numpy()


def test_draw_cells_of_is_deterministic(rng, encoder):
    one, two = (draw_cells_of(profiles(np.random.default_rng(1)), encoder, 0) for _ in range(2))
    np.testing.assert_array_equal(one.types, two.types)
    assert torch.equal(one.embedding, two.embedding)
    other = draw_cells_of(profiles(np.random.default_rng(1)), encoder, 1)
    assert not torch.equal(other.embedding, one.embedding)


def test_draw_cells_of_draws_as_many_of_each(rng, encoder):
    drawn = draw_cells_of(profiles(rng), encoder, 0)
    assert np.bincount(drawn.types).tolist() == [OF_TYPE] * 3
    assert drawn.embedding.shape == (3 * OF_TYPE, 16)
    assert torch.isfinite(drawn.embedding).all()


def test_draw_cells_of_many_types_draws_fewer(rng, encoder, monkeypatch):
    monkeypatch.setattr("celler.training._atlas_head.MAX_CELLS", 60)
    assert np.bincount(draw_cells_of(profiles(rng), encoder, 0).types).tolist() == [20] * 3
    monkeypatch.setattr("celler.training._atlas_head.MAX_VALUES", 1)
    assert np.bincount(draw_cells_of(profiles(rng), encoder, 0).types).tolist() == [MIN_OF_TYPE] * 3


def test_draw_cells_of_leaves_empty_cells_out(rng, encoder):
    given = profiles(rng)
    given.share[1] = 0
    given.datasets[1] = 1  # else counts of the others are its ambient ones
    drawn = draw_cells_of(given, encoder, 0)
    assert set(drawn.types) == {0, 2}
    assert len(drawn.types) == len(drawn.embedding)


def test_solve_atlas_head_matches_scikit_learn(rng):
    codes, X = directions_of(rng)
    weight, bias = solved(codes, X, np.eye(4, dtype=bool))
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    # scikit-learn sums the losses where ours is their mean, with the penalty divided by the number of cells.
    model = LogisticRegression(C=1 / L2, tol=1e-8, max_iter=2000).fit(unit, codes)
    np.testing.assert_allclose(probabilities(X, weight, bias), model.predict_proba(unit), atol=5e-3)


def test_solve_atlas_head_gives_alike_types_the_weight_of_one(rng):
    codes, X = directions_of(rng, n_classes=3)
    # Types 1 and 2 are two clusters of one class.
    may_be = np.array([[True, False], [False, True], [False, True]])
    weight, bias = solved(codes, X, may_be, np.array([1, 2, 2]))
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    importance = np.array([1, 0.5, 0.5])[codes]
    importance /= importance.mean()
    model = LogisticRegression(C=1 / L2, tol=1e-8, max_iter=2000).fit(unit, codes > 0, sample_weight=importance)
    # Two rows of weights share what scikit-learn puts into one, at half the penalty.
    found = probabilities(X, weight, bias)[:, 1]
    assert np.corrcoef(found, model.predict_proba(unit)[:, 1])[0, 1] > 0.999
    assert abs(found.mean() - model.predict_proba(unit)[:, 1].mean()) < 0.02


def test_solve_atlas_head_names_a_broad_type_as_one_of_its_classes(rng):
    codes, X = directions_of(rng, n_obs=900, n_classes=3)
    # Cells of class 2 are named "0 or 2" half of the time.
    types = np.where((codes == 2) & (rng.random(900) < 0.5), 3, codes)
    may_be = np.vstack([np.eye(3, dtype=bool), [True, False, True]])
    weight, bias = solved(types, X, may_be)
    found = probabilities(X, weight, bias)
    is_broad = types == 3
    assert (found[is_broad][:, [0, 2]].sum(1) > 0.5).mean() > 0.95
    # What is known of class 2 says which of the two they are.
    assert (found[is_broad].argmax(1) == 2).mean() > 0.8


def test_solve_atlas_head_is_free_where_every_class_is_open(rng):
    codes, X = directions_of(rng)
    weight, bias = solved(codes, X, np.ones((4, 3), bool))
    assert weight.abs().max() < 1e-5
    assert bias.abs().max() < 1e-5
