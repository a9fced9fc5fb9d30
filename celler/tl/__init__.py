"""Tools: evaluate predicted labels, vote within clusters, rank markers."""

from celler.tl.evaluation import Evaluation, evaluate
from celler.tl.markers import rank_markers
from celler.tl.voting import majority_vote

__all__ = ["Evaluation", "evaluate", "majority_vote", "rank_markers"]
