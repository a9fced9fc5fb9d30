"""check_labels: a rare type that labels miss is listed, and nothing where they are right."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy import assert_unchanged, fit, snapshot

from celler.model import Celler

NAMES = ["a", "b", "rare"]
GENES = 60


def blood(n_of_each: tuple[int, int, int], seed: int = 0) -> ad.AnnData:
    """Three types with five markers each, 20 times as high as elsewhere."""
    rng = np.random.default_rng(seed)
    mean = np.full((3, GENES), 4.0)
    for k in range(3):
        mean[k, 10 * k : 10 * k + 5] = 20
        mean[np.arange(3) != k, 10 * k : 10 * k + 5] = 1
    codes = np.repeat(np.arange(3), n_of_each)
    X = sparse.csr_matrix(rng.poisson(mean[codes] * rng.gamma(4, 0.25, (len(codes), 1))).astype(np.float32))
    obs = pd.DataFrame({"cell_type": np.array(NAMES)[codes]}, index=[f"cell {i}" for i in range(len(codes))])
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(GENES)]))


@pytest.fixture(scope="module")
def model() -> Celler:
    return fit(blood((100, 60, 20)))


@pytest.fixture
def query() -> ad.AnnData:
    """Eight cells of the rare type, of which two have their label."""
    adata = blood((150, 100, 8), seed=1)
    labels = adata.obs["cell_type"].to_numpy(object, copy=True)
    labels[-6:] = ["a", "a", "a", "b", "b", "a"]
    adata.obs["celler"] = pd.Categorical(labels)
    return adata


def test_check_labels_lists_a_missed_type(model, query):
    before = snapshot(query)
    check = model.check_labels(query)
    assert_unchanged(query, before)
    (found,) = check.table.to_dict("records")
    assert (found["type"], found["n_cells"], found["n_other"], found["labels"]) == ("rare", 8, 6, "a (4), b (2)")
    assert set(found["markers"].split(", ")) <= {f"g{i}" for i in range(20, 25)}
    assert found["strength"] == pytest.approx(1, abs=0.25)
    assert f"8 cells express {found['markers']}: rare's; 6 of them are labelled a (4), b (2)." in repr(check)
    is_decided = check.types.notna().to_numpy()
    assert is_decided.mean() > 0.98
    np.testing.assert_array_equal(check.types[is_decided].astype(str), query.obs["cell_type"][is_decided])
    expected = pd.crosstab(query.obs["cell_type"], query.obs["celler"])
    assert (check.counts.to_numpy() <= expected.to_numpy()).all()
    assert set(check.markers["group"]) == set(NAMES)


def test_check_labels_of_right_labels_lists_nothing(model, query):
    check = model.check_labels(query, "cell_type")
    assert check.table.empty
    assert "no type was missed" in repr(check)
    without = query[query.obs["cell_type"] != "rare"].copy()
    assert model.check_labels(without).table.empty


def test_check_labels_needs_min_cells(model, query):
    assert model.check_labels(query, min_cells=7).table.empty
    with pytest.raises(ValueError, match="min_cells=0 was given; a whole number of at least 1"):
        model.check_labels(query, min_cells=0)


def test_check_labels_does_not_depend_on_the_form_of_the_cells(model, query, rng, tmp_path):
    expected = model.check_labels(query)
    logs = query.copy()
    total = np.asarray(logs.X.sum(axis=1)).ravel()
    logs.X = sparse.csr_matrix(sparse.diags(1e4 / total) @ logs.X).log1p()
    permuted = query[rng.permutation(query.n_obs), rng.permutation(GENES)].copy()
    model.save(tmp_path / "model")
    loaded = Celler.load(tmp_path / "model")
    for check in (model.check_labels(logs), model.check_labels(permuted), loaded.check_labels(query)):
        pd.testing.assert_frame_equal(check.table, expected.table, rtol=1e-4)
        found, wanted = (
            types.astype(object).fillna("none") for types in (check.types[query.obs_names], expected.types)
        )
        np.testing.assert_array_equal(found, wanted)


def test_check_labels_counts_cells_without_a_label_and_takes_the_parent_for_right(model, query):
    labels = query.obs["cell_type"].to_numpy(object, copy=True)
    labels[-8:] = None
    query.obs["none"] = labels
    (found,) = model.check_labels(query, "none").table.to_dict("records")
    assert (found["n_other"], found["labels"]) == (8, "no label")
    with_parents = fit(blood((100, 60, 20)), {"parents": {"a": "x", "b": "x", "rare": "y"}}, max_epochs=1)
    labels[-8:] = "y"
    query.obs["parent"] = labels
    assert with_parents.check_labels(query, "parent").table.empty


def test_check_labels_of_clusters(model, query):
    query.obs["leiden"] = np.where(query.obs["cell_type"] == "rare", "1", "0")
    query.obs.loc[query.obs["cell_type"] == "rare", "celler"] = "b"
    check = model.check_labels(query, cluster_key="leiden")
    row = check.clusters.loc["1"]
    assert (row["n_cells"], row["label"], row["type"], row["share"], row["is_listed"]) == (8, "b", "rare", 1, True)
    assert not check.clusters.loc["0", "is_listed"]
    assert "Cluster 1: 100% of its 8 cells have the markers of rare; most are labelled b." in repr(check)


@pytest.mark.parametrize(("n_reference", "is_listed"), [(2, False), (4, True)])
@pytest.mark.filterwarnings("ignore:classes with fewer than 3 labelled cells:UserWarning")
def test_check_labels_of_a_type_of_few_reference_cells(query, n_reference, is_listed):
    few = fit(blood((100, 60, n_reference)), max_epochs=1)
    assert list(few.check_labels(query).table["type"]) == ["rare"] * is_listed


def test_check_labels_does_not_list_chance_markers_of_few_reference_cells(query):
    """Genes that some cells of another type express thrice as high as the reference's few of the rare type."""
    X = query.X.toarray()
    X[:20, 20:25] = np.random.default_rng(4).poisson(60, (20, 5))
    query.X = sparse.csr_matrix(X)
    (found,) = fit(blood((100, 60, 20)), max_epochs=1).check_labels(query).table.to_dict("records")
    assert found["type"] == "rare"
    assert fit(blood((100, 60, 4)), max_epochs=1).check_labels(query).table.empty


def test_check_labels_lists_cells_without_a_label_beside_others_that_have_it(model):
    """Those without one are fewer, but nearly all of one type."""
    query = blood((150, 100, 30), seed=1)
    labels = query.obs["cell_type"].to_numpy(object, copy=True)
    labels[[0, *range(272, 280)]] = None
    query.obs["none"] = labels
    (found,) = model.check_labels(query, "none").table.to_dict("records")
    assert (found["type"], found["n_other"], found["labels"]) == ("rare", 8, "no label")
    assert found["n_cells"] >= 28
    labels[[*range(1, 7), *range(150, 156)]] = None  # then no type has most of those without a label
    query.obs["none"] = labels
    assert model.check_labels(query, "none").table.empty


def test_check_labels_does_not_list_cells_of_an_unknown_type(model, query):
    """They have the markers of no type: relative to the others, one of them is always the likeliest."""
    X = query.X.toarray()
    X[-8:, :30] = np.random.default_rng(3).poisson(1.0, (8, 30))
    X[-8:, 20:25] += 1
    query.X = sparse.csr_matrix(X)
    assert model.check_labels(query).table.empty


def test_check_labels_raises_for_what_it_cannot_check(model, query):
    query.obs["other"] = "x"
    with pytest.raises(ValueError, match="key='other' holds x; none is a class of the model: a, b, rare"):
        model.check_labels(query, "other")
    with pytest.raises(KeyError, match="key='cellr' is not a column"):
        model.check_labels(query, "cellr")
    state = model._state
    model._state = replace(state, fitted=replace(state.fitted, profile=None, novelty=None))
    try:
        with pytest.raises(RuntimeError, match="keeps no mean expression of its types"):
            model.check_labels(query)
        model.annotate(query)
        assert query.uns["celler"]["label_check"] == []
    finally:
        model._state = state


def test_annotate_warns_of_a_missed_type(model, query):
    """Markers and labels disagree where two types have each other's profile."""
    state = model._state
    profile = state.fitted.profile
    swapped = replace(profile, mean=profile.mean[[2, 1, 0]])
    model._state = replace(state, fitted=replace(state.fitted, profile=swapped))
    try:
        with pytest.warns(UserWarning, match=r"150 cells express .*: rare's; all are labelled a\. .*check_labels"):
            model.annotate(query, correct_shift=False)
        assert len(query.uns["celler"]["label_check"]) == 2
        model.annotate(query, correct_shift=False, threshold=1.0)  # no label is no claim
    finally:
        model._state = state
