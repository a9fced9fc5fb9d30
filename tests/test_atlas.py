"""Building a store: every cell once, as it was in its source, in one gene space and one set of columns."""

import json
import sys
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from stores import (
    assert_equal_stores,
    cut_small,
    make_cells,
    read_store,
    use_any_engine,
    write_zarr,
)

import celler as cl
from celler.atlas._store import read_manifest
from celler.cli._main import main


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    use_any_engine(monkeypatch)
    cut_small(monkeypatch)


@pytest.fixture
def files(tmp_path):
    """Three sources: CSR in h5ad, CSC in zarr with other genes in another order, dense in h5ad."""
    one, two, three = make_cells(1), make_cells(2, donors="E", offset=5), make_cells(3, donors="F")
    two = two[:, ::-1].copy()
    two.X = sparse.csc_matrix(two.X)
    three.X = three.X.toarray()
    one.write_h5ad(tmp_path / "one.h5ad")
    write_zarr(tmp_path / "two.zarr", two)
    three.write_h5ad(tmp_path / "three.h5ad")
    cells = {"one": one, "two": two, "three": three}
    paths = [tmp_path / "one.h5ad", tmp_path / "two.zarr", tmp_path / "three.h5ad"]
    return cells, paths


def build(sources, out, **options):
    return cl.atlas.build(sources, out, **{"labels_key": "label"} | options)


def test_every_cell_is_there_once_as_in_its_source(files, tmp_path):
    cells, paths = files
    build(paths, tmp_path / "out")
    store = read_store(tmp_path / "out")
    assert len(read_manifest(tmp_path / "out")["datasets"]) > 1, "several datasets are to be tested"
    assert store.n_obs == 360
    assert store.obs_names.is_unique
    assert store.X.dtype == np.uint16
    for name, source in cells.items():
        found = store[[f"{name}:{cell}" for cell in source.obs_names]][:, source.var_names]
        np.testing.assert_array_equal(
            found.X.toarray(), np.asarray(anndata.AnnData(source.X).to_df())
        )
        for column, key in (("cell_type", "label"), ("donor", "donor"), ("tissue", "tissue")):
            assert list(found.obs[column].astype(str)) == list(source.obs[key].astype(str))
        assert set(found.obs["dataset"]) == {name}
        absent = store[found.obs_names][:, ~store.var_names.isin(source.var_names)]
        assert absent.X.nnz == 0


def test_the_cells_are_mixed(files, tmp_path):
    _, paths = files
    build(paths, tmp_path / "out")
    source = read_store(tmp_path / "out").obs["dataset"].cat.codes.to_numpy()
    # of random neighbours, one in three pairs is of one source
    assert 0.23 < (source[1:] == source[:-1]).mean() < 0.43


def test_the_same_seed_gives_the_same_store_and_another_does_not(files, tmp_path):
    _, paths = files
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(paths, tmp_path / name, seed=seed)
    assert_equal_stores(tmp_path / "a", tmp_path / "b")
    first, other = (read_store(tmp_path / name).obs_names for name in "ac")
    assert set(first) == set(other)
    assert list(first) != list(other)


@pytest.mark.parametrize("genes", ["union", "intersection", ["G7", "G3", "G39", "G100"]])
def test_gene_spaces(files, tmp_path, genes):
    cells, paths = files
    names = [set(source.var_names) for source in cells.values()]
    if isinstance(genes, list):
        paths = {"one": paths[0]}  # three names are too few of the others
        with pytest.raises(ValueError, match=r"shares under 20%"):
            build(paths, tmp_path / "few", genes=["X1", "X2", "X3", "X4", "X5", "G1"])
        build(paths, tmp_path / "out", genes=genes)
        assert list(read_store(tmp_path / "out").var_names) == genes
        return
    build(paths, tmp_path / "out", genes=genes)
    expected = set.union(*names) if genes == "union" else set.intersection(*names)
    assert set(read_store(tmp_path / "out").var_names) == expected


def test_sources_of_other_names_meet_in_one_space(tmp_path):
    symbols = [f"GENE{i}" for i in range(40)]
    ensembl = [f"ENSG{i:011d}" for i in range(40)]
    one, two, three = make_cells(1), make_cells(2), make_cells(3)
    one.var_names = symbols
    two.var_names, two.var["symbol"] = ensembl, symbols
    three.var_names = [name.lower() for name in symbols]
    with pytest.warns(UserWarning, match=r"40 of 40 genes of source 'three' .*of one species"):
        build({"one": one, "two": two, "three": three}, tmp_path / "out")
    store = read_store(tmp_path / "out")
    assert list(store.var_names) == symbols
    for name, source in (("two", two), ("three", three)):
        found = store[[f"{name}:{cell}" for cell in source.obs_names]]
        np.testing.assert_array_equal(found.X.toarray(), source.X.toarray())
    reports = [source["genes"] for source in read_manifest(tmp_path / "out")["sources"]]
    assert reports[1]["names"] == "var['symbol']"
    assert reports[2]["inexact"] == {"in another case": 40}
    del two.var["symbol"]
    with pytest.raises(
        ValueError, match=r"source 'two' shares under 20%.*human Ensembl ids.*gene_key="
    ):
        build({"one": one, "two": two}, tmp_path / "no")


def test_columns_of_one_gene_are_added_up(tmp_path):
    source = make_cells(1)
    source.var_names = [*source.var_names[:-1], source.var_names[0]]
    source.X = source.X.astype(np.uint8) * np.uint8(60)  # the largest sums pass 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's, of names that are not unique
        build({"one": source}, tmp_path / "out")
    store = read_store(tmp_path / "out")
    found = store[[f"one:{cell}" for cell in source.obs_names]][:, "G0"].X.toarray().ravel()
    X = source.X.toarray().astype(int)
    np.testing.assert_array_equal(found, X[:, 0] + X[:, -1])


def test_labels_are_mapped_dropped_and_left_out(tmp_path):
    one, two = make_cells(1), make_cells(2)
    two.obs["author"] = two.obs["label"].astype(str).replace({"B": "b cell", "NK": "doublet"})
    two.obs.loc[two.obs_names[:5], "author"] = [np.nan, "", "Unknown", "unknown", None]
    mapping = {"b cell": "B", "rare": None}
    build(
        {"one": one, "two": two},
        tmp_path / "out",
        labels_key={"one": "label", "two": "author"},
        mapping=mapping,
        drop=["doublet"],
    )
    store = read_store(tmp_path / "out")
    assert list(store.obs["cell_type"].cat.categories) == ["B", "NK", "T"]
    author = two.obs["author"].astype(object)
    kept = two.obs_names[(author != "doublet").to_numpy()]
    found = store[[f"two:{cell}" for cell in kept]].obs["cell_type"]
    expected = author[kept].replace({"b cell": "B"}).where(author[kept].isin(["b cell", "T"]))
    assert list(found.astype(object).fillna("-")) == list(expected.fillna("-"))
    manifest = read_manifest(tmp_path / "out")
    assert manifest["dropped"]["dropped class"] == (author == "doublet").sum()
    n_none = sum(manifest["unlabeled"].values())
    assert n_none == store.obs["cell_type"].isna().sum() > 5


def test_a_table_and_an_ontology_give_names(tmp_path):
    source = make_cells(1)
    table = tmp_path / "map.csv"
    pd.DataFrame({"label": ["B", "T"], "cell_type": ["b", "t"]}).to_csv(table, index=False)
    build({"s": source}, tmp_path / "a", mapping=table)
    assert read_manifest(tmp_path / "a")["classes"] == ["NK", "b", "rare", "t"]
    terms = [("CL:1", "B cell", "B"), ("CL:2", "T cell", "T"), ("CL:3", "NK cell", "NK")]
    (tmp_path / "cl.obo").write_text(
        "".join(f'[Term]\nid: {i}\nname: {n}\nsynonym: "{s}" EXACT\n\n' for i, n, s in terms)
    )
    with pytest.raises(ValueError, match=r"1 labels of source 's'.*'rare' is no id"):
        build({"s": source}, tmp_path / "b", mapping=tmp_path / "cl.obo")
    source = source[source.obs["label"] != "rare"].copy()
    build({"s": source}, tmp_path / "b", mapping=tmp_path / "cl.obo")
    assert read_manifest(tmp_path / "b")["classes"] == ["B cell", "NK cell", "T cell"]


def test_parents_from_a_dict_and_from_a_column(tmp_path):
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


def test_duplicates_and_cells_counted_elsewhere_are_left_out(tmp_path):
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


def test_cells_that_are_only_numbered_are_no_duplicates(tmp_path):
    one, two = make_cells(1), make_cells(2)
    for source in (one, two):
        source.obs["dataset"] = "study"
        source.obs_names = list(map(str, range(120)))
    build({"one": one, "two": two}, tmp_path / "out")
    assert read_store(tmp_path / "out").n_obs == 240


def test_repeated_names_within_a_source_are_pointed_out(tmp_path):
    source = make_cells(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's, of names that are not unique
        source.obs_names = [f"AC{i % 60}" for i in range(120)]
        source.write_h5ad(tmp_path / "s.h5ad")
    with pytest.warns(UserWarning, match=r"60 of 120 cells of source 's' repeat"):
        build([tmp_path / "s.h5ad"], tmp_path / "out")


def test_a_source_that_adds_nothing_is_pointed_out(tmp_path):
    source = make_cells(1)
    source.obs["dataset"] = "study"
    with pytest.warns(
        UserWarning, match=r"All 120 cells of source 'again' are in sources before it"
    ):
        build({"s": source, "again": source}, tmp_path / "out")


def test_no_donor_is_in_both_parts_and_classes_are_in_both(files, tmp_path):
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


def test_empty_cells_are_left_out(tmp_path):
    source = make_cells(1)
    source.X.data[source.X.indptr[3] : source.X.indptr[4]] = 0
    build({"s": source}, tmp_path / "out")
    assert read_manifest(tmp_path / "out")["dropped"]["empty"] == 1
    assert read_store(tmp_path / "out").n_obs == 119


@pytest.mark.parametrize("place", ["raw", "layer"])
def test_counts_are_found_in_raw_and_taken_from_a_layer(tmp_path, place):
    source = make_cells(1)
    counts = source.X.copy()
    if place == "raw":
        source.raw = source.copy()
    else:
        source.layers["counts"] = counts
    source.X = np.log1p(source.X)
    source.write_h5ad(tmp_path / "s.h5ad")
    if place == "layer":
        with pytest.raises(ValueError, match=r"the value 0\.69\d* in X.*layer=\{'s': 'counts'\}"):
            build([tmp_path / "s.h5ad"], tmp_path / "no")
    build([tmp_path / "s.h5ad"], tmp_path / "out", layer="counts" if place == "layer" else None)
    store = read_store(tmp_path / "out")
    found = store[[f"s:{cell}" for cell in source.obs_names]]
    np.testing.assert_array_equal(found.X.toarray(), counts.toarray())


def test_an_iterator_gives_the_same_store_as_files_and_is_not_changed(files, tmp_path):
    cells, paths = files
    before = cells["one"].copy()
    build(paths, tmp_path / "a")
    build(dict(cells), tmp_path / "b")
    assert_equal_stores(tmp_path / "a", tmp_path / "b")
    build(iter([cells["one"], cells["two"]]), tmp_path / "c")
    assert set(read_store(tmp_path / "c").obs["dataset"]) == {"source_0", "source_1"}
    pd.testing.assert_frame_equal(before.obs, cells["one"].obs)
    assert (before.X != cells["one"].X).nnz == 0


def test_summary_counts_the_cells(files, tmp_path):
    cells, paths = files
    summary = build(paths, tmp_path / "out")
    obs = pd.concat([source.obs for source in cells.values()])
    by_tissue = summary.by("tissue")
    for tissue, n in obs["tissue"].value_counts().items():
        assert by_tissue.loc[tissue, "cells"] == n == by_tissue.loc[tissue, ["train", "test"]].sum()
        assert by_tissue.loc[tissue, "types"] == obs.loc[obs["tissue"] == tissue, "label"].nunique()
    assert summary.by("cell_type")["cells"].to_dict() == obs["label"].value_counts().to_dict()
    assert "360 cells" in str(summary)
    with pytest.raises(KeyError, match="tisue.*Closest: 'tissue'"):
        summary.by("tisue")


def test_annbatch_streams_the_store(files, tmp_path):
    annbatch = pytest.importorskip("annbatch")
    cells, paths = files
    build(paths, tmp_path / "out")
    collection = annbatch.DatasetCollection(tmp_path / "out" / "cells.zarr", mode="r")
    assert not collection.is_empty
    loader = annbatch.Loader(batch_size=32, chunk_size=8, preload_nchunks=8, preload_to_gpu=False)
    total = sum(part["X"].sum() for part in loader.use_collection(collection))
    assert total == sum(source.X.sum() for source in cells.values())


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the engine runs here")
def test_on_python_3_11_building_is_refused(monkeypatch, tmp_path):
    monkeypatch.undo()
    for call in (lambda: build([], tmp_path / "out"), lambda: cl.atlas.summary(tmp_path)):
        with pytest.raises(ImportError, match=r"Python 3\.11 was found"):
            call()


def test_the_manifest_says_where_the_cells_came_from(files, tmp_path):
    cells, paths = files
    build(paths, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [source["n_cells"] for source in manifest["sources"]] == [120, 120, 120]
    assert manifest["n_cells"] == sum(manifest["datasets"].values()) == 360
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cells.zarr",
        "manifest.json",
    ]


def test_the_command_builds_and_counts(files, tmp_path, capsys):
    cells, paths = files
    table = tmp_path / "parents.csv"
    parents = {"B": "lymphoid", "T": "lymphoid", "NK": "innate", "rare": "rare"}
    pd.Series(parents).rename_axis("class").rename("parent").reset_index().to_csv(
        table, index=False
    )
    (tmp_path / "genes.txt").write_text("\n".join(cells["one"].var_names))
    out = str(tmp_path / "out")
    command = ["atlas", "build", *map(str, paths), "--out", out, "--drop", "rare"]
    command += ["--labels-key", "one=label", "two=label", "three=label", "--columns", "donor=donor"]
    command += ["--parents", str(table), "--genes", str(tmp_path / "genes.txt"), "--memory-gb", "2"]
    assert main(command) == 0
    assert "wrote" in capsys.readouterr().out
    manifest = read_manifest(out)
    assert manifest["genes"] == list(cells["one"].var_names)
    assert manifest["classes"] == ["B", "NK", "T"]
    assert manifest["parents"]["B"] == "lymphoid"
    assert main(["atlas", "summary", out]) == 0
    assert "liver" in capsys.readouterr().out
    assert main([*command, "--columns", "donor"]) == 2
    assert "'donor' was given; NAME=COLUMN" in capsys.readouterr().err
