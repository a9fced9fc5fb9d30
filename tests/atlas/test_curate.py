"""Genes and labels of a store, against those of its sources."""

import numpy as np
import pandas as pd
import pytest
from stores import build, make_cells, read_store

from celler.atlas._store import read_manifest


@pytest.mark.parametrize("genes", ["union", "intersection", ["G7", "G3", "G39", "G100"]])
def test_gene_space_of_union_intersection_and_a_list(files, tmp_path, genes):
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


def test_gene_space_of_symbols_ensembl_ids_and_another_case(tmp_path):
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
    with pytest.raises(ValueError, match=r"source 'two' shares under 20%.*human Ensembl ids.*gene_key="):
        build({"one": one, "two": two}, tmp_path / "no")


def test_curate_with_labels_mapped_dropped_and_missing(tmp_path):
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


def test_curate_with_a_table_and_an_ontology(tmp_path):
    source = make_cells(1)
    table = tmp_path / "map.csv"
    pd.DataFrame({"label": ["B", "T"], "cell_type": ["b", "t"]}).to_csv(table, index=False)
    build({"s": source}, tmp_path / "a", mapping=table)
    assert read_manifest(tmp_path / "a")["classes"] == ["NK", "b", "rare", "t"]
    terms = [("CL:1", "B cell", "B"), ("CL:2", "T cell", "T"), ("CL:3", "NK cell", "NK")]
    (tmp_path / "cl.obo").write_text(
        "".join(f'[Term]\nid: {i}\nname: {n}\nsynonym: "{s}" EXACT\n\n' for i, n, s in terms)
    )
    with pytest.raises(ValueError, match=r"1 label of source 's' .*is no term.*'rare' is no id"):
        build({"s": source}, tmp_path / "b", mapping=tmp_path / "cl.obo")
    source = source[source.obs["label"] != "rare"].copy()
    build({"s": source}, tmp_path / "b", mapping=tmp_path / "cl.obo")
    assert read_manifest(tmp_path / "b")["classes"] == ["B cell", "NK cell", "T cell"]
