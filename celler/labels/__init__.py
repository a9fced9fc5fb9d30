"""Labels: the classes of a label column with their parents."""

from celler.labels._tree import LabelTree

__all__ = ["LabelTree"]
