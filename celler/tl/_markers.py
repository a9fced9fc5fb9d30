"""Markers: the genes that tell each group of cells from every other group.

Group means are summed here, in pieces of rows. ``scanpy.get.aggregate`` on the same pieces takes as long, as
much memory and as many lines, and on a whole table of 200,000 cells 2.3 times the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.abc import CSCDataset
from scipy import sparse

from celler._utils import _counts
from celler._utils._check import checked
from celler._utils._counts import InputState, as_read, contradiction, cp10k, detect, unusable
from celler._utils._kinds import Kinds, other_rows
from celler._utils._matrix import as_csr, check_stored, check_view, only_columns, spread
from celler._utils._messages import closest, listed, warn
from celler._utils._text import as_names, found_names
from celler.tl._columns import in_natural_order, label_column

ROWS_AT_ONCE = 50_000  # rows in memory at once
#: Average cells added to every group before genes are scored: a gene that three cells of a rare type
#: express by chance must not outrank one that three hundred always express.
PRIOR_CELLS = 5


@checked
def rank_markers(adata: AnnData, groupby: str, n_genes: int = 10, *, layer: str | None = None) -> pd.DataFrame:
    r"""Rank the genes that are specific to each group of cells, best first.

    Parameters
    ----------
    adata
        The cells, in memory or backed; not changed.
    groupby
        Column of ``adata.obs`` with the groups. Cells without a group are left out.
    n_genes
        Genes per group. A group has fewer where fewer genes are highest in it. Rows that are no genes by
        ``adata.var["feature_types"]`` are left out with a warning.
    layer
        A layer, ``"X"`` or ``"raw"``. ``None`` is ``X``, or ``adata.raw`` where ``X`` is scaled. Counts are converted
        to log1p of counts per 10,000; logarithms stay, those of other bases become natural ones.

    Returns
    -------
    pandas.DataFrame
        A row per marker: ``group``, ``gene`` and ``score``; ``mean`` and ``share`` of the group, not shrunk;
        ``next_group``, the group with the next highest mean, and its ``next_mean`` and ``next_share``.

    Raises
    ------
    KeyError
        ``groupby`` or ``layer`` does not exist.
    ValueError
        The values are scaled, NaN or infinite, or cells hold values of different kinds.

    Notes
    -----
    .. math:: s_{gk} = (m_{gk} - \bar m_{g, j \ne k}) (d_{gk} - \bar d_{g, j \ne k})
        \Bigl(1 - \max_{j \ne k} m_{gj} / m_{gk}\Bigr)

    Here m is the mean log expression and d the share of cells above zero of group k, each shrunk towards all cells by 5
    cells; the bars are means over the other groups. A marker is stronger and more frequent than elsewhere and leads by
    a margin, so a gene of two groups marks neither. The score is 0 where a factor is negative.

    Examples
    --------
    >>> markers = cl.tl.rank_markers(adata, "cell_type", n_genes=3)
    >>> cl.pl.marker_bubble(adata, markers, "cell_type")
    """
    groups = in_natural_order(label_column(adata, groupby, "groupby"))
    source = find_source(adata, layer, None)
    if source.kinds is not None:
        warn(f"{source.kinds}; they are left out.")
    means = group_means(adata, source, groups)
    scores, next_group = specificity(means)
    scores[:, source.gene_names == ""] = 0  # a gene without a name and an antibody are no markers
    tables = []
    for k, group in enumerate(groups.categories):
        best = np.argsort(-scores[k], kind="stable")[:n_genes]
        best = best[scores[k, best] > 0]
        rival = next_group[k, best]
        columns = {
            "group": group,
            "gene": source.gene_names[best],
            "score": scores[k, best],
            "mean": means.mean[k, best],
            "share": means.share[k, best],
            "next_group": groups.categories.to_numpy()[rival],
            "next_mean": means.mean[rival, best],
            "next_share": means.share[rival, best],
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


class GroupMeans(NamedTuple):
    """Mean log expression and share of cells above zero ``(groups, genes)``, ``n_cells (groups,)``."""

    mean: np.ndarray
    share: np.ndarray
    n_cells: np.ndarray


def group_means(adata: AnnData, source: Source, groups: pd.Categorical) -> GroupMeans:
    """Mean and share of each group, summed over pieces of rows."""
    n_groups, start, state = len(groups.categories), 0, source.state
    total, above = np.zeros((2, n_groups, len(source.gene_names)))
    for piece in read_rows(source):
        check_values(piece.data, source.name, adata)
        check_state(state, source.name, adata)
        odd = contradiction(piece, state)
        if odd is not None:
            raise unusable(odd, source.name, str(adata.obs_names[start + (odd.odd or 0)]), _elsewhere(adata))
        codes = np.asarray(groups.codes[start : start + piece.shape[0]], dtype=np.int64)
        start += piece.shape[0]
        rows = np.flatnonzero(codes >= 0)
        entries = np.ones(len(rows)), (codes[rows], rows)
        member = sparse.csr_matrix(entries, shape=(n_groups, len(codes)))
        values = as_read(piece, state)
        values = values if state.is_log else cp10k(values).log1p()
        total += (member @ values).toarray()
        above += (member @ (values > 0)).toarray()
    n_cells = np.bincount(groups.codes[groups.codes >= 0], minlength=n_groups)
    return GroupMeans(total / n_cells[:, None], above / n_cells[:, None], n_cells)


def specificity(means: GroupMeans) -> tuple[np.ndarray, np.ndarray]:
    """Score of every gene in every group, and the group with the next highest mean, ``(groups, genes)``."""
    n_groups, n_cells = len(means.n_cells), means.n_cells[:, None]
    if n_groups == 1:
        return means.mean * means.share, np.zeros(means.mean.shape, dtype=np.int64)
    mean, share = (
        (part * n_cells + PRIOR_CELLS * np.average(part, axis=0, weights=means.n_cells)) / (n_cells + PRIOR_CELLS)
        for part in (means.mean, means.share)
    )
    order = np.argsort(mean, axis=0)
    is_first = np.arange(n_groups)[:, None] == order[-1]
    next_group = np.where(is_first, order[-2], order[-1])
    next_mean = np.take_along_axis(mean, next_group, axis=0)
    lead = 1 - np.divide(next_mean, mean, out=np.ones_like(mean), where=mean > 0)
    stronger, more_frequent = (part - (part.sum(axis=0) - part) / (n_groups - 1) for part in (mean, share))
    return np.prod(np.maximum([stronger, more_frequent, lead], 0), axis=0), next_group


@dataclass(frozen=True)
class Source:
    """A matrix ``(n_obs, n_vars)``, the names of its genes, its own name in messages, and rows that are no genes."""

    matrix: Any
    gene_names: pd.Index
    name: str
    kinds: Kinds | None = None

    @cached_property
    def state(self) -> InputState:
        """What the values of one to two thousand rows are."""
        return detect(self.rows(spread(self.matrix.shape[0])))

    def rows(self, rows: slice) -> sparse.csr_matrix:
        """Return rows as CSR, without values of columns that have no name because they are no genes."""
        return only_columns(as_csr(self.by_row[rows], self.name, dtype=None), self._is_read)

    @cached_property
    def _is_read(self) -> np.ndarray | None:
        return None if self.kinds is None else self.kinds.is_gene | np.asarray(self.gene_names != "")

    @cached_property
    def by_row(self) -> Any:
        """The matrix, by rows: each row of CSC costs a pass over all values."""
        is_csc = isinstance(self.matrix, CSCDataset) or getattr(self.matrix, "format", "") == "csc"
        if is_csc or sparse.issparse(self.matrix):
            return as_csr(self.matrix, self.name, dtype=None)
        check_stored(self.matrix, self.name)
        return self.matrix


def find_source(adata: AnnData, layer: str | None, genes: Sequence[str] | None) -> Source:
    """Find ``layer``, "X" or "raw"; ``None`` is ``X``, or ``raw`` where X is scaled or lacks ``genes``.

    Genes are looked up in ``var_names``, or if these hold none of ``genes`` in the best column of var.
    """
    wanted = [] if genes is None else genes
    if layer is not None:
        return _place(adata, layer, wanted)
    places = _held(adata)
    if not places:
        raise ValueError(f"adata.X is empty; pass layer=. Layers: {listed(places_of(adata))}.")
    first, last = (_place(adata, place, wanted) for place in (places[0], places[-1]))
    n_first, n_last = (len(found.gene_names.intersection(wanted)) for found in (first, last))
    return last if n_last > n_first or _is_scaled(first, genes) else first


def places_of(adata: AnnData) -> list[str]:
    """List what ``layer`` may be: every layer, and "X" and "raw" where they exist."""
    # anndata 0.13 lists X among the layers, as None
    names: list[str | None] = list(adata.layers.keys())
    return [name for name in names if name is not None] + _held(adata)


def read_columns(source: Source, columns: np.ndarray) -> sparse.csr_matrix:
    """Columns of a matrix in memory or on disk; a row-wise file is read in pieces of rows."""
    if isinstance(source.matrix, np.ndarray | CSCDataset):
        return as_csr(source.matrix[:, columns], source.name, dtype=None)
    return sparse.vstack([piece[:, columns] for piece in read_rows(source)], format="csr")


def read_logs(source: Source, columns: np.ndarray) -> sparse.csr_matrix:
    """Columns as logarithms: these as stored, counts as log1p of counts per 10,000 of all genes."""
    state = source.state
    if state.is_log or not state.is_usable:
        return read_columns(source, columns)
    pieces = (cp10k(as_read(piece, state)).log1p()[:, columns] for piece in read_rows(source))
    return sparse.vstack(list(pieces), format="csr")


def read_rows(source: Source) -> Iterator[sparse.csr_matrix]:
    """All rows in order, in pieces."""
    for start in range(0, source.matrix.shape[0], ROWS_AT_ONCE):
        yield source.rows(slice(start, start + ROWS_AT_ONCE))


def check_state(state: InputState, name: str, adata: AnnData) -> None:
    """Raise ``ValueError`` for values that are scaled, and for mixtures."""
    if not state.is_usable:
        cell = str(adata.obs_names[spread(adata.n_obs)][state.odd or 0])
        raise unusable(state, name, cell, _elsewhere(adata))


def check_values(values: np.ndarray, name: str, adata: AnnData) -> None:
    """Raise ``ValueError`` for negative, NaN and infinite values."""
    _counts.check_values(values, name, lambda: _elsewhere(adata))


def _elsewhere(adata: AnnData) -> str:
    return f" Pass one that holds them, layer=: {listed(places_of(adata))}."


def _held(adata: AnnData) -> list[str]:
    check_view(adata, None)
    check_view(adata, "raw")
    return [place for place in ("X", "raw") if getattr(adata, place) is not None]


def _place(adata: AnnData, place: str, genes: Sequence[str]) -> Source:
    check_view(adata, None if place == "X" and "X" not in adata.layers else place)
    known = places_of(adata)
    if place not in known:
        raise KeyError(
            f"layer={place!r} is not in adata.layers.{closest(place, known)} There are: {listed(known, 30)}."
        )
    if place in adata.layers:
        X, var, name = adata.layers[place], adata.var, f"adata.layers[{place!r}]"
    else:
        held = adata if place == "X" else adata.raw
        X, var, name = held.X, held.var, f"adata.{place}"
    kinds = other_rows(var)
    return Source(X, _gene_names(var, genes, kinds), name, kinds)


def _gene_names(var: Any, genes: Sequence[str], kinds: Kinds | None) -> pd.Index:
    """``var_names``, or if they hold none of ``genes`` the column of var with most of them.

    A row that is no gene has a name only where it is among ``genes`` and that of no gene.
    """
    names = _named(as_names(var.index), genes, kinds)
    if not len(genes) or names.isin(genes).any():
        return names
    columns = [_named(as_names(var[key]), genes, kinds) for key in var if var[key].ndim == 1]
    best = max([names, *columns], key=lambda names: names.isin(genes).sum())
    return best if best.isin(genes).any() else max([names, *columns], key=lambda names: len(found_names(genes, names)))


def _named(names: pd.Index, genes: Sequence[str], kinds: Kinds | None) -> pd.Index:
    if kinds is None:
        return names
    is_asked = names.isin(genes) & ~names.isin(names[kinds.is_gene])
    return pd.Index(np.where(kinds.is_gene | is_asked, names, ""), dtype=object)


def _is_scaled(source: Source, genes: Sequence[str] | None) -> bool:
    if source.matrix.shape[0] == 0:
        return False
    if genes is None or not isinstance(source.matrix, CSCDataset):
        return source.state.kind == "scaled"
    # Rows of a file that lies by columns cost a pass over all of it.
    columns = np.flatnonzero(source.gene_names.isin(genes))
    return bool(read_columns(source, columns).data.min(initial=0) < 0)
