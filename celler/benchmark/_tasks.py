"""Tasks: a labelled AnnData becomes a reference with a long tail and a query that keeps its types."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from sklearn.model_selection import train_test_split

from celler._utils._messages import column
from celler.labels import as_strings

__all__ = ["long_tail_split", "thin"]


def thin(
    labels: np.ndarray, imbalance: float, *, at_least: int = 5, rng: np.random.Generator
) -> np.ndarray:
    """Rows ``(M,)``, ascending, that thin ``labels (N,)`` to an exponential long tail.

    The classes keep their order by size; the class of rank r among C keeps
    ``N_max · imbalance^(−r / (C − 1))`` of its cells, not more than it has and not fewer than ``at_least``.
    """
    if imbalance < 1:
        raise ValueError(f"imbalance={imbalance} was given; largest : smallest must be at least 1.")
    names, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shares = imbalance ** -np.linspace(0, 1, len(names))
    kept = []
    for name, share in zip(names[order], shares, strict=True):
        cells = rng.permutation(np.flatnonzero(labels == name))
        kept.append(cells[: max(at_least, round(counts.max() * share))])
    return np.sort(np.concatenate(kept))


def long_tail_split(
    adata: AnnData, labels_key: str, *, imbalance: float = 100.0, seed: int = 0
) -> tuple[AnnData, AnnData]:
    """Half of each type as the query; the other half, thinned to ``imbalance``, as the reference.

    Both are copies with ``obs[labels_key]`` as text. Raises ``ValueError`` for cells without a label
    and for types of fewer than two cells, which cannot be on both sides.
    """
    values = column(adata.obs, labels_key, "labels_key")
    labels = as_strings(values, labels_key, "").astype(str)
    names, counts = np.unique(labels, return_counts=True)
    if (labels == "").any() or counts.min() < 2:
        raise ValueError(
            f"adata.obs[{labels_key!r}] has {(labels == '').sum()} cells without a label and "
            f"{(counts < 2).sum()} types of a single cell {names[counts < 2].tolist()}; leave them out first."
        )
    reference, query = train_test_split(
        np.arange(adata.n_obs), test_size=0.5, stratify=labels, random_state=seed
    )
    reference = reference[thin(labels[reference], imbalance, rng=np.random.default_rng(seed))]
    parts = adata[np.sort(reference)].copy(), adata[np.sort(query)].copy()
    for part, rows in zip(parts, (reference, query), strict=True):
        part.obs[labels_key] = labels[np.sort(rows)]
    return parts
