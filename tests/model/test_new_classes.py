"""New classes from another study: the old decisions stay, the study is no cue, and what a class takes is said."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from toy import cells, fit, truth

from celler.losses import CrossEntropy
from celler.model import Celler

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*are not of the new types:UserWarning"),
    pytest.mark.filterwarnings("ignore:the query is far from the reference:UserWarning"),
]

NAMES = np.array(["a", "b", "c", "new"])


def study(n_of_each: tuple[int, int, int, int], seed: int, shift: float = 0.0) -> ad.AnnData:
    """Four types with eight markers each, thrice as high as elsewhere; ``shift`` is that of all genes, in log units."""
    rng = np.random.default_rng(seed)
    mean = np.full((4, 120), 2.0)
    for k in range(4):
        mean[k, 8 * k : 8 * k + 8] *= 3
    mean *= np.exp(np.random.default_rng(9).normal(0, shift, 120))
    codes = np.repeat(np.arange(4), n_of_each)
    X = sparse.csr_matrix(rng.poisson(mean[codes] * rng.gamma(8, 0.125, (len(codes), 1))).astype(np.float32))
    obs = pd.DataFrame({"cell_type": NAMES[codes]}, index=[f"cell {i}" for i in range(len(codes))])
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(120)]))


@pytest.fixture(scope="module")
def reference() -> Celler:
    return fit(study((120, 80, 60, 0), 1), max_epochs=8)


def extend(given: ad.AnnData, reference: Celler, **options) -> Celler:
    model = Celler.load_query_data(given, reference, extend_labels=True)
    model.train(show_progress=False, **options)
    return model


def test_new_classes_leave_the_old_logits(reference):
    model = extend(study((0, 0, 0, 20), 2), reference)
    tokens = reference._state.tokenizer(study((5, 5, 5, 5), 3).X, np.arange(120, dtype=np.int32))
    with torch.no_grad():
        before, after = (one.module.eval()(*tokens).expert_logits for one in (reference, model))
    torch.testing.assert_close(after[..., :3], before, rtol=0, atol=1e-6)
    assert len(model.history) == 1
    assert 0.8 < model.history["validation_macro_f1"].iloc[0] <= 1


def test_new_classes_do_not_learn_their_study(reference):
    """Unlabelled cells of the other types show what the study is: without them the class takes 75 % of these cells."""
    given = study((60, 60, 60, 20), 2, shift=0.7)
    given.obs["cell_type"] = given.obs["cell_type"].where(given.obs["cell_type"] == "new", "Unknown")
    test = study((100, 100, 100, 30), 4, shift=0.7)
    truth = test.obs["cell_type"].to_numpy()
    others = test[truth != "new"].copy()
    before = (reference.predict(others) == truth[truth != "new"]).mean()
    labels = extend(given, reference).predict(test)
    assert (labels[truth != "new"] == "new").mean() < 0.06
    assert (labels == truth)[truth != "new"].mean() >= before - 0.05
    assert (labels == truth)[truth == "new"].mean() > 0.85


def test_new_classes_that_take_cells_of_others_are_reported(reference):
    """Cells of an old type under a new name."""
    given = study((60, 0, 0, 0), 2)
    given.obs["cell_type"] = "new"
    with pytest.warns(UserWarning, match=r"new types take cells of others.*'new' \d+%"):
        extend(given, reference)


def test_new_classes_that_most_unlabelled_cells_get_are_reported(reference):
    """Cells of the type itself or not: nobody knows yet, so the figure is said."""
    given = study((30, 30, 30, 80), 2)
    labels = np.full(170, "Unknown", object)
    labels[90:110] = "new"
    given.obs["cell_type"] = labels
    with pytest.warns(UserWarning, match=r"more of 150 unlabelled cells .* 'new' \d\d \(2\d%\), from 20"):
        extend(given, reference)


def test_new_classes_have_their_margin_and_are_reported(reference, monkeypatch):
    """Margins are chosen on the given cells, each held out once."""
    given = study((30, 30, 30, 20), 2)
    given.obs["cell_type"] = given.obs["cell_type"].where(given.obs["cell_type"] == "new", "Unknown")
    asked = []

    def margin_of(own, others, unlabelled):
        asked.append((len(own), len(others), len(unlabelled), (own > 0).mean(), (unlabelled < 0).mean()))
        return 2.0, 0.25

    plain = extend(given, reference)
    monkeypatch.setattr("celler.model._new_classes.margin_of", margin_of)
    with pytest.warns(UserWarning, match="new types take cells of others.*'new' 25%"):
        lowered = extend(given, reference)
    ((*counts, own, others),) = asked
    assert counts == [20, 0, 90]
    assert own > 0.8
    assert others > 0.9
    tokens = reference._state.tokenizer(study((5, 5, 5, 5), 3).X, np.arange(120, dtype=np.int32))
    with torch.no_grad():
        before, after = (one.module.eval()(*tokens).expert_logits for one in (plain, lowered))
    margin = torch.zeros_like(before)
    margin[..., 3] = 2
    margin[-1, :, 3] *= plain.module.evidence.share_of_bias(tokens.expression.sum(1))
    torch.testing.assert_close(after, before - margin, rtol=0, atol=1e-4)


def test_load_query_data_does_not_depend_on_the_order_of_rows(reference, monkeypatch):
    """Where not all cells are drawn for the shift of their study either."""
    given = study((40, 30, 20, 20), 2, shift=0.7)
    turned = given[np.random.default_rng(0).permutation(given.n_obs)].copy()
    factors = []
    for n in (100, 60):
        monkeypatch.setattr("celler.model._forward.SHIFT_CELLS", n)
        first, second = (
            Celler.load_query_data(one, reference, extend_labels=True)._state.old.factors for one in (given, turned)
        )
        np.testing.assert_array_equal(first, second)
        factors.append(first)
    assert not np.array_equal(*factors)


def test_new_classes_with_a_loss_train_the_network(reference):
    model = extend(study((0, 0, 0, 20), 2), reference, loss=CrossEntropy(), max_epochs=2, refit=False)
    assert len(model.history) == 2


def test_load_query_data_of_new_types_alone_warns():
    """What sets them apart may be their study: cells of it with other types would get the new labels."""
    reference, new = cells(300), cells(60, seed=1)
    new = new[truth(new) == truth(new)[0]].copy()
    new.obs["cell_type"] = "new type"
    with pytest.warns(UserWarning, match="0 cells are not of the new types new type. With fewer than 50"):
        Celler.load_query_data(new, fit(reference), extend_labels=True)
