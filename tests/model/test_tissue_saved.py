"""Models without a reference that travel, and that start a model of a user's own labels."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from tissue_cases import FEW, blood, new, of_all, of_blood, pseudo_cells

from celler.model import Celler
from celler.model._tissue import FIRST_LABELS

pytestmark = pytest.mark.filterwarnings("ignore:.*are not of the new types:UserWarning")


@pytest.fixture(scope="module")
def cells():
    return pseudo_cells(FEW["tissue"])


@pytest.fixture(scope="module")
def folder(cells, tmp_path_factory):
    """A model of few types, saved after it was solved for the genes of ``cells``."""
    model, folder = new(), tmp_path_factory.mktemp("saved") / "model"
    model.predict(cells)
    model.save(folder)
    return folder


def test_load_predicts_the_same(folder, cells):
    loaded, model = Celler.load(folder), new()
    np.testing.assert_array_equal(loaded.predict(cells, soft=True), model.predict(cells, soft=True))
    np.testing.assert_array_equal(loaded.get_novelty(cells), model.get_novelty(cells))
    assert loaded.parents_ == model.parents_
    one, other = cells.copy(), cells.copy()
    loaded.annotate(one, false_alarm_rate=0.05)
    model.annotate(other, false_alarm_rate=0.05)
    pd.testing.assert_frame_equal(one.obs, other.obs)


def test_load_keeps_the_genes_it_was_solved_for(folder, cells):
    loaded = Celler.load(folder)
    with pytest.warns(UserWarning, match="400 of the model's 600 genes are in the query"):
        found = loaded.predict(cells[:, :400].copy())
    assert list(loaded.genes_.index) == sorted(cells.var_names)
    assert (found == cells.obs["name"]).mean() > 0.8


def test_load_reads_a_query_of_far_more_genes(folder, cells):
    # The 600 genes are less than a fifth of the query's: they are those of a model, not a vocabulary.
    many = pseudo_cells(FEW["tissue"], 60, 9000)
    assert set(cells.var_names) <= set(many.var_names)
    assert (Celler.load(folder).predict(many) == many.obs["name"]).mean() > 0.8


def test_load_of_a_query_of_mouse_genes(folder, cells):
    adata = cells.copy()
    adata.var_names = [name.capitalize() for name in adata.var_names]
    with pytest.warns(UserWarning, match="by one-to-one ortholog"):
        found = Celler.load(folder).predict(adata)
    assert (found == cells.obs["name"]).mean() > 0.8


def test_load_and_save_again(folder, cells, tmp_path):
    loaded = Celler.load(folder)
    loaded.save(tmp_path / "again")
    again = Celler.load(tmp_path / "again")
    np.testing.assert_array_equal(again.predict(cells, soft=True), loaded.predict(cells, soft=True))


def test_from_pretrained_of_the_folder(folder, cells):
    found = Celler.from_pretrained(folder).predict(cells)
    np.testing.assert_array_equal(found, Celler.load(folder).predict(cells))


def test_save_writes_a_card_of_the_types(folder):
    card = (folder / "README.md").read_text()
    assert "Its classes are types of the atlases of celler-base; no cell of a reference trained it." in card
    assert all(name in card for name in ("thymocyte", "CL:0000893", "epithelial cell of thymus"))


def test_save_before_any_query(tmp_path):
    with pytest.raises(RuntimeError, match="has met no cells yet.*call predict or annotate first"):
        new().save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_save_a_model_of_all_tissues(tmp_path):
    model, adata = of_all()
    expected = model.predict(adata, soft=True)
    model.save(tmp_path / "all")
    loaded = Celler.load(tmp_path / "all")
    np.testing.assert_array_equal(loaded.predict(adata, soft=True), expected)
    np.testing.assert_array_equal(loaded.get_novelty(adata), model.get_novelty(adata))


def test_train_a_loaded_model(folder):
    with pytest.raises(RuntimeError, match=r"is not trained on cells.*Celler.load_query_data"):
        Celler.load(folder).train()


# -- a user's own labels --


def partly_labelled(cells, every: int = 5):
    """Cells of which each fifth has a label of the user's, the stromal cells under a name of their own."""
    adata = cells.copy()
    own = adata.obs["name"].replace({"stromal cell": "my stroma"}).astype(object)
    own[np.arange(len(own)) % every > 0] = np.nan
    adata.obs["own"] = own
    return adata


@pytest.fixture
def adata(cells):
    return partly_labelled(cells)


def load_query(adata, model=None, **options):
    return Celler.load_query_data(adata, new() if model is None else model, **{"labels_key": "own"} | options)


def unchanged(adata, before):
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert dict(adata.uns) == dict(before.uns)
    assert list(adata.var) == list(before.var)


def test_load_query_data_labels_what_is_sure(adata):
    before = adata.copy()
    model = load_query(adata, extend_labels=True)
    pd.testing.assert_series_equal(adata.obs["own"], before.obs["own"])
    given, first = before.obs["own"], adata.obs[FIRST_LABELS]
    has_label = given.notna()
    assert (first[has_label] == given[has_label]).all()
    reference = new()
    sure = reference.predict(before, np.flatnonzero(~has_label), threshold=0.7, false_alarm_rate=0.2)
    np.testing.assert_array_equal(first[~has_label], sure)
    assert set(model.classes_) == set(first) - {"Unknown"}
    assert "my stroma" in model.classes_
    model.train(max_epochs=3, show_progress=False)
    assert (model.predict(adata)[has_label] == given[has_label]).mean() > 0.7


def test_load_query_data_keeps_the_ids_of_known_types(adata, tmp_path):
    model = load_query(adata, extend_labels=True)
    model.train(max_epochs=2, show_progress=False)
    model.save(tmp_path / "model")
    for trained in (model, Celler.load(tmp_path / "model")):
        trained.annotate(adata)
        ids = adata.obs["celler_cl_id"].astype(object)
        expected = adata.obs["celler"].astype(object).map(dict(new()._state.ids))
        pd.testing.assert_series_equal(ids, expected, check_names=False, check_dtype=False)
        assert ids[adata.obs["celler"] == "my stroma"].isna().all()
        assert ids.notna().mean() > 0.5


def test_load_query_data_keeps_the_precision(adata):
    assert load_query(adata, extend_labels=True)._arguments["precision"] == "float32"


def test_load_query_data_of_a_folder(adata, folder):
    load_query(adata, folder, extend_labels=True)
    other = partly_labelled(adata[:, :])
    load_query(other, extend_labels=True)
    np.testing.assert_array_equal(adata.obs[FIRST_LABELS], other.obs[FIRST_LABELS])


def test_load_query_data_without_labels(cells):
    adata = cells.copy()
    model = load_query(adata, labels_key=None)
    assert set(model.classes_) == set(new().classes_)
    assert (adata.obs[FIRST_LABELS] == "Unknown").mean() < 0.5


def test_load_query_data_of_labelled_cells_alone(cells):
    adata = cells.copy()
    model = load_query(adata, labels_key="name")
    np.testing.assert_array_equal(adata.obs[FIRST_LABELS], adata.obs["name"])
    assert set(model.classes_) == set(cells.obs["name"])


def test_load_query_data_takes_parents_of_both(adata):
    adata.obs["broad"] = np.where(adata.obs["own"] == "my stroma", "stroma", adata.obs["own"])
    adata.obs["broad"] = adata.obs["broad"].where(adata.obs["own"].notna())
    parents = load_query(adata, extend_labels=True, parent_labels_key="broad").parents_
    assert parents["my stroma"] == "stroma"
    assert load_query(partly_labelled(adata), extend_labels=True).parents_["thymocyte"] == "T cell"


def test_load_query_data_reads_the_given_layer_and_names(adata):
    other = adata.copy()
    other.layers["counts"] = other.X.copy()
    other.X = sparse.csr_matrix(other.X.toarray() - 1)
    other.var["symbol"] = other.var_names
    other.var_names = [f"feature {i}" for i in range(other.n_vars)]
    load_query(other, extend_labels=True, layer="counts", gene_key="symbol")
    load_query(adata, extend_labels=True)
    np.testing.assert_array_equal(other.obs[FIRST_LABELS], adata.obs[FIRST_LABELS])


def test_load_query_data_keeps_its_unlabeled_category(adata):
    adata.obs["own"] = adata.obs["own"].fillna("to do")
    model = load_query(adata, extend_labels=True, unlabeled_category="to do")
    assert "to do" not in model.classes_
    assert "Unknown" not in model.classes_


def test_load_query_data_of_a_model_of_blood():
    adata = blood()
    adata.obs["own"] = np.where(np.arange(700) % 10 == 0, adata.obs["cell_type"].astype(str), "Unknown")
    model = load_query(adata, of_blood(), extend_labels=True)
    assert {"CD34+", "Dendritic", "memory B cell"} <= set(model.classes_)
    assert model.parents_["memory B cell"] == "B cell"
    assert model.parents_["CD34+"] == "CD34+"


REFUSED = {
    "labels that the atlases do not know: .'my stroma'.. Pass extend_labels=True": {},
    "labels_key='ow' is not a column of adata.obs. Closest: 'own'": {"labels_key": "ow"},
    "layer='x'": {"layer": "x", "extend_labels": True},
    "gene_key='x'": {"gene_key": "x", "extend_labels": True},
    "batch_key='x'": {"batch_key": "x", "extend_labels": True},
}


@pytest.mark.parametrize("message", REFUSED)
def test_load_query_data_refuses_and_writes_nothing(adata, message):
    before = adata.copy()
    with pytest.raises((ValueError, KeyError), match=message):
        load_query(adata, **REFUSED[message])
    unchanged(adata, before)


def test_load_query_data_of_contradicting_parents_writes_nothing(adata):
    # T cell is the parent of thymocyte, a class that the atlases add, and would be a class below another parent.
    adata.obs["own"] = np.where(adata.obs["name"] == "epithelial cell of thymus", "T cell", "Unknown")
    adata.obs["broad"] = np.where(adata.obs["own"] == "T cell", "blood", "Unknown")
    before = adata.copy()
    with pytest.raises(
        ValueError, match="'T cell' is the parent of 'thymocyte' and a class too, whose parent is 'blood'"
    ):
        load_query(adata, extend_labels=True, parent_labels_key="broad")
    unchanged(adata, before)


def test_load_query_data_of_cells_that_none_is_sure_of(cells, monkeypatch):
    monkeypatch.setattr("celler.model._tissue.SURE", 1.0)
    adata = cells.copy()
    before = adata.copy()
    with pytest.raises(
        ValueError, match="no cell has a label, and the atlases name none with a probability of at least"
    ):
        load_query(adata, labels_key=None)
    unchanged(adata, before)


def test_load_query_data_of_a_view(adata):
    view = adata[:50]
    with pytest.raises(ValueError, match="adata is a view; setup_anndata writes to it"):
        load_query(view, extend_labels=True)
    with pytest.raises(TypeError, match="was given, of type str; an AnnData is needed"):
        load_query("cells.h5ad")


def test_load_query_data_leaves_the_model_as_it_was(adata, cells):
    model = new()
    expected = model.predict(cells, soft=True)
    few = partly_labelled(adata)[:, :400].copy()
    load_query(few, model, extend_labels=True)
    assert len(model.genes_) == 600
    np.testing.assert_array_equal(model.predict(cells, soft=True), expected)


def test_prepare_query_anndata_has_the_genes_of_the_model(folder, cells):
    part = cells[:, :400].copy()
    with pytest.warns(UserWarning, match="200 are missing"):
        found = Celler.prepare_query_anndata(part, folder)
    assert list(found.var_names) == sorted(cells.var_names)
    assert found.var["is_measured"].sum() == 400
