"""save and load: equal to the bit in any process, refusals, and that a failure leaves no trace."""

import os
import pickle
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from toy import SMALL, assert_equal_frames, assert_unchanged, cells, fit, snapshot, soft, trained

from celler.model import Celler
from celler.model import _checkpoint as checkpoint
from celler.model._checkpoint import FILE_NAME, FORMAT_VERSION, read_checkpoint, write_checkpoint

CONTENTS = {
    "weights": {"a": torch.arange(3000.0), "b": torch.ones(2, 3, dtype=torch.bfloat16)},
    "classes": ["NK", "T cell/é"],
    "temperature": 1.25,
    "n_bins": 51,
    "is_log": True,
    "parents": None,
}


def files(folder) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def store(folder, contents) -> None:
    """A model file that torch wrote but celler did not."""
    folder.mkdir(exist_ok=True)
    torch.save(contents, folder / FILE_NAME)


@pytest.fixture
def model(tmp_path):
    """A folder with a model and something of the user's."""
    folder = tmp_path / "deep" / "model"
    write_checkpoint(folder, CONTENTS, overwrite=False)
    (folder / "notes.txt").write_text("mine")
    return folder


def test_read_checkpoint_returns_what_was_written(model):
    contents = read_checkpoint(model)
    for name, tensor in CONTENTS["weights"].items():
        assert contents["weights"][name].dtype == tensor.dtype
        assert torch.equal(contents["weights"][name], tensor)
    for name in set(CONTENTS) - {"weights"}:
        assert contents[name] == CONTENTS[name]
        assert type(contents[name]) is type(CONTENTS[name])
    assert contents["format"] == "celler"
    assert str(model) == str(write_checkpoint(model, CONTENTS, overwrite=True).parent)


def test_write_checkpoint_holds_no_code(model):
    assert torch.load(model / FILE_NAME, weights_only=True)["n_bins"] == 51


def test_write_checkpoint_with_a_path_as_text(tmp_path):
    write_checkpoint(str(tmp_path), CONTENTS, overwrite=False)
    assert read_checkpoint(str(tmp_path))["n_bins"] == 51


def test_write_checkpoint_without_overwrite(model):
    before = files(model)
    with pytest.raises(FileExistsError, match=r"model\.pt exists; pass overwrite=True"):
        write_checkpoint(model, CONTENTS | {"n_bins": 7}, overwrite=False)
    assert files(model) == before
    write_checkpoint(model, CONTENTS | {"n_bins": 7}, overwrite=True)
    assert read_checkpoint(model)["n_bins"] == 7
    assert set(files(model)) == set(before)
    assert files(model)["notes.txt"] == b"mine"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_write_checkpoint_that_fails_leaves_the_old_file(model, tmp_path, monkeypatch, error):
    def fail(contents, file):
        file.write(b"half of a model")
        raise error

    before = files(tmp_path)
    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(type(error)):
        write_checkpoint(model, CONTENTS | {"n_bins": 7}, overwrite=True)
    with pytest.raises(type(error)):
        write_checkpoint(tmp_path / "new", CONTENTS, overwrite=False)
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists()
    monkeypatch.undo()
    assert read_checkpoint(model)["n_bins"] == 51


def test_write_checkpoint_that_cannot_rename_leaves_the_old_file(model, monkeypatch):
    def fail(self, target):
        raise PermissionError("held open")

    before = files(model)
    monkeypatch.setattr(checkpoint.Path, "replace", fail)
    with pytest.raises(PermissionError):
        write_checkpoint(model, CONTENTS | {"n_bins": 7}, overwrite=True)
    assert files(model) == before


def test_read_checkpoint_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.pt does not exist; pass the folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_read_checkpoint_of_a_file_cut_short(model, share):
    whole = (model / FILE_NAME).read_bytes()
    (model / FILE_NAME).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"model\.pt is damaged, cut short .*save the model again"):
        read_checkpoint(model)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.8])
def test_read_checkpoint_of_damaged_bytes(model, place):
    """Also one bit inside a tensor, which would otherwise only change the predictions."""
    whole = bytearray((model / FILE_NAME).read_bytes())
    whole[int(place * len(whole))] ^= 1
    (model / FILE_NAME).write_bytes(whole)
    with pytest.raises(ValueError, match=r"model\.pt is damaged, cut short or no Celler model"):
        read_checkpoint(model)


def test_read_checkpoint_of_text(tmp_path):
    (tmp_path / FILE_NAME).write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    with pytest.raises(ValueError, match=r"model\.pt is damaged, cut short or no Celler model"):
        read_checkpoint(tmp_path)


def test_read_checkpoint_does_not_execute_a_pickle(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / FILE_NAME).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"model\.pt is damaged, cut short or no Celler model"):
        read_checkpoint(tmp_path)
    for foreign in (Trap(), {"format": "celler", "when": date(2024, 1, 1)}):
        store(tmp_path, foreign)
        with pytest.raises(ValueError, match="more than tensors and plain values, so Celler did"):
            read_checkpoint(tmp_path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "contents",
    [
        torch.ones(3),
        [1, 2],
        {"layer.weight": torch.ones(2, 2)},
        {"model_state_dict": {}, "var_names": ["a"], "attr_dict": {"registry_": {}}},
        {"format": "other", "format_version": 1},
        {"format": torch.ones(3)},
        {"format": "celler"},
        {"format": "celler", "format_version": "1"},
    ],
    ids=["tensor", "list", "state dict", "scvi", "format", "tensor format", "no version", "text"],
)
def test_read_checkpoint_of_another_torch_file(tmp_path, contents):
    store(tmp_path, contents)
    with pytest.raises(ValueError, match=r"model\.pt is a torch file, but not a Celler model"):
        read_checkpoint(tmp_path)


def test_read_checkpoint_of_object_arrays(tmp_path):
    store(tmp_path, {"var_names": np.array(["a", "b"], dtype=object)})
    with pytest.raises(ValueError, match="so Celler did not write it"):
        read_checkpoint(tmp_path)


def test_read_checkpoint_of_a_later_format(model):
    contents = read_checkpoint(model) | {"format_version": 2, "celler_version": "9.1.0"}
    store(model, contents)
    with pytest.raises(ValueError, match=r"Celler 9\.1\.0 in format 2; this version reads up to 1"):
        read_checkpoint(model)


def test_write_checkpoint_follows_the_umask(tmp_path):
    umask = os.umask(0o027)
    try:
        path = write_checkpoint(tmp_path / "model", {"a": 1}, overwrite=False)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640


STORED = Path(__file__).parents[1] / "data" / "saved_model"


@pytest.fixture
def folder(tmp_path):
    trained().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


def test_load_predicts_equal_to_the_bit(folder, query):
    model = Celler.load(folder)
    assert_equal_frames(model.predict(query, soft=True), soft(query))
    assert_equal_frames(model.predict(query, soft=True, level="parent"), soft(query, level="parent"))
    np.testing.assert_array_equal(model.predict(query), trained().predict(query))
    embedding = trained().get_latent_representation(query)
    np.testing.assert_array_equal(model.get_latent_representation(query), embedding)


def test_load_annotates_alike(folder, query):
    again = query.copy()
    trained().annotate(query)
    Celler.load(folder).annotate(again)
    pd.testing.assert_frame_equal(again.obs, query.obs)


def test_load_with_an_anndata(folder, query):
    before = snapshot(query)
    model = Celler.load(folder, query)
    assert_equal_frames(model.predict(soft=True), soft(query))
    assert_unchanged(query, before)
    with pytest.raises(ValueError, match="has no AnnData; pass the cells as adata"):
        Celler.load(folder).predict()


def test_load_keeps_what_training_left(folder):
    loaded, model = Celler.load(folder), trained()
    assert loaded.is_trained
    assert repr(loaded) == repr(model)
    assert_equal_frames(loaded.history, model.history)
    assert_equal_frames(loaded.hard_cells_, model.hard_cells_)
    assert len(model.hard_cells_) > 0
    for name in ("classes_", "class_counts_", "train_indices_", "validation_indices_"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name), strict=True)


def test_load_without_hard_cells(tmp_path):
    model = fit(cells(), max_epochs=1, replay=None)
    model.save(tmp_path)
    assert_equal_frames(Celler.load(tmp_path).hard_cells_, model.hard_cells_)
    assert len(model.hard_cells_) == 0


def test_save_of_a_loaded_model(folder, query, tmp_path):
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
def test_load_of_every_network(network, query, tmp_path):
    model = fit(cells(), network=network, max_epochs=1)
    model.save(tmp_path)
    expected = model.predict(query, soft=True)
    assert_equal_frames(Celler.load(tmp_path).predict(query, soft=True), expected)


def test_load_keeps_the_setup(query, tmp_path):
    reference = cells()
    reference.layers["counts"], reference.X = reference.X.copy(), -reference.X
    reference.var["symbol"] = reference.var_names
    reference.var_names = [f"ENSG{i}" for i in range(80)]
    model = fit(reference, {"layer": "counts", "gene_key": "symbol", "batch_key": "donor"})
    model.save(tmp_path)
    query.layers["counts"], query.X = query.X.copy(), -query.X
    loaded = Celler.load(tmp_path)
    assert_equal_frames(loaded.predict(query, soft=True), model.predict(query, soft=True))


def test_load_in_another_process(folder, query, tmp_path):
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


def test_load_of_a_file_of_another_python():
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


def test_save_writes_tensors_and_plain_values(folder):
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]
    contents = torch.load(folder / FILE_NAME, weights_only=True)

    def check(value):
        if isinstance(value, dict | list | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                check(part)
        else:
            assert value is None or type(value) in (str, int, float, bool, torch.Tensor)

    check(contents)


def test_save_with_numpy_values(tmp_path, query):
    """As they come out of loops over arrays."""
    reference = cells()
    reference.var_names = pd.Index([np.str_(name) for name in reference.var_names], dtype=object)
    reference.obs_names = pd.Index([np.str_(name) for name in reference.obs_names], dtype=object)
    model = fit(reference, {"labels_key": np.str_("cell_type")}, {"d_model": np.int64(16)})
    model.save(tmp_path)
    expected = model.predict(query, soft=True)
    assert_equal_frames(Celler.load(tmp_path).predict(query, soft=True), expected)


def test_save_without_overwrite(folder, query):
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


def test_save_before_training(tmp_path):
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(RuntimeError, match=r"not trained; call train\(\)"):
        Celler(adata, **SMALL).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


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
def test_load_of_a_file_that_is_no_model(folder, change, words):
    change(folder / FILE_NAME)
    with pytest.raises(ValueError, match=words) as error:
        Celler.load(folder)
    assert str(folder / FILE_NAME) in str(error.value)


def test_load_of_a_folder_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.save\(\)"):
        Celler.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Celler.load(tmp_path / "nowhere")


def test_load_of_a_moved_folder(folder, query, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert_equal_frames(Celler.load(str(tmp_path / "elsewhere")).predict(query, soft=True), soft(query))


def test_load_on_a_missing_device(folder):
    with pytest.raises(ValueError, match=r"accelerator='tpu' is not available here.*'auto'"):
        Celler.load(folder, accelerator="tpu")


PARENTS = {"type 0": "A", "type 1": "A", "type 2": "B", "type 3": "type 3", "another": "C"}


def test_save_with_parents(query, tmp_path):
    model = fit(cells(), {"parents": PARENTS}, max_epochs=1)
    model.save(tmp_path)
    loaded = Celler.load(tmp_path)
    assert loaded.parents_ == model.parents_
    for options in ({"soft": True, "level": "parent"}, {"backoff": True}):
        actual, expected = (np.asarray(m.predict(query, **options)) for m in (loaded, model))
        np.testing.assert_array_equal(actual, expected)
    loaded.save(tmp_path / "again")
