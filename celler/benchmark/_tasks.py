"""Tasks: split a labelled AnnData into a reference, thinned to a long tail, and a query."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from sklearn.model_selection import train_test_split

from celler._utils._check import checked
from celler._utils._messages import check_columns, column, counted
from celler._utils._text import as_categories
from celler.labels._tree import as_strings

__all__ = ["group_split", "long_tail_split", "thin"]


@checked
def thin(labels: np.ndarray, imbalance: float, *, at_least: int = 5, rng: np.random.Generator) -> np.ndarray:
    r"""Choose cells that thin labels to an exponential long tail.

    Parameters
    ----------
    labels
        Label of each cell, ``(n_obs,)``.
    imbalance
        Largest class over smallest class, at least 1.
    at_least
        Cells that a class keeps in any case, if it has them.
    rng
        Random numbers that choose the cells.

    Returns
    -------
    Rows of the chosen cells, ascending.

    Raises
    ------
    ValueError
        If ``imbalance`` is below 1.

    Notes
    -----
    Classes keep their order by size. Of :math:`C` classes, the one of rank :math:`r` from 0 keeps
    :math:`n_\max \cdot \text{imbalance}^{-r / (C - 1)}` cells, or all it has.

    Examples
    --------
    >>> labels = np.repeat(["T cell", "B cell"], [100, 100])
    >>> rows = cl.benchmark.thin(labels, 10, rng=np.random.default_rng(0))
    >>> np.unique(labels[rows], return_counts=True)[1].tolist()
    [100, 10]
    """
    names, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shares = imbalance ** -np.linspace(0, 1, len(names))
    kept = []
    for name, share in zip(names[order], shares, strict=True):
        cells = rng.permutation(np.flatnonzero(labels == name))
        kept.append(cells[: max(at_least, round(counts.max() * share))])
    return np.sort(np.concatenate(kept))


@checked
def long_tail_split(
    adata: AnnData, labels_key: str, *, imbalance: float = 100.0, seed: int = 0
) -> tuple[AnnData, AnnData]:
    """Split cells into a long-tailed reference and a query with half of each type.

    Parameters
    ----------
    adata
        Cells with labels. Not changed.
    labels_key
        Column of obs with the cell types.
    imbalance
        Largest type of the reference over its smallest, see :func:`celler.benchmark.thin`; 1 keeps all cells.
    seed
        Seed of the split and of the thinning.

    Returns
    -------
    Reference and query, copies with ``obs[labels_key]`` as text.

    Raises
    ------
    ValueError
        If a cell has no label, or a type fewer than two cells.

    Examples
    --------
    >>> adata = cl.datasets.pbmc68k()
    >>> reference, query = cl.benchmark.long_tail_split(adata, "cell_type", imbalance=30)
    """
    labels = as_strings(column(adata.obs, labels_key, "labels_key"), labels_key, "").astype(str)
    names, counts = np.unique(labels, return_counts=True)
    if (labels == "").any() or counts.min() < 2:
        raise ValueError(
            f"adata.obs[{labels_key!r}] has {counted(int((labels == '').sum()), 'cells')} without a label and "
            f"{counted(int((counts < 2).sum()), 'types')} of a single cell {names[counts < 2].tolist()}; leave them "
            "out first."
        )
    reference, query = train_test_split(np.arange(adata.n_obs), test_size=0.5, stratify=labels, random_state=seed)
    reference = reference[thin(labels[reference], imbalance, rng=np.random.default_rng(seed))]
    return _part(adata, np.sort(reference), labels_key, labels), _part(adata, np.sort(query), labels_key, labels)


@checked
def group_split(
    adata: AnnData, labels_key: str, group_key: str, *, imbalance: float = 1.0, seed: int = 0
) -> tuple[AnnData, AnnData]:
    """Split cells by donor, sample or library: every second group is the reference, the others are the query.

    Parameters
    ----------
    adata
        Cells with labels. Not changed.
    labels_key
        Column of obs with the cell types. Types with fewer than two reference cells are left out of both parts.
    group_key
        Column of obs with the groups, which are sorted as text; the first is in the reference.
    imbalance
        Largest type of the reference over its smallest, see :func:`celler.benchmark.thin`; 1 keeps all cells.
    seed
        Seed of the thinning.

    Returns
    -------
    Reference and query, copies with ``obs[labels_key]`` as text.

    Raises
    ------
    ValueError
        If a cell has no label, or there is one group.

    Examples
    --------
    >>> reference, query = cl.benchmark.group_split(adata, "cell_type", "donor")
    """
    labels = as_strings(column(adata.obs, labels_key, "labels_key"), labels_key, "").astype(str)
    found = as_categories(column(adata.obs, group_key, "group_key"), f"adata.obs[{group_key!r}]")
    groups, n_without = np.asarray(found, dtype=object), int((found.codes < 0).sum())
    names = sorted(found.categories)
    if (labels == "").any() or n_without or len(names) < 2:
        raise ValueError(
            f"{counted(int((labels == '').sum()), 'cells have')} no label in adata.obs[{labels_key!r}] and "
            f"{n_without:,} no group in adata.obs[{group_key!r}]; leave them out first. adata.obs[{group_key!r}] has "
            f"{counted(len(names), 'groups')}; two or more are needed."
        )
    is_reference = np.isin(groups.astype(str), names[::2])
    known, counts = np.unique(labels[is_reference], return_counts=True)
    is_kept = np.isin(labels, known[counts >= 2])
    reference, query = np.flatnonzero(is_reference & is_kept), np.flatnonzero(~is_reference & is_kept)
    reference = reference[thin(labels[reference], imbalance, rng=np.random.default_rng(seed))]
    return _part(adata, reference, labels_key, labels), _part(adata, query, labels_key, labels)


def _part(adata: AnnData, rows: np.ndarray, labels_key: str, labels: np.ndarray) -> AnnData:
    """Copy the cells ``rows``, with their ``labels`` as text."""
    check_columns(adata)
    part = adata[rows].copy()
    part.obs[labels_key] = labels[rows]
    return part
