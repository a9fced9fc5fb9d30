"""Tables: labels by count, rare types and their markers, cells to look at, and agreement with a truth."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from celler._utils._messages import agreed, collected, counted, listed
from celler._utils._text import renamed
from celler.metrics import frequency_groups
from celler.report._annotation import LOW, Annotation
from celler.tl._columns import label_column
from celler.tl._evaluate import Evaluation, evaluate

#: A type of fewer cells than this share of all, in the query, is rare.
RARE = 0.01
N_CELLS = 12  #: cells that are listed for each reason
N_NEIGHBORS = 15
N_CLUSTERS = 3  #: clusters that are named for their unknown cells
#: Where neighbours are looked for, in the order of preference.
SPACES = ("X_celler", "X_pca", "X_scVI", "X_umap", "X_tsne")


@dataclass(frozen=True)
class LabelRow:
    """One label of the query."""

    name: str
    n_cells: int
    share: float
    confidence: float  # median
    n_low: int
    novelty: float  # median; NaN for none
    n_reference: int | None
    cl_id: str
    is_unknown: bool


def label_rows(found: Annotation) -> list[LabelRow]:
    """Return the labels of the query, the most frequent first and cells without a type last."""
    novelty = np.full(len(found.names), np.nan) if found.novelty is None else found.novelty
    ids = _ids(found)
    table = pd.DataFrame({"name": found.names, "confidence": found.confidence, "novelty": novelty})
    table["name"] = table["name"].replace("", found.unknown)
    groups = table.assign(is_low=table["confidence"] < LOW).groupby("name")
    medians, n_cells, n_low = groups[["confidence", "novelty"]].median(), groups.size(), groups["is_low"].sum()
    rows = [
        LabelRow(
            name=str(name),
            n_cells=int(n_cells[name]),
            share=n_cells[name] / len(table),
            confidence=float(medians.loc[name, "confidence"]),
            n_low=int(n_low[name]),
            novelty=float(medians.loc[name, "novelty"]),
            n_reference=found.reference_counts.get(str(name)),
            cl_id=ids.get(str(name), ""),
            is_unknown=name == found.unknown,
        )
        for name in n_cells.index
    ]
    return sorted(rows, key=lambda row: (row.is_unknown, -row.n_cells, row.name))


def _ids(found: Annotation) -> dict[str, str]:
    """Return the Cell Ontology id of each label that has one."""
    column = found.column("cl_id")
    if column is None:
        return {}
    pairs = pd.DataFrame({"name": found.names, "id": column.astype(object).to_numpy()}).dropna().drop_duplicates("name")
    return {str(name): str(one) for name, one in zip(pairs["name"], pairs["id"], strict=True)}


@dataclass(frozen=True)
class RareRow:
    """A rare type of the reference or of the query, and what markers say of it."""

    name: str
    n_reference: int | None
    n_cells: int
    confidence: float
    markers: str
    n_marked: int | None  # cells with its markers
    verdict: str  # "missed", "supported", "doubtful", "undecided", "absent" or "not checked"
    text: str


def rare_rows(found: Annotation, rows: list[LabelRow]) -> list[RareRow]:
    """Return the rare types, those that labels miss first, then by the number of reference cells."""
    by_name = {row.name: row for row in rows}
    groups = frequency_groups(found.reference_counts) if found.reference_counts else {}
    missed = list(found.missed["type"])
    few = [row.name for row in rows if row.share < RARE and not row.is_unknown]
    tail = sorted((name for name, group in groups.items() if group == "tail"), key=found.reference_counts.__getitem__)
    names = [*missed, *tail, *few]
    return [_rare_row(found, name, by_name.get(name)) for name in dict.fromkeys(names)]


def _rare_row(found: Annotation, name: str, row: LabelRow | None) -> RareRow:
    n_cells = 0 if row is None else row.n_cells
    verdict, text = _verdict(found, name, n_cells)
    table = found.by_markers
    return RareRow(
        name=name,
        n_reference=found.reference_counts.get(name),
        n_cells=n_cells,
        confidence=np.nan if row is None else row.confidence,
        markers=", ".join(found.markers.get(name, [])),
        n_marked=None if table is None else int(table["n_cells"][table["type"] == name].sum()),
        verdict=verdict,
        text=text,
    )


def _verdict(found: Annotation, name: str, n_cells: int) -> tuple[str, str]:
    """Say what markers say of the labels of one type: in a word and in a sentence."""
    table = found.by_markers
    if table is None or name not in found.record.get("classes", []):
        return "not checked", "There are no markers of this type."
    if name in set(found.missed["type"]):
        row = found.missed[found.missed["type"] == name].iloc[0]
        return "missed", (
            f"{row['n_other']:,} of {counted(row['n_cells'], 'cells')} with its markers ({row['markers']}) "
            f"{agreed(row['n_other'], 'are')} labelled {row['labels']}."
        )
    n_marked = int(table["n_cells"][table["type"] == name].sum())
    labelled = table[table["label"] == name]
    n_same = int(labelled["n_cells"][labelled["type"] == name].sum())
    others = labelled[labelled["type"] != name]
    if not n_cells:
        return "absent", f"No cell has this label; {_have(n_marked)} its markers."
    if n_same and 2 * n_same >= n_same + others["n_cells"].sum():
        return (
            "supported",
            f"{n_same:,} of the {counted(n_cells, 'cells')} with this label {agreed(n_same, 'have')} its markers.",
        )
    if len(others):
        most = others.loc[others["n_cells"].idxmax()]
        n_others = int(others["n_cells"].sum())
        return "doubtful", (
            f"{n_others:,} of the {counted(n_cells, 'cells')} with this label {agreed(n_others, 'have')} the markers "
            f"of another type, mostly {most['type']}."
        )
    return "undecided", f"Markers decide for none of the {counted(n_cells, 'cells')} with this label."


def _have(n: int) -> str:
    return counted(n, "cells have") if n else "none has"


@dataclass(frozen=True)
class CellRow:
    """A cell to look at."""

    name: str
    why: str
    label: str
    confidence: float
    second: str
    novelty: float
    neighbors: str
    cluster: str


def cell_rows(found: Annotation, cluster_key: str | None) -> tuple[list[CellRow], str]:
    """Return the least sure and the most novel cells, and where their neighbours were looked for, ``""`` for none."""
    reasons = {"lowest confidence": np.where(found.is_unknown, np.inf, found.confidence)}
    if found.novelty is not None:
        reasons["highest novelty"] = -found.novelty
    why: dict[int, str] = {}
    for reason, values in reasons.items():
        order = np.argsort(values, kind="stable")
        for cell in order[np.isfinite(values[order])][:N_CELLS]:
            why[int(cell)] = f"{why[int(cell)]}, {reason}" if int(cell) in why else reason
    cells = np.array(list(why), dtype=np.int64)
    around, space = _neighbors(found, cells)
    second, obs = found.column("second"), found.adata.obs
    return [
        CellRow(
            name=str(obs.index[cell]),
            why=why[cell],
            label=found.names[cell] or found.unknown,
            confidence=float(found.confidence[cell]),
            second="" if second is None else str(second.iloc[cell]),
            novelty=np.nan if found.novelty is None else float(found.novelty[cell]),
            neighbors=around[i] if space else "",
            cluster="" if cluster_key is None else str(obs[cluster_key].iloc[cell]),
        )
        for i, cell in enumerate(cells.tolist())
    ], space


def _neighbors(found: Annotation, cells: np.ndarray) -> tuple[list[str], str]:
    """Return the labels of the neighbours of some cells, and the place that has the neighbours."""
    adata = found.adata
    if "connectivities" in adata.obsp and len(cells):
        graph: Any = adata.obsp["connectivities"]
        return [_counted(found, graph[[int(cell)]].nonzero()[1], cell) for cell in cells], "obsp['connectivities']"
    space = next((name for name in SPACES if name in adata.obsm), "")
    if not space or len(adata) < 2 or not len(cells):
        return [], ""
    points = np.asarray(adata.obsm[space], dtype=np.float32)
    if not np.isfinite(points).all():
        return [], ""
    search = NearestNeighbors(n_neighbors=min(N_NEIGHBORS + 1, len(points))).fit(points)
    around = search.kneighbors(points[cells], return_distance=False)
    return [_counted(found, some, cell) for some, cell in zip(around, cells, strict=True)], f"obsm[{space!r}]"


def _counted(found: Annotation, around: np.ndarray, cell: int) -> str:
    """Name the two most frequent labels among neighbours, other than the cell itself."""
    others = found.names[around[around != cell]]
    counts = pd.Series([name or found.unknown for name in others], dtype=object).value_counts()
    return ", ".join(f"{name} {n / len(others):.0%}" for name, n in counts.iloc[:2].items()) or "none"


@dataclass(frozen=True)
class Agreement:
    """Labels against a truth: the scores, the two columns under one set of names, and what to know of them."""

    scores: Evaluation
    cells: pd.DataFrame  # the truth, the labels and their confidence
    notes: list[str]
    foreign: list[str]  # types of the truth that the model lacks


def agreement(found: Annotation, truth_key: str, mapping: Mapping[str, str] | pd.Series | None) -> Agreement:
    """Compare the labels with a truth, both renamed by ``mapping``; reference cells decide which types are rare."""
    given = {} if mapping is None else {str(old): str(one) for old, one in mapping.items()}

    def new(name: str) -> str:
        return given.get(name, name)

    columns = {truth_key: label_column(found.adata, truth_key, "truth_key"), found.key: found.labels}
    cells = pd.DataFrame(
        {name: renamed(column, [new(one) for one in column.categories]) for name, column in columns.items()},
        index=found.adata.obs_names,
    ).assign(**{f"{found.key}_confidence": found.confidence})
    counts: dict[str, int] = {}
    for name, n in found.reference_counts.items():
        counts[new(name)] = counts.get(new(name), 0) + n
    classes, parents = map(new, found.record.get("classes", [])), map(new, found.record.get("parents", []))
    parent_of = dict(zip(classes, parents, strict=False))
    truths = set(cells[truth_key].cat.categories)
    with collected() as notes, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they stand in the page
        scores = evaluate(
            cells,
            truth_key,
            found.key,
            reference_counts=counts or None,
            parents=parent_of if parent_of and truths <= set(parent_of) else None,
            unknown_label=found.unknown,
        )
    known = {new(str(name)) for level in ("classes", "parents") for name in found.record.get(level, [])}
    if foreign := sorted(truths - known - {found.unknown}):
        notes.append(
            f"The model has no type named {listed(foreign)}, so no cell of these can agree. Where it has the type by "
            "another name, pass mapping=, --mapping in the shell, with a common name for both."
        )
    return Agreement(scores, cells, notes, foreign)


def unknown_line(found: Annotation, cluster_key: str | None) -> str:
    """Say how many cells have no type, and in which clusters they are most frequent; ``""`` for none."""
    n_unknown = int(found.is_unknown.sum())
    if not n_unknown:
        return ""
    said = f"{counted(n_unknown, 'cells')} ({n_unknown / len(found.names):.1%}) {agreed(n_unknown, 'have')} no type"
    if found.novelty is not None:
        said += f"; their median novelty is {np.nanmedian(found.novelty[found.is_unknown]):.1f}"
    if cluster_key is None:
        return f"{said}."
    shares = pd.Series(found.is_unknown).groupby(found.adata.obs[cluster_key].to_numpy(object)).mean()
    most = shares[shares > 0].sort_values(ascending=False, kind="stable").iloc[:N_CLUSTERS]
    where = ", ".join(f"{name} ({share:.0%})" for name, share in most.items())
    return f"{said}. The clusters with the largest share of them: {where}."
