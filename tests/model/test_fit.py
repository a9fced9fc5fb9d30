"""fit_network: split, curves, refit, and hard cells, where planted label errors surface."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from toy import cells, fit, trained, truth

from celler.losses import HDM, CrossEntropy, GInf
from celler.mining import HardCells, Replay
from celler.model import Celler, _fit
from celler.model._fit import hard_cell_table
from celler.model._state import HARD_CELL_COLUMNS
from celler.training import _run

N_PLANTED = 20


TRAIN = {"max_epochs": 12, "batch_size": 32, "train_size": 1.0, "loss": HDM(base=GInf(mean=-2.0))}


#: 400 cells are few: a fiftieth of them would be 8.
REPLAY = Replay(max_share=0.1)


def with_planted_errors() -> tuple[ad.AnnData, np.ndarray]:
    """400 cells of well separated types, and the rows of the twentieth of them with a wrong label."""
    adata = cells(400, depth=1.0)
    rows = np.sort(np.random.default_rng(0).choice(400, N_PLANTED, replace=False))
    adata.obs["given"] = adata.obs["cell_type"]
    codes = adata.obs["given"].cat.codes.to_numpy()
    adata.obs.iloc[rows, adata.obs.columns.get_loc("given")] = [f"type {(codes[row] + 2) % 4}" for row in rows]
    return adata, rows


@pytest.fixture(scope="module")
def planted() -> tuple[Celler, np.ndarray]:
    """A model of them and the names of the wrongly labelled cells."""
    adata, rows = with_planted_errors()
    return fit(adata, {"labels_key": "given"}, replay=REPLAY, **TRAIN), adata.obs_names[rows]


class Watched(HardCells):
    """Hard cells that remember each epoch's passes and what was replayed in it."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.epochs, self.passes = [], []

    def watch(self, index, labels, logits) -> None:
        self.passes.append(index.numpy())
        super().watch(index, labels, logits)

    def choose(self) -> None:
        self.epochs.append((self.passes, self.replayed))
        self.passes = []
        super().choose()


@pytest.fixture
def watched(monkeypatch) -> list[Watched]:
    """One for each training, in turn."""
    made = []

    def make(*arguments) -> Watched:
        made.append(Watched(*arguments))
        return made[-1]

    monkeypatch.setattr("celler.model._fit.HardCells", make)
    return made


def test_hard_cells_list_planted_errors(planted):
    model, names = planted
    is_planted = model.hard_cells_["cell"].isin(names)
    assert is_planted.sum() > 0.7 * N_PLANTED
    assert is_planted[: N_PLANTED // 2].mean() > 0.8
    assert is_planted[:N_PLANTED].mean() > 0.6
    assert len(is_planted) < 4 * N_PLANTED


def test_hard_cells_hold_label_and_prediction(planted):
    model, names = planted
    adata = model.adata
    table = model.hard_cells_
    assert tuple(table.columns) == HARD_CELL_COLUMNS
    assert table["cell"].is_unique
    np.testing.assert_array_equal(table["label"], adata.obs["given"][table["cell"]])
    assert (table["label"] != table["prediction"]).all()
    errors = table[table["cell"].isin(names)]
    assert (errors["prediction"] == adata.obs["cell_type"][errors["cell"]].to_numpy()).mean() > 0.9
    order = table.sort_values(["n_epochs", "confidence"], ascending=False, kind="stable")
    assert order.index.is_monotonic_increasing
    assert table["n_epochs"].between(1, TRAIN["max_epochs"]).all()
    assert table["confidence"].between(1 / 4, 1).all()
    assert table.groupby("prediction").size().max() <= REPLAY.n_per_class


def test_hard_cells_leave_the_replay_if_planted(planted):
    model, names = planted
    table = model.hard_cells_
    has_left = table["n_failed"] >= REPLAY.patience
    is_planted = table["cell"].isin(names)
    assert has_left[is_planted].mean() > 0.4
    assert has_left[~is_planted].mean() < 0.2
    assert table["n_failed"].max() <= TRAIN["max_epochs"] - 1, "none can be replayed in the first"


def test_history_of_replayed_shares(planted):
    history, by_class = planted[0].history, planted[0].replay_history
    assert list(by_class.columns) == [f"type {j}" for j in range(4)]
    assert list(by_class.index) == list(history.index)
    np.testing.assert_allclose(by_class.sum(axis=1) / 400, history["replayed_share"])
    assert history["replayed_share"].iloc[0] == 0
    assert history["replayed_share"].between(0, REPLAY.max_share).all()
    assert history["replayed_share"].max() == REPLAY.max_share
    # The planted cells alone would fill half of it, if they did not leave.
    assert history["replayed_share"].iloc[-4:].mean() < 0.09


def test_hard_cells_are_a_copy(planted):
    model, _ = planted
    before = model.hard_cells_
    before["cell"] = "mine"
    assert "mine" not in set(model.hard_cells_["cell"])


def test_hard_cell_table_worked_by_hand():
    """Most epochs first. Cell 7 was taken for either of the other types: it has one row, the surer."""
    hard, names = (
        HardCells(REPLAY, np.array([30, 30, 30])),
        pd.Index([f"cell {i}" for i in range(9)]),
    )
    probabilities = [[0.3, 0.6, 0.1], [0.1, 0.1, 0.8], [0.1, 0.7, 0.2], [0.1, 0.8, 0.1]]
    for _ in range(2):
        hard.watch(
            torch.tensor([7, 7, 4, 2]),
            torch.tensor([0, 0, 2, 1]),
            torch.tensor(probabilities).log(),
        )
        hard.choose()
    hard.watch(torch.tensor([4, 2]), torch.tensor([2, 1]), torch.tensor(probabilities[2:]).log())
    hard.watch(torch.tensor([3]), torch.tensor([0]), torch.tensor([[0.05, 0.0, 0.95]]).log())
    hard.choose()
    table = pd.DataFrame(hard_cell_table(hard, names.__getitem__, ("a", "b", "c")))
    assert list(table.itertuples(index=False, name=None)) == [
        ("cell 4", "c", "b", pytest.approx(0.7), 3, 2),
        ("cell 7", "a", "c", pytest.approx(0.8), 2, 0),
        ("cell 3", "a", "c", pytest.approx(0.95), 1, 0),
    ]


def test_run_shows_replayed_cells_twice(watched):
    model = fit(cells(), max_epochs=4)
    (hard,) = watched
    n_minibatches = {len(minibatches) for minibatches, _ in hard.epochs}
    assert n_minibatches == {-(-len(model.train_indices) // 64)}
    assert [len(replayed) > 0 for _, replayed in hard.epochs] == [False, True, True, True]
    for minibatches, replayed in hard.epochs:
        passes = np.sort(np.concatenate(minibatches))
        np.testing.assert_array_equal(passes, np.sort(np.r_[model.train_indices, replayed]))
        assert len(set(replayed)) == len(replayed)
    np.testing.assert_allclose(
        model.history["replayed_share"],
        [len(replayed) / len(model.train_indices) for _, replayed in hard.epochs],
    )


def test_run_without_replay(watched):
    model = fit(cells(), max_epochs=2, replay=None)
    assert watched == []
    assert not any("replayed" in name for name in model.history.columns)
    assert len(model.hard_cells_) == 0
    assert tuple(model.hard_cells_.columns) == HARD_CELL_COLUMNS


def test_fit_network_lists_hard_cells_of_the_refit(watched):
    adata = cells()
    model = fit(adata, refit=True, max_epochs=4)
    first, refit = watched
    assert first.class_counts.sum() < refit.class_counts.sum() == 300
    assert len(refit.epochs) == len(first.epochs) == len(model.history)
    shown = set(model.hard_cells_["cell"])
    assert shown <= set(adata.obs_names[refit.listed["index"]])
    assert not shown <= set(adata.obs_names[first.listed["index"]])
    n_replayed = [len(replayed) for _, replayed in first.epochs]
    np.testing.assert_allclose(model.history["replayed_share"] * first.class_counts.sum(), n_replayed)


def test_hard_cells_with_unlabelled_cells():
    """The index of a cell is its row, although the labelled ones alone are trained on."""
    adata = cells()
    adata.obs["given"] = adata.obs["cell_type"].astype(object)
    adata.obs.iloc[::3, adata.obs.columns.get_loc("given")] = np.nan
    table = fit(adata, {"labels_key": "given"}, max_epochs=3).hard_cells_
    assert len(table) > 5
    np.testing.assert_array_equal(table["label"], adata.obs["given"][table["cell"]])


def test_hard_cells_follow_the_seed():
    one, same, other = (fit(cells(), max_epochs=3, seed=seed).hard_cells_ for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, same, check_exact=True)
    assert not one.equals(other)


def test_hard_cells_before_training():
    adata = cells(60)
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(RuntimeError, match=r"not trained; call train\(\) first"):
        _ = Celler(adata).hard_cells_
    assert len(trained().hard_cells_) > 0


def test_run_with_every_option_of_replay():
    adata, _ = with_planted_errors()

    def model(**options) -> Celler:
        replay = replace(REPLAY, **options)
        return fit(adata.copy(), {"labels_key": "given"}, replay=replay, **TRAIN)

    few = model(n_per_class=1)
    assert few.hard_cells_["prediction"].is_unique
    assert 0 < few.history["replayed_share"].max() <= 4 / 400
    small = model(max_share=0.02).history["replayed_share"]
    assert small.max() == 0.02
    impatient, patient = (model(patience=n).history["replayed_share"].sum() for n in (1, 12))
    assert impatient < 0.9 * patient


def test_replay_history_names_replayed_classes_only():
    """The first epoch replays no cell of any class; the names are those of the labels."""
    adata = cells(200, depth=1.0)
    adata.obs["given"] = np.where(truth(adata) == "type 3", "odd {x}/3", "rest")
    one, four = (fit(adata, {"labels_key": "given"}, max_epochs=n) for n in (1, 4))
    assert one.replay_history.shape == (1, 0)
    assert sorted(four.replay_history.columns) == ["odd {x}/3", "rest"]
    assert not [name for name in four.history.columns if "odd" in name]


def macro_f1(adata, labels) -> float:
    return f1_score(truth(adata), labels, average="macro")


def test_fit_network_without_validation():
    model = fit(cells(), train_size=1.0, replay=None)
    assert list(model.history.columns) == ["train_loss", "is_kept"]
    assert len(model.validation_indices) == 0
    assert len(model.train_indices) == 300


class Astray:
    """Cross-entropy for some steps, then its opposite."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def __call__(self, logits, labels, class_counts, generator):
        self.n_steps -= 1
        return CrossEntropy()(logits, labels, class_counts) * (1 if self.n_steps >= 0 else -1)


@pytest.mark.parametrize(("early_stopping", "n_epochs"), [(True, 21), (False, 40)])
def test_fit_network_with_early_stopping(monkeypatch, early_stopping, n_epochs):
    scores = iter([0.9] + [0.1] * 40)
    monkeypatch.setattr(
        "celler.training._plan.macro_f1_with_error",
        lambda *_: (torch.tensor(next(scores)), torch.tensor(0.01)),
    )
    history = fit(cells(60), max_epochs=40, early_stopping=early_stopping).history
    assert len(history) == n_epochs


def test_fit_network_keeps_the_last_good_weights():
    adata = cells()
    # Six steps an epoch: two good ones, and six that lead away.
    how = {"max_epochs": 8, "batch_size": 45, "learning_rate": 0.1, "replay": None, "refit": False}
    model = fit(adata, loss=Astray(12), **how)
    score = model.history["validation_macro_f1"]
    is_good = score >= score.cummax() - model.history["validation_macro_f1_error"]
    held_out = adata[model.validation_indices]
    expected = score[is_good].iloc[-1]
    assert macro_f1(held_out, model.predict(held_out)) == pytest.approx(expected)
    assert expected > score.iloc[-1]


@pytest.mark.parametrize("n_steps", [1, 2, 3, 10, 20])
def test_fit_network_with_any_number_of_steps(n_steps):
    model = fit(cells(60), max_epochs=n_steps, batch_size=1000, train_size=1.0)
    assert len(model.history) == n_steps


def test_fit_network_splits_every_class():
    adata = cells()
    model = fit(adata, train_size=0.8)
    train, validation = model.train_indices, model.validation_indices
    np.testing.assert_array_equal(np.sort(np.r_[train, validation]), np.arange(300))
    sizes, held_out = (pd.Series(truth(adata)[rows]).value_counts() for rows in (slice(None), validation))
    for name, size in sizes.items():
        assert abs(held_out[name] - 0.2 * size) <= 0.5


def test_fit_network_with_both_sizes():
    model = fit(cells(), train_size=0.5, validation_size=0.2)
    assert abs(len(model.train_indices) - 150) <= 2
    assert abs(len(model.validation_indices) - 60) <= 2


def test_fit_network_counts_training_cells():
    adata = cells()
    model = fit(adata)
    expected = pd.Series(truth(adata)[model.train_indices]).value_counts().sort_index()
    np.testing.assert_array_equal(model.class_counts_, expected)
    np.testing.assert_array_equal(model.classes_, expected.index)


def test_fit_network_with_refit():
    adata = cells()
    model = fit(adata, refit=True)
    np.testing.assert_array_equal(model.train_indices, np.arange(300))
    assert model.class_counts_.sum() == 300
    assert 0 < len(model.validation_indices) < 60
    assert not model.predict(soft=True).equals(fit(cells(), refit=False).predict(soft=True))


def test_fit_network_refits_with_dropout(monkeypatch):
    """The first training ends in evaluation mode."""
    modes = []

    def watched(network, *arguments, **options):
        modes.append(network.training)
        return _run.fit(network, *arguments, **options)

    monkeypatch.setattr("celler.model._fit.fit", watched)
    assert not fit(cells(), refit=True).module.training
    assert modes == [True, True]


def calibration_error(probabilities: pd.DataFrame, labels: np.ndarray) -> float:
    """Expected calibration error over ten bins of equal width."""
    confidence = probabilities.max(axis=1).to_numpy()
    is_right = probabilities.idxmax(axis=1).to_numpy() == labels
    table = pd.DataFrame({"gap": is_right - confidence, "bin": (confidence * 10).astype(int)})
    bins = table.groupby("bin")["gap"]
    return float((bins.mean().abs() * bins.size()).sum() / len(table))


@pytest.mark.slow
def test_fit_network_calibrates_the_refitted_network():
    """The temperature is that of the first network; the second has seen a tenth more cells."""
    errors = {False: [], True: []}
    for seed in range(3):
        query = cells(1000, seed=100 + seed)
        for refit, found in errors.items():
            reference = cells(400, seed=seed)
            model = fit(reference, max_epochs=12, batch_size=32, refit=refit, seed=seed)
            probabilities = model.predict(query, soft=True, correct_shift=False)
            found.append(calibration_error(probabilities, truth(query)))
    assert np.mean(errors[True]) < np.mean(errors[False]) + 0.01
    assert max(errors[True]) < 0.1


def test_run_trains_beside_solved_parts_that_stay_as_they_are(monkeypatch):
    """Neither the gradient nor dropout reaches them, so that their loss is that of the labels they give."""
    seen = []

    def watching(network, *arguments, **options):
        seen.append((network.evidence.training, network.evidence.weight.requires_grad, network.head.training))
        return _run.fit(network, *arguments, **options)

    monkeypatch.setattr(_fit, "fit", watching)
    model = fit(cells(300), max_epochs=2, refit=True)
    assert seen == [(False, False, True)] * 2  # of both trainings
    assert model.module.evidence.weight.requires_grad
