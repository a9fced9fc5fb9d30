"""Knowledge: what a model that is extended keeps of its reference, and how it is trained beside new cells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import sparse

from celler.genes import selector
from celler.inputs import ExpressionReader, is_log
from celler.labels import LabelTree
from celler.loading import InMemorySource, Source
from celler.model.fitting import Fitted, TrainingCells, class_profile, training_source
from celler.rehearsal import draw_cells, n_rehearsed
from celler.shift import Profile
from celler.tokenizer import TARGET_SUM
from celler.training import Teacher


@dataclass(frozen=True)
class Knowledge:
    """What the reference model left, among the genes and classes of the extended model.

    fitted: of the reference. gene_map: ``(n_vars,)``, the model's gene of each column of the new cells, −1 for
        none. n_genes: of the extended model, whose first genes are the reference's.
    teacher: the reference's network, with the places of its classes among those of the extended model.
    """

    fitted: Fitted
    gene_map: np.ndarray
    n_genes: int
    teacher: Teacher

    def source(self, new: InMemorySource, *, is_log: bool, seed: int) -> InMemorySource:
        """The new cells, among the model's genes and as counts, and after them cells drawn of the old classes."""
        to_model = selector(self.gene_map, self.n_genes)
        X = new.X.astype(np.float32)
        X = sparse.csr_matrix((X.expm1() if is_log else X) @ to_model)
        profile = self._old_profile
        drawn, codes = draw_cells(
            profile, n_rehearsed(self.fitted.class_counts), np.random.default_rng(seed)
        )
        # A cell whose genes are a part of the model's carries that part of the counts.
        share = self._gene_share(X, new.labels)
        measured = ~np.isnan(profile.mean)
        targets = TARGET_SUM * np.concatenate(
            [
                np.full(len(new), share[self.gene_map[self.gene_map >= 0]].sum()),
                (measured @ share)[codes],
            ]
        )
        return InMemorySource(
            sparse.vstack([X, drawn], format="csr"),
            np.concatenate([new.labels, self.teacher.classes[codes]]),
            targets,
        )

    def complete(self, fitted: Fitted, source: Source) -> Fitted:
        """``fitted`` without the cells that were drawn, with the counts and profiles of the reference's cells."""
        assert isinstance(source, InMemorySource)  # the one that `source` made
        n_new = len(source) - int(n_rehearsed(self.fitted.class_counts).sum())
        train, validation = (
            rows[rows < n_new] for rows in (fitted.train_indices, fitted.validation_indices)
        )
        n_classes = len(fitted.class_counts)
        counts = np.bincount(source.labels[train], minlength=n_classes)
        counts[self.teacher.classes] += self.fitted.class_counts
        is_real = [name != "" for name in fitted.hard_cells["cell"]]
        hard_cells = {
            name: [value for value, real in zip(column, is_real, strict=True) if real]
            for name, column in fitted.hard_cells.items()
        }
        return replace(
            fitted,
            train_indices=train,
            validation_indices=validation,
            class_counts=counts,
            gene_share=self._gene_share(source.X[:n_new], source.labels[:n_new]),
            decision=self.fitted.decision,
            hard_cells=hard_cells,
            profile=self._profile(source, train, n_classes),
            novelty=None,  # it asks for cells of every class, and drawn ones are all alike
        )

    @property
    def _old_profile(self) -> Profile:
        """Of the reference's classes; means of genes that it lacks are NaN."""
        profile = self.fitted.profile
        assert profile is not None
        n_more = self.n_genes - profile.mean.shape[1]
        return Profile(
            np.pad(profile.mean, ((0, 0), (0, n_more)), constant_values=np.nan),
            profile.n_cells,
            np.pad(profile.dispersion, (0, n_more), constant_values=np.median(profile.dispersion)),
        )

    def _gene_share(self, X: sparse.csr_matrix, labels: np.ndarray) -> np.ndarray:
        """The reference's shares and, in the same unit, those of new genes: the sum exceeds 1 with them.

        So the genes of the reference keep the expression they had in a cell.
        """
        old = self.fitted.gene_share
        total = np.asarray(X[labels >= 0].sum(axis=0), dtype=np.float64).ravel()
        known = np.unique(self.gene_map[(self.gene_map >= 0) & (self.gene_map < len(old))])
        scale = old[known].sum() / max(total[known].sum(), 1e-9)
        return np.concatenate([old, total[len(old) :] * scale])

    def _profile(self, source: InMemorySource, train: np.ndarray, n_classes: int) -> Profile:
        """Means over old and new cells of each class, in counts per 10,000 of the reference's genes."""
        new, old = class_profile(source, train, n_classes, is_log=False), self._old_profile
        is_measured = np.zeros(self.n_genes, bool)
        is_measured[self.gene_map[self.gene_map >= 0]] = True
        scale = source.target_sums[0] / TARGET_SUM
        new_mean = np.where(is_measured & (new.n_cells[:, None] > 0), new.mean * scale, np.nan)
        old_mean = np.full_like(new_mean, np.nan)
        old_mean[self.teacher.classes] = old.mean
        n_old = np.zeros(n_classes)
        n_old[self.teacher.classes] = old.n_cells
        weight = np.stack(
            [np.isfinite(old_mean) * n_old[:, None], np.isfinite(new_mean) * new.n_cells[:, None]]
        )
        total = np.nan_to_num(old_mean) * weight[0] + np.nan_to_num(new_mean) * weight[1]
        with np.errstate(invalid="ignore"):
            mean = total / weight.sum(axis=0)
        dispersion = np.average(
            [old.dispersion, np.where(is_measured, new.dispersion, old.dispersion)],
            axis=0,
            weights=[old.n_cells.sum(), new.n_cells.sum()],
        )
        is_new = np.arange(self.n_genes) >= len(self.fitted.gene_share)
        dispersion = np.where(is_new, new.dispersion, dispersion)
        parts = (mean, n_old + new.n_cells, dispersion)
        return Profile(*(part.astype(np.float32) for part in parts))


def training_cells(
    reader: ExpressionReader,
    labels: pd.Series,
    tree: LabelTree,
    knowledge: Knowledge | None,
    seed: int,
    columns: np.ndarray | None = None,
) -> TrainingCells:
    """The labelled cells of a registered AnnData and, with ``knowledge``, cells drawn of the old classes."""
    known = () if knowledge is None else knowledge.teacher.classes
    source = training_source(reader, labels, tree, known, columns)
    if knowledge is None:
        return TrainingCells(source, labels.index.__getitem__, is_log(reader))
    n_new = len(source)
    source = knowledge.source(source, is_log=is_log(reader), seed=seed)
    names = labels.index.append(pd.Index([""] * (len(source) - n_new)))
    return TrainingCells(source, names.__getitem__, False)
