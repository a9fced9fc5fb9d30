"""The command `celler atlas`: build a store and count its cells."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celler.cli._usage import CELLS, UsageError


def add_atlas(commands: Any) -> None:
    """Add ``celler atlas build`` and ``celler atlas summary``."""
    atlas = commands.add_parser("atlas", help="build a store of many files on disk, count its cells")
    kinds = atlas.add_subparsers(dest="atlas", required=True, metavar="WHAT")
    _add_build(kinds)
    summary = kinds.add_parser("summary", help="count the cells of a store")
    summary.add_argument("store", metavar="STORE", help="folder that build wrote, or the address of a copy")
    summary.set_defaults(command=_summary)


def _add_build(kinds: Any) -> None:
    build = kinds.add_parser(
        "build", help="make a shuffled store of many files; the same command finishes an interrupted one"
    )
    build.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help=CELLS)
    each = "COLUMN, or SOURCE=COLUMN for each"
    build.add_argument("--labels-key", nargs="+", required=True, metavar="COLUMN", help=f"of obs: {each}")
    build.add_argument("--gene-key", nargs="+", metavar="COLUMN", help=f"of var: {each}")
    build.add_argument("--layer", nargs="+", help="of the counts: X, raw, a layer, or SOURCE=LAYER")
    build.add_argument("--columns", nargs="+", default=[], metavar="NAME=COLUMN", help="such as donor=patient_id")
    build.add_argument("--genes", default="union", help="union, intersection or a file with a name per line")
    build.add_argument("--mapping", type=Path, help=".csv or .tsv of old and new labels, or .obo")
    build.add_argument("--parents", type=Path, metavar="FILE.csv", help="of classes and parents")
    build.add_argument("--drop", nargs="+", default=[], metavar="LABEL", help="such as doublet")
    build.add_argument("--test-size", type=float, default=0.1, help="share (default: 0.1)")
    build.add_argument("--dtype", default="uint16", help="of the counts (default: uint16)")
    build.add_argument("--memory-gb", type=float, default=4.0, help="to stay in (default: 4)")
    build.add_argument("--seed", type=int, default=0, help="of order and split (default: 0)")
    build.add_argument("--out", required=True, metavar="STORE", help="folder to write")
    build.set_defaults(command=_build)


def _build(options: argparse.Namespace) -> None:
    from celler.atlas._build import build
    from celler.atlas._options import Storage, read_mapping
    from celler.data._read import reading

    genes = options.genes
    if genes not in ("union", "intersection"):
        with reading(genes):
            genes = Path(genes).read_text(encoding="utf-8-sig").split()
    print(
        build(
            options.sources,
            options.out,
            labels_key=_by_source(options.labels_key),
            genes=genes,
            gene_key=_by_source(options.gene_key),
            layer=_by_source(options.layer),
            columns=_pairs(options.columns, "--columns"),
            mapping=options.mapping,
            parents=None if options.parents is None else read_mapping(options.parents),
            drop=options.drop,
            test_size=options.test_size,
            seed=options.seed,
            storage=Storage(options.dtype, options.memory_gb),
        )
    )
    print(f"wrote {options.out}")


def _summary(options: argparse.Namespace) -> None:
    from celler.atlas._summary import summary

    found = summary(options.store)
    print(found)
    for column in found.counts.columns.drop(["split", "cells"]):
        print(f"\n{found.by(column).to_string()}")


def _by_source(given: Sequence[str] | None) -> Any:
    """Return one column for all sources, or a dict from source to column."""
    if given is None:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    return _pairs(given, "a column of several sources")


def _pairs(given: Sequence[str], what: str) -> dict[str, str]:
    for pair in given:
        if "=" not in pair:
            raise UsageError(f"{what}: {pair!r} was given; NAME=COLUMN is needed.")
    return dict(pair.split("=", 1) for pair in given)
