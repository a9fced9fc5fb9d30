"""Benchmarks: methods and recipes compared on the same cells."""

from celler.benchmark.recipes import (
    Variant,
    ablation,
    ablation_figure,
    ablation_table,
    ablation_text,
)
from celler.benchmark.tasks import long_tail_split, thin

__all__ = [
    "Variant",
    "ablation",
    "ablation_figure",
    "ablation_table",
    "ablation_text",
    "long_tail_split",
    "thin",
]
