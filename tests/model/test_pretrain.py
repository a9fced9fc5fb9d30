"""Celler.pretrain: what it teaches, from which cells, and what is saved."""

import numpy as np
import pandas as pd
import pytest
from pretraining_cases import BRIEF
from scipy import sparse
from sklearn.metrics import f1_score
from toy import SMALL, assert_close, assert_unchanged, cells, fit, pretrained, snapshot, truth

from celler.model import Celler


def test_pretrain_learns_hidden_values():
    model = pretrained(cells(600, depth=1.0), max_epochs=30)
    history = model.pretraining_history
    assert list(history.columns) == ["train_loss", "validation_correlation", "validation_loss"]
    assert history["validation_loss"].min() < 0.8 * history["validation_loss"].iloc[0]
    assert history["validation_correlation"].max() > 0.5


@pytest.mark.parametrize("encoder", ["additive", "latent", "transformer"])
def test_train_starts_from_the_pretrained_encoder(encoder):
    """With a learning rate of next to nothing the encoder is still that of the pretraining."""
    adata = cells()
    model = pretrained(adata, {"labels_key": "cell_type"}, {"encoder": encoder}, max_epochs=1)
    before = model.get_latent_representation(adata)
    model.train(max_epochs=1, learning_rate=1e-12, refit=False, show_progress=False)
    after = model.get_latent_representation(adata, correct_shift=False)
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.slow
def test_pretrain_helps_with_few_labels():
    adata = cells(1500)
    labels = adata.obs["cell_type"].astype(object)
    keep = labels.groupby(labels).head(3).index
    adata.obs["few"] = labels.where(labels.index.isin(keep), np.nan)
    scores = []
    for is_pretrained in (False, True):
        Celler.setup_anndata(adata, "few")
        model = Celler(adata, **SMALL)
        if is_pretrained:
            model.pretrain(max_epochs=30, show_progress=False)
        model.train(max_epochs=60, show_progress=False)
        scores.append(f1_score(truth(adata), model.predict(adata), average="macro"))
    assert scores[1] > scores[0] + 0.02


def test_pretrain_without_labels():
    with_labels = pretrained(setup={"labels_key": "cell_type"})
    without = pretrained()
    query = cells(50, seed=1)
    np.testing.assert_array_equal(
        without.get_latent_representation(query), with_labels.get_latent_representation(query)
    )
    with pytest.raises(RuntimeError, match="not trained"):
        without.predict(query)


def test_pretrain_on_counts_or_logarithms():
    adata, log = cells(), cells()
    total = log.X.sum(axis=1)
    log.X = sparse.csr_matrix(np.log1p(log.X.toarray() / np.asarray(total).reshape(-1, 1) * 1e4))
    embeddings = [pretrained(a).get_latent_representation(cells(30, seed=2)) for a in (adata, log)]
    np.testing.assert_allclose(*embeddings, atol=2e-3)


def test_pretrain_on_more_cells():
    adata, more = cells(), cells(200, seed=3)
    before = snapshot(more)
    shuffled = more[:, ::-1].copy()
    both = [pretrained(adata.copy(), adata=other) for other in (more, shuffled)]
    query = cells(30, seed=2)
    np.testing.assert_array_equal(*(m.get_latent_representation(query) for m in both))
    alone = pretrained(adata.copy()).get_latent_representation(query)
    assert not np.allclose(both[0].get_latent_representation(query), alone)
    assert_unchanged(more, before)


def test_pretrain_twice():
    first, second = pretrained(), pretrained()
    query = cells(30, seed=2)
    embedding = first.get_latent_representation(query)
    np.testing.assert_array_equal(embedding, second.get_latent_representation(query))
    first.pretrain(**BRIEF)
    assert len(first.pretraining_history) == 4
    assert not np.allclose(first.get_latent_representation(query), embedding)


def test_pretrain_with_batches():
    adata = cells()
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    model = pretrained(adata, {"batch_key": "donor"}, max_epochs=5)
    decoder = model._state.pretrained.decoder
    assert decoder.batch.shape == (3, 32)
    assert decoder.batch[1:].abs().sum() > 0
    query = cells(30, seed=2)
    other = query.copy()
    other.obs["donor"] = "a"
    np.testing.assert_array_equal(model.get_latent_representation(query), model.get_latent_representation(other))
    assert not model.predict_expression(query).equals(model.predict_expression(other))


def test_save_after_pretrain(tmp_path):
    adata, query = cells(), cells(40, seed=2)
    model = pretrained(adata, {"labels_key": "cell_type"})
    model.save(tmp_path / "a")
    loaded = Celler.load(tmp_path / "a", adata)
    np.testing.assert_array_equal(loaded.get_latent_representation(query), model.get_latent_representation(query))
    pd.testing.assert_frame_equal(loaded.pretraining_history, model.pretraining_history)
    with pytest.raises(RuntimeError, match="not trained"):
        loaded.predict(query)
    model.train(max_epochs=2, refit=False, show_progress=False)
    model.save(tmp_path / "b")
    loaded = Celler.load(tmp_path / "b")
    assert_close(loaded.predict(query, soft=True), model.predict(query, soft=True))
    pd.testing.assert_frame_equal(loaded.predict_expression(query), model.predict_expression(query), rtol=1e-5)


def test_pretrain_after_training():
    model = fit(cells(), max_epochs=1)
    with pytest.raises(RuntimeError, match="pretrain first"):
        model.pretrain()
    with pytest.raises(RuntimeError, match="was not pretrained"):
        model.predict_expression(cells())


@pytest.mark.parametrize("validation_size", [-0.1, 1.0])
def test_pretrain_with_a_bad_validation_size(validation_size):
    with pytest.raises(ValueError, match=f"validation_size={validation_size}"):
        pretrained(validation_size=validation_size)


def test_pretrain_without_validation():
    model = pretrained(validation_size=0)
    assert list(model.pretraining_history.columns) == ["train_loss"]
