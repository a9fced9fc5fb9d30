"""The folder of a saved model: files that any program reads, whole or not at all; what belongs to others stays."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file
from toy import cells, fit, trained

from celler.model import Celler
from celler.model import _folder as folder_module
from celler.model._arrays import plain_and_arrays
from celler.model._folder import CARD, CONFIG, FILES, WEIGHTS, joined


def files(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a model and something of the user's."""
    trained().save(tmp_path / "deep" / "model")
    (tmp_path / "deep" / "model" / "notes.txt").write_text("mine")
    return tmp_path / "deep" / "model"


def test_weights_are_read_by_the_library(folder):
    """The header is sorted, padded and named as safetensors' own loaders want it."""
    found = load_file(folder / WEIGHTS)
    for name, tensor in trained().module.state_dict().items():
        np.testing.assert_array_equal(found[f"weights.{name}"], tensor.numpy(), strict=True)
    np.testing.assert_array_equal(found["fitted.class_counts"], trained().class_counts_, strict=True)
    np.testing.assert_array_equal(found["fitted.profile.mean"], trained()._state.profile.mean, strict=True)
    with safetensors.safe_open(folder / WEIGHTS, "np") as file:
        assert file.metadata() == {"format": "pt"}
    n_header = int.from_bytes((folder / WEIGHTS).read_bytes()[:8], "little")
    assert n_header % 8 == 0


def test_weights_of_the_library_are_read(folder):
    """Also where it orders the arrays in another way, or leaves the metadata out."""
    arrays = load_file(folder / WEIGHTS)
    safetensors.numpy.save_file(arrays, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    del config["digest"]  # as of a file that is edited on purpose
    config["tensors"] |= folder_module._write(folder / "copy", [(folder / WEIGHTS).read_bytes()])
    (folder / CONFIG).write_text(json.dumps(config))
    np.testing.assert_array_equal(Celler.load(folder).class_counts_, trained().class_counts_)


def test_config_is_strict_json(folder):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (folder / CONFIG).read_bytes().decode("utf-8")
    config = json.loads(text, parse_constant=refuse)
    assert config["format"] == "celler"
    assert config["registry"]["celler"]["classes"] == list(trained().classes_)
    assert len(text.splitlines()) == len(config) + 2


def test_config_keeps_letters_of_any_language(tmp_path):
    adata = cells()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace("type 1", 'Zelle/é 細胞 \x01 "\\')
    model = fit(adata, max_epochs=1)
    model.save(tmp_path)
    assert "細胞" in (tmp_path / CONFIG).read_text("utf-8")
    assert list(Celler.load(tmp_path).classes_) == list(model.classes_)


def test_save_without_overwrite(folder):
    before = files(folder)
    with pytest.raises(FileExistsError, match="model holds a model; pass overwrite=True"):
        trained().save(folder)
    assert files(folder) == before


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_save_beside_a_part_of_a_model(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match="holds a model; pass overwrite=True"):
        trained().save(tmp_path)
    trained().save(tmp_path, overwrite=True)
    assert sorted(files(tmp_path)) == sorted(FILES)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_save_that_cannot_write_leaves_the_old_files(folder, tmp_path, monkeypatch, error, name):
    write = folder_module._write

    def fail(path, parts):
        if path.name == name:
            path.write_bytes(b"half of a model")
            raise error
        return write(path, parts)

    before = files(tmp_path)
    monkeypatch.setattr(folder_module, "_write", fail)
    with pytest.raises(type(error)):
        fit(cells(), max_epochs=1).save(folder, overwrite=True)
    with pytest.raises(type(error)):
        trained().save(tmp_path / "new")
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("nth", range(6))
def test_save_that_cannot_move_a_file_puts_all_back(folder, tmp_path, monkeypatch, nth):
    """Each of the six moves of three files fails in turn, as where another program holds one open."""
    replace, calls = Path.replace, []

    def fail(self, target):
        calls.append(target)
        if len(calls) == nth + 1:
            raise PermissionError("held open")
        return replace(self, target)

    other, before = fit(cells(), max_epochs=1), files(tmp_path)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(PermissionError):
        other.save(folder, overwrite=True)
    assert files(tmp_path) == before
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "notes.txt"])


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_load_of_a_mixture_of_two_models(folder, tmp_path, name):
    """As after a crash between two files: same sizes, other weights."""
    fit(cells(), {"parent_labels_key": "parent_type"}, seed=1).save(tmp_path / "other")
    (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ValueError, match=r"model\.safetensors has .*of another model"):
        Celler.load(folder)


def test_save_follows_the_umask(tmp_path):
    umask = os.umask(0o027)
    try:
        trained().save(tmp_path / "model")
    finally:
        os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o640}
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750


def test_save_to_a_file(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(FileExistsError, match="model is a file; name a folder"):
        trained().save(tmp_path / "model", overwrite=True)


@pytest.mark.parametrize("name", FILES)
def test_save_where_a_folder_has_the_name_of_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match="is a folder, where a file is to be written"):
        trained().save(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_save_replaces_links_and_not_their_targets(tmp_path):
    (tmp_path / "target.json").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / CONFIG).symlink_to(tmp_path / "target.json")
    trained().save(tmp_path / "model", overwrite=True)
    assert (tmp_path / "target.json").read_text() == "mine"
    assert not (tmp_path / "model" / CONFIG).is_symlink()
    Celler.load(tmp_path / "model")


def test_load_follows_the_links_of_a_hubs_cache(folder, tmp_path):
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in FILES:
        (blobs / f"{name}-hash").write_bytes((folder / name).read_bytes())
        (snapshot / name).symlink_to(Path("../../blobs") / f"{name}-hash")
    assert list(Celler.load(snapshot).classes_) == list(trained().classes_)


def test_load_of_a_folder_that_is_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert list(Celler.load(tmp_path / "link").classes_) == list(trained().classes_)


@pytest.mark.parametrize(
    "change", [lambda path: path.unlink(), lambda path: path.write_bytes(b"\xff")], ids=["none", "no text"]
)
def test_load_needs_no_card(folder, change):
    change(folder / CARD)
    assert list(Celler.load(folder).classes_) == list(trained().classes_)


def test_load_of_a_folder_without_a_model(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            FileNotFoundError, match=r"config\.json does not exist; pass the folder that model\.save\(\)"
        ):
            Celler.load(folder)


def test_plain_and_arrays_are_joined():
    arrays = {
        "weights": {"a.b": np.ones(2), "c": np.array(3.0)},
        "fitted": {"share": np.ones(1), "profile": {"mean": np.ones((1, 2))}},
    }
    contents = arrays | {"pretrained": None, "fitted": arrays["fitted"] | {"novelty": None, "seed": 1}}
    plain, found = plain_and_arrays(contents)
    assert plain == {"weights": {}, "fitted": {"profile": {}, "novelty": None, "seed": 1}, "pretrained": None}
    assert sorted(found) == ["fitted.profile.mean", "fitted.share", "weights.a.b", "weights.c"]
    assert found["weights.c"].shape == ()
    back = joined(plain, found)
    assert list(back["weights"]) == ["a.b", "c"]
    np.testing.assert_array_equal(back["fitted"]["profile"]["mean"], np.ones((1, 2)))
