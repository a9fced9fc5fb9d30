"""Several processes label cells as one does: the same numbers in the same order, errors and warnings."""

import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import toy
from base_cases import fit_known, known_cells
from scipy import sparse
from tissue_cases import FEW, new, pseudo_cells
from toy import assert_equal_frames
from worker_cases import begin_at_once, drawn, stand_in

from celler._utils import _workers
from celler.model import _forward

N_CELLS = 400
#: A part of cells that is small enough for tests; a chunk of them is the same with one process and with several.
SMALL = {"SHIFT_CELLS": 100, "CHUNK_SIZE": 64, "PART_SIZE": 64}


@pytest.fixture(scope="module")
def query() -> ad.AnnData:
    return drawn(toy.cells(300, depth=0.5, seed=1), N_CELLS)


@pytest.fixture
def begun(monkeypatch) -> list[tuple]:
    """What processes were asked for, all of it done by this one."""
    for name, value in SMALL.items():
        monkeypatch.setattr(_forward, name, value)
    monkeypatch.setattr("celler.data._query.CHUNK_SIZE", SMALL["CHUNK_SIZE"])
    return stand_in(monkeypatch)


OPTIONS = {
    "all": {"soft": True},
    "no shift": {"soft": True, "correct_shift": False},
    "some rows, some twice": {"soft": True, "indices": [7, 399, 7, *range(300, 50, -1)]},
    "novelty": {"false_alarm_rate": 0.1},
    "propagation": {"soft": True, "propagate": True},
    "back-off": {"backoff": True, "threshold": 0.9},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_predict_by_several_processes(begun, query, options):
    expected, n_before = toy.trained().predict(query, **options), len(begun)
    found = toy.trained().predict(query, devices=2, **options)
    np.testing.assert_array_equal(found, expected)
    assert n_before == 0
    assert {i for i, _, _ in begun} == {0, 1}
    assert {device for _, device, _ in begun} == {"cpu"}


def test_annotate_by_several_processes(begun, query):
    one, several = query.copy(), query.copy()
    toy.trained().annotate(one)
    toy.trained().annotate(several, devices=2)
    assert begun
    assert_equal_frames(several.obs, one.obs)
    assert several.uns["celler"] == one.uns["celler"]


def test_annotate_with_a_base_and_members_by_several_processes(begun):
    model, one = fit_known(n_members=2, max_epochs=1), drawn(known_cells(300, seed=1), N_CELLS)
    several = one.copy()
    model.annotate(one, false_alarm_rate=0.1)
    model.annotate(several, false_alarm_rate=0.1, devices=2)
    assert begun
    assert "celler_agreement" in several.obs
    assert_equal_frames(several.obs, one.obs)


def test_annotate_without_a_reference_by_several_processes(begun):
    one = pseudo_cells(FEW["tissue"], N_CELLS)
    several = one.copy()
    new().annotate(one)
    new().annotate(several, devices=2)
    assert begun
    assert_equal_frames(several.obs, one.obs)


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
def test_predict_a_backed_file_by_several_processes(begun, query, tmp_path, make, monkeypatch):
    """Each process reads its own rows; antibodies are read by none of them."""
    monkeypatch.setattr(_forward, "_score_stored", None)
    X = np.hstack([query.X.toarray(), np.full((N_CELLS, 2), 1000.0, np.float32)])
    var = pd.DataFrame({"feature_types": ["Gene Expression"] * 80 + ["Antibody Capture"] * 2})
    var.index = [*query.var_names, "antibody 0", "antibody 1"]
    ad.AnnData(make(X), obs=query.obs, var=var).write_h5ad(tmp_path / "query.h5ad")
    backed = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
    with pytest.warns(UserWarning, match="2 Antibody Capture"):
        toy.soft(backed)
    for options in ({}, {"indices": np.arange(399, 20, -1)}, {"propagate": True}):
        assert_equal_frames(toy.soft(backed, devices=2, **options), toy.soft(backed, **options))
    assert {i for i, _, _ in begun} == {0, 1}


def test_predict_a_path_and_a_view_by_several_processes(begun, query, tmp_path):
    query.write_h5ad(tmp_path / "query.h5ad")
    assert_equal_frames(toy.trained().predict(tmp_path / "query.h5ad", soft=True, devices=2), toy.soft(query))
    view = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")[20:]
    assert_equal_frames(toy.soft(view, devices=2), toy.soft(query[20:]))
    assert begun


def test_predict_a_file_that_another_process_may_not_read(begun, query, tmp_path, monkeypatch):
    """As HDF5 locks one that is open for writing."""

    def locked(*_):
        raise OSError("unable to lock file")

    query.write_h5ad(tmp_path / "query.h5ad")
    backed, expected = ad.read_h5ad(tmp_path / "query.h5ad", backed="r+"), toy.soft(query)
    monkeypatch.setattr("celler.data._expression.h5py.File", locked)
    assert_equal_frames(toy.soft(backed, devices=2), expected)
    assert begun


@pytest.mark.parametrize("kind", ["raw", "layer of logarithms"])
def test_predict_other_values_by_several_processes(begun, query, kind):
    """The kind of values was found in all cells, and is not found again in a few of them."""
    query = query.copy()
    if kind == "raw":
        query.raw = query.copy()
        query.X = query.X.toarray() - query.X.toarray().mean(axis=0)  # scaled
        layer = "raw"
    else:
        query.layers["logs"] = query.X.multiply(1e4 / query.X.sum(axis=1)).tocsr().log1p() / np.log(2)
        layer = "logs"
    expected = toy.soft(query, layer=layer)
    assert_equal_frames(toy.soft(query, layer=layer, devices=2), expected)
    assert begun


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_predict_by_several_processes_names_the_cell_of_a_bad_value(begun, query, value, monkeypatch):
    monkeypatch.setattr("celler._utils._matrix.N_PROBED", 10)  # the cell is none of those that say what the values are
    query = query.copy()
    query.layers["good"] = query.X.copy()
    query.X.data[query.X.indptr[371]] = value
    errors = []
    for devices in (1, 2):
        with pytest.raises(ValueError, match=r"layer='good' \(counts\)") as caught:
            toy.trained().predict(query, correct_shift=False, devices=devices)
        errors.append(str(caught.value))
    assert "'drawn 371'" in errors[0]
    assert errors[0] == errors[1]


def test_warnings_of_workers_are_said_once(begun, query, monkeypatch):
    score = _forward.Job.score

    def doubtful(self, query, index):
        warnings.warn("these cells are odd", UserWarning, stacklevel=1)
        return score(self, query, index)

    monkeypatch.setattr(_forward.Job, "score", doubtful)
    with pytest.warns(UserWarning, match="these cells are odd") as caught:
        toy.trained().predict(query, devices=2)
    assert toy.celler_warning(caught).filename == __file__


def test_few_cells_start_no_process(query, monkeypatch):
    """Six seconds are not saved, neither where all cells are in the sample nor beyond it."""

    def refused(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(_workers, "_worker", refused)
    monkeypatch.setattr(_workers, "_workers", [])
    expected = toy.trained().predict(query)
    np.testing.assert_array_equal(toy.trained().predict(query, devices=8), expected)
    for name, value in SMALL.items():
        monkeypatch.setattr(_forward, name, value)
    toy.trained().predict(query, devices=8)
    toy.trained().annotate(query.copy(), devices=8)


@pytest.mark.parametrize(
    ("given", "error"),
    [(0, ValueError), (-1, TypeError), (1.5, TypeError), ("two", ValueError), (True, TypeError), ([0], ValueError)],
)
def test_devices_that_are_none(query, given, error):
    for method in (toy.trained().predict, toy.trained().annotate):
        with pytest.raises(error, match="a number of processes"):
            method(query.copy(), devices=given)


@pytest.mark.slow
def test_processes_of_their_own(monkeypatch, tmp_path):
    """In memory, in a file, and in a store where the engine is; errors name cells; a second call starts none."""
    begin_at_once(monkeypatch)
    model, query = toy.trained(), drawn(toy.cells(300, depth=0.5, seed=1), 25_000)
    query.write_h5ad(tmp_path / "query.h5ad")
    backed = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
    expected = model.predict(query, soft=True)
    try:
        for cells in (query, backed):
            assert_equal_frames(model.predict(cells, soft=True, devices=2), expected)
        pools = list(_workers._workers)
        backed.file.close()
        query.write_h5ad(tmp_path / "query.h5ad")  # no process holds it open
        if sys.version_info >= (3, 12):
            _check_store(model, query, tmp_path / "store")
        query.X.data[query.X.indptr[24_321]] = np.nan
        with pytest.raises(ValueError, match="'drawn 24321'"):
            model.predict(query, correct_shift=False, devices=2)
        assert len(pools) == 2
        assert pools == _workers._workers
    finally:
        _workers.stop_workers()


def _check_store(model, query: ad.AnnData, folder) -> None:
    from store_cases import write_store

    from celler.atlas import DataModule

    dm = DataModule(write_store(folder, query))
    blocks = dm.inference_dataloader()
    expected = model.predict(dataloader=blocks, soft=True)
    assert_equal_frames(model.predict(dataloader=blocks, soft=True, devices=2), expected)
    model.annotate_store(dm, "one")
    model.annotate_store(dm, "two", devices=2)
    one, two = dm.annotation("one"), dm.annotation("two")
    assert_equal_frames(two.set_axis(one.columns, axis=1), one)
