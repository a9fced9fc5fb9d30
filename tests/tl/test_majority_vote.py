"""Majority votes, against pandas and by hand."""

import numpy as np
import pandas as pd
import pytest
from pl_cases import assert_same

from celler.datasets import toy_long_tail
from celler.tl import majority_vote


def test_majority_vote_equals_pandas():
    adata = toy_long_tail(400, seed=1)
    rng = np.random.default_rng(0)
    adata.obs["cluster"] = pd.Categorical(rng.integers(30, size=400).astype(str))
    before = adata.copy()
    assert majority_vote(adata, "cell_type", "cluster") is None
    by_cluster = before.obs.groupby("cluster", observed=True)["cell_type"]
    counts = by_cluster.value_counts(normalize=True).unstack()
    # equal counts: the first category, which is what idxmax gives
    expected = counts[before.obs["cell_type"].cat.categories].idxmax(axis=1)
    assert (adata.obs["cell_type_majority"].astype(str) == adata.obs["cluster"].map(expected).astype(str)).all()
    np.testing.assert_allclose(
        adata.obs["cell_type_majority_share"],
        adata.obs["cluster"].map(counts.max(axis=1)).astype(float),
    )
    assert isinstance(adata.obs["cell_type_majority"].dtype, pd.CategoricalDtype)
    added = ["cell_type_majority", "cell_type_majority_share"]
    adata.obs = adata.obs.drop(columns=added)
    assert_same(adata, before)


def vote(labels, clusters, **options):
    adata = toy_long_tail(60)[: len(labels)].copy()
    adata.obs["label"], adata.obs["cluster"] = labels, clusters
    majority_vote(adata, "label", "cluster", key_added="vote", **options)
    winners = adata.obs["vote"].astype(object)
    return [None if pd.isna(name) else name for name in winners], adata.obs["vote_share"].tolist()


def test_majority_vote_by_hand():
    labels, clusters = ["b", "a", "b", "c", "a", "b"], [1, 1, 1, 2, 2, 2]
    winners, share = vote(labels, clusters)
    assert winners == ["b", "b", "b", "a", "a", "a"], "of three labels with a cell each the first wins"
    assert share == pytest.approx([2 / 3] * 3 + [1 / 3] * 3)
    assert vote(labels, clusters, min_share=0.5)[0] == ["b"] * 3 + ["Unknown"] * 3
    assert vote(labels, clusters, min_share=0.5, unknown_label="mixed")[0][-1] == "mixed"
    assert vote(["a", "b", "a", "c"], [1] * 4, min_share=0.5)[0] == ["a"] * 4, "half is enough"


def test_majority_vote_with_missing_labels_and_clusters():
    labels, clusters = ["b", None, None, None, "a", "b"], ["x", "x", "x", "y", None, "x"]
    winners, share = vote(labels, clusters)
    assert winners == ["b", "b", "b", None, None, "b"], "y has no vote, the fifth cell no cluster"
    np.testing.assert_array_equal(share, [1, 1, 1, np.nan, np.nan, 1])


def test_majority_vote_with_wrong_arguments():
    adata = toy_long_tail(50, 100)
    with pytest.raises(KeyError, match="cluster_key='leiden' is not a column"):
        majority_vote(adata, "cell_type", "leiden")
    with pytest.raises(KeyError, match="key='Cell_type' .*Closest: 'cell_type'"):
        majority_vote(adata, "Cell_type", "donor")
    with pytest.raises(ValueError, match="min_share=2 was given; a finite number between 0 and 1"):
        majority_vote(adata, "cell_type", "donor", min_share=2)
    for key_added in ("cell_type", "donor"):
        with pytest.raises(ValueError, match="would overwrite its own input"):
            majority_vote(adata, "cell_type", "donor", key_added=key_added)
    assert list(adata.obs) == ["cell_type", "parent_type", "donor"]
