"""Benchmarks: methods and recipes compared on the same cells."""

from typing import TYPE_CHECKING

import lazy_loader

# Loaded on first use: a method's own process must not wait for, nor hold, what others need.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "_compare": ["class_scores", "run", "summary", "summary_text"],
        "_figures": ["class_figure", "score_figure"],
        "methods": ["Fit", "Method"],
        "_paper": ["level_scores", "level_table", "paper_cells", "paper_table"],
        "_ablation": ["Variant", "ablation", "ablation_figure", "ablation_table", "ablation_text"],
        "_tasks": ["group_split", "long_tail_split", "thin"],
    },
)

if TYPE_CHECKING:
    from celler.benchmark._ablation import Variant as Variant
    from celler.benchmark._ablation import ablation as ablation
    from celler.benchmark._ablation import ablation_figure as ablation_figure
    from celler.benchmark._ablation import ablation_table as ablation_table
    from celler.benchmark._ablation import ablation_text as ablation_text
    from celler.benchmark._compare import class_scores as class_scores
    from celler.benchmark._compare import run as run
    from celler.benchmark._compare import summary as summary
    from celler.benchmark._compare import summary_text as summary_text
    from celler.benchmark._figures import class_figure as class_figure
    from celler.benchmark._figures import score_figure as score_figure
    from celler.benchmark._paper import level_scores as level_scores
    from celler.benchmark._paper import level_table as level_table
    from celler.benchmark._paper import paper_cells as paper_cells
    from celler.benchmark._paper import paper_table as paper_table
    from celler.benchmark._tasks import group_split as group_split
    from celler.benchmark._tasks import long_tail_split as long_tail_split
    from celler.benchmark._tasks import thin as thin
    from celler.benchmark.methods import Fit as Fit
    from celler.benchmark.methods import Method as Method
