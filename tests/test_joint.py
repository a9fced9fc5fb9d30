"""Training with the masked task beside the labels, and how the experts share the say."""

from itertools import islice

import numpy as np
import pytest
import torch
from test_pretraining import BRIEF
from toy import SMALL, assert_close, cells, fit, pretrained, truth

from celler.losses import CrossEntropy
from celler.model import Celler
from celler.network._heads import GeneDecoder
from celler.network._network import NetworkOutput, encoder_share
from celler.training._masked import MaskedLoss, MaskedTask, endless
from celler.training._plan import TrainingConfig, TrainingPlan, parameter_groups


def few(adata, n=5):
    """``adata`` with a column in which all but ``n`` cells of each type have no label."""
    labels = adata.obs["cell_type"].astype(object)
    adata.obs["few"] = labels.where(labels.index.isin(labels.groupby(labels).head(n).index), None)
    return adata


def joint(adata, weight=1.0, **options):
    return fit(few(adata), {"labels_key": "few"}, masked_weight=weight, **options)


# ---- the masked task ----


def test_a_step_adds_the_weighted_masked_loss():
    model = pretrained(setup={"labels_key": "cell_type"}, max_epochs=1)
    seen = []
    decoder, encoder = model._state.pretrained.decoder, model.module.encoder

    def record(minibatch):
        seen.append(minibatch)
        return minibatch

    model.adata.obs["few"] = None
    minibatches = masked_minibatches(model)
    task = MaskedTask(decoder, map(record, minibatches), weight=2.5)
    labels, counts = torch.tensor([0, 1, 2]), np.array([5.0, 5.0, 5.0, 5.0])
    tokens = model._state.tokenizer(model.adata.X[:3], np.arange(80, dtype=np.int32))
    model.module.eval()
    losses = []
    for masked_task in (None, task):
        config = TrainingConfig(1, 3, loss=CrossEntropy(), masked_task=masked_task, replay=None)
        plan = TrainingPlan(model.module, counts, config)
        losses.append(plan.training_step((tokens, labels, labels, None), 0).item())
    expected, _ = MaskedLoss(encoder, decoder)(seen[0])
    assert losses[1] - losses[0] == pytest.approx(2.5 * expected.item(), rel=1e-4)


def masked_minibatches(model):
    from celler.model._pretrain import masked_loaders, unlabelled_cells
    from celler.training._masked import PretrainingConfig

    return masked_loaders(
        model._state,
        unlabelled_cells(model._state, model._registered, None),
        0.0,
        PretrainingConfig(1, 32),
    )[0]


def test_its_minibatches_never_end_and_differ_by_epoch():
    minibatches = masked_minibatches(pretrained(max_epochs=1))
    n = len(minibatches)
    first, second = (list(islice(endless(minibatches), 2 * n)) for _ in range(2))
    assert len(first) == 2 * n
    hidden = [np.concatenate([m.gene_ids[:, 0] for m in part]) for part in (first[:n], first[n:])]
    assert not np.array_equal(*hidden)
    assert len(second) == 2 * n


def test_the_decoder_is_trained_along_and_its_biases_are_not_decayed():
    model = pretrained(max_epochs=1, setup={"labels_key": "cell_type"})
    decoder = GeneDecoder(model.module.config)
    config = TrainingConfig(1, 32, masked_task=MaskedTask(decoder, [], 1.0))
    groups = parameter_groups(model.module, config)
    free = {id(p) for group in groups if "weight_decay" in group for p in group["params"]}
    of_all = {id(p) for group in groups for p in group["params"]}
    assert {id(p) for p in decoder.parameters()} <= of_all
    assert id(decoder.gene_bias) in free
    assert id(decoder.gene) not in free


def test_the_unlabelled_cells_change_what_is_learned():
    query = cells(40, seed=2)
    adata, others = few(cells()), few(cells())
    is_free = others.obs["few"].isna().to_numpy()
    X = others.X.toarray()
    X[is_free] = X[is_free][:, ::-1]
    others.X = type(others.X)(X)
    options = {"setup": {"labels_key": "few"}, "refit": True}
    for weight, is_equal in ((0.0, True), (1.0, False)):
        soft = [
            fit(a, masked_weight=weight, **options).predict(query, soft=True)
            for a in (adata, others)
        ]
        assert soft[0].equals(soft[1]) is is_equal


@pytest.mark.parametrize("encoder", ["additive", "latent", "transformer"])
def test_same_seed_same_labels_and_the_curve_falls(encoder):
    query = cells(40, seed=2)
    models = [joint(cells(), network={"encoder": encoder}, max_epochs=8) for _ in range(2)]
    first, second = (model.predict(query, soft=True) for model in models)
    assert first.equals(second)
    curve = models[0].history["masked_loss"]
    assert len(curve) == 8
    assert curve.iloc[-1] < curve.iloc[0]
    assert "masked_loss" not in fit(cells(), max_epochs=1).history


def test_it_helps_where_labels_are_few():
    adata = few(cells(1500), 3)
    scores = []
    for weight in (0.0, 1.0):
        model = fit(adata, {"labels_key": "few"}, masked_weight=weight, max_epochs=150, refit=True)
        is_right = model.predict(adata) == truth(adata)
        scores.append(is_right.mean())
    assert scores[1] > scores[0] + 0.02


def test_a_model_trained_so_knows_expression_and_is_saved(tmp_path):
    query = cells(40, seed=2)
    model = joint(cells(), max_epochs=2)
    assert model.pretraining_history is None
    assert model.predict_expression(query).shape == query.shape
    model.save(tmp_path)
    loaded = Celler.load(tmp_path)
    assert_close(loaded.predict(query, soft=True), model.predict(query, soft=True))
    np.testing.assert_allclose(
        loaded.predict_expression(query), model.predict_expression(query), rtol=1e-4
    )


def test_after_pretraining_its_decoder_goes_on():
    model = pretrained(few(cells()), {"labels_key": "few"}, max_epochs=3)
    before, history = model._state.pretrained.decoder, model.pretraining_history
    weights = before.gene.detach().clone()
    model.train(**BRIEF, masked_weight=1.0, learning_rate=1e-12, refit=False)
    torch.testing.assert_close(model._state.pretrained.decoder.gene, weights)
    assert model._state.pretrained.decoder is not before
    assert model.pretraining_history.equals(history)


def test_what_the_weight_may_be(tmp_path):
    with pytest.raises(ValueError, match=r"masked_weight=-1.0 was given; 0 or more"):
        joint(cells(), -1.0)
    reference, new = fit(cells()), cells(60, seed=3)
    new.obs["cell_type"] = "new"
    extended = Celler.load_query_data(new, reference, extend_labels=True)
    with pytest.raises(ValueError, match="learns its genes from a registered AnnData"):
        extended.train(masked_weight=1.0, show_progress=False)


# ---- the experts' shares ----


def test_logits_are_the_weighted_mean(rng):
    experts = torch.as_tensor(rng.normal(size=(2, 5, 3)))
    embedding = torch.zeros(5, 2)
    torch.testing.assert_close(NetworkOutput(experts, embedding).logits, experts.mean(0))
    expected = 0.2 * experts[0] + 0.8 * experts[1]
    torch.testing.assert_close(NetworkOutput(experts, embedding, 0.2).logits, expected)
    torch.testing.assert_close(NetworkOutput(experts[:1], embedding, 0.2).logits, experts[0])


def test_the_encoders_share_grows_with_the_cells():
    for knows_genes, least in ((False, 0.05), (True, 0.25)):
        shares = [encoder_share(n, knows_genes=knows_genes) for n in (0, 1000, 10**9)]
        np.testing.assert_allclose(shares, [least, (least + 0.5) / 2, 0.5], atol=1e-6)


def test_a_model_keeps_its_share(tmp_path):
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
