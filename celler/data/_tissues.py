"""Tissues: the types that atlases of a tissue name, as classes with Cell Ontology ids and broad types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from celler._utils._messages import counted
from celler.data._atlas_types import AtlasTypes, read_atlas_types
from celler.labels._ontology import cell_ontology
from celler.labels._tree import LabelTree

#: Types at the level that most people compare, by id: a class's parent is the nearest above it, the first of several.
BROAD = {
    "CL:0000084": "T cell",
    "CL:0000236": "B cell",
    "CL:0000946": "antibody secreting cell",
    "CL:0000945": "lymphocyte of B lineage",
    "CL:0000623": "natural killer cell",
    "CL:0001065": "innate lymphoid cell",
    "CL:0000576": "monocyte",
    "CL:0000235": "macrophage",
    "CL:0000451": "dendritic cell",
    "CL:0000775": "neutrophil",
    "CL:0000767": "basophil",
    "CL:0000771": "eosinophil",
    "CL:0000097": "mast cell",
    "CL:0000094": "granulocyte",
    "CL:0000233": "platelet",
    "CL:0000556": "megakaryocyte",
    "CL:0000764": "erythroid lineage cell",
    "CL:0008001": "hematopoietic precursor cell",
    "CL:0000738": "leukocyte",
    "CL:0008024": "pancreatic endocrine cell",
    "CL:0000182": "hepatocyte",
    "CL:0000312": "keratinocyte",
    "CL:0000148": "melanocyte",
    "CL:0000351": "trophoblast cell",
    "CL:0000586": "germ cell",
    "CL:0000115": "endothelial cell",
    "CL:0000129": "microglial cell",
    "CL:0000127": "astrocyte",
    "CL:0000128": "oligodendrocyte",
    "CL:0000125": "glial cell",
    "CL:0000540": "neuron",
    "CL:0000669": "pericyte",
    "CL:0000192": "smooth muscle cell",
    "CL:0000187": "muscle cell",
    "CL:0000057": "fibroblast",
    "CL:0000136": "adipocyte",
    "CL:0000138": "chondrocyte",
    "CL:0000062": "osteoblast",
    "CL:0000066": "epithelial cell",
}


@dataclass(frozen=True)
class TissueTypes:
    """Types of a tissue's atlases, as classes.

    Attributes
    ----------
    types
        The types, one per cluster of an atlas ``(K,)``.
    tree
        Classes, the finest types that the atlases name, and their broad types.
    ids
        Cell Ontology id of each class and parent that has one.
    may_be
        Which classes a type may be ``(K, C)``: itself, or the finer ones below it.
    tissues, organism
        What was asked for; empty and ``None`` for all.
    """

    types: AtlasTypes
    tree: LabelTree
    ids: dict[str, str]
    may_be: np.ndarray
    tissues: tuple[str, ...]
    organism: str | None

    @property
    def shares(self) -> np.ndarray:
        """Share of each type in each class ``(K, C)``; rows sum to 1."""
        return np.asarray(self.may_be / self.may_be.sum(axis=1, keepdims=True))

    @property
    def n_alike(self) -> np.ndarray:
        """Number of clusters of the type of each ``(K,)``."""
        _, codes, counts = np.unique(self.types.keys, return_inverse=True, return_counts=True)
        return np.asarray(counts[codes])

    def describe(self) -> str:
        """Name the tissues in words."""
        where = f"{self.organism} {' and '.join(self.tissues)}".removeprefix("None ").strip()
        n_atlases = self.types.table["dataset"].nunique()
        types, atlases = counted(len(self.tree.classes), "types"), counted(n_atlases, "atlases")
        return f"{types} of {where or 'all tissues'}, from {atlases}"


def tissue_types(tissue: str | Sequence[str] | None, organism: str | None) -> TissueTypes:
    """Collect the types of a tissue; a type that another one is a kind of is no class but may be any of its kinds."""
    every = read_atlas_types()
    types = every.of(tissue, organism)
    names = dict(zip(types.keys, types.table["name"], strict=True))
    higher = {key: above(key) for key in names}
    finest = [key for key in names if not any(key in higher[other] for other in names if other != key)]
    finest.sort(key=lambda key: names[key])
    parents = {key: _broad(key) or (names[key], key) for key in finest}
    ids = {names[key]: key for key in finest} | dict(parents.values())
    tree = LabelTree(tuple(names[key] for key in finest), tuple(parents[key][0] for key in finest))
    may_be = np.array([[key in higher[one] for one in finest] for key in types.keys])
    tissues = () if tissue is None else tuple(every.named(tissue))
    known = {name: key for name, key in ids.items() if key.startswith("CL:")}
    return TissueTypes(types, tree, known, may_be, tissues, organism)


def above(key: str) -> set[str]:
    """Return a key and the ids of all terms above it."""
    ontology = cell_ontology()
    return set(ontology.above(ontology.terms[key])) if key in ontology.terms else {key}


def _broad(key: str) -> tuple[str, str] | None:
    """Name and id of the nearest broad type at or above an id; the first in the list where several are."""
    ontology = cell_ontology()
    if key not in ontology.terms:
        return None
    nearest = {term.id for term in ontology.nearest(ontology.terms[key], {i: ontology.terms[i] for i in BROAD})}
    return next(((name, i) for i, name in BROAD.items() if i in nearest), None)
