"""setup_anndata: bad input, labels of every kind, and parents from every source."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from bad_input_cases import (
    assert_says,
    keep_raw_only,
    no_change,
    repeat_a_gene,
    scale,
    with_obs,
    with_value,
)
from scipy import sparse
from toy import assert_equal_frames, assert_unchanged, cells, fit, snapshot, truth

import celler as cl
from celler.labels import LabelTree
from celler.model import Celler


def nested_in_two(adata):
    adata.obs["parent"] = np.where(np.arange(adata.n_obs) % 2, "p", "q")


def no_parent(adata):
    adata.obs["parent"] = adata.obs["parent_type"].astype(object)
    adata.obs.loc[adata.obs["cell_type"] == "type 2", "parent"] = np.nan


#: name: (what happens to the AnnData, arguments of setup_anndata, error, what its message says)
SETUP = {
    "no such column": (
        no_change, {"labels_key": "celltype"}, KeyError,
        ["labels_key='celltype' is not a column of adata.obs", "Closest: 'cell_type'", "'donor'"],
    ),
    "no such column, nothing like it": (
        no_change, {"labels_key": "zzz"}, KeyError, ["labels_key='zzz'", "Columns: ['cell_type'"],
    ),
    "no such batch column": (
        no_change, {"batch_key": "donors"}, KeyError, ["batch_key='donors'", "Closest: 'donor'"],
    ),
    "no such parent column": (
        no_change, {"parent_labels_key": "parent"}, KeyError,
        ["parent_labels_key='parent'", "Closest: 'parent_type'"],
    ),
    "no such gene column": (no_change, {"gene_key": "symbol"}, KeyError, ["gene_key='symbol'", "adata.var"]),
    "no such layer": (scale, {"layer": "count"}, KeyError, ["layer='count'", "adata.layers", "['counts']"]),
    "all missing": (
        with_obs("k", lambda adata: np.full(adata.n_obs, None)), {"labels_key": "k"}, ValueError,
        ["all 200 cells of adata.obs['k'] are unlabelled", "labels_key"],
    ),
    "all unlabelled": (
        with_obs("k", lambda adata: "?"), {"labels_key": "k", "unlabeled_category": "?"}, ValueError,
        ["all 200 cells", "'?'", "labels_key"],
    ),
    "float labels": (
        with_obs("k", lambda adata: np.arange(adata.n_obs) % 3 + 0.5), {"labels_key": "k"}, ValueError,
        ["adata.obs['k']", "decimal point", "0.5", "text, categories or integers", "astype"],
    ),
    "missing batch": (
        with_obs("k", lambda adata: [None, *["a"] * (adata.n_obs - 1)]), {"batch_key": "k"}, ValueError,
        ["batch_key='k' has 1 missing", "batch_key=None"],
    ),
    "two parents": (
        nested_in_two, {"parent_labels_key": "parent"}, ValueError,
        ["class 'type 0' the parents ['p', 'q']", "exactly one"],
    ),
    "no parent": (
        no_parent, {"parent_labels_key": "parent"}, ValueError, ["class 'type 2' no parent"],
    ),
    "negative": (with_value(-3), {}, ValueError, ["adata.X holds the value -3", "scaled", "Counts or log1p"]),
    "NaN": (with_value(np.nan), {}, ValueError, ["adata.X holds the value nan", "Counts or log1p"]),
    "infinite": (with_value(np.inf), {}, ValueError, ["adata.X holds the value inf", "Counts or log1p"]),
    "negative infinite": (with_value(-np.inf), {}, ValueError, ["the value -inf"]),
    "scaled, counts in a layer": (scale, {}, ValueError, ["adata.X", "scaled", "pass layer='counts'"]),
    "scaled, counts in raw": (keep_raw_only, {}, ValueError, ["scaled", "adata.raw.to_adata()"]),
    "duplicate genes": (
        repeat_a_gene, {}, ValueError, ["'gene 0'", "more than once", "var_names_make_unique"],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("case", SETUP)
def test_setup_anndata_with_bad_input(case):
    change, arguments, kind, words = SETUP[case]
    adata = cells(200)
    change(adata)
    before = snapshot(adata)
    with pytest.raises(kind) as error:
        Celler.setup_anndata(adata, **({"labels_key": "cell_type"} | arguments))
    assert_says(error, words)
    assert_unchanged(adata, before)


def test_setup_anndata_that_fails_keeps_the_earlier_one():
    adata = cells(200)
    model = fit(adata, max_epochs=1)
    before = snapshot(adata)
    with pytest.raises(KeyError):
        Celler.setup_anndata(adata, "nothing")
    assert_unchanged(adata, before)
    assert len(model.predict()) == 200


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_setup_anndata_without_cells_or_genes(shape):
    adata = ad.AnnData(sparse.csr_matrix(shape, dtype=np.float32))
    adata.obs["cell_type"] = pd.Categorical(["a"] * shape[0])
    words = f"adata has {shape[0]} cells and {shape[1]} genes; both are needed"
    with pytest.raises(ValueError, match=words):
        Celler.setup_anndata(adata, "cell_type")


def test_setup_anndata_without_x():
    adata = ad.AnnData(obs=pd.DataFrame({"cell_type": ["a", "b"]}, index=["0", "1"]), shape=(2, 3))
    with pytest.raises(ValueError, match=r"adata\.X is None; .*layer="):
        Celler.setup_anndata(adata, "cell_type")


def test_setup_anndata_of_a_view():
    adata = cells(200)
    before = snapshot(adata)
    with pytest.raises(ValueError, match=r"view.*adata = adata\.copy\(\)"):
        Celler.setup_anndata(adata[:100], "cell_type")
    assert_unchanged(adata, before)


PARENTS = {"type 0": "A", "type 1": "A", "type 2": "B", "type 3": "type 3", "another": "C"}


@pytest.fixture
def query():
    return cells(80, seed=3)


@pytest.mark.parametrize(
    "kind",
    [dict, pd.Series, lambda m: LabelTree(tuple(m), tuple(m.values()))],
    ids=["dict", "Series", "LabelTree"],
)
def test_setup_anndata_with_parents_as_a_mapping(kind, query):
    adata = cells()
    adata.obs["given"] = adata.obs["cell_type"].astype(str).map(PARENTS)
    by_column = fit(adata, {"parent_labels_key": "given"}, max_epochs=1)
    by_mapping = fit(cells(), {"parents": kind(PARENTS)}, max_epochs=1)
    assert by_mapping.parents_ == by_column.parents_ == {name: PARENTS[name] for name in by_column.classes_}
    expected = by_column.predict(query, soft=True, level="parent")
    assert_equal_frames(by_mapping.predict(query, soft=True, level="parent"), expected)


def test_setup_anndata_with_parents_of_an_ontology(query):
    adata = cells()
    names = {"type 0": "T cell", "type 1": "NK cell", "type 2": "B cell", "type 3": "monocyte"}
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(names)
    path = Path(__file__).parents[1] / "data" / "cells.obo"
    tree = LabelTree.from_obo(path, adata.obs["cell_type"], ["lymphocyte", "monocyte"])
    model = fit(adata, {"parents": tree}, max_epochs=1)
    classes, parents = (model.predict(query, soft=True, level=level) for level in ("class", "parent"))
    np.testing.assert_allclose(parents["lymphocyte"], 1 - classes["monocyte"])


def test_setup_anndata_without_parents():
    assert fit(cells(), max_epochs=1).parents_ == {}


@pytest.mark.parametrize(
    ("setup", "error", "words"),
    [
        ({"parents": {"type 0": "A"}}, ValueError, "no entry for 3 of 4 classes: 'type 1'"),
        (
            {"parents": PARENTS | {"type 3": "type 2"}},
            ValueError,
            "'type 2' is the parent of 'type 3' and",
        ),
        ({"parents": "parent_type"}, TypeError, "named by parent_labels_key"),
        (
            {"parents": PARENTS, "parent_labels_key": "parent_type"},
            ValueError,
            "both parent_labels_key='parent_type' and parents were given",
        ),
    ],
)
def test_setup_anndata_with_bad_parents(setup, error, words):
    adata = cells()
    before = snapshot(adata)
    with pytest.raises(error, match=words):
        Celler.setup_anndata(adata, labels_key="cell_type", **setup)
    assert_unchanged(adata, before)


def test_setup_anndata_with_contradicting_levels():
    adata = cells()
    adata.obs["p"] = adata.obs["cell_type"].astype(str).map(PARENTS | {"type 3": "type 2"})
    with pytest.raises(ValueError, match="'type 2' is the parent of 'type 3' and a class too"):
        Celler.setup_anndata(adata, labels_key="cell_type", parent_labels_key="p")


@pytest.mark.parametrize(
    "names",
    [[0, 1, 2, 10], ["T cell/NK", "β cells", "a  b", "{x} %s\n"], pd.array([3, 1, 2, 7], "Int64")],
    ids=["integers", "text", "Int64"],
)
def test_setup_anndata_with_any_kind_of_label(names):
    adata = cells()
    codes = adata.obs["cell_type"].cat.codes.to_numpy()
    adata.obs["k"] = pd.array(names)[codes] if isinstance(names, list) else names[codes]
    model = fit(adata, {"labels_key": "k"}, max_epochs=10)
    np.testing.assert_array_equal(model.classes_, sorted(map(str, names)))
    expected = np.array(list(map(str, names)))[codes]
    assert (model.predict() == expected).mean() > 0.8
    assert list(model.predict(soft=True).columns) == sorted(map(str, names))


def test_setup_anndata_with_boolean_labels():
    adata = cells()
    adata.obs["is_first"] = adata.obs["cell_type"] == "type 0"
    model = fit(adata, {"labels_key": "is_first"})
    np.testing.assert_array_equal(model.classes_, ["False", "True"])


def test_setup_anndata_with_unused_categories():
    adata = cells()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.add_categories(["a ghost", "type 9"])
    assert list(fit(adata, max_epochs=1).predict(soft=True).columns) == [f"type {j}" for j in range(4)]


def test_setup_anndata_with_an_integer_for_unlabelled():
    adata = cells()
    adata.obs["k"] = np.where(np.arange(300) % 4 == 0, -1, adata.obs["cell_type"].cat.codes)
    model = fit(adata, {"labels_key": "k", "unlabeled_category": -1}, max_epochs=1)
    np.testing.assert_array_equal(model.classes_, ["0", "1", "2", "3"])


@pytest.fixture(scope="module")
def model() -> cl.model.Celler:
    return fit(cells(), {"batch_key": "donor"})


def soft_of(model, query):
    return model.predict(query, soft=True)


def test_setup_anndata_with_missing_labels(query):
    reference = cells()
    labels = reference.obs["cell_type"].astype(object)
    labels[::3] = np.nan
    reference.obs["cell_type"] = labels
    model = fit(reference)
    assert list(model.classes_) == sorted(set(truth(cells())))
    assert soft_of(model, query).notna().all(axis=None)
    assert soft_of(model, None).shape == (300, 4)


@pytest.mark.parametrize("dtype", [np.int64, "category", "Int64"])
def test_setup_anndata_with_integer_labels(query, dtype):
    reference = cells()
    reference.obs["cell_type"] = reference.obs["cell_type"].str[5:].astype(np.int64).astype(dtype)
    model = fit(reference)
    assert list(model.classes_) == ["0", "1", "2", "3"]
    expected = fit(cells()).predict(query)
    np.testing.assert_array_equal(model.predict(query), [label[5:] for label in expected])


def test_setup_anndata_with_categories_without_cells(query):
    reference = cells()
    reference.obs["cell_type"] = reference.obs["cell_type"].cat.add_categories(["a", "unused"])
    model = fit(reference)
    assert list(model.classes_) == [f"type {j}" for j in range(4)]
    assert_equal_frames(soft_of(model, query), soft_of(fit(cells()), query))


def test_setup_anndata_sorts_the_classes(query):
    reference = cells()
    reversed_ = reference.obs["cell_type"].cat.reorder_categories([f"type {j}" for j in (3, 1, 0, 2)])
    reference.obs["cell_type"] = reversed_
    assert_equal_frames(soft_of(fit(reference), query), soft_of(fit(cells()), query))


def test_setup_anndata_with_an_unlabeled_category(query):
    reference = cells()
    labels = reference.obs["cell_type"].astype(str)
    labels[:30] = "?"
    reference.obs["cell_type"] = labels
    model = fit(reference, {"unlabeled_category": "?"})
    assert "?" not in model.classes_
    assert "?" not in soft_of(model, query).columns
