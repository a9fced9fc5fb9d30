"""Plots of cells and tables: matplotlib axes or figures; no plot changes its data."""

from celler.pl._confidence import confidence, reliability
from celler.pl._confusion import confusion, prediction_bubble
from celler.pl._corpus import cells_by
from celler.pl._flows import alluvial, composition
from celler.pl._history import history
from celler.pl._label_check import label_check
from celler.pl._long_tail import class_counts, f1_by_frequency
from celler.pl._markers import marker_bubble

__all__ = [
    "alluvial",
    "cells_by",
    "class_counts",
    "composition",
    "confidence",
    "confusion",
    "f1_by_frequency",
    "history",
    "label_check",
    "marker_bubble",
    "prediction_bubble",
    "reliability",
]
