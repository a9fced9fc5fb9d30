"""The plan: metrics against scikit-learn, the step against the losses' equations, and settings."""

import numpy as np
import pytest
import torch
from loss_cases import EVERY, NOISY, Problem, expected
from sklearn.metrics import f1_score, recall_score
from torch import nn
from toy import pretrained
from training_cases import config, network

from celler.losses import CrossEntropy
from celler.mining import HardCells, Replay
from celler.network._heads import GeneDecoder
from celler.training._masked import (
    MaskedTask,
)
from celler.training._plan import (
    TrainingConfig,
    TrainingPlan,
    confusion_of,
    macro_f1_with_error,
    parameter_groups,
)


def test_parameter_groups_of_a_decoder():
    model = pretrained(max_epochs=1, setup={"labels_key": "cell_type"})
    decoder = GeneDecoder(model.module.config)
    config = TrainingConfig(1, 32, masked_task=MaskedTask(decoder, [], 1.0))
    groups = parameter_groups(model.module, config)
    free = {id(p) for group in groups if "weight_decay" in group for p in group["params"]}
    of_all = {id(p) for group in groups for p in group["params"]}
    assert {id(p) for p in decoder.parameters()} <= of_all
    assert id(decoder.gene_bias) in free
    assert id(decoder.gene) not in free


def test_macro_f1_with_error_matches_scikit_learn(rng):
    """Seven classes, of which two have no cell; one of them is predicted all the same."""
    labels = rng.choice([0, 1, 2, 4, 5], size=60)
    logits = rng.normal(size=(60, 7))
    logits[np.arange(60), labels] += 1.5
    prediction, present = logits.argmax(1), np.unique(labels)
    macro_f1, error = macro_f1_with_error(confusion_of(torch.as_tensor(logits), torch.as_tensor(labels)))
    options = {"labels": present, "average": None, "zero_division": 0}
    assert macro_f1.item() == pytest.approx(f1_score(labels, prediction, **options).mean())
    support = np.array([(labels == j).sum() for j in present])
    recall = (recall_score(labels, prediction, **options) * support + 1) / (support + 2)
    variance = recall * (1 - recall) / (support + 2)
    assert error.item() == pytest.approx(np.sqrt(variance.sum()) / len(present))


def test_macro_f1_with_error_of_single_cells():
    """One cell a class, both right: (1 + 1) / (1 + 2) each, variance 2/27, error √(4/27) / 2."""
    macro_f1, error = macro_f1_with_error(torch.eye(2))
    assert macro_f1.item() == 1
    assert error.item() == pytest.approx(np.sqrt(4 / 27) / 2)


def plan_of(loss, cells, monkeypatch, hard_cells=None, **options) -> TrainingPlan:
    """A plan for a network whose two experts differ, out of the hands of a trainer."""
    model = network().eval()
    nn.init.normal_(model.evidence.weight, generator=torch.Generator().manual_seed(1))
    plan = TrainingPlan(model, cells[2], config(loss=loss, seed=7, **options), hard_cells)
    monkeypatch.setattr(plan, "log", lambda *_, **__: None)
    return plan


@pytest.mark.parametrize("loss", EVERY, ids=str)
def test_loss_of_sums_the_losses_and_the_l2_term(cells, loss, monkeypatch):
    """Noise is drawn for all experts at once, so that each has its own."""
    minibatch = next(iter(cells[0]))
    plan = plan_of(loss, cells, monkeypatch, evidence_l2=3.0)
    logits = plan.network(*minibatch.tokens).expert_logits.detach().double().numpy()
    labels, n_experts = minibatch.labels.numpy(), len(logits)
    noise = torch.randn(n_experts * 80, 4, generator=torch.Generator().manual_seed(7)).numpy()
    if loss.joins_experts:
        wanted = expected(loss, Problem(logits, labels, cells[2]))
    else:
        wanted = sum(
            expected(loss, Problem(logits[[e]], labels, cells[2]), noise[80 * e : 80 * (e + 1)])
            for e in range(n_experts)
        )
    table = plan.network.evidence.weight.detach().numpy().astype(float)
    penalty = 3.0 * (table**2).sum() / (2 * cells[2].sum())
    actual = plan.loss_of(minibatch).item()
    assert actual == pytest.approx(wanted.mean() + penalty, rel=1e-5)
    again = plan.loss_of(minibatch).item()
    assert (again == actual) == (loss not in NOISY), "each step draws anew"


def test_loss_of_a_callable_loss(cells, monkeypatch):
    """It is called once, with the logits of one expert after the other."""
    shapes = []

    def loss(logits, labels, class_counts, generator):
        shapes.append((*logits.shape, *labels.shape, *class_counts.shape))
        return CrossEntropy()(logits, labels, class_counts)

    minibatch = next(iter(cells[0]))
    values = [plan_of(each, cells, monkeypatch).loss_of(minibatch) for each in (loss, CrossEntropy())]
    assert torch.equal(*values)
    assert shapes == [(160, 4, 160, 4)]


def test_loss_of_shows_cells_to_the_replay(cells, monkeypatch):
    """The index in the source, the labels and the logits that the network predicts with."""
    minibatch = list(cells[0])[1]
    hard = HardCells(Replay(n_per_class=100, max_share=1.0), cells[2])
    plan = plan_of(CrossEntropy(), cells, monkeypatch, hard)
    plan.loss_of(minibatch)
    hard.choose()
    logits = plan.network(*minibatch.tokens).logits
    prediction, labels = logits.argmax(1).numpy(), minibatch.labels.numpy()
    is_wrong = prediction != labels
    assert 0 < is_wrong.sum() < 80
    found = np.sort(hard.found, order="index")
    np.testing.assert_array_equal(found["index"], 80 + np.flatnonzero(is_wrong))
    np.testing.assert_array_equal(found["label"], labels[is_wrong])
    np.testing.assert_array_equal(found["prediction"], prediction[is_wrong])
    confidence = logits.softmax(1).amax(1).detach().numpy()[is_wrong]
    np.testing.assert_allclose(np.exp(found["log_probability"]), confidence, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"n_members": 3}, {"encoder": "base", "head": "linear"}], ids=str)
def test_loss_of_what_learns_alone_has_the_same_gradient(cells, monkeypatch, options):
    """Experts that were solved do not learn: leaving them out of the pass changes no gradient."""
    minibatch, gradients = next(iter(cells[0])), []
    for is_left_out in (False, True):
        model = network(**options).eval()
        for part in [model.evidence, *([model.encoder, model.head] if model.sum is not None else [])]:
            part.requires_grad_(False)
        plan = TrainingPlan(model, cells[2], config(loss=CrossEntropy()))
        assert plan.learns_by_members
        plan.learns_by_members = is_left_out
        plan.loss_of(minibatch).backward()
        gradients.append({name: w.grad for name, w in model.named_parameters() if w.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("part", ["evidence", "head", "encoder"])
def test_learns_by_members_beside_a_part_that_learns(part):
    model = network(encoder="base", head="mlp")
    for each in (model.evidence, model.encoder, model.head):
        each.requires_grad_(False)
    assert model.learns_by_members
    getattr(model, part).requires_grad_(True)
    assert not model.learns_by_members
