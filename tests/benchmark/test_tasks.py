"""Tasks: thinning by hand and its laws, and splits."""

import numpy as np
import pandas as pd
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from celler.benchmark import group_split, long_tail_split, thin


def counts_of(labels) -> dict[str, int]:
    return pd.Series(labels).value_counts().to_dict()


def test_thin_matches_a_profile_by_hand(rng):
    """200 of the largest, 100:1 over three classes: 200, 200 / 10, 200 / 100; never below five."""
    labels = rng.permutation(np.repeat(["a", "b", "c"], [200, 190, 180]))
    assert counts_of(labels[thin(labels, 100, rng=rng)]) == {"a": 200, "b": 20, "c": 5}
    assert counts_of(labels[thin(labels, 100, at_least=1, rng=rng)]) == {"a": 200, "b": 20, "c": 2}
    assert counts_of(labels[thin(labels, 1, rng=rng)]) == {"a": 200, "b": 190, "c": 180}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=8), st.floats(1, 200), st.integers(0, 99))
def test_thin_keeps_the_order_of_classes(sizes, imbalance, seed):
    labels = np.repeat([f"type {i}" for i in range(len(sizes))], sizes)
    rows = [thin(labels, imbalance, rng=np.random.default_rng(seed)) for _ in range(2)]
    np.testing.assert_array_equal(*rows)
    assert (np.diff(rows[0]) > 0).all()
    before, after = counts_of(labels), counts_of(labels[rows[0]])
    by_size = sorted(before, key=lambda name: (-before[name], name))
    kept = [after[name] for name in by_size]
    assert kept[0] == max(sizes)
    assert all(min(5, before[name]) <= after[name] <= before[name] for name in before)
    assert all(n <= max(5, m) for m, n in zip(kept, kept[1:], strict=False))


def test_long_tail_split_halves_types_and_thins_the_reference():
    adata = toy.cells(400)
    adata.obs["other"] = np.arange(400)
    before = toy.snapshot(adata)
    reference, query = long_tail_split(adata, "cell_type", imbalance=50, seed=3)
    toy.assert_unchanged(adata, before)
    all_counts, kept = counts_of(toy.truth(adata)), counts_of(toy.truth(reference))
    assert not set(reference.obs_names) & set(query.obs_names)
    for name, n in counts_of(toy.truth(query)).items():
        assert abs(n - all_counts[name] / 2) <= 1
    assert min(kept.values()) == 5
    for part in (reference, query):
        original = adata[part.obs_names]
        np.testing.assert_array_equal(part.X.toarray(), original.X.toarray())
        assert (toy.truth(part) == toy.truth(original)).all()
    again = long_tail_split(adata, "cell_type", imbalance=50, seed=3)
    other = long_tail_split(adata, "cell_type", imbalance=50, seed=4)
    assert list(again[0].obs_names) == list(reference.obs_names)
    assert list(other[0].obs_names) != list(reference.obs_names)


def test_long_tail_split_with_unusable_labels():
    adata = toy.cells(60)
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[:2] = None
    labels.iloc[5] = "alone"
    adata.obs["gaps"] = labels
    message = r"2 cells without a label and 1 type of a single cell \['alone'\]; leave them out"
    with pytest.raises(ValueError, match=message):
        long_tail_split(adata, "gaps")
    with pytest.raises(KeyError, match="labels_key='nothing' is not a column"):
        long_tail_split(adata, "nothing")
    with pytest.raises(ValueError, match=r"imbalance=0\.5 was given"):
        long_tail_split(adata, "cell_type", imbalance=0.5)


def test_group_split_takes_every_second_group():
    adata = toy.cells(400)
    adata.obs["library"] = [f"lib {i % 5}" for i in range(400)]
    adata.obs["cell_type"] = toy.truth(adata)
    is_reference = adata.obs["library"].isin(["lib 0", "lib 2", "lib 4"]).to_numpy()
    known = np.flatnonzero(is_reference)[:1]
    adata.obs.loc[adata.obs_names[[*known, *np.flatnonzero(~is_reference)[:3]]], "cell_type"] = "one reference cell"
    before = toy.snapshot(adata)
    reference, query = group_split(adata, "cell_type", "library")
    toy.assert_unchanged(adata, before)
    is_kept = (adata.obs["cell_type"] != "one reference cell").to_numpy()
    assert list(reference.obs_names) == list(adata.obs_names[is_reference & is_kept])
    assert list(query.obs_names) == list(adata.obs_names[~is_reference & is_kept])
    thinned, same = group_split(adata, "cell_type", "library", imbalance=20, seed=3)
    assert list(same.obs_names) == list(query.obs_names)
    rows = thin(toy.truth(reference), 20, rng=np.random.default_rng(3))
    assert list(thinned.obs_names) == list(reference.obs_names[rows])


def test_group_split_with_unusable_columns():
    adata = toy.cells(60)
    adata.obs["same"] = 1
    with pytest.raises(ValueError, match=r"adata\.obs\['same'\] has 1 group; two or more are needed"):
        group_split(adata, "cell_type", "same")
    with pytest.raises(KeyError, match="group_key='nothing' is not a column"):
        group_split(adata, "cell_type", "nothing")
