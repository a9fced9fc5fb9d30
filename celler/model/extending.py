"""Extending a trained model: new cells, new genes, new classes, without forgetting the old ones."""

from __future__ import annotations

import os
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celler.door import warn
from celler.genes import GeneAlignment, gene_names, selector
from celler.labels import LabelTree
from celler.model.knowledge import Knowledge
from celler.model.setup import read_labels, read_tree
from celler.network import extend_network
from celler.training import Teacher

if TYPE_CHECKING:
    from celler.model.celler import Celler

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
    from celler.model.celler import Celler

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
