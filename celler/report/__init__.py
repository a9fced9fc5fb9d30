"""Report: one HTML page that shows an annotation to others, in one file."""

from celler.report._report import report

__all__ = ["report"]
