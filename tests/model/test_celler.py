"""The class Celler: its options, attributes, curves and text."""

import numpy as np
import pandas as pd
import pytest
import torch
from bad_input_cases import assert_says
from sklearn.metrics import f1_score
from toy import QUICK, SMALL, cells, fit, pretrained, trained

import celler as cl
from celler.model import Celler
from celler.model._notebook import FOR_DEVELOPERS


def test_celler_without_setup_anndata():
    with pytest.raises(ValueError, match="setup_anndata"):
        Celler(cells(200))
    with pytest.raises(AttributeError, match="does not support scvi-tools' setup_annbatch"):
        Celler.setup_annbatch(None)


#: arguments of Celler: what the message says
NETWORK = {
    "encoder": ("cnn", ["encoder='cnn'", "'additive'", "'latent'", "'transformer'"]),
    "head": ("resnet", ["head='resnet'", "'linear'", "'mlp'", "'vgg'"]),
    "n_layers": (0, ["n_layers=0", "at least 1"]),
    "d_model": (0, ["d_model=0", "at least 1"]),
    "n_heads": (5, ["d_model=64", "n_heads=5", "take d_model=65"]),
    "dropout_rate": (1.0, ["dropout_rate=1.0", "below 1"]),
    "max_genes": (0, ["max_genes=0", "at least 1"]),
    "n_bins": (2, ["n_bins=2", "at least 3 and at most 256"]),
    "precision": ("float16", ["precision='float16'", "'auto'", "'bfloat16'"]),
}


@pytest.mark.parametrize("name", NETWORK)
def test_celler_with_bad_network_options(name):
    value, words = NETWORK[name]
    adata = cells(200)
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(ValueError) as error:
        Celler(adata, **{name: value})
    assert_says(error, words)


def test_celler_with_sizes_of_attention():
    adata = cells(200)
    Celler.setup_anndata(adata, "cell_type")
    for size in ({"n_layers": 2}, {"n_heads": 2}, {"n_latents": 4}, {"n_bins": 10}):
        assert Celler(adata, **size).module.config.encoder == "latent"
        with pytest.raises(ValueError) as error:
            Celler(adata, encoder="additive", **size)
        assert_says(error, [next(iter(size)), "'additive'", "no attention", "'latent'"])


def test_celler_without_evidence():
    names = set(fit(cells(), network={"evidence": False}, max_epochs=1).module.state_dict())
    assert not any("evidence" in name for name in names)
    assert any("evidence" in name for name in trained().module.state_dict())


def test_history_has_one_row_per_epoch():
    history = fit(cells(), max_epochs=4, early_stopping=False).history
    assert list(history.index) == [1, 2, 3, 4], "as the progress bar counts"
    assert history.index.name == "epoch"
    assert {"train_loss", "validation_loss", "validation_macro_f1"} <= set(history.columns)
    assert np.isfinite(history.drop(columns="is_kept").to_numpy()).all()
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    assert history["validation_macro_f1"].between(0, 1).all()


def test_history_before_training():
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    model = Celler(adata)
    assert model.history is None
    assert not model.is_trained


def test_repr_before_and_after_training():
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    model = Celler(adata, **SMALL)
    assert repr(model).startswith("Celler, not trained: 4 classes, 80 genes")
    assert "model.train()" in repr(model)
    model.train(**QUICK, seed=3)
    text = repr(model)
    sizes = adata.obs["cell_type"].iloc[model.train_indices_].value_counts()
    assert text.startswith("Celler, trained: 4 classes, 80 genes")
    assert f"{sizes.sum()} labelled, {sizes.max()} to {sizes.min()} a class" in text
    score, error = (model.history[f"validation_macro_f1{name}"] for name in ("", "_error"))
    kept = np.flatnonzero(score >= score.cummax() - error)[-1]
    assert f"kept epoch {kept + 1} of 5, seed 3" in text
    assert list(model.history.index[model.history["is_kept"]]) == [kept + 1]
    labels = np.asarray(adata.obs["cell_type"].iloc[model.validation_indices_], dtype=str)
    predicted = model.predict(indices=model.validation_indices_)
    score = f1_score(labels, predicted, average="macro")
    assert f"macro-F1 {score:.3f} on {len(labels)} held-out cells" in text
    assert "accuracy  that macro-F1 is of the reference's own studies; model.adapt(query) estimates" in text
    assert "model.predict(adata)" in text
    assert model.summary_string.startswith(text)


def test_repr_without_validation():
    model = fit(cells(), train_size=1.0, max_epochs=3)
    assert "training  3 epochs, seed 0\n" in repr(model)
    assert "macro-F1" not in repr(model)
    assert list(model.history["is_kept"]) == [False, False, True]


@pytest.mark.parametrize("refit", [True, False])
def test_repr_after_a_lucky_epoch(monkeypatch, refit):
    scores = iter([0.3, 0.8, 0.75, 0.6, 0.65])
    monkeypatch.setattr(
        "celler.training._plan.macro_f1_with_error", lambda *_: (torch.tensor(next(scores)), torch.tensor(0.07))
    )
    model = fit(cells(), max_epochs=5, refit=refit)
    assert "kept epoch 3 of 5, seed 0, macro-F1 0.750 on 30 held-out cells" in repr(model)
    assert ("held-out cells, then trained again on all cells" in repr(model)) == refit
    assert list(model.history["is_kept"]) == [False, False, True, False, False]


def test_repr_after_pretraining():
    assert repr(pretrained(max_epochs=1)).splitlines()[-1].split()[1] == "Celler(labelled"
    with_labels = repr(pretrained(setup={"labels_key": "cell_type"}, max_epochs=1))
    assert "300, labels not needed" in with_labels
    assert with_labels.splitlines()[-1].split()[1] == "model.train()"


@pytest.fixture(scope="module")
def model() -> cl.model.Celler:
    return fit(cells(), {"batch_key": "donor"})


def test_celler_has_plain_attributes(model):
    kept = {name: value for name, value in vars(model).items() if name.endswith("_")}
    assert {"init_params_", "is_trained_"} <= set(kept)
    for name, value in kept.items():
        plain = (str, bool, int, float, list, np.ndarray, dict, type(None))
        assert isinstance(value, plain), f"{name} is a {type(value).__name__}"


UNSUPPORTED = [
    "convert_legacy_save", "differential_abundance", "get_normalized_expression",
    "get_normalized_function_name", "get_var_names", "load_registry", "setup_annbatch", "transfer_fields",
]  # fmt: skip


def test_dir_hides_unsupported_members():
    listed = set(dir(trained()))
    assert not listed & set(UNSUPPORTED)
    assert {"predict", "train", "is_trained", "classes_", "adata"} <= listed
    assert set(dir(Celler)) - listed - FOR_DEVELOPERS == set(UNSUPPORTED)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_celler_with_an_unsupported_member(name):
    for owner in (trained(), Celler):
        assert not hasattr(owner, name)
        with pytest.raises(AttributeError, match=f"does not support scvi-tools' {name}"):
            getattr(owner, name)


@pytest.mark.parametrize("key", [None, "symbol"])
def test_genes_are_named_after_the_gene_key(key):
    """Shares of the counts, cell by cell in float64, averaged over the training cells."""
    adata = cells()
    adata.var["symbol"] = [f"symbol {i}" for i in range(80)]
    model = fit(adata, {"gene_key": key}, max_epochs=1)
    counts = adata.X.toarray().astype(np.float64)[model.train_indices_]
    shares = (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
    names = adata.var_names if key is None else adata.var[key]
    expected = pd.Series(shares, pd.Index(names, name=key), name="share")
    pd.testing.assert_series_equal(model.genes_, expected, check_dtype=False, rtol=1e-4)
