"""Methods to compare, a file for each package they need."""

from celler.benchmark.methods._registry import METHODS, Fit, Method, Predict

__all__ = ["METHODS", "Fit", "Method", "Predict"]
