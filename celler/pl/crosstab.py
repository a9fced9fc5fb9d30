"""Given by predicted labels: how many cells, and an order in which classes that are confused are neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.cluster import hierarchy

from celler.tl.pairs import Pair, read_parents

if TYPE_CHECKING:
    from anndata import AnnData


class Crosstab(NamedTuple):
    """``counts`` of cells, given classes by predicted ones, which begin with the given in the same order.

    blocks: parent of each run of rows, with its first and its last; none without parents.
    """

    counts: pd.DataFrame
    blocks: list[tuple[str, int, int]]

    @property
    def shares(self) -> pd.DataFrame:
        """Share of each given class's cells."""
        return self.counts.div(self.counts.sum(axis=1), axis=0)


def cross(
    data: AnnData | pd.DataFrame, cells: Pair, parents: Mapping[str, str] | str | None
) -> Crosstab:
    """Count and order; with parents their classes stay together."""
    counts = pd.crosstab(cells.truth, cells.prediction)
    names = list(counts.index)
    others = [name for name in counts.columns if name not in counts.index]
    counts = counts.reindex(columns=names + others, fill_value=0)
    ordered: list[str] = []
    blocks: list[tuple[str, int, int]] = []
    if parents is None:
        ordered = by_similarity(counts)
    else:
        parent_of = read_parents(data, parents, cells)
        families = pd.crosstab(
            *([parent_of.get(name, name) for name in labels] for labels in cells[:2])
        )
        for parent in by_similarity(families):
            children = by_similarity(counts[[parent_of[name] == parent for name in names]])
            blocks.append((parent, len(ordered), len(ordered) + len(children) - 1))
            ordered += children
    return Crosstab(counts.loc[ordered, ordered + others], blocks)


def by_similarity(counts: pd.DataFrame) -> list[str]:
    """Rows in an order in which those that are confused are neighbours.

    The leaves of an average linkage; the distance of two classes is 1 less the mean of both shares of
    cells taken for the other class.
    """
    names = list(counts.index)
    if len(names) < 3:
        return names
    n_cells = counts.to_numpy().sum(axis=1, keepdims=True)
    shares = counts.reindex(columns=names, fill_value=0).to_numpy() / n_cells
    distance = 1 - (shares + shares.T) / 2
    pairs = distance[np.triu_indices(len(names), k=1)]
    tree = hierarchy.linkage(pairs, "average", optimal_ordering=True)
    return [names[leaf] for leaf in hierarchy.leaves_list(tree)]
