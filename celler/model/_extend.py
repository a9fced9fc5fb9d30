"""Extending a trained model: new cells, new genes, new classes, without forgetting the old ones."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celler._utils._messages import warn
from celler.data._augmentation import draw_cells, n_rehearsed
from celler.data._expression import ExpressionReader, is_log
from celler.data._genes import GeneAlignment, gene_names, selector
from celler.data._profile import Profile
from celler.data._sources import CellSource, InMemoryCells
from celler.data._tokenizer import TARGET_SUM
from celler.labels import LabelTree
from celler.model._fit import TrainingCells, class_profile, training_source
from celler.model._setup import read_labels, read_tree
from celler.model._state import Fitted
from celler.network._network import extend_network
from celler.training._plan import Teacher

if TYPE_CHECKING:
    from celler.model._celler import Celler


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

    def source(self, new: InMemoryCells, *, is_log: bool, seed: int) -> InMemoryCells:
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
        return InMemoryCells(
            sparse.vstack([X, drawn], format="csr"),
            np.concatenate([new.labels, self.teacher.classes[codes]]),
            targets,
        )

    def complete(self, fitted: Fitted, source: CellSource) -> Fitted:
        """``fitted`` without the cells that were drawn, with the counts and profiles of the reference's cells."""
        assert isinstance(source, InMemoryCells)  # the one that `source` made
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

    def _profile(self, source: InMemoryCells, train: np.ndarray, n_classes: int) -> Profile:
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


#: Default of an argument that is taken from the reference model's setup.
OF_REFERENCE = "<of the reference model>"


def load_query_data(
    cls: type[Celler],
    adata: AnnData,
    reference_model: Celler | str | os.PathLike[str],
    extend_labels: bool = False,
    *,
    labels_key: str = OF_REFERENCE,
    unlabeled_category: str = OF_REFERENCE,
    layer: str | None = OF_REFERENCE,
    batch_key: str | None = OF_REFERENCE,
    parent_labels_key: str | None = OF_REFERENCE,
    gene_key: str | None = OF_REFERENCE,
    accelerator: str = "auto",
) -> Celler:
    """A model for new labelled cells that starts from what a trained one knows; :meth:`train` it next.

    Genes and classes go by name. Those of the reference model stay, also where ``adata`` lacks them; genes that
    it lacks are added. The reference's cells are not needed: beside the new cells, :meth:`train` takes cells
    drawn from the class profiles that the model stores, and keeps the reference's opinion on its own classes.

    reference_model: a trained model, which is not changed, or the folder of a saved one.
    extend_labels: labels that the reference does not know become new classes; without it they are an error.
    labels_key, unlabeled_category, layer, batch_key, parent_labels_key, gene_key: as in :meth:`setup_anndata`,
        which is run on ``adata``; those of the reference where not given.
    accelerator: as in :meth:`load`, for a folder.

    Raises ``ValueError`` for unknown labels without ``extend_labels``, for parents that contradict the
    reference's, and when under 20 % of its genes are there; ``adata`` is then unchanged.
    """
    reference = _trained(cls, reference_model, accelerator)
    if reference._scgpt:
        raise ValueError(
            "the reference model has an scGPT encoder, to which genes cannot be added; fine-tune the checkpoint on all "
            "cells together: from_pretrained(scgpt_folder, adata).train()."
        )
    given = {
        "labels_key": labels_key,
        "unlabeled_category": unlabeled_category,
        "layer": layer,
        "batch_key": batch_key,
        "parent_labels_key": parent_labels_key,
        "gene_key": gene_key,
    }
    of_reference = reference._setup_args
    setup: dict[str, Any] = {
        name: of_reference[name] if v is OF_REFERENCE else v for name, v in given.items()
    }
    tree = _extended_tree(reference, adata, setup, extend_labels)
    genes = _extended_genes(reference, adata, setup["gene_key"])
    cls.setup_anndata(adata, **setup)
    model = cls(adata, **reference.init_params_["non_kwargs"])
    model._describe_as(
        {
            "gene_names": [*reference._genes.names, *genes.added],
            "classes": list(tree.classes),
            "parents": list(tree.parents),
        }
    )
    places = tree.encode(reference.classes_.astype(object))
    n_genes = len(model._genes.names)
    model.module = extend_network(reference.module, n_genes, places, len(tree.classes), seed=0)
    teacher = Teacher(deepcopy(model.module), places)
    model._knowledge = Knowledge(reference._fitted, genes.gene_map, n_genes, teacher)
    if len(genes.added) or len(genes.alignment.missing):
        warn(genes.report())
    return model


def prepare_query_anndata(
    adata: AnnData, reference_model: Celler | str | os.PathLike[str], inplace: bool = False
) -> AnnData:
    """A new AnnData with the cells of ``adata`` and a model's genes, in the model's order.

    For tools that need the same columns. :meth:`predict` needs none of this, and knows more: here a gene that
    ``adata`` lacks is a column of zeros, there it is masked. ``var["is_measured"]`` tells them apart; how many
    were found is said in a warning. Values of ``X`` and of each layer are as they were, as CSR.

    inplace: for those who come from scANVI; ``adata`` is never changed, so ``True`` is an error.
    """
    from celler.model._celler import Celler

    if inplace:
        raise ValueError(
            "inplace=True was given, but adata is never changed; take what is returned: "
            "query = Celler.prepare_query_anndata(adata, model)."
        )
    if not isinstance(adata, AnnData):
        raise TypeError(f"a {type(adata).__name__} was given; an AnnData is needed.")
    reference = _trained(Celler, reference_model, "auto")
    names, key = reference._genes.names, reference._genes.key
    alignment, share = reference._genes.align(adata)
    whole = adata.to_memory() if adata.isbacked else adata
    kept = np.flatnonzero(alignment.gene_map >= 0)
    to_model = selector(alignment.gene_map, len(names))
    column_of = np.full(len(names), -1)
    column_of[alignment.gene_map[kept]] = kept
    var = whole.var.reset_index(drop=True).reindex(column_of).set_axis(names.astype(str), axis=0)
    var["is_measured"] = column_of >= 0
    if key is not None:
        var[key] = names.to_numpy()

    def in_order(X: Any) -> sparse.csr_matrix:
        return sparse.csr_matrix(sparse.csr_matrix(X) @ to_model.astype(X.dtype))

    layers = {name: in_order(whole.layers[name]) for name in whole.layers if name is not None}
    X = None if whole.X is None else in_order(whole.X)
    parts = {"obsm": dict(whole.obsm), "obsp": dict(whole.obsp), "uns": deepcopy(dict(whole.uns))}
    query = AnnData(X, obs=whole.obs.copy(), var=var, layers=layers, **parts)
    if not alignment.is_exact:
        total = float(reference._genes.share.sum())
        warn(alignment.describe(share / total))
    return query


class _ExtendedGenes(NamedTuple):
    """``gene_map (n_vars,)``: gene of the extended model of each column. ``added``: names of the new ones."""

    gene_map: np.ndarray
    added: pd.Index
    alignment: GeneAlignment

    def report(self) -> str:
        """What came together, in words."""
        matched, missing = self.alignment.n_matched, len(self.alignment.missing)
        return (
            f"{matched:,} of the reference model's {matched + missing:,} genes are in adata; the other {missing:,} "
            f"stay as they are, and {len(self.added):,} genes of adata are new to the model."
        )


def _trained(cls: type[Celler], model: Celler | str | os.PathLike[str], accelerator: str) -> Celler:
    if isinstance(model, str | os.PathLike):
        return cls.load(model, accelerator=accelerator)
    if not isinstance(model, cls):
        raise TypeError(
            f"reference_model is a {type(model).__name__}; a trained Celler or its folder is needed."
        )
    model._require_trained()
    return model


def _extended_tree(
    reference: Celler, adata: AnnData, setup: dict[str, Any], extend_labels: bool
) -> LabelTree:
    """Classes of both, sorted, with their parents; raises where they do not fit."""
    if reference._fitted.profile is None:
        raise ValueError(
            "the reference model was saved by a version that kept no class profiles, without which it would "
            "forget its classes; train it again."
        )
    if setup["labels_key"] is None:
        raise ValueError("labels_key=None was given; new cells need labels to be trained on.")
    labels = read_labels(adata, setup | {"unlabeled_category": str(setup["unlabeled_category"])})
    old, new = reference._tree, read_tree(adata, labels, setup)
    unknown = [name for name in new.classes if name not in old.classes]
    if unknown and not extend_labels:
        raise ValueError(
            f"adata.obs[{setup['labels_key']!r}] holds labels that the model does not know: {unknown}. Pass "
            f"extend_labels=True to make them classes, or rename them; the model knows {list(old.classes)}."
        )
    classes = sorted({*old.classes, *new.classes})
    if bool(old.parents) != bool(new.parents):
        has, lacks = ("reference", "new cells") if old.parents else ("new cells", "reference")
        if unknown or not old.parents:
            raise ValueError(
                f"the {has} have parents and the {lacks} do not; pass parent_labels_key for the new cells only "
                "where the reference was set up with one."
            )
    parents = dict(zip(old.classes, old.parents, strict=False))
    for name, parent in zip(new.classes, new.parents, strict=False):
        if parents.setdefault(name, parent) != parent:
            raise ValueError(
                f"class {name!r} has the parent {parent!r} in adata and {parents[name]!r} in the reference model; "
                "correct the column, or pass parent_labels_key=None where there is no new class."
            )
    return LabelTree(tuple(classes), tuple(parents[name] for name in classes if parents))


def _extended_genes(reference: Celler, adata: AnnData, gene_key: str | None) -> _ExtendedGenes:
    """The reference's genes and, after them, those of ``adata`` that it lacks."""
    genes = (
        reference._genes
        if gene_key is None
        else type(reference._genes)(reference._genes.names, reference._genes.share, gene_key)
    )
    alignment, _ = genes.align(adata)
    names = genes.names_of(adata)
    if alignment.column is not None:
        names = gene_names(adata.var, alignment.column)
    gene_map = alignment.gene_map.copy()
    # What several columns claim to be cannot be told, and stays out, as in predict.
    is_new = (gene_map < 0) & (alignment.repeated < 0) & ~names.duplicated(keep=False)
    is_new &= ~names.isin(genes.names) & (names != "")
    gene_map[is_new] = len(genes.names) + np.arange(is_new.sum())
    return _ExtendedGenes(gene_map, names[is_new].astype(str), alignment)
