"""A store on disk in place of an AnnData: reading, training and labelling agree with memory."""

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from sklearn.metrics import f1_score

from celler.data._loader import Minibatch, TokenLoader
from celler.data._samplers import ShuffledSampler
from celler.model import Celler
from celler.training._plan import TrainingConfig, TrainingPlan

pytest.importorskip("annbatch")

from store_cases import reference, write_store

from celler.atlas import DataModule, build
from celler.atlas import _store as engine
from celler.atlas import _store as inference
from celler.atlas._source import StoreCells
from celler.data._sources import InMemoryCells

SETUP = {"labels_key": "cell_type", "parent_labels_key": "parent_type"}


@pytest.fixture(scope="module")
def cells():
    return reference(1500, ["a", "b"])


@pytest.fixture(scope="module")
def folder(cells, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), cells, n_datasets=3)


@pytest.fixture(scope="module")
def dm(folder):
    return DataModule(folder, **SETUP)


@pytest.fixture(scope="module")
def streamed(dm):
    model = Celler(registry=dm.registry, **toy.SMALL)
    model.train(datamodule=dm, **toy.QUICK)
    return model


@pytest.fixture(scope="module")
def in_memory(cells):
    return toy.fit(cells[cells.obs["split"] == "train"].copy(), SETUP)


# ---- reading ----


def test_rows_and_names_are_those_written(dm, cells, rng):
    index = rng.integers(0, 1500, 60)
    X = dm.store.rows(index)
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X.toarray(), cells.X[index].toarray())
    np.testing.assert_array_equal(dm.store.names(index), cells.obs_names[index])
    assert dm.store.genes == list(cells.var_names)
    assert len(dm) == len(dm.store) == 1500


def test_blocks_come_in_their_own_order(dm, cells):
    wanted = [np.array([1400, 3, 3, 900]), np.array([0]), np.arange(1499, 300, -7)]
    for index, rows in zip(wanted, dm.store.stream(wanted), strict=True):
        np.testing.assert_array_equal(rows.index, index)
        np.testing.assert_array_equal(rows.X.toarray(), cells.X[index].toarray())


def test_rows_may_be_asked_for_while_a_stream_is_read(dm, cells):
    stream = dm.store.stream([np.arange(9), np.arange(9, 30)])
    next(stream)
    np.testing.assert_array_equal(dm.store.rows(np.array([700])).toarray(), cells.X[700].toarray())
    np.testing.assert_array_equal(next(stream).index, np.arange(9, 30))


def test_labels_are_those_of_the_training_cells(dm, cells):
    names = np.array([*dm.classes, "none"])[dm.labels]
    is_labelled = (cells.obs["split"] == "train") & cells.obs["cell_type"].notna()
    np.testing.assert_array_equal(
        names, np.where(is_labelled, cells.obs["cell_type"].astype(str), "none")
    )
    assert dm.classes == sorted(set(cells.obs["cell_type"].dropna()))
    found = pd.Series(dm.column("cell_type"), cells.obs_names).astype(object)
    pd.testing.assert_series_equal(found, cells.obs["cell_type"], check_names=False)
    assert "1,500 cells x 80 genes" in repr(dm)


def test_what_was_built_can_be_read(cells, tmp_path):
    """The builder's store, in its own order, holds the same cells under the same names."""
    build(
        {"one": cells[:900].copy(), "two": cells[900:].copy()},
        tmp_path / "out",
        labels_key="cell_type",
    )
    dm = DataModule(tmp_path / "out", labels_key="cell_type")
    names = pd.Index(dm.store.names(np.arange(len(dm)))).str.split(":").str[1]
    rows = cells.obs_names.get_indexer(names)
    np.testing.assert_array_equal(
        dm.store.rows(np.arange(len(dm))).toarray(), cells.X[rows].toarray()
    )


# ---- training ----


def test_an_epoch_gives_every_cell_once_with_its_counts(dm, cells):
    rows = np.flatnonzero(dm.labels >= 0)
    source = StoreCells(dm.store, dm.labels)
    blocks = list(source.blocks(ShuffledSampler(rows, 64, 0)))
    assert len({id(block.X) for block in blocks}) == 2, "one block of two parts"
    np.testing.assert_array_equal(np.sort(np.concatenate([b.index for b in blocks])), rows)
    for block in blocks:
        counts = cells.X[block.index]
        np.testing.assert_array_equal(block.X[block.rows].toarray(), counts.toarray())


def test_a_model_of_the_store_is_a_model_of_the_cells(streamed, in_memory, dm, cells):
    np.testing.assert_array_equal(streamed.classes_, in_memory.classes_)
    assert streamed.parents_ == in_memory.parents_
    np.testing.assert_array_equal(streamed.class_counts_, in_memory.class_counts_)
    rows = np.flatnonzero(dm.is_train)
    for name in ("train_indices_", "validation_indices_"):
        wanted = cells.obs_names[rows[getattr(in_memory, name)]]
        np.testing.assert_array_equal(cells.obs_names[getattr(streamed, name)], wanted)
    one, other = streamed._state.fitted, in_memory._state.fitted
    np.testing.assert_allclose(one.profile.mean, other.profile.mean, rtol=1e-5)
    np.testing.assert_array_equal(one.profile.n_cells, other.profile.n_cells)
    np.testing.assert_allclose(one.novelty.known, other.novelty.known, rtol=1e-3, atol=1e-3)


def test_the_store_trains_as_well_as_memory(dm, streamed, cells, in_memory):
    """Within what seeds differ by: the minibatches are drawn in another order."""
    query = toy.cells(600, seed=1)

    def score(model):
        return f1_score(toy.truth(query), model.predict(query), average="macro")

    train = cells[cells.obs["split"] == "train"].copy()
    seeds = [score(toy.fit(train, SETUP, seed=seed)) for seed in (1, 2)] + [score(in_memory)]
    assert min(seeds) - 0.03 <= score(streamed) <= max(seeds) + 0.03
    assert set(streamed.history) == set(in_memory.history)


def test_one_step_on_the_same_minibatch_is_equal(dm, cells, streamed):
    config = TrainingConfig(max_epochs=1, batch_size=64)
    store = StoreCells(dm.store, dm.labels)
    memory = InMemoryCells(cells.X, dm.labels.astype(np.int64))
    rows = np.flatnonzero(dm.labels >= 0)
    of_store, of_memory = (
        TokenLoader(
            source,
            streamed._state.tokenizer,
            ShuffledSampler(rows, config.batch_size, config.seed),
            False,
            seed=config.seed,
            token_dropout=config.token_dropout,
        )
        for source in (store, memory)
    )
    of_store = next(iter(of_store))
    block = memory[of_store.source_index.numpy()]
    tokens, labels, index = of_memory._tokenized([block], 0)
    of_memory = Minibatch(next(iter(tokens)), labels, index)
    losses, gradients = [], []
    for minibatch in (of_store, of_memory):
        torch.manual_seed(0)
        streamed.module.train().zero_grad()
        plan = TrainingPlan(streamed.module, streamed.class_counts_, config)
        loss = plan.training_step(minibatch, 0)
        loss.backward()
        losses.append(loss.item())
        gradients.append([w.grad.clone() for w in streamed.module.parameters()])
    streamed.module.eval().zero_grad()
    assert losses[0] == losses[1]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_hard_cells_are_replayed_by_their_row(dm, streamed):
    hard = streamed.hard_cells_
    rows = pd.Index(dm.store.names(np.arange(len(dm)))).get_indexer(hard["cell"])
    assert len(hard)
    np.testing.assert_array_equal(np.array(dm.classes)[dm.labels[rows]], hard["label"])
    assert streamed.history["replayed_share"].max() > 0


def test_the_same_seed_trains_the_same_model(dm, streamed):
    again = Celler(registry=dm.registry, **toy.SMALL)
    again.train(datamodule=dm, **toy.QUICK)
    pd.testing.assert_frame_equal(again.history, streamed.history)


def test_a_stopped_training_resumes_to_the_same_model(dm, streamed, tmp_path, monkeypatch):
    how = toy.QUICK | {"datamodule": dm, "ckpt_path": tmp_path / "last.ckpt"}
    end = TrainingPlan.on_validation_epoch_end

    def stopped(self):
        if self.trainer.current_epoch == 2:
            raise RuntimeError("stopped")
        end(self)

    monkeypatch.setattr(TrainingPlan, "on_validation_epoch_end", stopped)
    with pytest.raises(RuntimeError, match="stopped"):
        Celler(registry=dm.registry, **toy.SMALL).train(**how)
    monkeypatch.undo()
    resumed = Celler(registry=dm.registry, **toy.SMALL)
    resumed.train(**how)
    pd.testing.assert_frame_equal(resumed.history, streamed.history)


def test_small_blocks_change_nothing_but_the_order(dm, monkeypatch):
    from celler.atlas import _source as epochs

    monkeypatch.setattr(epochs, "BLOCK_ROWS", 128)
    monkeypatch.setattr(epochs, "CHUNK_ROWS", 16)
    source = StoreCells(dm.store, dm.labels)
    rows = np.flatnonzero(dm.labels >= 0)
    seen = [block.index for block in source.blocks(ShuffledSampler(rows, 32, 0))]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), rows)


def test_validation_cells_are_capped_and_rare_types_keep_theirs(dm, monkeypatch):
    from celler.data._samplers import split

    labels = np.repeat([0, 1, 2], [9000, 900, 60])
    train, validation = split(
        labels, train_size=0.8, validation_size=None, seed=0, max_validation=400
    )
    np.testing.assert_array_equal(np.bincount(labels[validation]), [361, 50, 12])
    np.testing.assert_array_equal(np.sort(np.r_[train, validation]), np.arange(9960))


def test_a_saved_model_of_a_store_predicts_alike(streamed, tmp_path):
    streamed.save(tmp_path)
    query = toy.cells(100, seed=2)
    loaded = Celler.load(tmp_path)
    toy.assert_equal_frames(loaded.predict(query, soft=True), streamed.predict(query, soft=True))


# ---- labelling ----


@pytest.mark.parametrize("block_rows", [8192, 400])
def test_labels_of_the_store_are_those_of_its_cells(dm, cells, streamed, block_rows, monkeypatch):
    monkeypatch.setattr(inference, "BLOCK_ROWS", block_rows)
    loader = dm.inference_dataloader()
    toy.assert_close(
        streamed.predict(dataloader=loader, soft=True), streamed.predict(cells, soft=True)
    )
    how = {"backoff": True, "false_alarm_rate": 0.05}
    np.testing.assert_array_equal(
        streamed.predict(dataloader=loader, **how), streamed.predict(cells, **how)
    )


def test_the_test_part_of_a_store_alone(dm, cells, streamed):
    loader = dm.inference_dataloader(split="test")
    soft = streamed.predict(dataloader=loader, soft=True, correct_shift=False)
    test = cells[cells.obs["split"] == "test"]
    toy.assert_close(soft, streamed.predict(test, soft=True, correct_shift=False))


@pytest.mark.parametrize("block_rows", [8192, 400])
def test_a_store_is_annotated_like_its_cells(dm, cells, streamed, block_rows, monkeypatch):
    monkeypatch.setattr(inference, "BLOCK_ROWS", block_rows)
    how = {"backoff": True, "false_alarm_rate": 0.1}
    streamed.annotate_store(dm, "type", **how, overwrite=True)
    adata = cells.copy()
    streamed.annotate(adata, "type", **how)
    found = dm.annotation("type")
    wanted = adata.obs[[name for name in adata.obs if name.startswith("type")]]
    assert list(found.columns) == list(wanted.columns)
    assert list(found.index) == list(wanted.index)
    for name in found:
        if found[name].dtype == "category":
            np.testing.assert_array_equal(found[name].astype(str), wanted[name].astype(str))
        else:
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-4)


def test_an_annotation_is_whole_or_not_there(dm, streamed, monkeypatch):
    from celler.model import _predict as blocks

    def interrupted(*_):
        yield from ()
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(blocks, "block_outputs", interrupted)
    with pytest.raises(RuntimeError, match="the disk is full"):
        streamed.annotate_store(dm, "half")
    with pytest.raises(KeyError, match="no annotation 'half'; it has"):
        dm.annotation("half")


def test_an_annotation_is_not_overwritten_by_mistake(dm, streamed):
    streamed.annotate_store(dm, "once")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        streamed.annotate_store(dm, "once")
    with pytest.raises(ValueError, match="a name that a folder can have"):
        streamed.annotate_store(dm, "../out")


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"labels_key": "cell_typ"},
            KeyError,
            "labels_key='cell_typ' is not a column.*'cell_type'",
        ),
        ({"labels_key": "cell_type", "parent_labels_key": "donor"}, ValueError, "the parents"),
        ({"labels_key": "split", "unlabeled_category": "train"}, ValueError, "none of the"),
    ],
)
def test_bad_columns(folder, options, error, message):
    with pytest.raises(error, match=message):
        DataModule(folder, **options)


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no store: it has no manifest.json"):
        DataModule(tmp_path)


def test_annbatch_is_needed(monkeypatch, folder):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="celler\\[atlas\\]"):
        DataModule(folder)


def test_a_model_of_other_classes_cannot_train_on_the_store(folder, dm):
    model = Celler(registry=dm.registry, **toy.SMALL)
    with pytest.raises(ValueError, match="differ in classes, parents; make the model of the same"):
        model.train(datamodule=DataModule(folder))


def test_a_store_and_an_anndata_at_once(dm, cells, streamed):
    loader = dm.inference_dataloader()
    with pytest.raises(ValueError, match="together with adata"):
        streamed.predict(cells, dataloader=loader)
    with pytest.raises(ValueError, match="propagate=True"):
        streamed.predict(dataloader=loader, propagate=True)
    with pytest.raises(ValueError, match="split='val' was given"):
        dm.inference_dataloader(split="val")
