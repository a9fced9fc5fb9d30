"""Tools: evaluate labels, vote within clusters, rank markers."""

from celler.tl._evaluate import Evaluation, evaluate
from celler.tl._label_check import LabelCheck
from celler.tl._majority_vote import majority_vote
from celler.tl._markers import rank_markers

__all__ = ["Evaluation", "LabelCheck", "evaluate", "majority_vote", "rank_markers"]
