"""An encoder learns from pseudo-cells: its two losses written out, and what it learns of six toy types."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from celler.data._pseudo_cells import CellProfiles, PseudoCellLoader, Simulation
from celler.losses import HDM, CrossEntropy, GInf
from celler.network._config import NetworkConfig
from celler.network._encoders import BaseEncoder
from celler.network._heads import PanelDecoder, TypeHead
from celler.training._plan import PretrainingConfig
from celler.training._profiles import ProfilePlan, ProfileTasks, fit_profiles, rescaled_without

N_GENES = 60


@pytest.fixture
def profiles(rng) -> CellProfiles:
    """Six types in two data sets, which share the profiles of the first three types but for noise."""
    share = rng.dirichlet(np.full(N_GENES, 0.5), 3)
    share = np.concatenate([share, 0.8 * share + 0.2 * rng.dirichlet(np.ones(N_GENES), 3)])
    genes = pd.Index([f"gene {i}" for i in range(N_GENES)])
    return CellProfiles(share.astype(np.float32), genes, np.array(list("abcabc"), object), np.repeat([0, 1], 3))


def new_encoder(seed: int = 0) -> BaseEncoder:
    config = NetworkConfig(n_genes=N_GENES, n_classes=1, encoder="base", d_model=16, n_latents=2, n_heads=4)
    torch.manual_seed(seed)
    return BaseEncoder(config)


def config(**options) -> PretrainingConfig:
    how = {"max_epochs": 4, "batch_size": 64, "learning_rate": 1e-2, "show_progress": False}
    return PretrainingConfig(**how | options)


def loader(profiles: CellProfiles, **options) -> PseudoCellLoader:
    how = {"n_minibatches": 25, "batch_size": 64, "mask_ratio": 0.15, "seed": 0} | options
    simulation = Simulation(depth=(200, 2000), shift=0.2, hidden=0.1, panel=(N_GENES, N_GENES + 1))
    return PseudoCellLoader(profiles, simulation, **how)


def learned(profiles: CellProfiles, tasks: ProfileTasks | None = None, **options):
    encoder = new_encoder()
    head, curves = fit_profiles(encoder, loader(profiles), tasks or ProfileTasks(), config(**options))
    return encoder, head, curves


def test_rescaled_without_by_hand():
    """Counts 1, 3, 6 and 0 per 10: without the 3, the others get the 10 of the cell."""
    expression = torch.tensor([[1000.0, 3000.0, 6000.0, 0.0]]).log1p()
    is_hidden = torch.tensor([[False, True, False, True]])
    expected = torch.tensor([[1 / 7 * 1e4, 0.0, 6 / 7 * 1e4, 0.0]]).log1p()
    torch.testing.assert_close(rescaled_without(expression, is_hidden), expected)
    nothing = torch.zeros_like(is_hidden)
    torch.testing.assert_close(rescaled_without(expression, nothing), expression)
    assert not rescaled_without(expression, ~nothing).any()


def test_type_head_is_a_cosine(rng):
    head = TypeHead(4, 5)
    x = torch.as_tensor(rng.normal(size=(3, 5)), dtype=torch.float32)
    expected = 16 * nn.functional.cosine_similarity(x[:, None], head.vectors[None], dim=2)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head(7 * x), expected)


def test_panel_decoder_predicts_the_genes_of_its_panel(rng):
    """Each as in a panel of all, from embedding and number of expressed genes."""
    torch.manual_seed(0)
    decoder = PanelDecoder(9, 4)
    with torch.no_grad():
        decoder.gene.normal_()
        decoder.gene_bias.normal_()
    embedding = torch.as_tensor(rng.normal(size=(3, 4)), dtype=torch.float32)
    n, genes = torch.tensor([5, 0, 7]), torch.tensor([8, 2, 5])
    every = decoder(embedding, n, torch.arange(9))
    torch.testing.assert_close(decoder(embedding, n, genes), every[:, genes])
    for cell, gene in ((0, 1), (2, 8)):
        vector = decoder.cell(torch.cat([embedding[cell], n[cell : cell + 1].float().log1p() / 5]))
        torch.testing.assert_close(every[cell, gene], vector @ decoder.gene[gene] + decoder.gene_bias[gene])
    assert (decoder(embedding, n + 3, genes) - every[:, genes]).abs().max() > 1e-4


def plan_of(profiles: CellProfiles, tasks: ProfileTasks) -> ProfilePlan:
    torch.manual_seed(0)
    return ProfilePlan(new_encoder(), profiles, tasks, config())


def test_training_step_matches_the_losses_written_out(profiles):
    """Cross-entropy among the types of a cell's data set, plus a weight times the error of the hidden values."""
    plan, cells = plan_of(profiles, ProfileTasks(CrossEntropy(), 0.7)), loader(profiles)._minibatch(0)
    actual = plan.training_step(cells, 0)
    x, hidden = cells.expression.double(), cells.is_hidden
    linear = torch.where(hidden, 0.0, x.exp() - 1)
    seen = (1 + linear * 1e4 / linear.sum(1, keepdim=True)).log().float()
    embedding = plan.encoder.embed_panel(cells.genes, seen)
    logits = plan.head(embedding)
    of_cells = []
    for cell, code in enumerate(cells.types.tolist()):
        own = [k for k in range(6) if k // 3 == code // 3]
        of_cells.append(torch.logsumexp(logits[cell, own], 0) - logits[cell, code])
    value = plan.decoder(embedding, (seen > 0).sum(1), cells.genes)
    error = (value[hidden] - cells.expression[hidden]).square().mean()
    torch.testing.assert_close(actual, torch.stack(of_cells).mean() + 0.7 * error, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [HDM(n_hard=20), HDM(n_hard=1), GInf(), CrossEntropy()], ids=repr)
def test_training_step_ignores_the_types_of_other_datasets(profiles, loss):
    """Whatever their vectors, the loss of a data set's cells and its gradient are the same."""
    plan, cells = plan_of(profiles, ProfileTasks(loss, 0.0)), loader(profiles)._minibatch(0)
    of_first = cells.types < 3
    cells = type(cells)(cells.expression[of_first], cells.genes, cells.types[of_first], cells.is_hidden[of_first])
    losses, gradients = [], []
    for _ in range(2):
        losses.append(plan.training_step(cells, 0))
        plan.zero_grad()
        losses[-1].backward()
        gradients.append(plan.encoder.gene.grad.clone())
        assert not plan.head.vectors.grad[3:].any()
        with torch.no_grad():
            plan.head.vectors[3:] = plan.head.vectors[:3] + 0.01
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_training_step_leaves_out_cells_without_counts(profiles):
    plan, cells = plan_of(profiles, ProfileTasks(CrossEntropy(), 1.0)), loader(profiles)._minibatch(0)
    empty = cells._replace(expression=torch.cat([cells.expression, torch.zeros(5, N_GENES)]))
    empty = empty._replace(types=torch.cat([cells.types, torch.zeros(5, dtype=torch.long)]))
    empty = empty._replace(is_hidden=torch.cat([cells.is_hidden, torch.ones(5, N_GENES, dtype=torch.bool)]))
    torch.testing.assert_close(plan.training_step(empty, 0), plan.training_step(cells, 0))


def test_fit_profiles_learns_the_types(profiles):
    """Those of cells that it has not seen, to which chance gives a third."""
    encoder, head, curves = learned(profiles)
    assert set(curves) == {"train_loss", "masked_error", "accuracy"}
    assert len(curves["accuracy"]) == 4
    assert curves["accuracy"][-1] > 0.85
    assert curves["masked_error"][-1] < 0.7 * curves["masked_error"][0]
    cells = loader(profiles, seed=99, batch_size=600)._minibatch(0)
    is_same = torch.as_tensor(profiles.is_same_dataset)[cells.types]
    with torch.no_grad():
        logits = head(encoder.embed_panel(cells.genes, cells.expression)).masked_fill(~is_same, -torch.inf)
    assert (logits.argmax(1) == cells.types).double().mean() > 0.85


def test_fit_profiles_depends_on_the_seed_alone(profiles):
    (one, head, curves), (same, other_head, other_curves) = (learned(profiles, max_epochs=1) for _ in range(2))
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, same.state_dict()[name]), name
    assert torch.equal(head.vectors, other_head.vectors)
    assert curves == other_curves
    other, _, _ = learned(profiles, max_epochs=1, seed=1)
    assert not torch.equal(one.gene, other.gene)


def test_fit_profiles_leaves_the_random_state(profiles):
    encoder = new_encoder()
    before = torch.get_rng_state()
    fit_profiles(encoder, loader(profiles, n_minibatches=1), ProfileTasks(), config(max_epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_profiles_without_the_masked_task(profiles):
    """It sees all values, and predicts none."""
    with_task, _, _ = learned(profiles, max_epochs=1)
    without, _, curves = learned(profiles, ProfileTasks(masked_weight=0.0), max_epochs=1)
    assert not torch.equal(with_task.gene, without.gene)
    assert curves["masked_error"] == [0.0]


def test_training_step_without_the_masked_task_sees_all_values(profiles):
    plan, cells = plan_of(profiles, ProfileTasks(CrossEntropy(), 0.0)), loader(profiles)._minibatch(0)
    other = cells._replace(is_hidden=~cells.is_hidden)
    assert torch.equal(plan.training_step(other, 0), plan.training_step(cells, 0))
    masked = plan_of(profiles, ProfileTasks(CrossEntropy(), 1.0))
    assert (masked.training_step(other, 0) - masked.training_step(cells, 0)).abs() > 1e-3
