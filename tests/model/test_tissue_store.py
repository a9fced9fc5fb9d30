"""Stores on disk, labelled without a reference, agree with the same cells in memory."""

import numpy as np
import pandas as pd
import pytest
from store_cases import write_store
from tissue_cases import FEW, new, pseudo_cells

from celler.atlas import DataModule

pytest.importorskip("annbatch")


@pytest.fixture(scope="module")
def cells():
    return pseudo_cells(FEW["tissue"], 300)


@pytest.fixture(scope="module")
def dm(cells, tmp_path_factory):
    return DataModule(write_store(tmp_path_factory.mktemp("store"), cells))


def test_predict_a_store_called_first(dm, cells):
    found = new().predict(dataloader=dm.inference_dataloader())
    np.testing.assert_array_equal(found, new().predict(cells))


def test_predict_a_store_soft_and_unknown(dm, cells):
    soft = new().predict(dataloader=dm.inference_dataloader(), soft=True)
    np.testing.assert_allclose(soft, new().predict(cells, soft=True), atol=1e-5)
    assert list(soft.index) == list(cells.obs_names)
    found = new().predict(dataloader=dm.inference_dataloader(), false_alarm_rate=0.2)
    np.testing.assert_array_equal(found, new().predict(cells, false_alarm_rate=0.2))


def test_annotate_store_called_first(dm, cells):
    new().annotate_store(dm, "first", false_alarm_rate=0.1)
    table, adata = dm.annotation("first"), cells.copy()
    new().annotate(adata, "first", false_alarm_rate=0.1)
    for name in ("first", "first_cl_id", "first_parent"):
        assert table[name].astype(object).fillna("").tolist() == adata.obs[name].astype(object).fillna("").tolist()
    np.testing.assert_allclose(table["first_novelty"], adata.obs["first_novelty"], atol=1e-5)
    assert set(table) == {name for name in adata.obs if name.startswith("first")}


def test_train_on_a_store_is_refused(cells, tmp_path):
    dm = DataModule(write_store(tmp_path, cells), labels_key="name")
    with pytest.raises(RuntimeError, match="is not trained on cells"):
        new().train(datamodule=dm)


def test_predict_a_store_after_cells_of_other_genes(dm, cells):
    model = new()
    model.predict(cells[:, :400].copy())
    pd.testing.assert_index_equal(model.genes_.index, pd.Index(sorted(cells.var_names[:400])), check_names=False)
    found = model.predict(dataloader=dm.inference_dataloader())
    np.testing.assert_array_equal(found, new().predict(cells))
