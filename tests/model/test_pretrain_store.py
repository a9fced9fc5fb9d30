"""Pretraining from a store on disk agrees with pretraining from memory."""

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from scipy import sparse
from store_cases import reference, write_store

from celler.atlas import DataModule
from celler.model import Celler
from celler.model._pretrain import masked_loaders, streamed_unlabelled, unlabelled_cells
from celler.training._plan import PretrainingConfig

pytest.importorskip("annbatch")


SETUP = {"labels_key": "cell_type", "batch_key": "donor"}


QUICK = {"max_epochs": 3, "show_progress": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def cells():
    """Cells of three donors, a tenth for tests, two without a label, one without counts."""
    adata = reference(1200, ["c", "a", "b"])
    adata.obs.iloc[5, adata.obs.columns.get_loc("cell_type")] = np.nan
    adata.X = sparse.diags_array((np.arange(1200) != 5).astype(np.float32)) @ adata.X
    adata.X = sparse.csr_matrix(adata.X)
    return adata


@pytest.fixture(scope="module")
def folder(cells, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), cells, n_datasets=2)


@pytest.fixture(scope="module")
def dm(folder):
    return DataModule(folder, **SETUP)


@pytest.fixture(scope="module")
def in_memory(cells):
    train = cells[cells.obs["split"] == "train"].copy()
    Celler.setup_anndata(train, **SETUP)
    return Celler(train, **toy.SMALL)


@pytest.fixture(scope="module")
def streamed(dm):
    model = Celler(registry=dm.registry, **toy.SMALL)
    model.pretrain(datamodule=dm, **QUICK)
    return model


def registered(model):
    return unlabelled_cells(model._state, model._registered, None)


def test_streamed_unlabelled_matches_memory(dm, in_memory):
    of_store = streamed_unlabelled(Celler(registry=dm.registry, **toy.SMALL)._state, dm, None)
    of_memory = registered(in_memory)
    assert of_store.batches == of_memory.batches == ("a", "b", "c")
    assert len(of_store.index) == len(of_memory.index)
    np.testing.assert_array_equal(of_store.sample.toarray(), of_memory.sample.toarray())
    codes = of_store.source.labels[of_store.index]
    np.testing.assert_array_equal(codes, of_memory.source.labels)


def test_masked_loaders_validate_as_in_memory(dm, in_memory):
    config = PretrainingConfig(1, 64)
    (_, of_store), (_, of_memory) = (
        masked_loaders(in_memory._state, cells, 0.2, config)
        for cells in (streamed_unlabelled(in_memory._state, dm, None), registered(in_memory))
    )
    assert len(of_store) == len(of_memory) > 1
    for one, other in zip(of_store, of_memory, strict=True):
        # Which genes are hidden is drawn by the row, which differs.
        torch.testing.assert_close(one.batch, other.batch)
        assert one.bins.shape == other.bins.shape


def test_masked_loaders_show_every_cell_once(dm, in_memory):
    train, none = masked_loaders(
        in_memory._state,
        streamed_unlabelled(in_memory._state, dm, None),
        0.0,
        PretrainingConfig(1, 64),
    )
    assert none is None
    minibatches = list(train)
    assert len(minibatches) == len(train)
    wanted = registered(in_memory)
    seen = np.concatenate([minibatch.batch.numpy() for minibatch in minibatches])
    np.testing.assert_array_equal(np.bincount(seen), np.bincount(wanted.source.labels))


def test_pretrain_from_a_store_learns_as_well_as_memory(dm, streamed, cells):
    losses = []
    for seed in (0, 1):
        train = cells[cells.obs["split"] == "train"].copy()
        Celler.setup_anndata(train, **SETUP)
        model = Celler(train, **toy.SMALL)
        model.pretrain(seed=seed, **QUICK)
        losses.append(model.pretraining_history["validation_loss"].min())
    loss = streamed.pretraining_history["validation_loss"].min()
    assert min(losses) - 0.05 <= loss <= max(losses) + 0.05


def test_pretrain_from_a_store_with_the_same_seed(dm, streamed):
    again = Celler(registry=dm.registry, **toy.SMALL)
    again.pretrain(datamodule=dm, **QUICK)
    pd.testing.assert_frame_equal(again.pretraining_history, streamed.pretraining_history)
    again.pretrain(datamodule=dm, **QUICK)
    assert len(again.pretraining_history) == 6, "a second call continues"


def test_pretrain_from_a_store_then_train_and_save(dm, cells, tmp_path):
    model = Celler(registry=dm.registry, **toy.SMALL)
    model.pretrain(datamodule=dm, **QUICK)
    model.train(datamodule=dm, **toy.QUICK)
    model.save(tmp_path)
    query = toy.cells(300, seed=1)
    assert (Celler.load(tmp_path).predict(query) == toy.truth(query)).mean() > 0.7
    assert model.predict_expression(query).shape == query.shape


def test_pretrain_from_a_store_without_labels(folder, in_memory):
    dm = DataModule(folder)
    model = Celler(registry=dm.registry, **toy.SMALL)
    model.pretrain(datamodule=dm, **QUICK)
    assert model.is_pretrained
    with pytest.raises(ValueError, match="no labels_key.*'cell_type'"):
        model.train(datamodule=dm, **toy.QUICK)
    other = Celler(in_memory.adata, **toy.SMALL)
    other.load_encoder(model)
    assert other.is_pretrained


def test_pretrain_from_a_store_that_does_not_fit(dm, in_memory, tmp_path, cells):
    with pytest.raises(ValueError, match=r"pass one of them.*cl\.atlas\.build"):
        in_memory.pretrain(datamodule=dm, adata=cells, **QUICK)
    write_store(tmp_path, cells[:, ::-1].copy())
    with pytest.raises(ValueError, match="differ in gene_names"):
        in_memory.pretrain(datamodule=DataModule(tmp_path, **SETUP), **QUICK)
    for train in (in_memory.pretrain, in_memory.train):
        with pytest.raises(TypeError, match="of type str; a celler.atlas.DataModule is needed"):
            train(1, datamodule=str(tmp_path))
    with pytest.raises(ValueError, match="masked_weight needs the cells in memory"):
        Celler(registry=dm.registry).train(1, datamodule=dm, masked_weight=1.0)
    with pytest.raises(ValueError, match="or a store of them as datamodule"):
        Celler(registry=dm.registry).pretrain(1)
    assert not in_memory.is_pretrained
