"""Parents, duplicates and the split of a store."""

import json
import warnings

import pytest
from stores import build, make_cells, read_store

from celler.atlas._store import read_manifest


def test_make_plan_with_parents_from_a_dict_and_a_column(tmp_path):
    source = make_cells(1)
    parents = {"B": "lymphoid", "T": "lymphoid", "NK": "innate", "rare": "rare"}
    source.obs["lineage"] = source.obs["label"].astype(str).map(parents)
    build({"s": source}, tmp_path / "a", parents=parents)
    build({"s": source}, tmp_path / "b", columns={"parent_type": "lineage"})
    for name in "ab":
        store = read_store(tmp_path / name)
        own = store.obs["cell_type"].astype(str).map(parents)
        assert list(own) == list(store.obs["parent_type"].astype(str))
    source.obs.loc[source.obs_names[0], "lineage"] = "elsewhere"
    with pytest.raises(ValueError, match=r"the parents \['elsewhere'"):
        build({"s": source}, tmp_path / "c", columns={"parent_type": "lineage"})


def test_make_plan_with_duplicates_and_cells_counted_elsewhere(tmp_path):
    one, two = make_cells(1), make_cells(1)
    for source in (one, two):
        source.obs["dataset_id"] = "study"
    two.obs_names = [*one.obs_names[:50], *(f"new{i}" for i in range(70))]
    two.obs["is_primary_data"] = [True] * 100 + [False] * 20
    build({"one": one, "two": two}, tmp_path / "out")
    dropped = read_manifest(tmp_path / "out")["dropped"]
    assert dropped == {"not primary": 20, "dropped class": 0, "duplicate": 50, "empty": 0}
    assert read_store(tmp_path / "out").n_obs == 170
    build({"one": one, "two": two}, tmp_path / "all", columns={"is_primary_data": None})
    assert read_store(tmp_path / "all").n_obs == 190


def test_make_plan_with_numbered_cells(tmp_path):
    one, two = make_cells(1), make_cells(2)
    for source in (one, two):
        source.obs["dataset"] = "study"
        source.obs_names = list(map(str, range(120)))
    build({"one": one, "two": two}, tmp_path / "out")
    assert read_store(tmp_path / "out").n_obs == 240


def test_make_plan_with_repeated_names_in_a_source(tmp_path):
    source = make_cells(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's, of names that are not unique
        source.obs_names = [f"AC{i % 60}" for i in range(120)]
        source.write_h5ad(tmp_path / "s.h5ad")
    with pytest.warns(UserWarning, match=r"60 of 120 cells of source 's' repeat"):
        build([tmp_path / "s.h5ad"], tmp_path / "out")


def test_make_plan_with_a_source_that_adds_nothing(tmp_path):
    source = make_cells(1)
    source.obs["dataset"] = "study"
    with pytest.warns(UserWarning, match=r"All 120 cells of source 'again' are in sources before it"):
        build({"s": source, "again": source}, tmp_path / "out")


def test_make_plan_with_whole_donors_and_all_classes_in_both_parts(files, tmp_path):
    _, paths = files
    build(paths, tmp_path / "out", test_size=0.2)
    obs = read_store(tmp_path / "out").obs
    parts = obs.groupby("donor", observed=True)["split"].nunique()
    assert (parts == 1).all()
    assert set(obs.loc[obs["split"] == "test", "cell_type"]) == {"B", "NK", "T", "rare"}
    assert 0.1 < (obs["split"] == "test").mean() < 0.3
    counts = read_manifest(tmp_path / "out")["class_counts"]
    for split in ("train", "test"):
        expected = obs.loc[obs["split"] == split, "cell_type"].value_counts().sort_index()
        assert counts[split] == expected.to_list()


def test_make_manifest_of_the_sources(files, tmp_path):
    cells, paths = files
    build(paths, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [source["n_cells"] for source in manifest["sources"]] == [120, 120, 120]
    assert manifest["n_cells"] == sum(manifest["datasets"].values()) == 360
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cells.zarr",
        "manifest.json",
    ]
