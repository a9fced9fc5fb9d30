"""Plots: an AnnData in, a matplotlib figure out; what is drawn is read, never written."""

from celler.pl.bubble import marker_bubble

__all__ = ["marker_bubble"]
