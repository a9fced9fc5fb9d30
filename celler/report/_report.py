"""Report: check what is there, collect tables, charts and text, and write the page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from celler._utils._check import checked
from celler._utils._version import __version__
from celler._utils._write import check_out, write_text
from celler.report._annotation import LOW, Annotation, read_annotation
from celler.report._figures import (
    Picture,
    basis_of,
    clusters_picture,
    confidence_picture,
    map_picture,
    markers_picture,
    truth_picture,
)
from celler.report._tables import Agreement, LabelRow, agreement, cell_rows, label_rows, rare_rows, unknown_line
from celler.report._text import CITATIONS, attention, day, facts, methods, summary_line
from celler.tl._columns import label_column
from celler.tl._evaluate import in_words

HERE = Path(__file__).parent
#: Names of columns with clusters, of which the first is drawn where none is named.
CLUSTERS = ("leiden", "louvain", "seurat_clusters", "cluster", "clusters")
#: Metrics of a truth in words, shorter than in a printed evaluation: a page speaks of types.
METRICS = {
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "f1_tail": "F1 of the rarest types",
    "ece": "calibration error",
    "rejected_share": "share without a type",
    "backed_off_share": "share with a parent only",
    "parent_macro_f1": "macro-F1 of the parents",
}


@dataclass(frozen=True)
class Show:
    """What a report shows beside the labels: columns of obs, common names of the labels, and an embedding."""

    cluster_key: str | None
    truth_key: str | None
    mapping: Mapping[str, str] | pd.Series | None
    basis: str | None


@checked
def report(
    adata: AnnData,
    path: str | os.PathLike[str],
    key: str = "celler",
    *,
    cluster_key: str | None = None,
    truth_key: str | None = None,
    mapping: Mapping[str, str] | pd.Series | None = None,
    basis: str | None = None,
    title: str = "Cell types",
    overwrite: bool = False,
) -> Path:
    """Write an HTML page about the labels of an annotation, to look at and to share.

    One file with all figures in it, which needs no network: the model, genes and shift; labels by count with their
    confidence; rare types and what markers say of them; a bubble chart, an embedding and clusters where there are any;
    agreement with a truth; cells to look at; and a methods section.

    Parameters
    ----------
    adata
        Cells that :meth:`celler.model.Celler.annotate` labelled. Not changed.
    path
        The file to write, such as ``"report.html"``.
    key
        ``key_added`` of that call.
    cluster_key
        Column of ``adata.obs`` with clusters. ``None`` is that of ``annotate``, or ``"leiden"`` and other usual names.
    truth_key
        Column of ``adata.obs`` with true labels, which are compared with those of the model.
    mapping
        Common name of types that the truth and the model name differently, such as ``{"CD14+ Mono": "CD14 Mono"}``.
    basis
        Entry of ``adata.obsm`` to draw, with or without its ``X_``. ``None`` is a UMAP, t-SNE or spatial coordinates,
        where there are any.
    title
        Heading of the page.
    overwrite
        Replace a file of that name.

    Returns
    -------
    Path of the page.

    Raises
    ------
    KeyError
        If ``annotate`` wrote nothing by that key, or a column or embedding does not exist.
    FileExistsError
        If the file exists and ``overwrite`` is false, or is the file of the cells.

    Examples
    --------
    >>> model.annotate(query, cluster_key="leiden")
    >>> cl.tl.report(query, "report.html", truth_key="cell_type")
    """
    file = Path(path)
    options: dict[str, Any] = {"overwrite": overwrite, "inputs": [adata.filename], "how": "overwrite=True"}
    check_out(file, **options)
    found = read_annotation(adata, key)
    show = Show(_cluster_key(found, cluster_key, truth_key), truth_key, mapping, basis_of(found, basis))
    write_text(page(found, show, title), file, **options)
    return file


def _cluster_key(found: Annotation, cluster_key: str | None, truth_key: str | None) -> str | None:
    """Return the column of clusters to show, if any; raise for a column that does not exist."""
    obs = found.adata.obs
    for name, argument in ((cluster_key, "cluster_key"), (truth_key, "truth_key")):
        if name is not None:
            label_column(found.adata, name, argument)
    usual = [cluster_key, found.record.get("cluster_key"), *CLUSTERS]
    return next((name for name in usual if name is not None and name in obs and name != truth_key), None)


def page(found: Annotation, show: Show, title: str) -> str:
    """Return the page as HTML."""
    rows = label_rows(found)
    rare = rare_rows(found, rows)
    cells, space = cell_rows(found, show.cluster_key)
    truth = None if show.truth_key is None else agreement(found, show.truth_key, show.mapping)
    contents = {
        "title": title,
        "found": found,
        "show": show,
        "rows": rows,
        "rare": rare,
        "cells": cells,
        "space": space,
        "facts": facts(found),
        "tiles": _tiles(found, rows, truth),
        "attention": attention(found, rows, rare, truth),
        "warnings": found.record.get("warnings", []),
        "summary": summary_line(found, rows),
        "methods": methods(found),
        "citations": [*CITATIONS, *found.model.get("atlases", [])],
        "pictures": _pictures(found, show, truth),
        "unknown": unknown_line(found, show.cluster_key),
        "truth": truth,
        "metrics": {} if truth is None else in_words(truth.scores.summary, METRICS),
        "low": LOW,
        "version": __version__,
        "date": day(found.record.get("date")),
    }
    return _template().render(contents)


def _template() -> Any:
    """Return the template, which escapes every text that is put into it."""
    loader = FileSystemLoader(HERE, encoding="utf-8")
    options: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True}
    environment = Environment(loader=loader, lstrip_blocks=True, **options)
    environment.filters |= {"number": _number, "percent": _percent, "count": _count}
    return environment.get_template("page.html.jinja")


def _number(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.2f}"


def _percent(value: float) -> str:
    if 0 < value < 0.001:
        return "< 0.1%"
    return f"{100 * value:.1f}%" if value < 0.1 else f"{100 * value:.0f}%"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _tiles(found: Annotation, rows: list[LabelRow], truth: Agreement | None) -> list[tuple[str, str]]:
    """Return the figures at the top of the page, each with its name."""
    genes, expected = found.record.get("genes") or {}, found.record.get("expected_accuracy")
    tiles = [
        (f"{len(found.names):,}", "cells"),
        (f"{sum(not row.is_unknown for row in rows)}", f"types of {len(found.record.get('classes', [])):,}"),
        (_number(float(pd.Series(found.confidence).median())), "median confidence"),
        (_percent(found.is_unknown.sum() / max(1, len(found.names))), f"without a type ({found.unknown})"),
    ]
    if "matched" in genes:
        tiles.append((_percent(genes["matched"] / max(1, genes["matched"] + genes["missing"])), "of the model's genes"))
    if expected is not None:
        tiles.append((_number(expected), "expected accuracy"))
    if truth is not None:
        tiles.append((_number(truth.scores.summary["macro_f1"]), "macro-F1 against the truth"))
    return tiles


def _pictures(found: Annotation, show: Show, truth: Agreement | None) -> dict[str, Picture]:
    """Draw the charts for which there is something to draw."""
    pictures = {"markers": markers_picture(found), "confidence": confidence_picture(found, show.basis)}
    if show.basis is not None:
        pictures["map"] = map_picture(found, show.basis)
    if show.cluster_key is not None:
        pictures["clusters"] = clusters_picture(found, show.cluster_key)
    if show.truth_key is not None and truth is not None:
        pictures["truth"] = truth_picture(found, show.truth_key, truth.cells)
    return pictures
