"""Majority vote: one label for each cluster of cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._check import checked
from celler.tl._columns import label_column


@checked
def majority_vote(
    adata: AnnData,
    key: str,
    cluster_key: str,
    *,
    key_added: str | None = None,
    min_share: float = 0.0,
    unknown_label: str = "Unknown",
) -> None:
    """Give all cells of a cluster its most frequent label.

    Clusters are read, never computed. A fine clustering, such as Leiden at resolution 5 or more, keeps
    rare types; in a coarse one they are outvoted.

    Parameters
    ----------
    adata
        The cells; two columns of its ``obs`` are written.
    key
        Column of ``adata.obs`` with the labels. Of equally frequent labels the first category wins.
    cluster_key
        Column of ``adata.obs`` with the clusters. A cell without a cluster gets no label.
    key_added
        Column to write; ``None`` is ``<key>_majority``. ``<key_added>_share`` is its share of the labelled cells.
    min_share
        Share below which a cluster gets ``unknown_label``.
    unknown_label
        Label of clusters without a clear majority.

    Raises
    ------
    KeyError
        A column does not exist.
    ValueError
        ``key_added`` is one of the columns read, or ``min_share`` is outside 0 to 1.

    Examples
    --------
    >>> sc.tl.leiden(adata, resolution=5, key_added="fine")
    >>> cl.tl.majority_vote(adata, "celler", "fine")
    >>> adata.obs["celler_majority"]
    """
    key_added = f"{key}_majority" if key_added is None else key_added
    if key_added in (key, cluster_key):
        raise ValueError(f"key_added={key_added!r} would overwrite its own input; pass a new name.")
    labels = label_column(adata, key, "key")
    clusters = label_column(adata, cluster_key, "cluster_key")
    winner, share = cluster_votes(labels, clusters)
    # The last entry of each array belongs to code -1: no label, no cluster.
    names = np.array([*labels.categories, None], dtype=object)
    chosen = np.where(share < min_share, unknown_label, names[winner])
    adata.obs[key_added] = pd.Categorical(np.array([*chosen, None], dtype=object)[clusters.codes])
    adata.obs[f"{key_added}_share"] = np.array([*share, np.nan])[clusters.codes]


def cluster_votes(labels: pd.Categorical, clusters: pd.Categorical) -> tuple[np.ndarray, np.ndarray]:
    """Code of each cluster's most frequent label and its share; -1 and NaN without a label."""
    # pandas.crosstab takes five times as long, 0.46 s for 1.5 million cells, and no fewer lines.
    votes = np.zeros((len(clusters.categories), len(labels.categories)))
    has_both = (labels.codes >= 0) & (clusters.codes >= 0)
    np.add.at(votes, (clusters.codes[has_both], labels.codes[has_both]), 1)
    n_votes = votes.sum(axis=1)
    share = votes.max(axis=1) / np.where(n_votes > 0, n_votes, np.nan)
    return np.where(n_votes > 0, votes.argmax(axis=1), -1), share
