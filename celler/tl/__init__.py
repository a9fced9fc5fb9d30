"""Tools: evaluate labels, vote within clusters, rank markers, report."""

from typing import TYPE_CHECKING

import lazy_loader

# `report` draws, so its room stands above the plots, which stand on this one: it is loaded on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    "celler",
    submod_attrs={
        "report._report": ["report"],
        "tl._evaluate": ["Evaluation", "evaluate"],
        "tl._label_check": ["LabelCheck"],
        "tl._majority_vote": ["majority_vote"],
        "tl._markers": ["rank_markers"],
    },
)

if TYPE_CHECKING:
    from celler.report._report import report as report
    from celler.tl._evaluate import Evaluation as Evaluation
    from celler.tl._evaluate import evaluate as evaluate
    from celler.tl._label_check import LabelCheck as LabelCheck
    from celler.tl._majority_vote import majority_vote as majority_vote
    from celler.tl._markers import rank_markers as rank_markers
