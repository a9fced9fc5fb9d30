"""DataModule: a store on disk is read and labelled as its cells in memory."""

import numpy as np
import pandas as pd
import pytest
import toy

from celler.atlas import DataModule, _store, build

pytest.importorskip("annbatch")


def test_rows_and_names_match_the_cells(dm, cells, rng):
    index = rng.integers(0, 1500, 60)
    X = dm.store.rows(index)
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X.toarray(), cells.X[index].toarray())
    np.testing.assert_array_equal(dm.store.names(index), cells.obs_names[index])
    assert dm.store.genes == list(cells.var_names)
    assert len(dm) == len(dm.store) == 1500


def test_stream_keeps_its_order(dm, cells):
    wanted = [np.array([1400, 3, 3, 900]), np.array([0]), np.arange(1499, 300, -7)]
    for index, rows in zip(wanted, dm.store.stream(wanted), strict=True):
        np.testing.assert_array_equal(rows.index, index)
        np.testing.assert_array_equal(rows.X.toarray(), cells.X[index].toarray())


def test_rows_during_a_stream(dm, cells):
    stream = dm.store.stream([np.arange(9), np.arange(9, 30)])
    next(stream)
    np.testing.assert_array_equal(dm.store.rows(np.array([700])).toarray(), cells.X[700].toarray())
    np.testing.assert_array_equal(next(stream).index, np.arange(9, 30))


def test_labels_match_the_training_cells(dm, cells):
    names = np.array([*dm.classes, "none"])[dm.labels]
    is_labelled = (cells.obs["split"] == "train") & cells.obs["cell_type"].notna()
    np.testing.assert_array_equal(names, np.where(is_labelled, cells.obs["cell_type"].astype(str), "none"))
    assert dm.classes == sorted(set(cells.obs["cell_type"].dropna()))
    found = pd.Series(dm.column("cell_type"), cells.obs_names).astype(object)
    pd.testing.assert_series_equal(found, cells.obs["cell_type"], check_names=False)
    assert "1,500 cells x 80 genes" in repr(dm)


def test_datamodule_of_a_built_store(cells, tmp_path):
    """The builder's store, in its own order, holds the same cells under the same names."""
    build(
        {"one": cells[:900].copy(), "two": cells[900:].copy()},
        tmp_path / "out",
        labels_key="cell_type",
    )
    dm = DataModule(tmp_path / "out", labels_key="cell_type")
    names = pd.Index(dm.store.names(np.arange(len(dm)))).str.split(":").str[1]
    rows = cells.obs_names.get_indexer(names)
    np.testing.assert_array_equal(dm.store.rows(np.arange(len(dm))).toarray(), cells.X[rows].toarray())


@pytest.mark.parametrize("block_rows", [8192, 400])
def test_predict_with_a_dataloader(dm, cells, streamed, block_rows, monkeypatch):
    monkeypatch.setattr(_store, "ROWS_OF_ANNDATA", block_rows)
    loader = dm.inference_dataloader()
    toy.assert_close(streamed.predict(dataloader=loader, soft=True), streamed.predict(cells, soft=True))
    how = {"backoff": True, "false_alarm_rate": 0.05}
    np.testing.assert_array_equal(streamed.predict(dataloader=loader, **how), streamed.predict(cells, **how))


def test_predict_with_a_dataloader_of_the_test_cells(dm, cells, streamed):
    loader = dm.inference_dataloader(split="test")
    soft = streamed.predict(dataloader=loader, soft=True, correct_shift=False)
    test = cells[cells.obs["split"] == "test"]
    toy.assert_close(soft, streamed.predict(test, soft=True, correct_shift=False))


@pytest.mark.parametrize("block_rows", [8192, 400])
def test_annotate_store_matches_annotate(dm, cells, streamed, block_rows, monkeypatch):
    monkeypatch.setattr(_store, "ROWS_OF_ANNDATA", block_rows)
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


def test_annotate_store_that_fails_leaves_nothing(dm, streamed, monkeypatch):
    from celler.model import _predict as blocks

    def interrupted(*_):
        yield from ()
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(blocks, "block_outputs", interrupted)
    with pytest.raises(RuntimeError, match="the disk is full"):
        streamed.annotate_store(dm, "half")
    with pytest.raises(KeyError, match="no annotation 'half'; it has"):
        dm.annotation("half")


def test_annotate_store_without_overwrite(dm, streamed):
    streamed.annotate_store(dm, "once")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        streamed.annotate_store(dm, "once")
    with pytest.raises(ValueError, match="has no '/', which files cannot hold"):
        streamed.annotate_store(dm, "../out")


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
def test_datamodule_with_bad_columns(folder, options, error, message):
    with pytest.raises(error, match=message):
        DataModule(folder, **options)


def test_datamodule_of_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no store: it has no manifest.json"):
        DataModule(tmp_path)


def test_datamodule_without_annbatch(monkeypatch, folder):
    monkeypatch.setattr(_store, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="celler\\[atlas\\]"):
        DataModule(folder)


def test_predict_with_adata_and_a_dataloader(dm, cells, streamed):
    loader = dm.inference_dataloader()
    with pytest.raises(ValueError, match="together with adata"):
        streamed.predict(cells, dataloader=loader)
    with pytest.raises(ValueError, match="propagate=True"):
        streamed.predict(dataloader=loader, propagate=True)
    with pytest.raises(ValueError, match="split='val' was given"):
        dm.inference_dataloader(split="val")
