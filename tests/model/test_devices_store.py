"""Several processes label a store as one does, each reading its own blocks."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import toy
from store_cases import write_store
from toy import assert_equal_frames
from worker_cases import drawn, stand_in

from celler.atlas import DataModule
from celler.model import _forward, _predict

pytest.importorskip("annbatch")


@pytest.fixture(scope="module")
def query() -> ad.AnnData:
    return drawn(toy.cells(300, depth=0.5, seed=1), 400)


@pytest.fixture
def store(query, tmp_path) -> Path:
    return write_store(tmp_path / "store", query)


@pytest.fixture
def begun(monkeypatch) -> list[tuple]:
    """What processes were asked for, all of it done by this one."""
    for module in (_forward, _predict):
        monkeypatch.setattr(module, "SHIFT_CELLS", 100)
    monkeypatch.setattr("celler.atlas._store.ROWS_OF_ANNDATA", 100)
    return stand_in(monkeypatch)


@pytest.mark.parametrize(
    "options", [{"soft": True}, {"soft": True, "correct_shift": False}, {"false_alarm_rate": 0.1}], ids=str
)
def test_predict_a_store_by_several_processes(begun, store, options):
    blocks = DataModule(store).inference_dataloader()
    expected = toy.trained().predict(dataloader=blocks, **options)
    assert not begun
    found = toy.trained().predict(dataloader=blocks, devices=2, **options)
    if "soft" in options:
        assert_equal_frames(found, expected)
    np.testing.assert_array_equal(found, expected)
    assert {i for i, _, _ in begun} == {0, 1}


def test_annotate_store_by_several_processes(begun, store):
    dm = DataModule(store)
    toy.trained().annotate_store(dm)
    expected = dm.annotation("celler")
    toy.trained().annotate_store(dm, overwrite=True, devices=2)
    assert_equal_frames(dm.annotation("celler"), expected)
    assert begun


def test_a_damaged_chunk_is_the_same_error(begun, query, tmp_path, monkeypatch):
    """In the last of eight datasets, of which the first cells are not."""
    monkeypatch.setattr(_predict, "SHIFT_CELLS", 2)
    store = write_store(tmp_path / "store", query, n_datasets=8)
    blocks = DataModule(store).inference_dataloader()
    (chunk,) = (file for file in store.glob("cells.zarr/dataset_7/X/data/c/**/*") if file.is_file())
    chunk.write_bytes(b"damaged")
    errors = []
    for devices in (1, 2):
        with pytest.raises(ValueError, match="Build the store anew") as caught:
            toy.trained().predict(dataloader=blocks, devices=devices, correct_shift=False)
        errors.append(str(caught.value))
    assert begun
    assert errors[0] == errors[1]
