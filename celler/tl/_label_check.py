"""Label check: labels compared with the types that the cells' markers speak for."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from celler._utils._messages import agreed, counted


@dataclass(frozen=True, repr=False, eq=False)
class LabelCheck:
    """Labels compared with the markers of the reference's types; made by :meth:`celler.model.Celler.check_labels`.

    ``repr`` says in words what was found.

    Attributes
    ----------
    table
        A row for each type that was missed: ``type``, ``n_cells`` with its markers, ``n_other`` of them with another
        label, ``labels`` (the most frequent of these), ``markers`` (the genes that these cells express most beyond
        all others) and ``strength``, see there. Empty where nothing was found.
    types
        Type of each cell by its markers, by obs_name; missing where they do not decide.
    counts
        Cells whose markers decide: types by label.
    strength
        Expression of the type's markers in these cells as a share of that in the reference's cells of the type; missing
        for a type without a marker of its own, which is told by the absence of others.
    markers
        The markers, best first: ``group``, ``gene``, ``mean`` (counts per 10,000 in the type), ``next_group`` and
        ``next_mean``. :func:`celler.pl.marker_bubble` takes it.
    clusters
        For each cluster ``n_cells``, its most frequent ``label`` and ``type`` by markers, the ``share`` of its cells
        with these markers, and ``is_listed``, where that is most of them and the label is another; ``None`` without
        clusters.
    """

    table: pd.DataFrame
    types: pd.Series
    counts: pd.DataFrame
    strength: pd.DataFrame
    markers: pd.DataFrame
    clusters: pd.DataFrame | None = None

    @property
    def sentences(self) -> list[str]:
        """What was found: a sentence for each type, then for each cluster."""
        found = [
            f"{counted(row.n_cells, 'cells express')} {row.markers}: {row.type}'s; "
            f"{_of_them(row.n_other, row.n_cells)} labelled {row.labels}."
            for row in self.table.itertuples()
        ]
        if self.clusters is not None:
            found += [
                f"Cluster {row.Index}: {row.share:.0%} of its {counted(row.n_cells, 'cells')} have the markers of "
                f"{row.type}; most are labelled {row.label}."
                for row in self.clusters[self.clusters["is_listed"]].itertuples()
            ]
        return found

    def __repr__(self) -> str:
        n_decided, n_cells = int(self.types.notna().sum()), len(self.types)
        head = f"LabelCheck: the markers of {n_decided:,} of {n_cells:,} cells decide"
        rows = self.sentences or ["no type was missed as far as markers tell"]
        return "\n  ".join([head, *rows])


def _of_them(n: int, n_cells: int) -> str:
    if n == n_cells:
        return "it is" if n == 1 else "all are"
    return f"{n:,} of them {agreed(n, 'are')}"
