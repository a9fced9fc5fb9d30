"""Queries of a model without a reference: formats, values and gene names as they come."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from tissue_cases import FEW, new, pseudo_cells

from celler.data._gene_table import _species
from celler.model import Celler
from celler.network._base import read_base


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return pseudo_cells(FEW["tissue"])


@pytest.fixture(scope="module")
def model() -> Celler:
    return new()


@pytest.fixture(scope="module")
def soft(model, cells) -> pd.DataFrame:
    return model.predict(cells, soft=True)


def log1p(X: sparse.csr_matrix) -> sparse.csr_matrix:
    X = sparse.csr_matrix(X, dtype=np.float64)
    return sparse.csr_matrix(sparse.diags_array(1e4 / np.asarray(X.sum(axis=1)).ravel()) @ X).log1p()


FORMS = {
    "csc": sparse.csc_matrix,
    "dense": lambda X: X.toarray(),
    "integers": lambda X: X.astype(np.int64),
    "float64": lambda X: X.astype(np.float64),
    "log1p": log1p,
    "log1p dense": lambda X: log1p(X).toarray().astype(np.float32),
}


@pytest.mark.parametrize("form", FORMS)
def test_predict_forms_of_values(model, cells, soft, form):
    adata = cells.copy()
    adata.X = FORMS[form](adata.X)
    np.testing.assert_allclose(model.predict(adata, soft=True), soft, atol=1e-4)


def test_predict_a_view(model, cells, soft):
    np.testing.assert_allclose(model.predict(cells[10:40], soft=True), soft[10:40], atol=1e-5)


def test_annotate_a_view_called_first(cells):
    view = cells[:20]
    with pytest.warns(UserWarning, match="(?i)view"):
        new().annotate(view)
    assert "celler_cl_id" in view.obs


def test_predict_a_file_in_backed_mode(cells, soft, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_allclose(new().predict(backed, soft=True), soft, atol=1e-5)
    backed.file.close()


def test_predict_another_order_of_genes(model, cells, soft, rng):
    order = rng.permutation(cells.n_vars)
    np.testing.assert_allclose(model.predict(cells[:, order].copy(), soft=True), soft, atol=1e-4)


def test_predict_does_not_change_the_cells(model, cells):
    adata = cells.copy()
    model.predict(adata)
    assert list(adata.obs) == ["name"]
    assert not adata.uns
    assert not adata.layers
    np.testing.assert_array_equal(adata.X.toarray(), cells.X.toarray())


def test_predict_scaled_values(cells):
    adata = cells.copy()
    X = adata.X.toarray()
    adata.X = X - X.mean(axis=0)
    with pytest.raises(ValueError, match="negative values mean scaled or centred data"):
        new().predict(adata)


def test_predict_values_that_are_no_numbers(cells):
    adata = cells.copy()
    adata.X.data[3] = np.nan
    with pytest.raises(ValueError, match="nan"):
        new().predict(adata)


# -- names of genes --


def ensembl(names: pd.Index) -> list[str]:
    table = _species("human")
    ids = [table.own_ids[table.row_of_symbol[name]] if name in table.row_of_symbol else 0 for name in names]
    return [f"ENSG{number:011d}.3" if number else name for number, name in zip(ids, names, strict=True)]


def mouse(names: pd.Index) -> list[str]:
    return [name.capitalize() for name in names]


def of_r(names: pd.Index) -> list[str]:
    return [name.replace("-", ".") for name in names]


RENAMED = {
    "ensembl": (ensembl, 0.95),
    "mouse": (mouse, 0.85),
    "R": (of_r, 0.99),
    "suffix": (lambda names: [f"{name}-1" if i == 5 else name for i, name in enumerate(names)], 0.99),
}


@pytest.mark.parametrize("how", RENAMED)
def test_predict_other_names_of_genes(cells, soft, how):
    rename, most = RENAMED[how]
    adata = cells.copy()
    adata.var_names = rename(adata.var_names)
    fresh = new()
    with pytest.warns(UserWarning, match="genes are in the model's vocabulary"):
        found = fresh.predict(adata)
    assert (found == soft.idxmax(axis=1)).mean() > most
    fresh.annotate(adata)  # the report of the genes is made once


def test_predict_names_in_a_column_of_var(cells, soft):
    adata = cells.copy()
    adata.var["symbol"] = adata.var_names
    adata.var_names = [f"feature {i}" for i in range(adata.n_vars)]
    with pytest.warns(UserWarning, match=r"The names are those of adata.var\['symbol'\]"):
        found = new().predict(adata, soft=True)
    np.testing.assert_allclose(found, soft, atol=1e-5)


def test_predict_repeated_names(cells):
    adata = cells.copy()
    adata.var_names = [adata.var_names[0], *adata.var_names[:-1]]
    with pytest.raises(ValueError, match="the query's genes hold 1 name more than once"):
        new().predict(adata)


def test_predict_names_of_no_gene(cells):
    adata = cells.copy()
    adata.var_names = [f"gene_{i}" for i in range(adata.n_vars)]
    with pytest.raises(ValueError, match="only 0 of the query's 600 genes are in the model's vocabulary"):
        new().predict(adata)


def test_predict_after_an_error_goes_on(cells, soft):
    model, wrong = new(), cells.copy()
    wrong.var_names = [f"gene_{i}" for i in range(wrong.n_vars)]
    with pytest.raises(ValueError, match="only 0 of"):
        model.predict(wrong)
    np.testing.assert_array_equal(model.predict(cells, soft=True), soft)
    with pytest.raises(ValueError, match="only 0 of"):
        model.predict(wrong)
    np.testing.assert_array_equal(model.predict(cells, soft=True), soft)


def test_predict_few_genes(cells):
    few, model = cells[:, :120].copy(), new()
    with pytest.warns(
        UserWarning, match="the query has 120 genes that celler-base knows, such as .* and 117 more; with"
    ):
        found = model.predict(few)
    assert (found == cells.obs["name"]).mean() > 0.6
    model.predict(few)  # said once


def test_predict_more_genes_than_the_base_knows(cells, soft):
    extra = ad.AnnData(sparse.csr_matrix(np.ones((cells.n_obs, 30), np.float32)), cells.obs)
    extra.var_names = [f"extra {i}" for i in range(30)]
    both = ad.concat([cells, extra], axis=1, merge="first")
    with pytest.warns(UserWarning, match="600 of 630 genes are in the model's vocabulary"):
        found = new().predict(both)
    assert (found == soft.idxmax(axis=1)).mean() > 0.98


def test_predict_all_genes_of_the_base():
    cells = pseudo_cells(FEW["tissue"], 60, 9000)
    assert len(read_base().genes) > 9000
    assert (new().predict(cells) == cells.obs["name"]).mean() > 0.9


def test_predict_cells_of_mouse_by_atlases_of_mouse():
    cells = pseudo_cells("blood", 80, 1500, "mouse")
    cells.var_names = mouse(cells.var_names)
    model = new(tissue="blood", organism="mouse")
    with pytest.warns(UserWarning, match="by one-to-one ortholog"):
        found = model.predict(cells)
    is_class = cells.obs["name"].isin(model.classes_).to_numpy()
    assert (found == cells.obs["name"])[is_class].mean() > 0.85
