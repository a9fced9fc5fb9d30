"""Cells by marker genes: the small table behind a marker plot, read without changing the AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from anndata.abc import CSCDataset
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

ROWS_AT_ONCE = 50_000
N_LISTED = 8


class Source(NamedTuple):
    """Where values come from: ``matrix (n_obs, n_vars)``, the names of its genes, its own name."""

    matrix: Any
    gene_names: pd.Index
    name: str


def markers_by_label(markers: str | Iterable[str] | Mapping[str, Any]) -> dict[str, list[str]]:
    """Markers as text by label, each once per label; without labels they come under the label ""."""
    by_label = markers if isinstance(markers, Mapping) else {"": markers}
    return {
        str(label): [genes] if isinstance(genes, str) else list(dict.fromkeys(map(str, genes)))
        for label, genes in by_label.items()
    }


def find_source(adata: AnnData, layer: str | None, genes: Sequence[str]) -> Source:
    """Choose ``layer``, "X" or "raw"; None = ``X``, or ``raw`` where X is scaled or lacks ``genes``.

    Genes go by ``var_names``, or where these hold none of ``genes`` by the column of var that does.
    """
    if layer is not None:
        return _place(adata, layer, genes)
    places = _held(adata)
    if not places:
        raise ValueError(f"adata.X is empty; pass layer=. Layers: {listed(layers(adata))}.")
    first, last = (_place(adata, place, genes) for place in (places[0], places[-1]))
    n_first, n_last = (len(found.gene_names.intersection(genes)) for found in (first, last))
    return last if n_last > n_first or _is_scaled(first, genes) else first


def known_markers(
    asked: Mapping[str, Sequence[str]], source: Source, notes: list[str]
) -> dict[str, list[str]]:
    """The markers that ``source`` has, by label; what is left out goes to ``notes``."""
    genes = list(dict.fromkeys(gene for genes in asked.values() for gene in genes))
    unknown = [gene for gene in genes if gene not in source.gene_names]
    if len(unknown) == len(genes):
        raise ValueError(_nothing_known(genes, source))
    twice = set(source.gene_names[source.gene_names.duplicated()]).intersection(genes)
    if twice:
        raise ValueError(
            f"{listed(sorted(twice))}: the name of more than one gene of {source.name}. Make names "
            "unique, e.g. with adata.var_names_make_unique(), and pass those you mean."
        )
    if unknown:
        hints = [with_closest(gene, source.gene_names) for gene in unknown[:N_LISTED]]
        notes.append(
            f"Left out {len(unknown)} of {len(genes)} markers, no genes of {source.name}: "
            f"{listed(hints + unknown[N_LISTED:])}."
        )
    known = {
        label: [gene for gene in genes if gene not in unknown] for label, genes in asked.items()
    }
    empty = [label for label, genes in known.items() if not genes]
    if empty:
        notes.append(f"Left out labels without genes: {listed(empty)}.")
    return {label: genes for label, genes in known.items() if genes}


def group_labels(adata: AnnData, groupby: str, notes: list[str]) -> pd.Categorical:
    """Group of every cell, as text, in the order of the categories; a missing label stays missing."""
    obs: Any = adata.obs
    if groupby not in obs:
        raise KeyError(f"groupby={groupby!r} is not a column of adata.obs. {closest(groupby, obs)}")
    column = obs[groupby]
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 != 0).any():
        raise ValueError(
            f"groupby={groupby!r} holds numbers such as {column[column % 1 != 0].iloc[0]:.3g}; a "
            "column of labels is needed. Pass one, or cut the numbers into ranges with pandas.cut."
        )
    groups = pd.Categorical(column).remove_unused_categories()
    n_missing = int((groups.codes == -1).sum())
    if n_missing == len(groups):
        raise ValueError(f"No cell has a label in adata.obs[{groupby!r}]; pass a filled column.")
    if n_missing:
        notes.append(f"Left out {n_missing:,} of {len(groups):,} cells, no label in {groupby!r}.")
    return groups.rename_categories([_as_text(category) for category in groups.categories])


def small_copy(
    adata: AnnData, source: Source, genes: Iterable[str], groups: pd.Categorical, groupby: str
) -> AnnData:
    """An AnnData of the cells with a group and of ``genes``, nothing else, values as they are."""
    genes = list(dict.fromkeys(genes))
    labelled = np.flatnonzero(groups.codes >= 0)
    columns = source.gene_names.get_indexer_for(genes)
    values = _read(source.matrix, columns)[labelled]
    _check_values(values, source.name, adata)
    rows = pd.RangeIndex(len(labelled)).astype(str)
    return ad.AnnData(
        values.astype(np.result_type(values.dtype, np.float32)),
        obs=pd.DataFrame({groupby: groups[labelled]}, index=rows),
        var=pd.DataFrame(index=pd.Index(genes)),
    )


def places_of(adata: AnnData) -> list[str]:
    """What ``layer`` may be: every layer, and "X" and "raw" where they exist."""
    return layers(adata) + _held(adata)


def layers(adata: AnnData) -> list[str]:
    """Names of the layers; anndata 0.13 counts ``X`` among them, as None."""
    names: list[str | None] = list(adata.layers.keys())
    return [name for name in names if name is not None]


def closest(name: str, names: Iterable[str]) -> str:
    """Say which of ``names`` is the most like ``name``, and list them."""
    names = [str(other) for other in names]
    similar = _similar(name, names, n=1)
    return (f"Closest: {similar[0]!r}. " if similar else "") + f"There are: {listed(names, 30)}."


def with_closest(name: str, names: Iterable[str]) -> str:
    """``name`` and, in brackets, up to two of ``names`` most like it."""
    similar = _similar(name, names, n=2)
    return f"{name} (closest: {' or '.join(similar)})" if similar else name


def listed(names: Sequence[str] | pd.Index, most: int = N_LISTED) -> str:
    """The first ``most`` of ``names`` and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(map(str, names[:most])) or "none") + more


def _similar(name: str, names: Iterable[str], n: int) -> list[str]:
    """Names most like ``name``, whatever the case of their letters."""
    by_lower = {other.lower(): other for other in names}
    return [by_lower[lower] for lower in get_close_matches(name.lower(), by_lower, n)]


def _held(adata: AnnData) -> list[str]:
    return [place for place in ("X", "raw") if getattr(adata, place) is not None]


def _place(adata: AnnData, place: str, genes: Sequence[str]) -> Source:
    if place in layers(adata):
        matrix, var, name = adata.layers[place], adata.var, f"adata.layers[{place!r}]"
    elif place == "X" and adata.X is not None:
        matrix, var, name = adata.X, adata.var, "adata.X"
    elif place == "raw" and adata.raw is not None:
        matrix, var, name = adata.raw.X, adata.raw.var, "adata.raw"
    else:
        raise KeyError(
            f"layer={place!r} is not in adata.layers. {closest(place, places_of(adata))}"
        )
    return Source(matrix, _gene_names(var, genes), name)


def _gene_names(var: Any, genes: Sequence[str]) -> pd.Index:
    """``var_names``, or where they hold none of ``genes`` the column of var with most of them."""
    names = var.index.astype(str)
    if names.isin(genes).any():
        return names
    columns = [pd.Index(var[key].astype(str)) for key in var]
    return max([names, *columns], key=lambda names: names.isin(genes).sum())


def _is_scaled(source: Source, genes: Sequence[str]) -> bool:
    columns = np.flatnonzero(source.gene_names.isin(genes))
    return bool(_read(source.matrix, columns).data.min(initial=0) < 0)


def _as_text(category: object) -> str:
    is_whole = isinstance(category, float | np.floating) and float(category).is_integer()
    # whole numbers are floats where one of their column is missing: 2, not 2.0
    return f"{category:.0f}" if is_whole else str(category)


def _nothing_known(genes: Sequence[str], source: Source) -> str:
    if not genes:
        return "markers is empty; pass at least one gene."
    return (
        f"None of the {len(genes)} markers is a gene of {source.name}: {listed(genes)}. Its genes "
        f"are named like {listed(source.gene_names)}. Pass names like these, or put those of the "
        "markers in a column of var."
    )


def _read(matrix: Any, columns: np.ndarray) -> sparse.csr_matrix:
    """Columns of a matrix in memory or on disk; a row-wise file is read in pieces of rows."""
    if isinstance(matrix, np.ndarray | CSCDataset) or sparse.issparse(matrix):
        return sparse.csr_matrix(matrix[:, columns])
    starts = range(0, matrix.shape[0], ROWS_AT_ONCE)
    pieces = [matrix[start : start + ROWS_AT_ONCE][:, columns] for start in starts]
    return sparse.vstack([sparse.csr_matrix(piece) for piece in pieces], format="csr")


def _check_values(values: sparse.csr_matrix, name: str, adata: AnnData) -> None:
    if not np.isfinite(values.data).all():
        raise ValueError(f"{name} holds NaN or infinite values; pass a layer without, with layer=.")
    if values.data.min(initial=0) < 0:
        raise ValueError(
            f"{name} holds {values.data.min():.2f}: scaled values do not tell whether a cell "
            f"expresses a gene. Pass log-normalised ones, layer=: {listed(places_of(adata))}."
        )
