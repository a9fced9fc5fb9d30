"""annotate: categories, votes of clusters, the record, and objects of every kind."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import ImplicitModificationWarning
from toy import assert_equal_frames, cells, fit, soft, trained

from celler._utils._version import __version__
from celler.tl import majority_vote

CLASSES = [f"type {j}" for j in range(4)]


@pytest.fixture
def query():
    adata = cells(60, seed=3)
    clusters = np.array(["a", "b", "c"], dtype=object)[np.arange(60) % 3]
    clusters[:5] = np.nan
    adata.obs["leiden"] = pd.Categorical(clusters)
    return adata


def categories(adata, name: str = "celler") -> list[str]:
    return list(adata.obs[name].cat.categories)


def test_annotate_writes_all_classes_as_categories(query):
    few = query[:3].copy()
    trained().annotate(few)
    assert categories(few) == CLASSES
    assert categories(few, "celler_parent") == ["lineage 0", "lineage 1"]
    trained().annotate(query, threshold=1.0)
    assert categories(query) == [*CLASSES, "Unknown"]
    trained().annotate(query, backoff=True, threshold=0.0)
    assert categories(query) == [*CLASSES, "lineage 0", "lineage 1"]


def test_annotate_leaves_colors(query):
    query.uns["celler_colors"] = ["red", "green", "blue", "#123456"]
    trained().annotate(query, cluster_key="leiden")
    assert query.uns["celler_colors"] == ["red", "green", "blue", "#123456"]
    assert {"celler_majority_colors", "celler_parent_colors"}.isdisjoint(query.uns)


def test_annotate_with_clusters_matches_majority_vote(query):
    trained().annotate(query, cluster_key="leiden", threshold=0.5)
    expected = query.copy()
    majority_vote(expected, "celler", "leiden", key_added="vote")
    has_cluster = query.obs["leiden"].notna()
    for ending in ("", "_share"):
        actual, voted = query.obs[f"celler_majority{ending}"], expected.obs[f"vote{ending}"]
        np.testing.assert_array_equal(actual[has_cluster], voted[has_cluster])
    alone = query.obs[~has_cluster]
    np.testing.assert_array_equal(alone["celler_majority"].astype(str), alone["celler"].astype(str))
    assert alone["celler_majority_share"].isna().all()
    assert query.obs["celler_majority"].dtype == query.obs["celler"].dtype


@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        ("leidn", KeyError, "cluster_key='leidn' is not a column of adata.obs. Closest: 'leiden'"),
        ("celler", ValueError, "cluster_key='celler' is a column that annotate writes itself"),
        ("celler_majority", ValueError, "is a column that annotate writes itself"),
        ("none", ValueError, "No cell has a label"),
        ("score", ValueError, "holds numbers such as 0.5"),
    ],
)
def test_annotate_with_a_bad_cluster_key(query, key, error, words):
    query.obs["none"], query.obs["score"] = None, 0.5
    before = list(query.obs)
    with pytest.raises(error, match=words):
        trained().annotate(query, cluster_key=key)
    assert list(query.obs) == before
    assert not query.uns


def test_annotate_writes_the_record(query):
    part = query[:, :70].copy()
    model = fit(cells(), {"parent_labels_key": "parent_type"}, max_epochs=1)
    with pytest.warns(UserWarning, match="70 of the model's 80 genes"):
        model.annotate(part, "c", cluster_key="leiden", backoff=True, correct_shift=False)
    record = part.uns["c"]
    assert record["celler_version"] == __version__
    assert (record["threshold"], record["backoff"], record["correct_shift"]) == (0.7, True, False)
    assert (record["cluster_key"], record["unknown_label"]) == ("leiden", "Unknown")
    assert record["classes"] == CLASSES
    assert record["parents"] == ["lineage 0", "lineage 0", "lineage 1", "lineage 1"]
    assert record["columns"] == [name for name in part.obs if name.split("_")[0] == "c"]
    X = model.adata.X
    assert {name: record["genes"][name] for name in ("matched", "missing", "extra")} == {
        "matched": 70,
        "missing": 10,
        "extra": 0,
    }
    shares = X.multiply(1 / X.sum(axis=1)).mean(axis=0)
    assert record["genes"]["expression_share"] == pytest.approx(np.ravel(shares)[:70].sum(), abs=0.02)


def test_annotate_records_the_model_and_the_markers(query):
    """What a report needs beside the columns."""
    model = trained()
    few = query[:, 3:].copy()
    few.var_names = [f"ENSG{i:011d}" for i in range(few.n_vars)]
    few.var["symbol"] = query.var_names[3:]
    with pytest.warns(UserWarning, match="77 of the model's 80 genes"):
        fit(cells(), max_epochs=1).annotate(few, "first")
    model.annotate(query, false_alarm_rate=0.2)
    record, check = query.uns["celler"], model.check_labels(query)
    assert record["model"]["class_counts"] == list(model.class_counts_)
    assert record["model"]["labelled_cells"] == sum(model.class_counts_)
    assert f"training  {record['model']['training']}" in repr(model)
    assert (record["model"]["labels_key"], record["model"]["n_genes"]) == ("cell_type", 80)
    pairs = pd.DataFrame(record["by_markers"])
    decided = check.types.notna().to_numpy()
    for row in pairs.itertuples():
        is_pair = (check.types == row.type) & (query.obs["celler"].astype(str) == row.label)
        assert row.n_cells == is_pair.sum()
    assert pairs["n_cells"].sum() == decided.sum()
    best = check.markers.groupby("group")["gene"].agg(lambda genes: list(genes[:3]))
    assert pd.DataFrame(record["markers"]).groupby("type")["gene"].agg(list).equals(best.rename_axis("type"))
    assert set(few.uns["first"]["markers"]["gene"]) <= set(few.var["symbol"])
    assert any("77 of the model's 80 genes" in message for message in few.uns["first"]["warnings"])


def test_annotate_records_a_warning_that_was_said_before(query):
    model, few = fit(cells(), max_epochs=1), query[:, 3:].copy()
    with pytest.warns(UserWarning, match="77 of the model's 80 genes"):
        model.predict(few)
    model.annotate(few)
    assert [message[:27] for message in few.uns["celler"]["warnings"]] == ["77 of the model's 80 genes "]


@pytest.mark.parametrize("backoff", [False, True])
def test_annotate_survives_h5ad(query, tmp_path, backoff):
    trained().annotate(query, cluster_key="leiden", backoff=backoff)
    query.write_h5ad(tmp_path / "query.h5ad")
    read = ad.read_h5ad(tmp_path / "query.h5ad")
    assert_equal_frames(read.obs[list(query.obs)].astype(str), query.obs.astype(str))
    was, now = query.uns["celler"], read.uns["celler"]
    assert sorted(now) == sorted(was)
    assert all(list(now[name]) == was[name] for name in ("classes", "parents", "columns"))
    assert {**now["genes"]} == was["genes"]
    trained().annotate(read)
    assert "celler_majority" not in read.obs
    assert "celler_level" not in read.obs
    assert "leiden" in read.obs


def test_annotate_twice_equals_once(query):
    once = query.copy()
    trained().annotate(once, cluster_key="leiden")
    for options in ({"backoff": True, "threshold": 1.0}, {}, {"cluster_key": "leiden"}):
        trained().annotate(query, **options)
    assert_equal_frames(query.obs, once.obs)
    assert query.uns == once.uns


def test_annotate_keeps_columns_of_others(query):
    query.obs["celler_level"] = "mine"
    query.uns["celler"] = "mine as well"
    trained().annotate(query)
    trained().annotate(query)
    assert set(query.obs["celler_level"]) == {"mine"}


def test_annotate_of_a_view(query):
    view, whole = query[10:30], query.copy()
    with pytest.warns(ImplicitModificationWarning):
        trained().annotate(view, cluster_key="leiden")
    assert not view.is_view
    assert list(view.obs["celler"]) == list(trained().predict(query[10:30], correct_shift=False))
    assert_equal_frames(query.obs, whole.obs)
    assert not query.uns


def test_annotate_in_backed_mode(query, tmp_path):
    query.write_h5ad(tmp_path / "query.h5ad")
    backed = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
    trained().annotate(backed, cluster_key="leiden")
    trained().annotate(query, cluster_key="leiden")
    assert_equal_frames(backed.obs.astype(str), query.obs.astype(str))
    assert backed.isbacked
    with pytest.raises(ValueError, match=r"view of a file in backed mode.*to_memory\(\)"):
        trained().annotate(backed[:10])
    backed.file.close()
    assert "celler" not in ad.read_h5ad(tmp_path / "query.h5ad").obs


def test_annotate_writes_what_predict_returns(query):
    expected, parents = soft(query), soft(query, level="parent")
    before = list(query.obs.columns)
    trained().annotate(query, "c", threshold=0.5)
    ends = ["", "_confidence", "_margin", "_second", "_novelty", "_parent", "_parent_confidence"]
    assert list(query.obs.columns) == [*before, *(f"c{end}" for end in ends)]
    labels = trained().predict(query, threshold=0.5)
    np.testing.assert_array_equal(query.obs["c"].astype(str), labels)
    np.testing.assert_array_equal(query.obs["c_confidence"], expected.max(axis=1))
    ranked = np.sort(expected.to_numpy(), axis=1)
    np.testing.assert_allclose(query.obs["c_margin"], ranked[:, -1] - ranked[:, -2])
    expected_parents = np.where(parents.max(axis=1) < 0.5, "Unknown", parents.idxmax(axis=1))
    np.testing.assert_array_equal(query.obs["c_parent"].astype(str), expected_parents)
    assert query.uns["c"]["threshold"] == 0.5
    assert query.uns["c"]["classes"] == list(trained().classes_)


def test_annotate_twice_with_other_options(query):
    trained().annotate(query, threshold=1.0)
    trained().annotate(query)
    np.testing.assert_array_equal(query.obs["celler"].astype(str), trained().predict(query))
    assert query.uns["celler"]["threshold"] == "none"


def test_annotate_survives_h5ad_without_clusters(query, tmp_path):
    trained().annotate(query)
    query.write_h5ad(tmp_path / "query.h5ad")
    read = ad.read_h5ad(tmp_path / "query.h5ad")
    np.testing.assert_array_equal(read.obs["celler"].astype(str), query.obs["celler"].astype(str))
    assert list(read.uns["celler"]["classes"]) == list(trained().classes_)


def test_annotate_without_parents(query):
    fit(cells(), max_epochs=1).annotate(query)
    assert "celler_parent" not in query.obs
