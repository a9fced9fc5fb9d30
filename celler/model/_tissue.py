"""Tissue: a model without a reference, whose classes are the types that atlases of a tissue name."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from celler._utils._devices import cpu_threads
from celler._utils._messages import counted, listed, warn
from celler.data._atlas_types import AtlasTypes, read_atlas_types
from celler.data._query import Genes
from celler.data._tissues import TissueTypes, above
from celler.data._values import X
from celler.inference._calibration import Decision
from celler.inference._labels import Question
from celler.inference._open_set import OpenSet
from celler.model._base import NAME, BaseOrigin, load_base
from celler.model._forward import Reading
from celler.model._predict import Cells, predict
from celler.model._propagate import Reference
from celler.model._setup import checked, network_config, read_tree, registry_without_data
from celler.model._state import HARD_CELL_COLUMNS, Fitted, ModelState, Setup
from celler.model._transfer import ScGPTOptions
from celler.network._base import Base, read_base
from celler.network._heads import AtlasHead
from celler.network._network import GeneTransformer, build_network
from celler.training._atlas_head import draw_cells_of, solve_atlas_head

SEED = 0
#: Of the probabilities: the best one of eleven labelled sets together.
TEMPERATURE = 0.6
#: Column of obs with the labels that a new model starts from; those of unlabelled cells have at least this probability,
#: and are less novel than all but this share of known cells.
FIRST_LABELS, SURE, FIRST_ALARMS = "_celler_first_labels", 0.7, 0.2
#: Fewest such cells of a type that has no given label.
MIN_FOUND = 3
#: Most genes that are read, those that vary most between the types. With all, a third of the speed, more false alarms.
MAX_GENES = 2000
#: Fewest genes of a query without a warning.
FEW_GENES = 300


def check_options(adata: AnnData | None, options: ScGPTOptions) -> None:
    """Raise for arguments of ``from_pretrained`` that a model of a tissue does not have."""
    if adata is not None:
        raise ValueError(
            f"adata was given with {NAME!r}, which needs no reference: pass the cells to predict or annotate. To "
            "train on labelled cells from the base, call Celler(adata) and train()."
        )
    if replace(options, precision="auto") != ScGPTOptions():
        raise ValueError(f"freeze_encoder, evidence, head and max_genes are for scGPT; leave them out for {NAME!r}.")


def tissue_registry(found: TissueTypes) -> dict[str, Any]:
    """Registry of scvi-tools for a model of a tissue."""
    base = read_base()
    origin = BaseOrigin(NAME, len(base.genes), "human", base.sizes, n_types=len(found.types))
    described = {
        "gene_names": list(base.genes),
        "classes": list(found.tree.classes),
        "parents": list(found.tree.parents),
        "ids": found.ids,
        "base": asdict(origin),
    }
    return registry_without_data(described)


def ready(state: ModelState, found: TissueTypes) -> ModelState:
    """Return the model of a tissue before it has met a query: it has all genes of the base, and has solved nothing."""
    return replace(_with_genes(state, found, np.arange(len(state.genes.names)), state.network), tissue=found)


def adapted(
    state: ModelState, adata: AnnData, arguments: dict[str, Any], layer: str | None, reported: set[str]
) -> ModelState:
    """Return the model of a tissue solved for the genes that a query has; itself where it is already.

    Pseudo-cells of the tissue's types in these genes solve the head, and say how novel a known cell may seem.
    """
    found = state.tissue
    assert found is not None
    known = read_base().genes
    of_base = Genes(known, np.ones(len(known)), state.genes.key, is_vocabulary=True, orthologs=True)
    reader, alignment, read = of_base.read(adata, state.setup.layer, layer, reported)
    gene_map = alignment.gene_map
    rows = found.types.most_variable(np.unique(gene_map[gene_map >= 0]), MAX_GENES)
    if state.trained().novelty is not None and known[rows].equals(state.genes.names):
        return state
    if (report := of_base.report(alignment, read, reader)) is not None:
        warn(report)
    if len(rows) < FEW_GENES:
        warn(
            f"the query has {counted(len(rows), 'genes')} that {NAME} knows, such as {listed(list(known[rows]), 3)}; "
            "with so few, look at <key>_confidence and at markers before you trust a label."
        )
    assert state.base is not None
    config = network_config(arguments, len(rows), len(found.tree.classes), None, state.base)
    solved = _with_genes(state, found, rows, build_network(config, SEED))
    encoder: Any = solved.network.encoder
    profiles = found.types.profiles(rows)
    with cpu_threads():
        cells = draw_cells_of(profiles, encoder, SEED)
        weight, bias = solve_atlas_head(cells, found.may_be, found.n_alike)
    head = solved.network.head
    assert isinstance(head, AtlasHead)
    with torch.no_grad():
        head.solved.weight.copy_(weight)
        head.solved.bias.copy_(bias)
    share = np.nan_to_num(profiles.share).mean(axis=0)
    novelty = _open_set(found, read_base()).fitted(cells.embedding.numpy())
    fitted = replace(solved.trained(), novelty=novelty, gene_share=share / share.sum())
    network = solved.network.to(state.network.device)
    return replace(solved.with_fitted(fitted), network=network)


def _with_genes(state: ModelState, found: TissueTypes, rows: np.ndarray, network: GeneTransformer) -> ModelState:
    """Return the model in the genes ``rows (n,)`` of the base, with a network that gets the base's weights."""
    assert state.base is not None
    base, origin = read_base(), replace(state.base, n_known=len(rows))
    load_base(network, rows)
    _set_types(network, found, base)
    share = np.full(len(rows), 1 / len(rows))
    genes = Genes(base.genes[rows], share, state.genes.key, orthologs=True, are_of_query=True)
    nothing = np.empty(0, np.int64)
    n_of_class = found.may_be.sum(axis=0)
    fitted = Fitted(
        nothing, nothing, n_of_class, share, Decision(TEMPERATURE), {}, {name: [] for name in HARD_CELL_COLUMNS}
    )
    return replace(state, genes=genes, network=network.eval(), base=origin, fitted=fitted, ids=found.ids)


def _set_types(network: GeneTransformer, found: TissueTypes, base: Base) -> None:
    """Give the head of ``network`` the vectors of the types and their shares in the classes."""
    head = network.head
    assert isinstance(head, AtlasHead)
    head.vectors.copy_(torch.from_numpy(_vectors(base, found.types)))
    head.member.copy_(torch.from_numpy(found.shares))


def _open_set(found: TissueTypes, base: Base) -> OpenSet:
    """Vectors of the tissue's types, and of those of other tissues that are neither above nor below one of these."""
    every = read_atlas_types()
    own = set(found.types.keys)
    above_own: set[str] = set().union(*(above(key) for key in own))
    keys = every.keys
    others = [key for key in dict.fromkeys(keys) if key not in above_own and not own & above(key)]
    vectors = _vectors(base, every)
    names = dict(zip(keys, every.table["name"], strict=True))
    outside = _directions(np.stack([vectors[keys == key].mean(axis=0) for key in others])) if others else vectors[:0]
    return OpenSet(_vectors(base, found.types), outside, tuple(names[key] for key in others))


def _vectors(base: Base, types: AtlasTypes) -> np.ndarray:
    """Vectors that pretraining gave the types ``(K, D)``, of length 1."""
    return _directions(base.type_weights.numpy()[types.table["row"]])


def _directions(vectors: np.ndarray) -> np.ndarray:
    """Divide each row by its length."""
    vectors = vectors.astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def with_ids_of(state: ModelState, other: ModelState) -> ModelState:
    """Return a model with the ids of another one, of the classes and parents that both have by name."""
    names = {*state.tree.classes, *state.tree.parents}
    return replace(state, ids={name: i for name, i in other.ids.items() if name in names})


def label_first(
    state: ModelState, adata: AnnData, setup: Setup, arguments: dict[str, Any], *, extend_labels: bool
) -> Setup:
    """Write the given labels, and those of unlabelled cells that the atlases name surely, to a column of obs.

    Returns the arguments of ``setup_anndata`` for this column. Raises, before any write, for data that cannot be used
    and for labels that the atlases do not know, unless ``extend_labels``.
    """
    labels = checked(adata, setup)
    given = read_tree(adata, labels, setup)
    parents = state.tree.parent_of
    unknown = [name for name in given.classes if name not in parents]
    if unknown and not extend_labels:
        raise ValueError(
            f"adata.obs[{setup.labels_key!r}] holds labels that the atlases do not know: {unknown}. Pass "
            f"extend_labels=True to make them classes, or rename them; the model knows {list(state.tree.classes)}."
        )
    # The values are those of the new model, which may be in a layer, and its gene names in a column of var.
    state = replace(
        state,
        setup=replace(state.setup, layer=setup.layer, gene_key=setup.gene_key),
        genes=replace(state.genes, key=setup.gene_key),
    )
    # It learns them, even where raw has more genes.
    layer, reported = X if setup.layer is None else setup.layer, set[str]()
    state = state if state.tissue is None else adapted(state, adata, arguments, layer, reported)
    free = np.flatnonzero(labels == setup.unlabeled_category)
    cells = Cells(adata, free, Reference(None, None, reported), layer)
    sure = Question(threshold=SURE, false_alarm_rate=FIRST_ALARMS, unknown_label=setup.unlabeled_category)
    found = predict(state, cells, sure, Reading(), soft=False, propagate=False)
    names, counts = np.unique(found, return_counts=True)
    # One or two cells are no class to learn.
    is_kept = np.isin(found, names[counts >= MIN_FOUND]) | np.isin(found, given.classes)
    labels[free] = np.where(is_kept, found, setup.unlabeled_category)
    if (labels == setup.unlabeled_category).all():
        raise ValueError(
            f"no cell has a label, and the atlases name none with a probability of at least {SURE}; give labels_key a "
            "column with labels of some cells, and see that the tissue is right."
        )
    own = {name: given.parent_of.get(name, parents.get(name, name)) for name in given.classes}
    of_new = replace(setup, labels_key=FIRST_LABELS, parent_labels_key=None, parents=parents | own)
    read_tree(adata, labels, of_new)  # raises before the write where parents contradict each other
    adata.obs[FIRST_LABELS] = labels
    return of_new
