"""Extend: a trained model learns new cells, genes and classes, and keeps the old ones.

The old model's cells are not needed: training takes cells generated from its class profiles, and a distillation
loss keeps the predictions of its network for its own classes.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from enum import Enum
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celler._utils._matrix import as_csr
from celler._utils._messages import agreed, counted, listed, warn
from celler._utils._text import warn_of_alike
from celler.data._augmentation import draw_cells, n_rehearsed
from celler.data._expression import ExpressionReader, is_log
from celler.data._gene_names import gene_names
from celler.data._genes import GeneAlignment, selector
from celler.data._profile import Profile
from celler.data._query import Query
from celler.data._sources import CellSource, InMemoryCells
from celler.data._tokenizer import TARGET_SUM
from celler.labels._tree import LabelTree
from celler.model._fit import TrainingCells, class_profile, training_source
from celler.model._forward import Reading, drawn, shift_of
from celler.model._setup import new_state, read_labels, read_tree
from celler.model._state import Fitted, ModelState, OldKnowledge, Setup
from celler.network._network import extend_network
from celler.training._plan import Teacher


class OfReference(Enum):
    """Default of an option that is taken from the reference model."""

    OF_REFERENCE = "of the reference model"


MIN_OF_STUDY = 50  #: cells of a study from which its shift is estimated
OF_REFERENCE: Final = OfReference.OF_REFERENCE


class ExtendedGenes(NamedTuple):
    """Genes of the extended model: that of each column ``gene_map (n_vars,)``, and names of the new ones."""

    gene_map: np.ndarray
    added: pd.Index
    alignment: GeneAlignment

    def report(self) -> str:
        """Count the genes of both sides in words."""
        matched, missing = self.alignment.n_matched, len(self.alignment.missing)
        return (
            f"{matched:,} of the reference model's {matched + missing:,} genes are in adata; the other {missing:,} "
            f"{agreed(missing, 'stay as they are')}, and {len(self.added):,} genes of adata "
            f"{agreed(len(self.added), 'are')} new to the model."
        )


def extended_setup(state: ModelState, given: dict[str, Any]) -> Setup:
    """Arguments of ``setup_anndata`` for the new cells: those given, else those of the reference model."""
    chosen = {name: value for name, value in given.items() if value is not OF_REFERENCE}
    setup = replace(state.setup, parents=None, **chosen)
    return replace(setup, unlabeled_category=str(setup.unlabeled_category))


def check_extendable(state: ModelState) -> None:
    """Raise ``ValueError`` for a model that cannot be extended."""
    if state.scgpt is not None:
        raise ValueError(
            "the reference model has an scGPT encoder, to which genes cannot be added; fine-tune the checkpoint on all "
            "cells together: from_pretrained(scgpt_folder, adata).train()."
        )
    if state.trained().profile is None:
        raise ValueError(
            "the reference model was saved by a version that kept no class profiles, without which it would "
            "forget its classes; train it again."
        )


def extended_tree(state: ModelState, adata: AnnData, setup: Setup, *, extend_labels: bool) -> LabelTree:
    """Classes of the reference and of the new cells, sorted, with their parents; raise where they do not fit."""
    if setup.labels_key is None:
        raise ValueError("labels_key=None was given; new cells need labels to be trained on.")
    old, new = state.tree, read_tree(adata, read_labels(adata, setup), setup)
    unknown = [name for name in new.classes if name not in old.classes]
    if unknown and not extend_labels:
        raise ValueError(
            f"adata.obs[{setup.labels_key!r}] holds labels that the model does not know: {unknown}. Pass "
            f"extend_labels=True to make them classes, or rename them; the model knows {list(old.classes)}."
        )
    if bool(old.parents) != bool(new.parents) and (unknown or not old.parents):
        has, lacks = ("reference", "new cells") if old.parents else ("new cells", "reference")
        raise ValueError(
            f"the {has} have parents and the {lacks} do not; pass parent_labels_key for the new cells only "
            "where the reference was set up with one."
        )
    parents = old.parent_of
    for name, parent in new.parent_of.items():
        if parents.setdefault(name, parent) != parent:
            raise ValueError(
                f"class {name!r} has the parent {parent!r} in adata and {parents[name]!r} in the reference model; "
                "correct the column, or pass parent_labels_key=None where there is no new class."
            )
    classes = sorted({*old.classes, *new.classes})
    if unknown:
        warn_of_alike(classes, "the model with the new cells")
    return LabelTree(tuple(classes), tuple(parents[name] for name in classes if parents))


def extended_genes(state: ModelState, adata: AnnData, gene_key: str | None) -> ExtendedGenes:
    """Return the reference's genes and, after them, those of ``adata`` that it lacks."""
    genes = state.genes if gene_key is None else replace(state.genes, key=gene_key)
    alignment, _ = genes.align(adata)
    names = genes.names_of(adata)
    if alignment.column is not None:
        names = gene_names(adata.var, alignment.column)
    gene_map = alignment.gene_map.copy()
    # Names that several columns claim are ambiguous and stay out, as in predict.
    is_new = (gene_map < 0) & (alignment.repeated < 0) & ~names.duplicated(keep=False)
    is_new &= ~names.isin(genes.names) & (names != "")
    gene_map[is_new] = len(genes.names) + np.arange(is_new.sum())
    return ExtendedGenes(gene_map, names[is_new].astype(str), alignment)


def study_factors(
    reference: ModelState, adata: AnnData, setup: Setup, tree: LabelTree, genes: ExtendedGenes
) -> np.ndarray | None:
    """Return factors ``(n_genes,)`` that undo the shift of the new cells' study, from those of no new class.

    The cells are sampled as those of a query are: the order of rows has no effect. ``None`` without a new class, a
    shift, or ``MIN_OF_STUDY`` such cells, labelled or not.
    """
    new = set(tree.classes) - set(reference.tree.classes)
    rows = np.flatnonzero(~np.isin(read_labels(adata, setup).astype(str), sorted(new)))
    if not new:
        return None
    if len(rows) < MIN_OF_STUDY:
        warn(
            f"{counted(len(rows), 'cells are')} not of the new types {listed(sorted(map(str, new)))}. With fewer than "
            f"{MIN_OF_STUDY} the new types cannot be told from the study they come from, and take its other cells if "
            "it differs from the reference. Give other cells of that study too; they need no labels."
        )
        return None
    matched = genes.alignment.gene_map[genes.alignment.gene_map >= 0]
    share, reader = float(reference.genes.share[matched].sum()), ExpressionReader(adata, setup.layer)
    query = Query(reader, genes.alignment, share, len(reference.genes.names))
    rows = rows[drawn(query.content[rows])]
    return shift_of(reference, query, rows, Reading())[1].factors


def extended_state(
    reference: ModelState,
    setup: Setup,
    tree: LabelTree,
    genes: ExtendedGenes,
    arguments: dict[str, Any],
    factors: np.ndarray | None = None,
) -> ModelState:
    """Make a model with the genes and classes of both, which starts from the reference's weights.

    ``factors`` are those of the reference's genes that undo the shift of the new cells.
    """
    places = tree.encode(np.array(reference.tree.classes, object))
    names = [*reference.genes.names, *genes.added]
    network = extend_network(reference.network, len(names), places, len(tree.classes), seed=0)
    described = reference.described | {"gene_names": names, "classes": tree.classes, "parents": tree.parents}
    state = new_state(setup, described, arguments, network)
    teacher = Teacher(deepcopy(network), places)
    if factors is not None:
        factors = np.concatenate([factors, np.ones(len(genes.added))])
    old = OldKnowledge(reference.trained(), genes.gene_map, len(names), teacher, factors)
    if len(genes.added) or len(genes.alignment.missing):
        warn(genes.report())
    return replace(state, old=old)


def training_cells(
    state: ModelState, reader: ExpressionReader, labels: pd.Series, seed: int, columns: np.ndarray | None = None
) -> TrainingCells:
    """Return the labelled cells of a registered AnnData and, to extend a model, generated cells of old classes."""
    old = state.old
    known = () if old is None else old.teacher.classes
    source = training_source(reader, labels, state.tree, known, columns)
    if old is None:
        return TrainingCells(source, labels.index.__getitem__, is_log(reader))
    n_new = len(source)
    source = with_generated(old, source, is_log=is_log(reader), seed=seed)
    names = labels.index.append(pd.Index([""] * (len(source) - n_new)))
    return TrainingCells(source, names.__getitem__, False)


def with_generated(old: OldKnowledge, new: InMemoryCells, *, is_log: bool, seed: int) -> InMemoryCells:
    """Return the new cells, as counts of the model's genes, and after them generated cells of the old classes."""
    to_model = selector(old.gene_map, old.n_genes)
    X = new.X.astype(np.float32)
    X = sparse.csr_matrix((X.expm1() if is_log else X) @ to_model)
    if old.factors is not None:
        X = sparse.csr_matrix(X @ sparse.diags_array(old.factors), dtype=np.float32)
    profile = _old_profile(old)
    rng = np.random.default_rng(seed)
    drawn, codes = draw_cells(profile, n_rehearsed(old.fitted.class_counts), rng)
    # A cell whose genes are a part of the model's carries that part of the counts.
    share = _gene_share(old, X, new.labels)
    measured = ~np.isnan(profile.mean)
    of_new = share[old.gene_map[old.gene_map >= 0]].sum()
    targets = np.concatenate([np.full(len(new), of_new), (measured @ share)[codes]])
    return InMemoryCells(
        sparse.vstack([X, drawn], format="csr"),
        np.concatenate([new.labels, old.teacher.classes[codes]]),
        TARGET_SUM * targets,
    )


def complete(old: OldKnowledge, fitted: Fitted, source: CellSource) -> Fitted:
    """Replace the generated cells in ``fitted`` by the counts and profiles of the reference's cells."""
    assert isinstance(source, InMemoryCells)  # made by `with_generated`
    n_new = len(source) - int(n_rehearsed(old.fitted.class_counts).sum())
    train, validation = (rows[rows < n_new] for rows in (fitted.train_indices, fitted.validation_indices))
    n_classes = len(fitted.class_counts)
    counts = np.bincount(source.labels[train], minlength=n_classes)
    counts[old.teacher.classes] += old.fitted.class_counts
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
        gene_share=_gene_share(old, source.X[:n_new], source.labels[:n_new]),
        decision=old.fitted.decision,
        hard_cells=hard_cells,
        profile=_merged_profile(old, source, train, n_classes),
        novelty=None,  # it needs real cells of every class: generated ones are too much alike
    )


def _old_profile(old: OldKnowledge) -> Profile:
    """Profile of the reference's classes; means of genes that it lacks are NaN."""
    profile = old.fitted.profile
    assert profile is not None
    n_more = old.n_genes - profile.mean.shape[1]
    return Profile(
        np.pad(profile.mean, ((0, 0), (0, n_more)), constant_values=np.nan),
        profile.n_cells,
        np.pad(profile.dispersion, (0, n_more), constant_values=np.median(profile.dispersion)),
    )


def _gene_share(old: OldKnowledge, X: sparse.csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Return the reference's shares and, in the same unit, those of new genes: the sum exceeds 1 with them.

    So the genes of the reference keep the expression they had in a cell.
    """
    share = old.fitted.gene_share
    total = np.asarray(X[labels >= 0].sum(axis=0), dtype=np.float64).ravel()
    known = np.unique(old.gene_map[(old.gene_map >= 0) & (old.gene_map < len(share))])
    scale = share[known].sum() / max(total[known].sum(), 1e-9)
    return np.concatenate([share, total[len(share) :] * scale])


def _merged_profile(old: OldKnowledge, source: InMemoryCells, train: np.ndarray, n_classes: int) -> Profile:
    """Means over old and new cells of each class, in counts per 10,000 of the reference's genes."""
    new, before = class_profile(source, train, n_classes, is_log=False), _old_profile(old)
    is_measured = np.zeros(old.n_genes, bool)
    is_measured[old.gene_map[old.gene_map >= 0]] = True
    scale = source.target_sums[0] / TARGET_SUM
    new_mean = np.where(is_measured & (new.n_cells[:, None] > 0), new.mean * scale, np.nan)
    old_mean = np.full_like(new_mean, np.nan)
    old_mean[old.teacher.classes] = before.mean
    n_old = np.zeros(n_classes)
    n_old[old.teacher.classes] = before.n_cells
    weight = np.stack([np.isfinite(old_mean) * n_old[:, None], np.isfinite(new_mean) * new.n_cells[:, None]])
    total = np.nan_to_num(old_mean) * weight[0] + np.nan_to_num(new_mean) * weight[1]
    with np.errstate(invalid="ignore"):
        mean = total / weight.sum(axis=0)
    dispersion = np.average(
        [before.dispersion, np.where(is_measured, new.dispersion, before.dispersion)],
        axis=0,
        weights=[before.n_cells.sum(), new.n_cells.sum()],
    )
    is_new = np.arange(old.n_genes) >= len(old.fitted.gene_share)
    dispersion = np.where(is_new, new.dispersion, dispersion)
    parts = (mean, n_old + new.n_cells, dispersion)
    return Profile(*(part.astype(np.float32) for part in parts))


def prepare_query(state: ModelState, adata: AnnData) -> AnnData:
    """Cells of ``adata`` with the model's genes as columns; see :meth:`celler.model.Celler.prepare_query_anndata`."""
    names, key = state.genes.names, state.genes.key
    alignment, share = state.genes.align(adata)
    whole = adata.to_memory() if adata.isbacked else adata
    kept = np.flatnonzero(alignment.gene_map >= 0)
    to_model = selector(alignment.gene_map, len(names))
    column_of = np.full(len(names), -1)
    column_of[alignment.gene_map[kept]] = kept
    var = whole.var.reset_index(drop=True).reindex(column_of).set_axis(names.astype(str), axis=0)
    var["is_measured"] = column_of >= 0
    if key is not None:
        var[key] = names.to_numpy()

    def in_order(X: Any, name: str) -> sparse.csr_matrix:
        block = as_csr(X, name, dtype=None)
        return sparse.csr_matrix(block @ to_model.astype(block.dtype))

    layers = {
        name: in_order(whole.layers[name], f"adata.layers[{name!r}]") for name in whole.layers if name is not None
    }
    X = None if whole.X is None else in_order(whole.X, "adata.X")
    parts = {"obsm": dict(whole.obsm), "obsp": dict(whole.obsp), "uns": deepcopy(dict(whole.uns))}
    query = AnnData(X, obs=whole.obs.copy(), var=var, layers=layers, **parts)
    if not alignment.is_exact:
        warn(alignment.describe(share / float(state.genes.share.sum())))
    return query
