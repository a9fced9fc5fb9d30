"""Saved models: equal to the bit in this and any other process, and clear about what is no model."""

import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from toy import SMALL, assert_equal_frames, assert_unchanged, cells, fit, snapshot, soft, trained

from celler.model import Celler
from celler.model._checkpoint import FILE_NAME, FORMAT_VERSION

STORED = Path(__file__).parent / "data" / "saved_model"


@pytest.fixture
def folder(tmp_path):
    trained().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


# ---- the same model ----


def test_predictions_are_equal_to_the_bit(folder, query):
    model = Celler.load(folder)
    assert_equal_frames(model.predict(query, soft=True), soft(query))
    assert_equal_frames(
        model.predict(query, soft=True, level="parent"), soft(query, level="parent")
    )
    np.testing.assert_array_equal(model.predict(query), trained().predict(query))
    embedding = trained().get_latent_representation(query)
    np.testing.assert_array_equal(model.get_latent_representation(query), embedding)


def test_annotations_are_equal(folder, query):
    again = query.copy()
    trained().annotate(query)
    Celler.load(folder).annotate(again)
    pd.testing.assert_frame_equal(again.obs, query.obs)


def test_an_anndata_given_on_loading_is_the_default_and_untouched(folder, query):
    before = snapshot(query)
    model = Celler.load(folder, query)
    assert_equal_frames(model.predict(soft=True), soft(query))
    assert_unchanged(query, before)
    with pytest.raises(ValueError, match="without an AnnData; pass the one to label"):
        Celler.load(folder).predict()


def test_what_training_left_is_kept(folder):
    loaded, model = Celler.load(folder), trained()
    assert loaded.is_trained
    assert repr(loaded) == repr(model)
    assert_equal_frames(loaded.history, model.history)
    assert_equal_frames(loaded.hard_cells_, model.hard_cells_)
    assert len(model.hard_cells_) > 0
    for name in ("classes_", "class_counts_", "train_indices_", "validation_indices_"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name), strict=True)


def test_a_model_without_replay_keeps_its_empty_list(tmp_path):
    model = fit(cells(), max_epochs=1, replay=None)
    model.save(tmp_path)
    assert_equal_frames(Celler.load(tmp_path).hard_cells_, model.hard_cells_)
    assert len(model.hard_cells_) == 0


def test_a_loaded_model_cannot_train_but_can_be_saved(folder, query, tmp_path):
    model = Celler.load(folder)
    with pytest.raises(RuntimeError, match=r"can only predict.*setup_anndata"):
        model.train()
    model.save(tmp_path / "again")
    assert_equal_frames(Celler.load(tmp_path / "again").predict(query, soft=True), soft(query))


@pytest.mark.parametrize(
    "network",
    [
        {"encoder": "transformer"},
        {"head": "vgg"},
        {"evidence": False},
        {"max_genes": 9, "n_bins": 7},
    ],
    ids=lambda network: next(iter(network)),
)
def test_every_kind_of_network_is_kept(network, query, tmp_path):
    model = fit(cells(), network=network, max_epochs=1)
    model.save(tmp_path)
    expected = model.predict(query, soft=True)
    assert_equal_frames(Celler.load(tmp_path).predict(query, soft=True), expected)


def test_setup_is_kept(query, tmp_path):
    reference = cells()
    reference.layers["counts"], reference.X = reference.X.copy(), -reference.X
    reference.var["symbol"] = reference.var_names
    reference.var_names = [f"ENSG{i}" for i in range(80)]
    model = fit(reference, {"layer": "counts", "gene_key": "symbol", "batch_key": "donor"})
    model.save(tmp_path)
    query.layers["counts"], query.X = query.X.copy(), -query.X
    loaded = Celler.load(tmp_path)
    assert_equal_frames(loaded.predict(query, soft=True), model.predict(query, soft=True))


def test_a_fresh_process_gives_the_same_to_the_bit(folder, query, tmp_path):
    np.savez(tmp_path / "query.npz", X=query.X.toarray(), genes=query.var_names.to_numpy(str))
    code = """
import sys, anndata, numpy as np, pandas as pd
from scipy import sparse
from celler.model import Celler
query = np.load(sys.argv[1])
adata = anndata.AnnData(sparse.csr_matrix(query["X"]), var=pd.DataFrame(index=query["genes"]))
np.save(sys.argv[3], Celler.load(sys.argv[2]).predict(adata, soft=True).to_numpy())
"""
    paths = tmp_path / "query.npz", folder, tmp_path / "predicted.npy"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *map(str, paths)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "predicted.npy"), soft(query))


def test_a_stored_model_of_another_python_opens():
    """tests/data/make_saved_model.py wrote it, on Python 3.11 with pandas 2 and anndata 0.12."""
    counts = pd.read_csv(STORED / "query.csv", index_col=0)
    query = ad.AnnData(sparse.csr_matrix(counts.to_numpy(np.float32)))
    query.obs_names, query.var_names = counts.index.astype(str), counts.columns.astype(str)
    expected = pd.read_csv(STORED / "predicted.csv", index_col=0)
    model = Celler.load(STORED)
    actual = model.predict(query, soft=True)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert list(actual.columns) == list(expected.columns) == list(model.classes_)
    ranked = np.sort(expected.to_numpy(), axis=1)
    is_clear = ranked[:, -1] - ranked[:, -2] > 1e-3
    assert is_clear.mean() > 0.9
    np.testing.assert_array_equal(model.predict(query)[is_clear], expected.idxmax(axis=1)[is_clear])
    assert set(model.predict(query, level="parent")) == {"lineage 0", "lineage 1"}
    assert set(model.hard_cells_["label"]) <= set(model.classes_)
    assert model.hard_cells_["n_epochs"].is_monotonic_decreasing
    assert len(model.hard_cells_) > 0


# ---- the file ----


def test_the_file_holds_tensors_and_plain_values(folder):
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]
    contents = torch.load(folder / FILE_NAME, weights_only=True)

    def check(value):
        if isinstance(value, dict | list | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                check(part)
        else:
            assert value is None or type(value) in (str, int, float, bool, torch.Tensor)

    check(contents)


def test_numpy_values_are_written_as_plain_ones(tmp_path, query):
    """As they come out of loops over arrays."""
    reference = cells()
    reference.var_names = pd.Index([np.str_(name) for name in reference.var_names], dtype=object)
    reference.obs_names = pd.Index([np.str_(name) for name in reference.obs_names], dtype=object)
    model = fit(reference, {"labels_key": np.str_("cell_type")}, {"d_model": np.int64(16)})
    model.save(tmp_path)
    expected = model.predict(query, soft=True)
    assert_equal_frames(Celler.load(tmp_path).predict(query, soft=True), expected)


def test_an_existing_model_is_replaced_only_when_told(folder, query):
    (folder / "notes.txt").write_text("mine")
    other = fit(cells(), max_epochs=1)
    before = (folder / FILE_NAME).read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        other.save(folder)
    assert (folder / FILE_NAME).read_bytes() == before
    other.save(folder, overwrite=True)
    expected = other.predict(query, soft=True)
    assert_equal_frames(Celler.load(folder).predict(query, soft=True), expected)
    assert sorted(path.name for path in folder.iterdir()) == [FILE_NAME, "notes.txt"]


def test_an_untrained_model_is_not_saved(tmp_path):
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(RuntimeError, match=r"not trained; call train\(\)"):
        Celler(adata, **SMALL).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ---- what is no model ----


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    weights = trained().module.state_dict()["encoder.gene"].numpy().tobytes()
    content[content.index(weights)] ^= 0xFF  # elsewhere it might be padding, which nobody reads
    path.write_bytes(content)


def write_text(path):
    path.write_text("not a model")


def write_nothing(path):
    path.write_bytes(b"")


def write_foreign_tensors(path):
    torch.save({"state_dict": torch.zeros(3)}, path)


def write_foreign_objects(path):
    torch.save({"model": np.array(["x"], dtype=object), "frame": pd.DataFrame({"a": [1]})}, path)


def write_future(path):
    contents = torch.load(path, weights_only=True)
    torch.save(contents | {"format_version": FORMAT_VERSION + 1, "celler_version": "9.9"}, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (truncate, "damaged"),
        (flip_a_byte, "damaged"),
        (write_text, "damaged|not a Celler model|did not write"),
        (write_nothing, "damaged"),
        (write_foreign_tensors, "not a Celler model"),
        (write_foreign_objects, "Celler did not write it"),
        (write_future, rf"Celler 9\.9 in format {FORMAT_VERSION + 1}.*Upgrade celler"),
    ],
)
def test_files_that_are_no_model(folder, change, words):
    change(folder / FILE_NAME)
    with pytest.raises(ValueError, match=words) as error:
        Celler.load(folder)
    assert str(folder / FILE_NAME) in str(error.value)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.save\(\)"):
        Celler.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Celler.load(tmp_path / "nowhere")


def test_a_moved_folder_still_loads(folder, query, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert_equal_frames(
        Celler.load(str(tmp_path / "elsewhere")).predict(query, soft=True), soft(query)
    )


def test_a_device_that_is_not_there(folder):
    with pytest.raises(ValueError, match=r"accelerator='tpu' is not available here.*'auto'"):
        Celler.load(folder, accelerator="tpu")
