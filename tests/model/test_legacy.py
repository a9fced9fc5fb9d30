"""model.pt of 0.1.0: loads once more with a warning, converts, and is refused where it is damaged or foreign."""

import pickle
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from legacy_cases import converts, write_legacy
from scipy import sparse
from toy import assert_equal_frames, cells, fit, soft, trained

from celler.model import Celler
from celler.model._legacy import FILE_NAME, FORMAT_VERSION, holds_legacy_model

STORED = Path(__file__).parents[1] / "data" / "saved_model"


def store(folder, contents) -> None:
    """A model file that torch wrote but celler did not."""
    folder.mkdir(exist_ok=True)
    torch.save(contents, folder / FILE_NAME)


@pytest.fixture
def folder(tmp_path):
    write_legacy(trained(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


def test_load_of_a_legacy_model(folder, query):
    with converts():
        model = Celler.load(folder)
    assert_equal_frames(model.predict(query, soft=True), soft(query))
    np.testing.assert_array_equal(model.get_novelty(query), trained().get_novelty(query))
    assert repr(model).replace(f"\n  loaded    {folder.name}", "") == repr(trained())


def test_save_converts_a_legacy_model(folder, query):
    (folder / "notes.txt").write_text("mine")
    with converts():
        model = Celler.load(folder)
    with pytest.raises(FileExistsError, match="holds a model; pass overwrite=True"):
        model.save(folder)
    model.save(folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]
    assert_equal_frames(Celler.load(folder).predict(query, soft=True), soft(query))


def test_save_leaves_the_file_of_another_program(tmp_path):
    """A file of PyTorch of that name, and one of scGPT, which is not even taken for a model."""
    store(tmp_path / "torch", {"state_dict": torch.ones(2)})
    with pytest.raises(FileExistsError, match="holds a model"):
        trained().save(tmp_path / "torch")
    trained().save(tmp_path / "torch", overwrite=True)
    assert (tmp_path / "torch" / FILE_NAME).exists()
    store(tmp_path / "scgpt", {})
    (tmp_path / "scgpt" / "args.json").write_text("{}")
    assert not holds_legacy_model(tmp_path / "scgpt")
    trained().save(tmp_path / "scgpt")
    assert (tmp_path / "scgpt" / FILE_NAME).exists()


def test_load_prefers_the_new_files(folder, query):
    """As after a conversion that was stopped before the old file was removed."""
    other = fit(cells(), max_epochs=1)
    before = (folder / FILE_NAME).read_bytes()
    other.save(folder, overwrite=True)
    (folder / FILE_NAME).write_bytes(before)
    assert_equal_frames(Celler.load(folder).predict(query, soft=True), other.predict(query, soft=True))


@pytest.mark.parametrize("format_version", [1, 2])
def test_load_of_a_file_of_another_python(format_version):
    """Python 3.11 with pandas 2 and anndata 0.12 wrote it; tests/data/make_saved_model.py has the second."""
    counts = pd.read_csv(STORED / "query.csv", index_col=0)
    query = ad.AnnData(sparse.csr_matrix(counts.to_numpy(np.float32)))
    query.obs_names, query.var_names = counts.index.astype(str), counts.columns.astype(str)
    expected = pd.read_csv(STORED / "predicted.csv", index_col=0)
    with converts() if format_version == 1 else nullcontext():
        model = Celler.load(STORED if format_version == 1 else STORED.with_name("saved_model_2"))
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
    assert list(np.flatnonzero(model.history["is_kept"])) == [19], "older files have no such column"


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_load_of_a_legacy_file_cut_short(folder, share):
    whole = (folder / FILE_NAME).read_bytes()
    (folder / FILE_NAME).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"model\.pt is damaged, cut short .*save the model again"):
        Celler.load(folder)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.8])
def test_load_of_damaged_bytes(folder, place):
    """Also one bit inside a tensor, which would otherwise only change the predictions."""
    whole = bytearray((folder / FILE_NAME).read_bytes())
    whole[int(place * len(whole))] ^= 1
    (folder / FILE_NAME).write_bytes(whole)
    with pytest.raises(ValueError, match=r"model\.pt is damaged, cut short or no Celler model"):
        Celler.load(folder)


def test_load_of_text(tmp_path):
    (tmp_path / FILE_NAME).write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    with pytest.raises(ValueError, match=r"model\.pt is damaged, cut short or no Celler model"):
        Celler.load(tmp_path)


def test_load_does_not_execute_a_pickle(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / FILE_NAME).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"model\.pt is damaged, cut short or no Celler model"):
        Celler.load(tmp_path)
    for foreign in (Trap(), {"format": "celler", "when": date(2024, 1, 1)}):
        store(tmp_path, foreign)
        with pytest.raises(ValueError, match="more than tensors and plain values, so Celler did"):
            Celler.load(tmp_path)
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
def test_load_of_another_torch_file(tmp_path, contents):
    store(tmp_path, contents)
    with pytest.raises(ValueError, match=r"model\.pt is a torch file, but not a Celler model"):
        Celler.load(tmp_path)


def test_load_of_object_arrays(tmp_path):
    store(tmp_path, {"var_names": np.array(["a", "b"], dtype=object)})
    with pytest.raises(ValueError, match="so Celler did not write it"):
        Celler.load(tmp_path)


def test_load_of_a_later_legacy_format(folder):
    contents = torch.load(folder / FILE_NAME, weights_only=True)
    store(folder, contents | {"format_version": FORMAT_VERSION + 1, "celler_version": "9.1.0"})
    with pytest.raises(ValueError, match=r"Celler 9\.1\.0 in format 2; this version reads up to 1"):
        Celler.load(folder)


def test_load_of_the_first_share_of_the_encoder(folder, query):
    """It once stood beside the weights, and before that there was none."""
    contents = torch.load(folder / FILE_NAME, weights_only=True)
    share = contents["weights"].pop("_extra_state")[0].item()
    contents["fitted"]["encoder_share"] = share
    store(folder, contents)
    with converts():
        model = Celler.load(folder)
    assert_equal_frames(model.predict(query, soft=True), soft(query))


def at(contents: dict, place: str) -> tuple[dict, str]:
    *groups, last = place.split("/")
    for name in groups:
        contents = contents[name]
    return contents, last


def put(place: str, value):
    def change(contents):
        group, name = at(contents, place)
        group[name] = value

    return change


def without(place: str):
    def change(contents):
        group, name = at(contents, place)
        del group[name]

    return change


def filled(place: str, value: float):
    def change(contents):
        group, name = at(contents, place)
        group[name].view(-1)[0] = value

    return change


CHANGES = {
    "NaN weight": filled("weights/evidence.bias", float("nan")),
    "infinite weight": filled("weights/evidence.weight", float("inf")),
    "NaN gene share": filled("fitted/gene_share", float("nan")),
    "temperature 0": put("fitted/decision/temperature", 0.0),
    "temperature NaN": put("fitted/decision/temperature", float("nan")),
    "temperature negative": put("fitted/decision/temperature", -1.0),
    "temperature text": put("fitted/decision/temperature", "1"),
    "no registry": without("registry"),
    "no arguments": without("init_params"),
    "no fitted": without("fitted"),
    "no classes": without("registry/celler/classes"),
    "no weights": without("weights"),
    "no weight": without("weights/evidence.bias"),
    "weight of another shape": put("weights/evidence.bias", torch.zeros(9)),
    "weight of another type": put("weights/evidence.bias", torch.zeros(4, dtype=torch.int64)),
    "unknown weight": put("weights/mine", torch.zeros(4)),
    "unknown argument": put("init_params/mine", 1),
    "list of weights": put("weights", [1, 2]),
    "fitted as text": put("fitted", "none"),
    "profile of another length": put("fitted/profile/dispersion", torch.zeros(3)),
    "width of gigabytes": put("init_params/d_model", 10**7),
    "width of a million": put("init_params/d_model", 10**6),
    "layers without end": put("init_params/n_layers", 10**9),
    "version as text": put("format_version", "1"),
    "class repeated": put("registry/celler/classes", ["a"] * 4),
    "curves as text": put("fitted/history", "none"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_load_of_other_contents(folder, change):
    """A whole file that says what no model can have loaded, or raised the words of torch or Python."""
    contents = torch.load(folder / FILE_NAME, weights_only=True)
    change(contents)
    torch.save(contents, folder / FILE_NAME)
    with pytest.raises(ValueError, match=r"model\.pt"):
        Celler.load(folder)
