"""Check labels: the types that markers of the reference speak for against the labels of a query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from celler._utils._counts import cp10k
from celler._utils._messages import listed
from celler.data._profile import Profile
from celler.data._query import CHUNK_SIZE, Query
from celler.inference._marker_types import MIN_REFERENCE, Markers, find_markers, types_of
from celler.labels._tree import LabelTree
from celler.model._state import ModelState
from celler.tl._label_check import LabelCheck
from celler.tl._majority_vote import cluster_votes

MIN_CELLS = 3  #: of another label, for which a type is listed
N_NAMED = 3  #: markers and labels that a row names
HALF_WAY = 0.5  #: least standing of cells that are listed: cells of a type that the reference lacks stand lower
MANY_REFERENCE = 10  #: cells of a type in the reference from which no gene is its marker by chance


@dataclass(frozen=True)
class Counted:
    """What one pass over the cells leaves.

    Log-likelihoods of the types ``halves (2, N, C)``, counts of each type's markers ``observed (N, C)`` and of all
    genes ``depth (N,)``, and the number of cells that express each marker ``n_expressing (M,)``.
    """

    halves: np.ndarray
    observed: np.ndarray
    depth: np.ndarray
    n_expressing: np.ndarray


def has_profile(state: ModelState) -> bool:
    """Whether the model keeps mean expression of types of a reference."""
    return not state.names_atlases and state.profile is not None


def check_profile(state: ModelState) -> Profile:
    """Return the reference's class profiles; raise ``RuntimeError`` where the model has none."""
    state.trained()
    if not has_profile(state):
        raise RuntimeError(
            "this model keeps no mean expression of its types, of which markers are chosen: it names cells by atlases "
            "or was saved by an earlier version. Compare labels with cl.tl.rank_markers(adata, key) instead."
        )
    assert state.profile is not None
    return state.profile


def check_labels(
    state: ModelState,
    query: Query,
    labels: pd.Categorical,
    clusters: pd.Categorical | None = None,
    min_cells: int = MIN_CELLS,
    *,
    counts_unlabelled: bool = True,
) -> LabelCheck:
    """Compare ``labels (N,)`` of all cells of the query with their markers; see :meth:`Celler.check_labels`."""
    profile = check_profile(state)
    markers = find_markers(profile, query.is_shared)
    counted = _count(markers, query)
    types = types_of(counted.halves)
    classes = np.array(state.tree.classes)
    given = np.array([*labels.categories, "no label"], dtype=object)[labels.codes]
    is_other = (types >= 0) & ~_agrees(given, types, state.tree)
    is_free = is_other & (labels.codes < 0) & counts_unlabelled
    is_other &= counts_unlabelled | (labels.codes >= 0)
    rows = []
    for k in np.flatnonzero(profile.n_cells >= MIN_REFERENCE):
        is_sure = profile.n_cells[k] >= MANY_REFERENCE
        for cells in _missed(types, is_other, is_free, int(k), min_cells):
            if not is_sure and _is_beyond(markers, counted, cells, int(k)):
                continue
            if _standing(markers, counted, types, given, cells, classes) >= HALF_WAY:
                break
        else:
            continue
        names = _expressed(markers, counted, query, cells, int(k))
        row = {"type": classes[k], "n_cells": int((types == k).sum()), "n_other": len(cells)}
        row |= {"labels": _most(given[cells]), "markers": ", ".join(state.genes.names[names])}
        rows.append(row | {"strength": _strength(markers, counted, cells, int(k))})
    columns = ["type", "n_cells", "n_other", "labels", "markers", "strength"]
    of_cell = pd.Series(pd.Categorical.from_codes(types, list(classes)), query.adata.obs_names, name="type")
    table = pd.DataFrame(rows, columns=columns).sort_values("n_other", ascending=False, ignore_index=True)
    return LabelCheck(
        table,
        of_cell,
        *_crossed(markers, counted, types, given, classes),
        _marker_table(markers, state),
        None if clusters is None else _cluster_table(of_cell, labels, clusters, state.tree, min_cells),
    )


def check_names(labels: pd.Categorical, key: str, tree: LabelTree) -> pd.Categorical:
    """Return the labels; raise ``ValueError`` where none is a name of the model."""
    names = [*tree.classes, *tree.parents]
    if not labels.categories.isin(names).any():
        raise ValueError(
            f"key={key!r} holds {listed(labels.categories)}; none is a class of the "
            f"model: {listed(tree.classes)}. "
            "Pass the column that annotate wrote, or labels with the reference's names."
        )
    return labels


def _count(markers: Markers, query: Query) -> Counted:
    """Read all cells of the query once."""
    n_cells, n_types = query.adata.n_obs, len(markers.rates)
    halves, observed = np.zeros((2, n_cells, n_types), np.float32), np.zeros((n_cells, n_types), np.float32)
    depth, n_expressing = np.zeros(n_cells), np.zeros(len(markers.genes), np.int64)
    for rows, counts, of_all in _blocks(markers, query, np.arange(n_cells)):
        halves[:, rows], observed[rows] = markers.likelihoods(counts, of_all), markers.observed(counts)
        depth[rows] = of_all
        n_expressing += counts.getnnz(axis=0)
    return Counted(halves, observed, depth, n_expressing)


def _blocks(
    markers: Markers, query: Query, index: np.ndarray
) -> Iterator[tuple[np.ndarray, sparse.csr_matrix, np.ndarray]]:
    """Rows ``(n,)``, their counts of the markers ``(n, M)`` and of all shared genes ``(n,)``, block by block."""
    shared = query.is_shared
    place = (np.cumsum(shared) - 1)[markers.genes]
    for start in range(0, len(index), CHUNK_SIZE):
        rows = index[start : start + CHUNK_SIZE]
        X = sparse.csr_matrix(query.values(rows, shared), dtype=np.float64)
        if query.is_log:  # the smallest value of a cell is one count
            X = cp10k(X, is_log=True)
            unit = np.array([part.min(initial=1e4) for part in np.split(X.data, X.indptr[1:-1])])
            X.data /= np.repeat(np.maximum(unit, 0.1), np.diff(X.indptr))
        yield rows, X[:, place], np.asarray(X.sum(axis=1)).ravel()


def _agrees(given: np.ndarray, types: np.ndarray, tree: LabelTree) -> np.ndarray:
    """Cells ``(N,)`` whose label is the type or its parent."""
    names = np.array([*tree.classes, None], dtype=object)[types]
    if not tree.parents:
        return np.asarray(given == names)
    parents = np.array([*tree.parents, None], dtype=object)[types]
    return np.asarray((given == names) | (given == parents))


def _missed(
    types: np.ndarray, is_other: np.ndarray, is_free: np.ndarray, k: int, min_cells: int
) -> Iterator[np.ndarray]:
    """Cells in which type ``k`` may be missed, at least ``min_cells``.

    First those of another label, where fewer have its own, then those without one, where most that the markers decide
    are of this type.
    """
    for cells, of_all in ((is_other & (types == k), types == k), (is_free & (types == k), is_free)):
        if cells.sum() >= min_cells and 2 * cells.sum() > of_all.sum():
            yield np.flatnonzero(cells)


def _standing(
    markers: Markers, counted: Counted, types: np.ndarray, given: np.ndarray, cells: np.ndarray, classes: np.ndarray
) -> float:
    """Where cells of one type stand, by log counts of its markers, between their labels' types, 0, and it, 1."""
    k, code = types[cells[0]], pd.Index(classes).get_indexer(pd.Index(given[cells]))
    second = np.where(np.arange(len(classes)) == k, -np.inf, counted.halves[:, cells].sum(axis=0)).argmax(axis=1)
    depth = counted.depth[cells]
    expected = depth.sum() * markers.expected[k, k]
    elsewhere = depth @ markers.expected[np.where(code >= 0, code, second), k]
    if expected <= elsewhere:
        return 0.0
    found = max(float(counted.observed[cells, k].sum()), 1e-9)
    return float(np.log(found / elsewhere) / np.log(expected / elsewhere))


def _is_beyond(markers: Markers, counted: Counted, cells: np.ndarray, k: int) -> bool:
    """Whether some cells express the markers of type ``k`` more than its reference cells do.

    Markers of few cells are the genes that were high in them by chance too, so that other cells of the type express
    them less; what expresses them more does so for another reason, such as a gene that its study detects better.
    """
    return bool(counted.observed[cells, k].sum() > counted.depth[cells].sum() * markers.own[k])


def _strength(markers: Markers, counted: Counted, cells: np.ndarray, k: int) -> float:
    """Return the counts of the markers of type ``k`` in some cells, as a share of those in the reference; else NaN."""
    expected = counted.depth[cells].sum() * markers.expected[k, k]
    return float(counted.observed[cells, k].sum() / expected) if expected else np.nan


def _expressed(markers: Markers, counted: Counted, query: Query, cells: np.ndarray, k: int) -> np.ndarray:
    """Return the genes, among markers of type ``k``, that some cells express most often beyond all cells."""
    own = np.flatnonzero(markers.of_type == k)
    n_expressing = np.zeros(len(markers.genes))
    for _, counts, _ in _blocks(markers, query, cells):
        n_expressing += counts.getnnz(axis=0)
    excess = n_expressing / len(cells) - counted.n_expressing / len(counted.depth)
    return np.asarray(markers.genes[own[np.argsort(-excess[own], kind="stable")][:N_NAMED]])


def _most(given: np.ndarray) -> str:
    """Return the most frequent labels with their numbers of cells."""
    counts = pd.Series(given).value_counts()
    if len(counts) == 1:
        return str(counts.index[0])
    return listed([f"{name} ({count:,})" for name, count in counts.items()], N_NAMED)


def _crossed(
    markers: Markers, counted: Counted, types: np.ndarray, given: np.ndarray, classes: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cells of each type by markers and label, and the strength of its markers in them."""
    decided = np.flatnonzero(types >= 0)
    counts = pd.crosstab(classes[types[decided]], given[decided])
    strength = counts.astype(float) * np.nan
    for (k, name), rows in pd.Series(decided).groupby([types[decided], given[decided]]):
        strength.loc[classes[k], name] = _strength(markers, counted, rows.to_numpy(), int(k))
    for table in (counts, strength):
        table.index.name, table.columns.name = "type", "label"
    return counts, strength


def _marker_table(markers: Markers, state: ModelState) -> pd.DataFrame:
    """Columns ``group``, ``gene``, ``mean``, ``next_group`` and ``next_mean`` of all markers, best first."""
    classes, names = np.array(state.tree.classes), np.asarray(state.genes.names, dtype=object)
    following = np.argsort(markers.rates, axis=0)[-2] if len(classes) > 1 else markers.of_type
    each = np.arange(len(markers.genes))
    return pd.DataFrame(
        {
            "group": classes[markers.of_type],
            "gene": names[markers.genes],
            "mean": 1e4 * markers.rates[markers.of_type, each],
            "next_group": classes[following],
            "next_mean": 1e4 * markers.rates[following, each],
        }
    )


def _cluster_table(
    of_cell: pd.Series, labels: pd.Categorical, clusters: pd.Categorical, tree: LabelTree, min_cells: int
) -> pd.DataFrame:
    """Most frequent label and type by markers of each cluster."""
    types = pd.Categorical(of_cell)
    (label, _), (kind, _) = (cluster_votes(codes, clusters) for codes in (labels, types))
    n_cells = np.bincount(clusters.codes[clusters.codes >= 0], minlength=len(clusters.categories))
    given = np.array([*labels.categories, "no label"], dtype=object)[label]
    n_of_kind = np.bincount(
        clusters.codes[(types.codes == kind[clusters.codes]) & (types.codes >= 0) & (clusters.codes >= 0)],
        minlength=len(n_cells),
    )
    table = pd.DataFrame(
        {
            "n_cells": n_cells,
            "label": given,
            "type": np.array([*types.categories, None], dtype=object)[kind],
            "share": n_of_kind / np.maximum(n_cells, 1),
        },
        index=pd.Index(clusters.categories, name="cluster"),
    )
    is_other = (kind >= 0) & ~_agrees(given, kind, tree)
    return table.assign(is_listed=is_other & (table["share"] > 0.5) & (n_of_kind >= min_cells))
