"""Cells by marker genes: the small table behind a marker plot, read without changing the AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from celler.tl.columns import N_LISTED, label_column, listed, with_closest
from celler.tl.markers import rank_markers
from celler.tl.values import check_values, read_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

    from celler.tl.values import Source

#: Automatic markers of a group, by the number of groups up to which there are so many.
MARKERS_PER_GROUP = {12: 3, 30: 2}


def markers_by_label(
    markers: str | Iterable[str] | Mapping[str, Any] | pd.DataFrame,
) -> dict[str, list[str]]:
    """Markers as text by label, each once per label; without labels they come under the label ""."""
    if isinstance(markers, pd.DataFrame):
        markers = dict(iter(markers.groupby("group", sort=False)["gene"]))
    by_label = markers if isinstance(markers, Mapping) else {"": markers}
    return {
        str(label): [genes] if isinstance(genes, str) else list(dict.fromkeys(map(str, genes)))
        for label, genes in by_label.items()
    }


def automatic_markers(
    adata: AnnData, groupby: str, layer: str | None, notes: list[str]
) -> pd.DataFrame:
    """The best markers of every group, fewer of each where there are many groups."""
    groups = label_column(adata, groupby, "groupby").categories
    n_genes = next((n for most, n in MARKERS_PER_GROUP.items() if len(groups) <= most), 1)
    markers = rank_markers(adata, groupby, n_genes, layer=layer)
    without = groups.difference(markers["group"], sort=False)
    if len(without) == len(groups):
        raise ValueError(f"No gene tells the groups of {groupby!r} apart; pass markers.")
    if len(without):
        notes.append(f"No gene leads in {listed(without)}: without markers.")
    return markers


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


def small_copy(
    adata: AnnData, source: Source, genes: Iterable[str], groups: pd.Categorical, groupby: str
) -> AnnData:
    """An AnnData of the cells with a group and of ``genes``, nothing else, values as they are."""
    genes = list(dict.fromkeys(genes))
    labelled = np.flatnonzero(groups.codes >= 0)
    columns = source.gene_names.get_indexer_for(genes)
    values = read_columns(source.matrix, columns)[labelled]
    check_values(values.data, source.name, adata)
    rows = pd.RangeIndex(len(labelled)).astype(str)
    return ad.AnnData(
        values.astype(np.result_type(values.dtype, np.float32)),
        obs=pd.DataFrame({groupby: groups[labelled]}, index=rows),
        var=pd.DataFrame(index=pd.Index(genes)),
    )


def _nothing_known(genes: Sequence[str], source: Source) -> str:
    if not genes:
        return "markers is empty; pass at least one gene."
    return (
        f"None of the {len(genes)} markers is a gene of {source.name}: {listed(genes)}. Its genes "
        f"are named like {listed(source.gene_names)}. Pass names like these, or put those of the "
        "markers in a column of var."
    )
