"""Labels: the classes of a label column with their parents, and Cell Ontology ids for names of cell types."""

from celler.labels._cell_types import find_ids
from celler.labels._tree import LabelTree

__all__ = ["LabelTree", "find_ids"]
