"""Majority vote: one label for each cluster of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from celler.tl._columns import label_column

if TYPE_CHECKING:
    from anndata import AnnData


def majority_vote(
    adata: AnnData,
    key: str,
    cluster_key: str,
    *,
    key_added: str | None = None,
    min_share: float = 0.0,
    unknown_label: str = "Unknown",
) -> None:
    """Give all cells of a cluster the label that most of its labelled cells have.

    Clusters are read, never computed: a fine clustering, such as Leiden at resolution 5 and above,
    keeps rare types, which are outvoted in a coarse one.

    key: labels in ``adata.obs``. Where two are equally frequent the first in the order of the
        categories wins.
    cluster_key: clusters in ``adata.obs``; a cell without one gets no label.
    key_added: column written; None = ``<key>_majority``. ``<key_added>_share`` is the share of the
        cluster's labelled cells that have the label.
    min_share: clusters of which no label has this share get ``unknown_label``.
    """
    key_added = f"{key}_majority" if key_added is None else key_added
    if key_added in (key, cluster_key):
        raise ValueError(f"key_added={key_added!r} would overwrite its own input; pass a new name.")
    if not 0 <= min_share <= 1:
        raise ValueError(f"min_share={min_share} was given; a share between 0 and 1 is needed.")
    labels = label_column(adata, key, "key")
    clusters = label_column(adata, cluster_key, "cluster_key")
    winner, share = cluster_votes(labels, clusters)
    names = np.array([*labels.categories, None], dtype=object)  # the last stands for code -1
    chosen = np.where(share < min_share, unknown_label, names[winner])
    # the last entry stands for code -1, cells without a cluster
    codes = clusters.codes
    adata.obs[key_added] = pd.Categorical(np.array([*chosen, None], dtype=object)[codes])
    adata.obs[f"{key_added}_share"] = np.array([*share, np.nan])[codes]


def cluster_votes(
    labels: pd.Categorical, clusters: pd.Categorical
) -> tuple[np.ndarray, np.ndarray]:
    """Code of each cluster's most frequent label, −1 without one, and its share, then NaN.

    Of equally frequent labels it is the first category.
    """
    votes = np.zeros((len(clusters.categories), len(labels.categories)))
    has_both = (labels.codes >= 0) & (clusters.codes >= 0)
    np.add.at(votes, (clusters.codes[has_both], labels.codes[has_both]), 1)
    n_votes = votes.sum(axis=1)
    share = np.divide(
        votes.max(axis=1), n_votes, out=np.full(len(votes), np.nan), where=n_votes > 0
    )
    return np.where(n_votes > 0, votes.argmax(axis=1), -1), share
