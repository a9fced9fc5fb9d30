"""Gene space: the one list of genes of a store, and which of them each column of a source is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from celler.genes import align_genes, check_unique, gene_names, kinds_of, without_version

#: Share of the fewer genes, the source's or the space's, that both must have.
MIN_OVERLAP = 0.2


@dataclass(frozen=True)
class SourceGenes:
    """Genes of a source: its names, those of its ``var``, and where they come from in messages."""

    source: str
    names: pd.Index
    var: pd.DataFrame | None

    @classmethod
    def of(cls, source: str, var: pd.DataFrame, gene_key: str | None) -> SourceGenes:
        """Names from ``var_names``, or from the column ``gene_key`` alone."""
        try:
            names = gene_names(var, gene_key).astype(str)
        except KeyError as error:
            raise KeyError(f"source {source!r}: {error.args[0]}") from error
        return cls(source, names, var if gene_key is None else None)


@dataclass(frozen=True)
class GeneSpace:
    """``names`` of the store's genes; ``maps`` has the gene of each source's columns, −1 for none."""

    names: pd.Index
    maps: list[np.ndarray]
    reports: list[dict[str, Any]]


def gene_space(sources: Sequence[SourceGenes], genes: str | Sequence[str]) -> GeneSpace:
    """Align all sources: to the union or the intersection of their genes, or to a list of names.

    Names match as in :func:`celler.pp.align_genes`; where ``var_names`` do not, a column of ``var``
    that does is taken. The first source's kind of names is that of a union. Columns of a source that
    are one gene are added up. Raises ``ValueError`` for a source of other genes.
    """
    is_open = isinstance(genes, str)
    if is_open:
        first = without_version(sources[0].names)
        space = first[(first != "")].unique()
    else:
        space = pd.Index(genes, dtype=object).astype(str)
        check_unique(space, "the names in genes")
    maps, reports = [], []
    for source in sources:
        found, names, report = _align(source, space)
        if is_open:
            extra = (found < 0) & np.asarray(names != "")
            fresh = without_version(names[extra])
            space = space.append(fresh.unique())
            found[extra] = space.get_indexer(fresh)
        maps.append(found)
        reports.append(report)
    if genes == "intersection":
        space, maps = _shared(sources, space, maps)
    for found, report in zip(maps, reports, strict=True):
        columns = found[found >= 0]
        report["n_in_store"] = len(np.unique(columns))
        report["n_added_up"] = len(columns) - report["n_in_store"]
    return GeneSpace(space, maps, reports)


def _align(source: SourceGenes, space: pd.Index) -> tuple[np.ndarray, pd.Index, dict[str, Any]]:
    """Gene of each column, −1 for one the space lacks; the names that matched, and a report."""
    is_vocabulary = len(source.names) < len(space)
    try:
        match = align_genes(source.names, space, source.var, is_vocabulary=is_vocabulary)
    except ValueError as error:
        raise _other_genes(source, space) from error
    names = source.names
    if match.column is not None and source.var is not None:
        names = gene_names(source.var, match.column).astype(str)
    report = {
        "n_genes": len(names),
        "names": f"var[{match.column!r}]" if match.column is not None else "var_names",
        "n_matched": match.n_matched,
        "inexact": match.n_inexact,
    }
    return np.maximum(match.gene_map, match.repeated).astype(np.int64), names, report


def _shared(
    sources: Sequence[SourceGenes], space: pd.Index, maps: list[np.ndarray]
) -> tuple[pd.Index, list[np.ndarray]]:
    """The genes that all sources have."""
    n_sources = np.zeros(len(space), int)
    for found in maps:
        n_sources[np.unique(found[found >= 0])] += 1
    is_shared = n_sources == len(maps)
    if not is_shared.any():
        raise ValueError(
            f"no gene is in all {len(sources)} sources; pass genes='union' or a list of names, or leave out "
            "the source that shares least."
        )
    place = np.append(np.where(is_shared, is_shared.cumsum() - 1, -1), -1)
    return space[is_shared], [place[found] for found in maps]


def _other_genes(source: SourceGenes, space: pd.Index) -> ValueError:
    kinds = [str(kinds_of(names).index[0]) for names in (source.names, space)]
    columns = [] if source.var is None else list(map(str, source.var.columns))
    return ValueError(
        f"source {source.source!r} shares under {MIN_OVERLAP:.0%} of its genes with the store: it has "
        f"{len(source.names):,} {kinds[0]} such as {list(source.names[:3])}, the store {len(space):,} {kinds[1]} "
        f"such as {list(space[:3])}; columns of its var: {columns}. Name the column that holds the store's kind "
        f"with gene_key={{{source.source!r}: ...}}, rename its genes first with cl.pp.align_genes(adata, names, "
        "mapping=...), or leave it out."
    )
