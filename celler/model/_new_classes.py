"""New classes: a trained model learns them, decides among its own as before, and says what they take from others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import sparse
from scipy.special import softmax

from celler._utils._messages import counted, warn
from celler.data._augmentation import n_rehearsed
from celler.data._samplers import split
from celler.data._sources import InMemoryCells
from celler.model._fit import REFIT_BELOW, FittedNetwork, Loaders, Split, TrainingCells
from celler.model._state import ModelState
from celler.network._network import GeneTransformer
from celler.training._new_classes import (
    FEW_TAKEN,
    Expert,
    has_linear_ends,
    margin_of,
    read_experts,
    solve_columns,
    with_columns,
    write_columns,
)
from celler.training._plan import TrainingConfig, confusion_of, macro_f1_with_error

#: Gene-wise shift of another study, as a standard deviation of log factors, in which new classes are tried.
SHIFT = 0.5
ROUNDS = 2  #: of solutions with the unlabelled cells that the one before gave to no new class
FOLDS = 3  #: of the given cells, each held out once, from which margins of the new classes are chosen
Columns: TypeAlias = list[tuple[np.ndarray, np.ndarray]]


def learns_new_classes_alone(state: ModelState, config: TrainingConfig) -> bool:
    """Whether the new classes of an extended model are solved, rather than trained with all that it knows."""
    if state.old is None or not config.solves_new_classes:
        return False
    return len(state.old.teacher.classes) < len(state.tree.classes) and has_linear_ends(state.network)


@dataclass(frozen=True)
class _Task:
    """Cells of a source as the experts read them, and which classes are new ``(C,)``."""

    network: GeneTransformer
    experts: list[Expert]
    labels: np.ndarray
    is_new: np.ndarray

    def solved(self, rows: np.ndarray, free: np.ndarray) -> tuple[_Task, Columns]:
        """Solve for the labelled cells ``rows``, then with unlabelled ``free`` ones that seem of no new class."""
        others = np.empty(0, np.int64)
        for _ in range(1 + ROUNDS * (len(free) > 0)):
            task, columns = self._solved_once(rows, others)
            others = free[task.probabilities(free)[:, self.is_new].sum(axis=1) < 0.5]
        return task, columns

    def _solved_once(self, rows: np.ndarray, others: np.ndarray) -> tuple[_Task, Columns]:
        """Solve for the labelled cells ``rows`` and unlabelled ``others``, each with its likeliest old class."""
        used, found, columns = np.concatenate([rows, others]), [], []
        for expert in self.experts:
            guessed = np.where(self.is_new, -np.inf, expert.logits[others]).argmax(axis=1)
            labels = np.concatenate([self.labels[rows], guessed])
            counts = np.bincount(labels, minlength=len(self.is_new)).clip(min=1)
            importance = len(labels) / (len(counts) * counts[labels])
            columns.append(solve_columns(expert.of(used), self.is_new, labels, importance))
            found.append(with_columns(expert, self.is_new, *columns[-1]))
        return replace(self, experts=found), columns

    def margins(self, n_given: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Margins of the new classes ``(K,)``, and the share of other cells that each takes without one ``(K,)``.

        They are chosen on the first ``n_given`` cells, the real ones; all others are generated, and told apart easily.
        """
        codes, every, given = np.flatnonzero(self.is_new), np.arange(len(self.labels)), self.labels[:n_given]
        if np.isin(given, codes).all():  # no other cell of their study shows what they take
            return np.zeros(len(codes)), np.zeros(len(codes))
        gaps, fold = np.zeros((n_given, len(codes))), np.full(len(self.labels), FOLDS)
        for label in np.unique(given):  # each fold has its share of each class
            own = np.flatnonzero(given == label)
            fold[rng.permutation(own)] = np.arange(len(own)) % FOLDS
        for k in range(FOLDS):
            kept, held_out = every[fold != k], np.flatnonzero(fold == k)
            is_free = self.labels[kept] < 0
            logits = self.solved(kept[~is_free], kept[is_free])[0].logits(held_out)
            for j, code in enumerate(codes):
                gaps[held_out, j] = logits[:, code] - np.delete(logits, code, axis=1).max(axis=1)
        found = [
            margin_of(*(gaps[part, j] for part in (given == code, (given >= 0) & (given != code), given < 0)))
            for j, code in enumerate(codes)
        ]
        margins, taken = np.array(found).T
        return margins, taken

    def lowered(self, margins: np.ndarray) -> _Task:
        """Lower the logits of the new classes by their margins ``(K,)``."""
        of_all = np.zeros(len(self.is_new), np.float32)
        of_all[self.is_new] = margins
        return replace(self, experts=[replace(expert, logits=expert.logits - of_all) for expert in self.experts])

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Joint logits ``(n, C)`` of some cells."""
        stacked = torch.as_tensor(np.stack([expert.logits[rows] for expert in self.experts]))
        return np.asarray(self.network.output_of(stacked, stacked[0]).logits)

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities ``(n, C)`` of some cells."""
        return np.asarray(softmax(self.logits(rows), axis=1))

    def taken(self, rows: np.ndarray) -> np.ndarray:
        """Return the share of other classes' cells among ``rows`` that each new class takes ``(K,)``.

        Each other class weighs the same.
        """
        labels, found = self.labels[rows], self.logits(rows).argmax(axis=1)
        counts = np.bincount(labels, minlength=len(self.is_new)).clip(min=1)
        shares = []
        for code in np.flatnonzero(self.is_new):
            is_other = labels != code
            weight = 1 / counts[labels[is_other]]
            shares.append(weight @ (found[is_other] == code) / max(weight.sum(), 1e-9))
        return np.array(shares)


def fit_new_classes(
    state: ModelState, network: GeneTransformer, cells: TrainingCells, how: Split, config: TrainingConfig
) -> FittedNetwork:
    """Learn the new classes of an extended model from its cells; see :meth:`celler.model.Celler.load_query_data`."""
    assert state.old is not None
    assert isinstance(cells.source, InMemoryCells)
    network.to(config.device)
    source, labels = cells.source, cells.source.labels
    labelled = np.flatnonzero(labels >= 0)
    options: dict[str, Any] = {
        "train_size": how.train_size,
        "validation_size": how.validation_size,
        "seed": config.seed,
    }
    train, validation = (labelled[part] for part in split(labels[labelled], max_validation=None, **options))
    loaders = Loaders(cells, state.tokenizer, config)
    is_new = ~np.isin(np.arange(len(state.tree.classes)), state.old.teacher.classes)
    every = loaders.all_of(np.arange(len(source)))
    task, free = _Task(network, read_experts(network, every, config.precision), labels, is_new), labels < 0
    n_given = len(source) - int(n_rehearsed(state.old.fitted.class_counts).sum())
    margins, taken = task.margins(n_given, np.random.default_rng(config.seed))
    solved, columns = task.solved(train, np.flatnonzero(free))
    solved = solved.lowered(margins)
    curves = _curves(solved, train, validation)
    if len(validation) and (len(labelled) < REFIT_BELOW if how.refit is None else how.refit):
        train = labelled
        columns = task.solved(train, np.flatnonzero(free))[1]
    write_columns(network, is_new, [(weight, bias - margins) for weight, bias in columns])
    held_out = validation if len(validation) else labelled
    shifted = _shifted(task, source, held_out, loaders).taken(np.arange(len(held_out)))
    # Also what a margin averts: predict undoes the shift of other cells, which moves them by about as much.
    names, taken = np.array(state.tree.classes)[is_new], np.max([taken, solved.taken(held_out), shifted], axis=0)
    _report(names, taken)
    found = solved.logits(np.flatnonzero(free)).argmax(axis=1)
    n_own, n_free = (np.bincount(each, minlength=len(is_new))[is_new] for each in (labels[labelled], found))
    is_unsaid = taken <= FEW_TAKEN
    _report_free(names[is_unsaid], n_own[is_unsaid], n_free[is_unsaid], len(found))
    counts = np.bincount(labels[train], minlength=len(is_new))
    return FittedNetwork(
        train, validation, counts, state.old.fitted.decision, curves, None, state.old.fitted.class_prior
    )


def _curves(task: _Task, train: np.ndarray, validation: np.ndarray) -> dict[str, list[float]]:
    """Return the history of a solution: one row."""

    def loss(rows: np.ndarray) -> float:
        of_label = task.probabilities(rows)[np.arange(len(rows)), task.labels[rows]]
        return float(-np.log(of_label.clip(min=1e-12)).mean())

    curves = {"train_loss": [loss(train)]}
    if len(validation):
        confusion = confusion_of(torch.as_tensor(task.logits(validation)), torch.as_tensor(task.labels[validation]))
        macro_f1, error = macro_f1_with_error(confusion)
        curves |= {"validation_loss": [loss(validation)], "validation_macro_f1": [float(macro_f1)]}
        curves |= {"validation_macro_f1_error": [float(error)]}
    return curves


def _shifted(task: _Task, source: InMemoryCells, rows: np.ndarray, loaders: Loaders) -> _Task:
    """Return some cells as another study would measure them: each gene of all classes times a random factor."""
    rng = np.random.default_rng(loaders.config.seed)
    X = sparse.csr_matrix(source.X[rows] @ sparse.diags_array(np.exp(rng.normal(0, SHIFT, source.n_genes))))
    shifted = InMemoryCells(X.astype(np.float32), source.labels[rows], source.target_sums[rows])
    every = replace(loaders, cells=loaders.cells._replace(source=shifted)).all_of(np.arange(len(rows)))
    return replace(task, experts=read_experts(task.network, every, loaders.config.precision), labels=shifted.labels)


def _report(names: np.ndarray, taken: np.ndarray) -> None:
    """Warn of new classes that take many cells of others."""
    found = [f"{str(name)!r} {share:.0%}" for name, share in zip(names, taken, strict=True) if share > FEW_TAKEN]
    if found:
        warn(
            "new types take cells of others, as held-out cells of these, of their study or shifted as in another one, "
            f"show: {', '.join(found)}. Add cells of the types that they resemble, labelled or not, or train anew on "
            "all cells."
        )


def _report_free(names: np.ndarray, n_own: np.ndarray, n_free: np.ndarray, n_cells: int) -> None:
    """Warn of new classes with more of ``n_cells`` unlabelled cells, ``n_free (K,)``, than labelled ones, ``n_own``."""
    found = [
        f"{str(name)!r} {free:,} ({free / n_cells:.0%}), from {own:,} labelled"
        for name, own, free in zip(names, n_own, n_free, strict=True)
        if free > max(own, FEW_TAKEN * n_cells)
    ]
    if found:
        warn(
            f"new types get more of {counted(n_cells, 'unlabelled cells')} than they were learned from: "
            f"{'; '.join(found)}. Look at some of these by markers: a new type may take cells of one that it resembles."
        )
