"""Annotate: check the columns to write, vote within clusters, write obs and uns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._write import check_key
from celler.data._genes import GeneAlignment
from celler.tl._columns import label_column
from celler.tl._majority_vote import cluster_votes

#: What follows the key in the names of the columns that ``annotate`` may write.
OF_CLASS = ("_confidence", "_margin", "_second", "_agreement", "_novelty")
ENDINGS = (*OF_CLASS, "_parent", "_parent_confidence", "_level", "_cl_id")
VOTED = ("_majority", "_majority_share")


def check_target(adata: AnnData, key: str, cluster_key: str | None) -> pd.Categorical | None:
    """Return the clusters, where they are used; raise, before any work, where the annotation could not be written."""
    check_key(key, "key_added")
    if adata.is_view and adata.isbacked:
        raise ValueError(
            "adata is a view of a file in backed mode, which cannot be written to; take it into memory first, "
            "adata = adata.to_memory(), or use predict."
        )
    if cluster_key is None:
        return None
    if cluster_key in {key, *(key + ending for ending in (*ENDINGS, *VOTED))}:
        raise ValueError(
            f"cluster_key={cluster_key!r} is a column that annotate writes itself; pass a column of clusters, "
            "or another key_added."
        )
    return label_column(adata, cluster_key, "cluster_key")


def majority_columns(
    labels: pd.Categorical, clusters: pd.Categorical, key: str
) -> dict[str, pd.Categorical | np.ndarray]:
    """Return the most frequent label of each cell's cluster and its share; without a cluster the cell's own, NaN."""
    winner, share = cluster_votes(labels, clusters)
    codes = np.where(clusters.codes >= 0, winner[clusters.codes], labels.codes)
    return {
        f"{key}_majority": pd.Categorical.from_codes(codes, dtype=labels.dtype),
        f"{key}_majority_share": np.where(clusters.codes >= 0, share[clusters.codes], np.nan),
    }


def gene_record(alignment: GeneAlignment, expression_share: float) -> dict[str, Any]:
    """How the query's genes fit the model's, for uns."""
    return {
        "matched": alignment.n_matched,
        "missing": len(alignment.missing),
        "extra": alignment.n_extra,
        "expression_share": expression_share,
    }


def write_annotation(adata: AnnData, key: str, columns: Mapping[str, Any], record: dict[str, Any]) -> None:
    """Write ``columns`` to obs and ``record`` to uns; remove what an earlier call left over."""
    last = adata.uns.get(key)
    left_over = set(last.get("columns", ())) if isinstance(last, Mapping) else set()
    for name, values in columns.items():
        adata.obs[name] = values
    for name in left_over & set(adata.obs.columns) - set(columns):
        del adata.obs[name]
    adata.uns[key] = record | {"columns": list(columns)}
