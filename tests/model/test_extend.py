"""load_query_data: nothing moves before training, and nothing is forgotten in it."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.metrics import f1_score
from toy import QUICK, SMALL, assert_unchanged, cells, fit, snapshot, truth

from celler.model import Celler

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*are not of the new types:UserWarning"),
    pytest.mark.filterwarnings("ignore:new types take cells of others:UserWarning"),
]


def without(adata: ad.AnnData, *names: str) -> ad.AnnData:
    return adata[~np.isin(truth(adata), names)].copy()


def of(adata: ad.AnnData, *names: str) -> ad.AnnData:
    return adata[np.isin(truth(adata), names)].copy()


@pytest.fixture(scope="module")
def reference() -> Celler:
    """Of three types; the name of the fourth sorts before them all."""
    return fit(without(renamed(cells(400)), "a_new"))


def renamed(adata: ad.AnnData) -> ad.AnnData:
    smallest = sorted(set(truth(adata)))[-1]
    adata.obs["cell_type"] = np.where(truth(adata) == smallest, "a_new", truth(adata))
    return adata


@pytest.fixture
def new_cells() -> ad.AnnData:
    return of(renamed(cells(500, seed=5)), "a_new")


def with_more_genes(adata: ad.AnnData, n: int, rng: np.random.Generator) -> ad.AnnData:
    more = sparse.csr_matrix(rng.poisson(1.0, (adata.n_obs, n)).astype(np.float32))
    var = pd.DataFrame(index=[*adata.var_names, *(f"more_{k}" for k in range(n))])
    return ad.AnnData(sparse.hstack([adata.X, more], format="csr"), obs=adata.obs, var=var)


def extended(adata: ad.AnnData, reference, **options) -> Celler:
    return Celler.load_query_data(adata, reference, **({"extend_labels": True} | options))


def quickly(model: Celler, **options) -> Celler:
    model.train(**(QUICK | options))
    return model


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"encoder": "latent", "head": "vgg"},
        {"encoder": "transformer"},
        {"evidence": False},
    ],
)
def test_load_query_data_keeps_old_logits(network, new_cells, rng):
    """Whatever the order of genes and classes, and with genes that the reference lacks."""
    reference = fit(without(renamed(cells(200)), "a_new"), network=network, max_epochs=1)
    query = without(renamed(cells(30, seed=8)), "a_new")
    new_cells = with_more_genes(new_cells, 5, rng)[:, rng.permutation(85)].copy()
    with pytest.warns(UserWarning, match="80 of the reference model's 80 genes.*5 genes of adata"):
        model = extended(new_cells, reference)
    assert list(model.classes_) == ["a_new", *reference.classes_]
    assert list(model._state.genes.names[:80]) == list(reference._state.genes.names)
    identity = np.arange(80, dtype=np.int32)
    tokens = reference._state.tokenizer(query.X, identity)
    with torch.no_grad():
        old, new = (m.module.eval()(*tokens).logits for m in (reference, model))
    torch.testing.assert_close(new[:, 1:], old, rtol=0, atol=1e-6)
    assert not model.is_trained
    trained = quickly(model, max_epochs=1)
    with pytest.warns(UserWarning, match="80 of the model's 85 genes"):
        probabilities = trained.predict(query, soft=True, correct_shift=False)
    assert list(probabilities.columns) == list(model.classes_)
    assert np.isfinite(probabilities.to_numpy()).all()


def test_load_query_data_learns_a_new_class_and_keeps_the_old(reference, new_cells, tmp_path):
    test = renamed(cells(500, seed=9))
    old = list(reference.classes_)
    options = {"labels": old, "average": "macro"}
    known = without(test, "a_new")
    before = f1_score(truth(known), reference.predict(known), **options)
    reference.save(tmp_path / "model")
    weights = {name: part.clone() for name, part in reference.module.state_dict().items()}
    model = quickly(extended(new_cells, tmp_path / "model"), max_epochs=8)
    labels = model.predict(test)
    assert f1_score(truth(test), labels, **options) > before - 0.05
    assert f1_score(truth(test), labels, labels=["a_new"], average="macro") > 0.5
    for name, part in reference.module.state_dict().items():
        torch.testing.assert_close(part, weights[name], rtol=0, atol=0)


def test_load_query_data_keeps_counts_and_profiles(reference, new_cells, tmp_path):
    model = quickly(extended(new_cells, reference))
    counts = dict(zip(model.classes_, model.class_counts_, strict=True))
    for name, n in zip(reference.classes_, reference.class_counts_, strict=True):
        assert counts[name] == n
    assert counts["a_new"] == len(model.train_indices_)
    assert max(model.train_indices_.max(), model.validation_indices_.max()) < new_cells.n_obs
    assert set(model.hard_cells_["cell"]) <= set(new_cells.obs_names)
    stored = model._state.fitted.profile
    np.testing.assert_allclose(stored.mean[1:], reference._state.fitted.profile.mean, rtol=1e-5)
    model.save(tmp_path / "extended")
    query = cells(50, seed=11)
    loaded = Celler.load(tmp_path / "extended")
    np.testing.assert_array_equal(loaded.predict(query), model.predict(query))
    # and once more: nothing is lost on the way
    again = of(cells(400, seed=12), sorted(set(truth(query)))[0])
    again.obs["cell_type"] = "b_newer"
    twice = quickly(extended(again, tmp_path / "extended"))
    assert list(twice.classes_) == ["a_new", "b_newer", *reference.classes_]


def test_load_query_data_with_the_same_seed(reference, new_cells):
    query = cells(80, seed=11)
    first, second = (quickly(extended(new_cells.copy(), reference)).predict(query) for _ in "ab")
    np.testing.assert_array_equal(first, second)


def test_load_query_data_with_other_genes_and_logarithms(reference, rng):
    more = with_more_genes(without(renamed(cells(200, seed=6)), "a_new"), 6, rng)[:, 10:].copy()
    log = more.copy()
    depth = np.asarray(more.X.sum(axis=1))
    log.X = sparse.csr_matrix(np.log1p(1e4 * more.X.toarray() / depth).astype(np.float32))
    query = without(renamed(cells(200, seed=9)), "a_new")
    labels = []
    for adata in (more, log):
        with pytest.warns(UserWarning, match="70 of the reference model's 80.*10 stay.*6 genes"):
            model = extended(adata, reference, extend_labels=False)
        quickly(model)
        assert list(model.classes_) == list(reference.classes_)
        assert len(model._state.genes.names) == 86
        with pytest.warns(UserWarning, match="80 of the model's 86 genes"):
            labels.append(model.predict(query, correct_shift=False))
        assert not np.isnan(model._state.fitted.gene_share).any()
        # a cell of the old genes alone has the expression it had
        alignment, share = model._state.genes.align(query)
        assert share == pytest.approx(1, abs=1e-5)
    assert (labels[0] == labels[1]).mean() > 0.97
    assert (labels[0] == truth(query)).mean() > 0.8


def test_load_query_data_with_unknown_labels(reference, new_cells):
    before = snapshot(new_cells)
    with pytest.raises(ValueError, match=r"not know: \['a_new'\]. Pass extend_labels=True"):
        Celler.load_query_data(new_cells, reference)
    with pytest.raises(KeyError, match="Closest: 'cell_type'"):
        extended(new_cells, reference, labels_key="celltype")
    with pytest.raises(ValueError, match="labels_key=None"):
        extended(new_cells, reference, labels_key=None)
    assert_unchanged(new_cells, before)


def test_load_query_data_takes_the_setup_of_the_reference(new_cells):
    full = without(renamed(cells(200)), "a_new")
    full.layers["counts"], full.X = full.X, None
    reference = fit(full, {"layer": "counts", "batch_key": "donor"}, max_epochs=1)
    with pytest.raises(KeyError, match="layer='counts'"):
        extended(new_cells, reference)
    new_cells.obs["mine"] = new_cells.obs["cell_type"]
    model = extended(new_cells, reference, layer=None, batch_key=None, labels_key="mine")
    assert model._state.setup.labels_key == "mine"
    assert model._state.setup.layer is None
    assert quickly(model, max_epochs=1).is_trained


def test_load_query_data_with_parents(new_cells):
    setup = {"parent_labels_key": "parent_type"}
    reference = fit(without(renamed(cells(200)), "a_new"), setup, max_epochs=1)
    model = quickly(extended(new_cells.copy(), reference), max_epochs=1)
    query = cells(20, seed=3)
    parents = model.predict(query, soft=True, level="parent")
    assert set(parents.columns) == set(cells().obs["parent_type"])
    with pytest.raises(ValueError, match="the reference have parents and the new cells do not"):
        extended(new_cells.copy(), reference, parent_labels_key=None)
    other = without(renamed(cells(100, seed=4)), "a_new")
    other.obs["parent_type"] = "elsewhere"
    with pytest.raises(ValueError, match="has the parent 'elsewhere' in adata and"):
        extended(other, reference)


def test_load_query_data_with_a_bad_reference(reference, new_cells):
    with pytest.raises(TypeError, match="a trained Celler or its folder"):
        extended(new_cells, 3)
    Celler.setup_anndata(new_cells, labels_key="cell_type")
    with pytest.raises(RuntimeError, match="not trained"):
        extended(new_cells, Celler(new_cells, **SMALL))
    with pytest.raises(FileNotFoundError):
        extended(new_cells, "nowhere")


def test_prepare_query_anndata_has_the_genes_of_the_model(reference, rng):
    query = cells(40, seed=7)
    query.layers["counts"] = query.X.copy()
    query.X = sparse.csr_matrix(np.log1p(query.X.toarray()))
    query.obsm["X_pca"] = rng.normal(size=(40, 3))
    query = with_layers(query, rng)
    before = snapshot(query)
    with pytest.warns(UserWarning, match="75 of the model's 80 genes"):
        prepared = Celler.prepare_query_anndata(query, reference)
    assert_unchanged(query, before)
    assert list(prepared.var_names) == list(reference._state.genes.names)
    assert prepared.var["is_measured"].sum() == 75
    shared = list(query.var_names)
    for layer in (None, "counts"):
        values = prepared[:, shared].to_df(layer)
        pd.testing.assert_frame_equal(values, query.to_df(layer), check_names=False)
    missing = prepared[:, ~prepared.var["is_measured"].to_numpy()]
    assert missing.X.nnz == 0
    np.testing.assert_array_equal(prepared.obsm["X_pca"], query.obsm["X_pca"])
    pd.testing.assert_frame_equal(prepared.obs, query.obs)


def with_layers(adata: ad.AnnData, rng: np.random.Generator) -> ad.AnnData:
    """75 of its genes in another order."""
    return adata[:, rng.permutation(80)[:75]].copy()
