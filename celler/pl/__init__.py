"""Plots: an AnnData or a table in, a matplotlib figure out; what is drawn is read, never written."""

from celler.pl.bubble import marker_bubble
from celler.pl.certainty import confidence, reliability
from celler.pl.corpus import cells_by
from celler.pl.curves import history
from celler.pl.flows import alluvial, composition
from celler.pl.frequency import class_counts, f1_by_frequency
from celler.pl.predictions import confusion, prediction_bubble

__all__ = [
    "alluvial",
    "cells_by",
    "class_counts",
    "composition",
    "confidence",
    "confusion",
    "f1_by_frequency",
    "history",
    "marker_bubble",
    "prediction_bubble",
    "reliability",
]
