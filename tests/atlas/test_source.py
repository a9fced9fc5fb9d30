"""StoreCells: training from a store agrees with memory, with and without class balance."""

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from sklearn.metrics import f1_score
from store_cases import SETUP

from celler.atlas import DataModule, _source
from celler.atlas._source import StoreCells
from celler.data import _samplers
from celler.data._balance import ClassBalance
from celler.data._loader import Minibatch, TokenLoader
from celler.data._samplers import OrderedSampler, ShuffledSampler
from celler.data._sources import InMemoryCells
from celler.model import Celler
from celler.training._plan import TrainingConfig, TrainingPlan


@pytest.fixture(scope="module")
def in_memory(cells):
    return toy.fit(cells[cells.obs["split"] == "train"].copy(), SETUP)


def test_blocks_show_every_cell_once(dm, cells):
    rows = np.flatnonzero(dm.labels >= 0)
    source = StoreCells(dm.store, dm.labels)
    blocks = list(source.blocks(ShuffledSampler(rows, 64, 0)))
    assert len({id(block.X) for block in blocks}) == 2, "one block of two parts"
    np.testing.assert_array_equal(np.sort(np.concatenate([b.index for b in blocks])), rows)
    for block in blocks:
        counts = cells.X[block.index]
        np.testing.assert_array_equal(block.X[block.rows].toarray(), counts.toarray())


def test_train_from_a_store_matches_memory(streamed, in_memory, dm, cells):
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


def test_train_from_a_store_learns_as_well_as_memory(dm, streamed, cells, in_memory):
    """Within what seeds differ by: the minibatches are drawn in another order."""
    query = toy.cells(600, seed=1)

    def score(model):
        return f1_score(toy.truth(query), model.predict(query), average="macro")

    train = cells[cells.obs["split"] == "train"].copy()
    seeds = [score(toy.fit(train, SETUP, seed=seed)) for seed in (1, 2)] + [score(in_memory)]
    assert min(seeds) - 0.03 <= score(streamed) <= max(seeds) + 0.03
    assert set(streamed.history) == set(in_memory.history)


def test_loss_of_a_store_equals_memory(dm, cells, streamed):
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
        loss = plan.loss_of(minibatch)
        loss.backward()
        losses.append(loss.item())
        gradients.append([w.grad.clone() for w in streamed.module.parameters()])
    streamed.module.eval().zero_grad()
    assert losses[0] == losses[1]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_hard_cells_of_a_store(dm, streamed):
    hard = streamed.hard_cells_
    rows = pd.Index(dm.store.names(np.arange(len(dm)))).get_indexer(hard["cell"])
    assert len(hard)
    np.testing.assert_array_equal(np.array(dm.classes)[dm.labels[rows]], hard["label"])
    assert streamed.history["replayed_share"].max() > 0


def test_train_from_a_store_with_the_same_seed(dm, streamed):
    again = Celler(registry=dm.registry, **toy.SMALL)
    again.train(datamodule=dm, **toy.QUICK)
    pd.testing.assert_frame_equal(again.history, streamed.history)


def test_train_from_a_store_resumes(dm, streamed, tmp_path):
    how = toy.QUICK | {"datamodule": dm, "ckpt_path": tmp_path / "last.ckpt"}
    with toy.stopped_in(2):
        Celler(registry=dm.registry, **toy.SMALL).train(**how)
    resumed = Celler(registry=dm.registry, **toy.SMALL)
    resumed.train(**how)
    pd.testing.assert_frame_equal(resumed.history, streamed.history)


def test_validation_blocks_hold_few_cells_at_once(dm, cells, monkeypatch):
    """They shared the counts of all validation cells, which the tokenizer then copied for each group."""
    monkeypatch.setattr(_source, "PART_ROWS", 100)
    source, rows = StoreCells(dm.store, dm.labels), np.flatnonzero(dm.labels >= 0)[:330]
    sampler = OrderedSampler(rows, 32)
    for blocks in (list(source.blocks(sampler)), list(source.blocks(sampler))):
        np.testing.assert_array_equal(np.concatenate([block.index for block in blocks]), rows)
        assert max(block.X.shape[0] for block in blocks) < 130
        for block in blocks:
            np.testing.assert_array_equal(block.X[block.rows].toarray(), cells.X[block.index].toarray())
    assert [len(block.index) for block in source.blocks(OrderedSampler(rows[:0], 32))] == [0]


def test_blocks_of_few_rows_show_every_cell_once(dm, monkeypatch):
    monkeypatch.setattr(_source, "BLOCK_ROWS", 128)
    monkeypatch.setattr(_source, "CHUNK_ROWS", 16)
    source = StoreCells(dm.store, dm.labels)
    rows = np.flatnonzero(dm.labels >= 0)
    seen = [block.index for block in source.blocks(ShuffledSampler(rows, 32, 0))]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), rows)


def test_save_of_a_model_of_a_store(streamed, tmp_path):
    streamed.save(tmp_path)
    query = toy.cells(100, seed=2)
    loaded = Celler.load(tmp_path)
    toy.assert_equal_frames(loaded.predict(query, soft=True), streamed.predict(query, soft=True))


def test_train_from_a_store_of_other_classes(folder, dm):
    model = Celler(registry=dm.registry, **toy.SMALL)
    with pytest.raises(ValueError, match="differ in classes, parents; make the model of the same"):
        model.train(datamodule=DataModule(folder))


@pytest.fixture(scope="module")
def balanced(tmp_path_factory):
    pytest.importorskip("annbatch")
    from store_cases import shuffled, write_store

    return write_store(tmp_path_factory.mktemp("store"), shuffled(toy.cells(1500)))


@pytest.mark.parametrize("n_ranks", [1, 3])
def test_blocks_with_class_balance(balanced, monkeypatch, n_ranks):
    dm = DataModule(balanced, labels_key="cell_type")
    source, parts = StoreCells(dm.store, dm.labels), []
    for rank in range(n_ranks):
        for module in (_source, _samplers):
            monkeypatch.setattr(module, "rank_and_size", lambda rank=rank: (rank, n_ranks))
        sampler = ShuffledSampler(np.arange(1500), 60, 0, balance=ClassBalance(dm.labels, 1.0))
        parts.append(list(source.blocks(sampler)))
        assert len(parts[-1]) == len(sampler) == -(-25 // n_ranks), "an epoch is as long as without balance"
    blocks = [block for part in parts for block in part]
    of_class = np.array([np.bincount(block.labels, minlength=4) for block in blocks])
    np.testing.assert_array_equal(of_class.sum(0), [375, 375, 375, 375])
    assert (of_class > 0).all(), "each minibatch has every class"
    for block in blocks[:2]:
        counts = dm.store.rows(block.index)
        np.testing.assert_array_equal(block.X[block.rows].toarray(), counts.toarray())


def test_train_from_a_store_with_class_balance(balanced, monkeypatch):
    shown, first = [], ShuffledSampler.next_epoch

    def noted(self):
        shown.append(first(self))
        return shown[-1]

    monkeypatch.setattr(ShuffledSampler, "next_epoch", noted)
    dm = DataModule(balanced, labels_key="cell_type")
    model = Celler(registry=dm.registry, **toy.SMALL)
    model.train(datamodule=dm, class_balance=1.0, **toy.QUICK)
    assert len(shown) == toy.QUICK["max_epochs"]
    for rows, _ in shown:
        assert np.ptp(np.bincount(dm.labels[rows])) <= 1
    np.testing.assert_array_equal(model.class_counts_, np.bincount(dm.labels[model.train_indices_]))
    query = toy.cells(300, seed=1)
    assert (model.predict(query) == toy.truth(query)).mean() > 0.7
