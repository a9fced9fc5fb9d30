"""Fine-tuning of an scGPT checkpoint: it learns, is kept, and a frozen encoder stays as it was."""

import anndata as ad
import numpy as np
import pytest
import torch
from scgpt_cases import SPECIAL, tensors, write_folder
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from toy import assert_close, assert_equal_frames, cells, truth

from celler.model import Celler

GENES = list(cells(10).var_names)
QUICK = {"max_epochs": 3, "batch_size": 64, "refit": False, "show_progress": False}
#: Weights that were drawn at random have more to learn than those of a real checkpoint.
FAR = QUICK | {"max_epochs": 12, "batch_size": 32, "learning_rate": 2e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scgpt")
    write_folder(path, GENES[::-1])
    return path


@pytest.fixture
def reference() -> ad.AnnData:
    adata = cells(300, depth=0.6)
    Celler.setup_anndata(adata, "cell_type")
    return adata


@pytest.fixture
def query() -> ad.AnnData:
    return cells(200, depth=0.6, seed=1)


def load(folder, adata, **options) -> Celler:
    return Celler.from_pretrained(folder, adata, precision="float32", **options)


def encoder_of(model) -> dict[str, torch.Tensor]:
    return {name: weights.clone() for name, weights in model.module.encoder.state_dict().items()}


def macro_f1(adata, labels) -> float:
    return f1_score(truth(adata), labels, average="macro")


@pytest.mark.parametrize("options", [{"evidence": False}, {"evidence": False, "head": "vgg"}, {}])
def test_train_fine_tunes_scgpt(folder, reference, query, options):
    model = load(folder, reference, **options)
    before = encoder_of(model)
    model.train(**FAR)
    assert macro_f1(query, model.predict(query)) > 0.75
    assert all((before[name] != after).any() for name, after in encoder_of(model).items())


def test_train_starts_from_the_checkpoint(folder, reference):
    model = load(folder, reference, evidence=False)
    before = encoder_of(model)
    model.train(**QUICK | {"max_epochs": 1, "learning_rate": 1e-6})
    for name, after in encoder_of(model).items():
        torch.testing.assert_close(after, before[name], atol=1e-4, rtol=0)


def test_train_with_a_frozen_encoder(folder, reference, query):
    model = load(folder, reference, freeze_encoder=True, evidence=False)
    before, plain = encoder_of(model), model.get_latent_representation(query)
    model.train(**QUICK | {"max_epochs": 20, "batch_size": 32})
    for name, after in encoder_of(model).items():
        torch.testing.assert_close(after, before[name], atol=0, rtol=0)
    np.testing.assert_allclose(model.get_latent_representation(query), plain, atol=1e-6)
    baseline = LogisticRegression(class_weight="balanced", max_iter=1000)
    baseline.fit(model.get_latent_representation(reference), truth(reference))
    expected_f1 = macro_f1(query, baseline.predict(plain))
    assert macro_f1(query, model.predict(query)) > expected_f1 - 0.1


def test_train_embeds_each_cell_once(folder, reference, monkeypatch):
    model = load(folder, reference, freeze_encoder=True)
    seen = []
    encode = type(model.module.encoder).forward

    def count(self, gene_ids, *others):
        seen.append(len(gene_ids))
        return encode(self, gene_ids, *others)

    monkeypatch.setattr(type(model.module.encoder), "forward", count)
    model.train(**QUICK | {"refit": True})
    assert sum(seen) == 300


def test_train_standardizes_the_embedding(folder, reference, query):
    model = load(folder, reference, freeze_encoder=True, evidence=False)
    embedding = model.get_latent_representation(reference)
    model.train(**QUICK)
    given = StandardScaler().fit(embedding).transform(model.get_latent_representation(query))
    with torch.no_grad():
        expected = model.module.head(torch.from_numpy(given)).argmax(1).numpy()
    np.testing.assert_array_equal(model.predict(query), model.classes_[expected])


def test_train_scgpt_twice(folder, reference, query):
    model = load(folder, reference, evidence=False)
    model.train(**QUICK)
    before, scale = model.predict(query, soft=True), model.module.standardize.scale.clone()
    model.train(**QUICK | {"max_epochs": 1, "learning_rate": 1e-7})
    torch.testing.assert_close(model.module.standardize.scale, scale, atol=0, rtol=0)
    assert np.abs(model.predict(query, soft=True) - before).to_numpy().max() < 0.05


@pytest.mark.parametrize("is_frozen", [False, True])
def test_save_after_fine_tuning(folder, reference, query, tmp_path, is_frozen):
    model = load(folder, reference, freeze_encoder=is_frozen)
    model.train(**QUICK)
    model.save(tmp_path / "own")
    loaded = Celler.load(tmp_path / "own")
    expected = model.predict(query, soft=True)
    assert_equal_frames(loaded.predict(query, soft=True), expected)
    embedding = model.get_latent_representation(query)
    np.testing.assert_array_equal(loaded.get_latent_representation(query), embedding)
    loaded.annotate(query)
    assert (query.obs["celler"].astype(str) == expected.idxmax(axis=1).to_numpy()).all()
    with pytest.raises(RuntimeError, match=r"from_pretrained\(scgpt_folder, adata\)\.train\(\)"):
        loaded.train()


def test_train_scgpt_with_the_same_seed(folder, reference, query):
    models = [load(folder, reference) for _ in range(2)]
    for model in models:
        model.train(**QUICK | {"max_epochs": 2})
    assert_equal_frames(*(model.predict(query, soft=True) for model in models))


def test_train_with_genes_outside_the_vocabulary(tmp_path, reference, query):
    state = tensors(70 + len(SPECIAL))
    write_folder(tmp_path, GENES[10:], state=state)
    share = reference.X[:, 10:].sum() / reference.X.sum()
    with pytest.warns(UserWarning, match=rf"70 of 80 genes .* carry {share:.0%} of .*other 10 are"):
        model = load(tmp_path, reference)
    model.train(**QUICK)
    part = Celler.from_pretrained(tmp_path, precision="float32")
    with pytest.warns(UserWarning, match="other 10 are not read"):
        vocabulary_model = part.get_latent_representation(reference)
    untrained = load_quietly(tmp_path, reference)
    np.testing.assert_allclose(untrained.get_latent_representation(reference), vocabulary_model, atol=1e-5)
    shown = model.predict(query[:, 10:], soft=True)
    assert_close(model.predict(query, soft=True), shown)


def test_train_with_symbols_in_a_column(folder, reference, query):
    expected = load(folder, reference).get_latent_representation(query)
    for adata in (reference, query):
        adata.var["symbol"] = GENES
        adata.var_names = [f"ENSG{i:011d}" for i in range(80)]
    Celler.setup_anndata(reference, "cell_type")
    with pytest.warns(UserWarning, match=r"names are those of adata.var\['symbol'\]"):
        model = load(folder, reference)
    np.testing.assert_allclose(model.get_latent_representation(query), expected, atol=1e-5)


def load_quietly(folder, adata) -> Celler:
    with pytest.warns(UserWarning, match="not read"):
        return load(folder, adata)


def test_from_pretrained_before_setup(folder, query):
    with pytest.raises(ValueError, match="setup_anndata"):
        load(folder, query)


def test_scgpt_model_cannot_be_extended(folder, reference, query):
    model = load(folder, reference)
    with pytest.raises(RuntimeError, match="has been pretrained"):
        model.pretrain()
    model.train(**QUICK | {"max_epochs": 1})
    with pytest.raises(ValueError, match="to which genes cannot be added"):
        Celler.load_query_data(query, model)
