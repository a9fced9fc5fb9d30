"""Labels in a training: names of every kind, and cells without one."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import f1_score
from toy import assert_equal_frames, cells, fit, truth

# ---- unlabelled cells ----


@pytest.mark.parametrize("missing", ["Unknown", np.nan, None, "not yet"])
def test_unlabelled_cells_are_predicted_but_not_trained_on(missing):
    adata = cells()
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[::5] = missing
    adata.obs["cell_type"] = labels
    category = "not yet" if missing == "not yet" else "Unknown"
    model = fit(adata, {"unlabeled_category": category}, max_epochs=8)
    used = np.r_[model.train_indices, model.validation_indices]
    np.testing.assert_array_equal(np.sort(used), np.flatnonzero(np.arange(300) % 5))
    np.testing.assert_array_equal(model.classes_, ["type 0", "type 1", "type 2", "type 3"])
    unlabelled = adata[::5]
    assert f1_score(truth(cells())[::5], model.predict(unlabelled), average="micro") > 0.7


def test_unlabelled_cells_change_nothing_that_is_learned():
    """The model is that of the labelled cells alone, to the bit."""
    adata = cells()
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[200:] = np.nan
    adata.obs["cell_type"] = labels
    alone, query = cells()[:200].copy(), cells(seed=1)
    assert_equal_frames(fit(adata).predict(query, soft=True), fit(alone).predict(query, soft=True))


def test_unlabelled_cells_may_be_empty():
    adata = cells()
    adata.X = sparse.diags_array(np.arange(adata.n_obs) > 0, dtype=np.float32).tocsr() @ adata.X
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.iloc[0, 0] = np.nan
    fit(adata, max_epochs=1)


# ---- labels of every kind ----


@pytest.mark.parametrize(
    "names",
    [[0, 1, 2, 10], ["T cell/NK", "β cells", "a  b", "{x} %s\n"], pd.array([3, 1, 2, 7], "Int64")],
    ids=["integers", "text", "Int64"],
)
def test_any_kind_of_label(names):
    adata = cells()
    codes = adata.obs["cell_type"].cat.codes.to_numpy()
    adata.obs["k"] = pd.array(names)[codes] if isinstance(names, list) else names[codes]
    model = fit(adata, {"labels_key": "k"}, max_epochs=10)
    np.testing.assert_array_equal(model.classes_, sorted(map(str, names)))
    expected = np.array(list(map(str, names)))[codes]
    assert (model.predict() == expected).mean() > 0.8
    assert list(model.predict(soft=True).columns) == sorted(map(str, names))


def test_boolean_labels():
    adata = cells()
    adata.obs["is_first"] = adata.obs["cell_type"] == "type 0"
    model = fit(adata, {"labels_key": "is_first"})
    np.testing.assert_array_equal(model.classes_, ["False", "True"])


def test_unused_categories_are_not_classes():
    adata = cells()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.add_categories(["a ghost", "type 9"])
    assert list(fit(adata, max_epochs=1).predict(soft=True).columns) == [
        f"type {j}" for j in range(4)
    ]


def test_an_integer_may_mean_unlabelled():
    adata = cells()
    adata.obs["k"] = np.where(np.arange(300) % 4 == 0, -1, adata.obs["cell_type"].cat.codes)
    model = fit(adata, {"labels_key": "k", "unlabeled_category": -1}, max_epochs=1)
    np.testing.assert_array_equal(model.classes_, ["0", "1", "2", "3"])
