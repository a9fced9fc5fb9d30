"""Annotate: check the columns to write, vote within clusters, write obs and uns."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._text import as_names
from celler._utils._write import check_key
from celler.data._genes import GeneAlignment
from celler.data._query import Query
from celler.model._state import ModelState, network_line, training_line
from celler.tl._columns import label_column
from celler.tl._label_check import LabelCheck
from celler.tl._majority_vote import cluster_votes

#: What follows the key in the names of the columns that ``annotate`` may write.
OF_CLASS = ("_confidence", "_margin", "_second", "_agreement", "_novelty")
ENDINGS = (*OF_CLASS, "_parent", "_parent_confidence", "_level", "_cl_id")
VOTED = ("_majority", "_majority_share")
N_MARKERS = 3  #: markers of each type that the record keeps


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


def model_record(state: ModelState) -> dict[str, Any]:
    """Which model labelled the cells, and what it learned from, for uns."""
    fitted, setup, base = state.trained(), state.setup, state.base
    counts = [int(n) for n in fitted.class_counts]
    return {
        "source": state.origin or "none",
        "license": state.license or "none",
        "network": network_line(state),
        "base": "none" if base is None else base.organism,
        "n_genes": len(state.genes.names),
        "names_atlases": state.names_atlases,
        "atlases": _atlases(state),
        "labels_key": setup.labels_key or "none",
        "class_counts": counts,
        "labelled_cells": 0 if state.names_atlases else sum(counts),
        "training": "none" if state.names_atlases else training_line(fitted),
    }


def _atlases(state: ModelState) -> list[str]:
    """Name and citation of each atlas whose types the model names."""
    if state.tissue is None:
        return []
    types = state.tissue.types
    codes = sorted(set(types.table["dataset"]))
    return [f"{types.datasets['name'][code]}. {types.datasets['citation'][code]}" for code in codes]


def check_record(check: LabelCheck | None, genes: pd.Index, query: Query, unknown_label: str) -> dict[str, Any]:
    """Return what markers say of the labels, for uns: cells by type and label, missed types, and the types' markers.

    ``genes`` are the model's; a marker has its name in the query. Nothing where there was no check.
    """
    if check is None:
        return {}
    counts = check.counts.rename(columns={"no label": unknown_label})
    kinds, labels = np.nonzero(counts.to_numpy())
    best = check.markers.groupby("group", sort=False).head(N_MARKERS)
    names = _names_in(query, genes)
    return {
        "by_markers": {
            "type": [str(counts.index[k]) for k in kinds],
            "label": [str(counts.columns[k]) for k in labels],
            "n_cells": [int(n) for n in counts.to_numpy()[kinds, labels]],
        },
        "missed_types": {
            name: check.table[name].tolist() for name in ("type", "n_cells", "n_other", "labels", "markers")
        },
        "markers": {
            "type": [str(kind) for kind in best["group"]],
            "gene": [names.get(gene, str(gene)) for gene in best["gene"]],
        },
    }


def _names_in(query: Query, genes: pd.Index) -> dict[str, str]:
    """Name in the query of each gene that it has."""
    column, var = query.alignment.column, query.adata.var
    own = as_names(var.index if column is None else var[column])
    is_known = query.gene_map >= 0
    return dict(zip(genes[query.gene_map[is_known]], own[is_known], strict=True))


def today() -> str:
    """Return the date, by which two calls of one day write the same."""
    return datetime.now(UTC).date().isoformat()


def write_annotation(adata: AnnData, key: str, columns: Mapping[str, Any], record: dict[str, Any]) -> None:
    """Write ``columns`` to obs and ``record`` to uns; remove what an earlier call left over."""
    last = adata.uns.get(key)
    left_over = set(last.get("columns", ())) if isinstance(last, Mapping) else set()
    for name, values in columns.items():
        adata.obs[name] = values
    for name in left_over & set(adata.obs.columns) - set(columns):
        del adata.obs[name]
    adata.uns[key] = record | {"columns": list(columns)}
