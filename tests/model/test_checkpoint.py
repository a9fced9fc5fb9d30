"""save and load: equal to the bit in any process, and that what was not learned is not saved."""

import shutil
import subprocess
import sys
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from toy import SMALL, assert_equal_frames, assert_unchanged, cells, fit, pretrained, snapshot, soft, trained

from celler.labels import LabelTree
from celler.model import Celler
from celler.model._folder import CARD, FILES

pytestmark = pytest.mark.filterwarnings("ignore:.*are not of the new types:UserWarning")


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


def without_origin(loaded, folder) -> str:
    """What a loaded model says of itself, without the line that says where it came from."""
    line = f"\n  loaded    {folder.name}"
    assert line in repr(loaded)
    return repr(loaded).replace(line, "")


def test_load_names_the_folder_alone(folder, query, monkeypatch):
    monkeypatch.chdir(folder)
    for path in (folder, "."):
        Celler.load(path).annotate(query)
        assert query.uns["celler"]["model"]["source"] == folder.name
    trained().annotate(query)
    assert query.uns["celler"]["model"]["source"] == "none"


def test_load_keeps_what_training_left(folder):
    loaded, model = Celler.load(folder), trained()
    assert loaded.is_trained
    assert without_origin(loaded, folder) == repr(model)
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
from celler.labels import LabelTree
from celler.model import Celler
query = np.load(sys.argv[1])
adata = anndata.AnnData(sparse.csr_matrix(query["X"]), var=pd.DataFrame(index=query["genes"]))
np.save(sys.argv[3], Celler.load(sys.argv[2]).predict(adata, soft=True).to_numpy())
"""
    paths = tmp_path / "query.npz", folder, tmp_path / "predicted.npy"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *map(str, paths)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "predicted.npy"), soft(query))


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
    before = {name: (folder / name).read_bytes() for name in FILES}
    with pytest.raises(FileExistsError, match="overwrite=True"):
        other.save(folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    other.save(folder, overwrite=True)
    expected = other.predict(query, soft=True)
    assert_equal_frames(Celler.load(folder).predict(query, soft=True), expected)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "notes.txt"])


def test_save_before_training(tmp_path):
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(RuntimeError, match=r"not trained; call train\(\)"):
        Celler(adata, **SMALL).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_load_of_a_folder_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.save\(\)"):
        Celler.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Celler.load(tmp_path / "nowhere")


def test_load_of_the_base_names_from_pretrained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Celler\.from_pretrained\('celler-base', tissue="):
        Celler.load("celler-base")
    (tmp_path / "celler-base").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model\.save\(\)"):
        Celler.load("celler-base")  # the user's own folder


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


def test_load_of_a_pretrained_model(query, tmp_path):
    model = pretrained(cells(), {"batch_key": "donor"})
    model.save(tmp_path)
    loaded = Celler.load(tmp_path)
    assert without_origin(loaded, tmp_path) == repr(model)
    assert_equal_frames(loaded.pretraining_history, model.pretraining_history)
    actual, expected = (m.predict_expression(query, ["gene 1", "gene 7"]) for m in (loaded, model))
    assert_equal_frames(actual, expected)


def test_load_of_an_extended_model(tmp_path):
    """It has no novelty score, and means of genes that were not measured in a class are NaN."""
    new = cells(120, seed=3)
    new.var_names = [f"new {i}" if i < 5 else name for i, name in enumerate(new.var_names)]
    new.obs["cell_type"] = new.obs["cell_type"].astype(str).replace("type 0", "type 9")
    with pytest.warns(UserWarning, match="genes"):
        model = Celler.load_query_data(new, trained(), extend_labels=True)
    with pytest.warns(UserWarning, match="new types take cells of others"):
        model.train(max_epochs=1, refit=False, show_progress=False)
    assert np.isnan(model._state.profile.mean).any()
    model.save(tmp_path)
    loaded = Celler.load(tmp_path)
    with pytest.warns(UserWarning, match="80 of the model's 85 genes"):
        assert_equal_frames(loaded.predict(new, soft=True), model.predict(new, soft=True))


def test_load_keeps_curves_that_are_not_finite(tmp_path):
    model = fit(cells(), max_epochs=2)
    curve = [np.nan, np.inf]
    model._state.fitted.history["validation_loss"] = curve
    model.save(tmp_path)
    np.testing.assert_array_equal(Celler.load(tmp_path).history["validation_loss"], curve)


def test_load_keeps_arrays_of_their_own(folder):
    """A view would keep the bytes of the whole file in memory."""
    fitted = Celler.load(folder)._state.fitted
    for array in (fitted.gene_share, fitted.train_indices, fitted.profile.mean, fitted.novelty.known):
        assert array.flags.owndata


def test_save_of_a_model_that_diverged(tmp_path):
    model = fit(cells(), max_epochs=1)
    with torch.no_grad():
        model.module.evidence.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"the model has other values in weights\.evidence\.bias.*lower learning_rate"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_save_to_an_address():
    with pytest.raises(ValueError, match=r"'hf://owner/name' is an address on a hub; model\.push_to_hub"):
        trained().save("hf://owner/name")


def test_save_and_load_write_and_read_the_same_bytes(folder, tmp_path):
    Celler.load(folder).save(tmp_path / "again" / folder.name)
    for name in FILES:
        assert (tmp_path / "again" / folder.name / name).read_bytes() == (folder / name).read_bytes()


def test_save_keeps_the_card_of_its_author(folder, query, tmp_path):
    """Beside a model that replaces it, with a warning; and with the model itself, without."""
    mine = (folder / CARD).read_text() + "\nAsk me."
    (folder / CARD).write_text(mine)
    loaded = Celler.load(folder)
    loaded.save(tmp_path / "elsewhere")
    loaded.save(folder, overwrite=True)
    assert (tmp_path / "elsewhere" / CARD).read_text() == (folder / CARD).read_text() == mine
    with pytest.warns(UserWarning, match=r"README\.md was changed by its author and is kept.*Remove it"):
        fit(cells(), max_epochs=1).save(folder, overwrite=True)
    assert (folder / CARD).read_text() == mine
    Celler.load(folder).save(tmp_path / "again")
    assert (tmp_path / "again" / CARD).read_text() == mine
    (folder / CARD).unlink()
    trained().save(folder, overwrite=True)
    assert "Ask me" not in (folder / CARD).read_text()


def test_save_keeps_the_card_of_another_program(tmp_path):
    (tmp_path / CARD).write_text("# My analysis")
    with pytest.warns(UserWarning, match="was changed by its author and is kept"):
        trained().save(tmp_path)
    assert (tmp_path / CARD).read_text() == "# My analysis"


def test_save_keeps_a_card_of_any_encoding(folder):
    mine = "Daten des Labors Müller".encode("latin-1")
    (folder / CARD).write_bytes(mine)
    with pytest.warns(UserWarning, match="is kept"):
        trained().save(folder, overwrite=True)
    Celler.load(folder).save(folder, overwrite=True)
    assert (folder / CARD).read_bytes() == mine


def test_save_where_the_card_is_a_link(folder, tmp_path):
    """It might be anything of the user's; loading does not need it."""
    (folder / CARD).unlink()
    (tmp_path / "mine.md").write_text("mine")
    (folder / CARD).symlink_to(tmp_path / "mine.md")
    assert Celler.load(folder).is_trained
    with pytest.raises(ValueError, match=r"README\.md is a link to .*copy the file itself"):
        trained().save(folder, overwrite=True)
    assert (tmp_path / "mine.md").read_text() == "mine"


def test_save_with_a_class_without_a_name(query, tmp_path):
    """As an earlier version learned it; setup_anndata reads it as no label."""
    model = fit(cells(), {"batch_key": "donor"}, max_epochs=1, replay=None)
    model._become(replace(model._state, tree=LabelTree(("", *model.classes_[1:].tolist()))))
    model.save(tmp_path)
    assert_equal_frames(Celler.load(tmp_path).predict(query, soft=True), model.predict(query, soft=True))


def test_save_rewrites_a_card_with_a_licence(folder, tmp_path):
    """Its author only filled in the licence, which stays."""
    card = (folder / CARD).read_text()
    (folder / CARD).write_text(
        card.replace("# license: to be filled in by the author, such as cc-by-4.0", "license: mit")
    )
    Celler.load(folder).save(tmp_path / "elsewhere")
    other = fit(cells(), max_epochs=2)
    other.save(folder, overwrite=True)
    for place, n_epochs in (("elsewhere", 5), ("model", 2)):
        text = (tmp_path / place / CARD).read_text()
        assert "\nlicense: mit\n" in text
        assert f" of {n_epochs}, seed 0" in text
