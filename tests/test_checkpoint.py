"""Checkpoints: what comes back, what is refused, and that a failure leaves no trace."""

import os
import pickle
from datetime import date

import numpy as np
import pytest
import torch

from celler.model import _checkpoint as checkpoint
from celler.model._checkpoint import FILE_NAME, read_checkpoint, write_checkpoint

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


# ---- round trip ----


def test_what_is_written_comes_back(model):
    contents = read_checkpoint(model)
    for name, tensor in CONTENTS["weights"].items():
        assert contents["weights"][name].dtype == tensor.dtype
        assert torch.equal(contents["weights"][name], tensor)
    for name in set(CONTENTS) - {"weights"}:
        assert contents[name] == CONTENTS[name]
        assert type(contents[name]) is type(CONTENTS[name])
    assert contents["format"] == "celler"
    assert str(model) == str(write_checkpoint(model, CONTENTS, overwrite=True).parent)


def test_the_file_holds_no_code(model):
    assert torch.load(model / FILE_NAME, weights_only=True)["n_bins"] == 51


def test_paths_may_be_text(tmp_path):
    write_checkpoint(str(tmp_path), CONTENTS, overwrite=False)
    assert read_checkpoint(str(tmp_path))["n_bins"] == 51


# ---- writing ----


def test_a_model_is_not_overwritten_unasked(model):
    before = files(model)
    with pytest.raises(FileExistsError, match=r"model\.pt exists; pass overwrite=True"):
        write_checkpoint(model, CONTENTS | {"n_bins": 7}, overwrite=False)
    assert files(model) == before
    write_checkpoint(model, CONTENTS | {"n_bins": 7}, overwrite=True)
    assert read_checkpoint(model)["n_bins"] == 7
    assert set(files(model)) == set(before)
    assert files(model)["notes.txt"] == b"mine"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(model, tmp_path, monkeypatch, error):
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


def test_a_failed_rename_leaves_the_old_file_too(model, monkeypatch):
    def fail(self, target):
        raise PermissionError("held open")

    before = files(model)
    monkeypatch.setattr(checkpoint.Path, "replace", fail)
    with pytest.raises(PermissionError):
        write_checkpoint(model, CONTENTS | {"n_bins": 7}, overwrite=True)
    assert files(model) == before


# ---- reading what is no model ----


def test_no_model_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.pt does not exist; pass the folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_file_cut_short(model, share):
    whole = (model / FILE_NAME).read_bytes()
    (model / FILE_NAME).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"model\.pt is damaged, cut short .*save the model again"):
        read_checkpoint(model)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.8])
def test_a_file_with_damaged_bytes(model, place):
    """Also one bit inside a tensor, which would otherwise only change the predictions."""
    whole = bytearray((model / FILE_NAME).read_bytes())
    whole[int(place * len(whole))] ^= 1
    (model / FILE_NAME).write_bytes(whole)
    with pytest.raises(ValueError, match=r"model\.pt is damaged, cut short or no Celler model"):
        read_checkpoint(model)


def test_text_is_no_model(tmp_path):
    (tmp_path / FILE_NAME).write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    with pytest.raises(ValueError, match=r"model\.pt is damaged, cut short or no Celler model"):
        read_checkpoint(tmp_path)


def test_a_pickle_is_not_executed(tmp_path, capsys):
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
def test_a_torch_file_of_something_else(tmp_path, contents):
    store(tmp_path, contents)
    with pytest.raises(ValueError, match=r"model\.pt is a torch file, but not a Celler model"):
        read_checkpoint(tmp_path)


def test_arrays_of_scvi_tools_files_are_refused_with_the_reason(tmp_path):
    store(tmp_path, {"var_names": np.array(["a", "b"], dtype=object)})
    with pytest.raises(ValueError, match="so Celler did not write it"):
        read_checkpoint(tmp_path)


def test_a_later_format_asks_for_an_upgrade(model):
    contents = read_checkpoint(model) | {"format_version": 2, "celler_version": "9.1.0"}
    store(model, contents)
    with pytest.raises(ValueError, match=r"Celler 9\.1\.0 in format 2; this version reads up to 1"):
        read_checkpoint(model)


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    umask = os.umask(0o027)
    try:
        path = write_checkpoint(tmp_path / "model", {"a": 1}, overwrite=False)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640
