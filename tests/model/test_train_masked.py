"""Celler.train with the masked task, and the encoder's weight in a model."""

import numpy as np
import pytest
import torch
from pretraining_cases import BRIEF, few
from toy import SMALL, assert_close, cells, fit, pretrained, truth

from celler.model import Celler
from celler.network._network import encoder_share

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*are not of the new types:UserWarning"),
    pytest.mark.filterwarnings("ignore:the query is far from the reference:UserWarning"),
]


def joint(adata, weight=1.0, **options):
    return fit(few(adata), {"labels_key": "few"}, masked_weight=weight, **options)


def test_train_masked_uses_the_unlabelled_cells():
    query = cells(40, seed=2)
    adata, others = few(cells()), few(cells())
    is_free = others.obs["few"].isna().to_numpy()
    X = others.X.toarray()
    X[is_free] = X[is_free][:, ::-1]
    others.X = type(others.X)(X)
    options = {"setup": {"labels_key": "few"}, "refit": True}
    for weight, is_equal in ((0.0, True), (1.0, False)):
        soft = [fit(a, masked_weight=weight, **options).predict(query, soft=True) for a in (adata, others)]
        assert soft[0].equals(soft[1]) is is_equal


@pytest.mark.parametrize("encoder", ["additive", "latent", "transformer"])
def test_train_masked_with_the_same_seed(encoder):
    query = cells(40, seed=2)
    models = [joint(cells(), network={"encoder": encoder}, max_epochs=8) for _ in range(2)]
    first, second = (model.predict(query, soft=True) for model in models)
    assert first.equals(second)
    curve = models[0].history["masked_loss"]
    assert len(curve) == 8
    assert curve.iloc[-1] < curve.iloc[0]
    assert "masked_loss" not in fit(cells(), max_epochs=1).history


@pytest.mark.slow
def test_train_masked_helps_with_few_labels():
    adata = few(cells(1500), 3)
    scores = []
    for weight in (0.0, 1.0):
        model = fit(adata, {"labels_key": "few"}, masked_weight=weight, max_epochs=150, refit=True)
        is_right = model.predict(adata) == truth(adata)
        scores.append(is_right.mean())
    assert scores[1] > scores[0] + 0.02


def test_train_masked_then_save(tmp_path):
    query = cells(40, seed=2)
    model = joint(cells(), max_epochs=2)
    assert model.pretraining_history is None
    assert model.predict_expression(query).shape == query.shape
    model.save(tmp_path)
    loaded = Celler.load(tmp_path)
    assert_close(loaded.predict(query, soft=True), model.predict(query, soft=True))
    np.testing.assert_allclose(loaded.predict_expression(query), model.predict_expression(query), rtol=1e-4)


def test_train_masked_after_pretrain():
    model = pretrained(few(cells()), {"labels_key": "few"}, max_epochs=3)
    before, history = model._state.pretrained.decoder, model.pretraining_history
    weights = before.gene.detach().clone()
    model.train(**BRIEF, masked_weight=1.0, learning_rate=1e-12, refit=False)
    torch.testing.assert_close(model._state.pretrained.decoder.gene, weights)
    assert model._state.pretrained.decoder is not before
    assert model.pretraining_history.equals(history)


def test_train_masked_with_a_bad_weight(tmp_path):
    with pytest.raises(ValueError, match=r"masked_weight=-1.0 was given; .* of at least 0"):
        joint(cells(), -1.0)
    reference, new = fit(cells()), cells(60, seed=3)
    new.obs["cell_type"] = "new"
    extended = Celler.load_query_data(new, reference, extend_labels=True)
    with pytest.raises(ValueError, match="learns its genes from a registered AnnData"):
        extended.train(masked_weight=1.0, show_progress=False)


def test_encoder_share_of_a_model(tmp_path):
    adata = cells()
    model = fit(adata, max_epochs=1)
    assert model.module.encoder_share == encoder_share(300, knows_genes=False)
    of_pretrained = pretrained(few(cells()), {"labels_key": "few"}, max_epochs=1)
    of_pretrained.train(**BRIEF)
    assert of_pretrained.module.encoder_share == encoder_share(20, knows_genes=True)
    model.save(tmp_path)
    loaded, query = Celler.load(tmp_path), cells(40, seed=2)
    assert loaded.module.encoder_share == model.module.encoder_share
    assert_close(loaded.predict(query, soft=True), model.predict(query, soft=True))
    new = cells(60, seed=3)
    new.obs["cell_type"] = "new"
    extended = Celler.load_query_data(new, model, extend_labels=True)
    assert extended.module.encoder_share == model.module.encoder_share
    single = Celler(adata, **SMALL, evidence=False)
    single.train(max_epochs=1, show_progress=False)
    assert single.predict(query).shape == (40,)
