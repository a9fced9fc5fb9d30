"""The command `celler benchmark`: compare methods and losses from the shell."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import celler.benchmark as benchmark
from celler._utils._write import check_figure, explained, write_figure, write_table
from celler.benchmark.methods import METHODS
from celler.cli._usage import CELLS, UsageError

if TYPE_CHECKING:
    from anndata import AnnData


def add_benchmark(commands: Any) -> None:
    """Add ``celler benchmark`` with ``compare``, ``paper`` and ``ablation``."""
    parser = commands.add_parser("benchmark", help="compare methods or losses on your data")
    kinds = parser.add_subparsers(dest="benchmark", required=True, metavar="WHAT")
    _add_compare(kinds)
    _add_paper(kinds)
    _add_ablation(kinds)


def _add_compare(kinds: Any) -> None:
    what = "train methods on a reference and compare the labels they give to a query"
    compare = kinds.add_parser("compare", help=what)
    compare.set_defaults(command=_compare)
    add = compare.add_argument
    add("reference", type=Path, metavar="REFERENCE", help=CELLS)
    add("query", type=Path, metavar="QUERY", help="cells with labels to compare with")
    add("--labels-key", required=True, help="column of obs with the cell types")
    add("--query-labels-key", help="the same in the query (default: --labels-key)")
    add("--layer", help="layer with the counts, in both (default: X)")
    _add_runs(compare, n_seeds=3, out="benchmark")


def _add_paper(kinds: Any) -> None:
    paper = kinds.add_parser("paper", help="compute the paper's tables from its public files")
    paper.set_defaults(command=_paper)
    add = paper.add_argument
    what = (
        "table 3: hpancreas (TOSICA's demo_train, demo_test) or ms (scGPT's c_data, "
        "filtered_ms_adata); table 2: organs, a reference and a query of each, at both levels"
    )
    add("--dataset", choices=["hpancreas", "ms", "organs"], required=True, help=what)
    files: dict[str, Any] = {"type": Path, "nargs": "+", "required": True, "metavar": "FILE.h5ad"}
    add("--reference", **files, help="one file, or one for each organ")
    add("--query", **files, help="the same number of files, in the same order")
    what = "ms: train on c_data and test on patients, as scGPT's files, or the other way (default: healthy)"
    add("--train-on", choices=["healthy", "patients"], help=what)
    add("--labels-key", help="organs: column of obs with the subclasses")
    add("--parent-labels-key", help="organs: column of obs with their parents")
    _add_runs(paper, n_seeds=5, out="paper")


def _add_runs(parser: argparse.ArgumentParser, *, n_seeds: int, out: str) -> None:
    add = parser.add_argument
    names = "names, separated by commas (default: all)"
    add("--methods", type=lambda text: text.split(","), default=list(METHODS), help=names)
    add("--seeds", type=int, default=n_seeds, help=f"number of seeds (default: {n_seeds})")
    add("--out", type=Path, default=Path(out), help=f"folder for the files (default: {out})")


def _add_ablation(kinds: Any) -> None:
    what = "train the same network with each loss on a long-tailed part of your cells"
    ablation = kinds.add_parser("ablation", help=what)
    ablation.set_defaults(command=_ablation)
    add = ablation.add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="FILE.h5ad", help="one or more")
    add("--labels-key", required=True, help="column of obs with the cell types")
    add("--exclude-key", help="true-or-false column of obs: leave out cells where it is true")
    add(
        "--group-key",
        help="column of obs with donors or samples, every second for training (default: half of each type)",
    )
    names = "columns of obs with coarser types, separated by commas, for hierarchical cross-entropy"
    add("--parent-keys", type=lambda text: text.split(","), default=[], help=names)
    add("--imbalance", type=float, default=100.0, help="largest type over smallest; 1: as it is (default: 100)")
    add("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    add("--max-epochs", type=int, help="default: by the number of cells")
    add("--jobs", type=int, default=1, help="trainings at the same time (default: 1)")
    add("--out", type=Path, default=Path(), help="folder for the files (default: here)")


def _compare(options: argparse.Namespace) -> None:
    from celler.data._read import read_cells

    scores, classes = options.out / "macro_f1.png", options.out / "class_f1.png"
    for figure in (scores, classes):
        check_figure(figure)
    rows = benchmark.run(
        read_cells(options.reference),
        read_cells(options.query),
        options.labels_key,
        options.methods,
        options.seeds,
        query_labels_key=options.query_labels_key,
        layer=options.layer,
        folder=options.out,
    )
    if rows["error"].notna().all():
        raise RuntimeError("no method gave a result; the lines above give the reasons.")
    print(f"\nMean ± sd of {options.seeds} seeds\n\n{benchmark.summary_text(benchmark.summary(rows))}")
    write_figure(benchmark.score_figure(rows), scores, dpi=150)
    write_figure(benchmark.class_figure(benchmark.class_scores(rows, options.out)), classes, dpi=150)
    print(f"\nwrote {options.out} (runs.csv, classes.csv; a rerun continues from them), {scores}, {classes}")


def _paper(options: argparse.Namespace) -> None:
    from celler.data._read import read_cells

    n_references, n_queries = len(options.reference), len(options.query)
    if n_references != n_queries:
        raise UsageError(
            f"{n_references} references and {n_queries} queries were given; each reference needs its query."
        )
    train_on = options.train_on
    if train_on is not None and options.dataset != "ms":
        raise UsageError(f"--train-on {train_on} was given; --dataset {options.dataset} has one split, leave it out.")
    references, queries = (list(map(read_cells, files)) for files in (options.reference, options.query))
    _make(options.out)
    name = "ms_patients" if train_on == "patients" else options.dataset
    if options.dataset == "organs":
        keys = options.labels_key, options.parent_labels_key
        if None in keys:
            raise UsageError("--dataset organs needs --labels-key and --parent-labels-key.")
        names = [file.stem for file in options.reference]
        organs = dict(zip(names, zip(references, queries, strict=True), strict=True))
        table = benchmark.level_table(benchmark.level_scores(organs, *keys, seeds=options.seeds))
    else:
        cells = benchmark.paper_cells(options.dataset, references[0], queries[0], train_on=train_on)
        rows = benchmark.run(*cells, "cell_type", options.methods, options.seeds, folder=options.out / name)
        table = benchmark.paper_table(options.dataset, rows, train_on=train_on)
    file = options.out / f"{name}.csv"
    write_table(table, file)
    print(f"\n{table.to_string()}\n\nwrote {file}")


def _ablation(options: argparse.Namespace) -> None:
    from celler.data._read import read_cells

    file, figure = options.out / "ablation.csv", options.out / "ablation.png"
    check_figure(figure)
    _make(options.out)
    data = {f.stem: _without(read_cells(f), options.exclude_key, f) for f in options.data}
    rows = benchmark.ablation(
        data,
        options.labels_key,
        group_key=options.group_key,
        parent_keys=options.parent_keys,
        imbalance=options.imbalance,
        seeds=range(options.seeds),
        file=file,
        n_jobs=options.jobs,
        max_epochs=options.max_epochs,
    )
    print(f"\nPercent, mean ± sd of {options.seeds} seeds; Δ: gain over cross-entropy\n")
    print(benchmark.ablation_text(benchmark.ablation_table(rows)))
    write_figure(benchmark.ablation_figure(rows), figure, dpi=150, bbox_inches="tight")
    print(f"\nwrote {file} (a row per training and type; a rerun continues from it) and {figure}")


def _make(folder: Path) -> None:
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _without(adata: AnnData, exclude_key: str | None, path: Path) -> AnnData:
    """Leave out cells whose ``exclude_key`` is true, and print their number."""
    if exclude_key not in adata.obs:
        note = "" if exclude_key is None else f" (no column {exclude_key!r})"
        print(f"{path.name}: {adata.n_obs:,} cells{note}")
        return adata
    values = adata.obs[exclude_key]
    if not set(values.unique()) <= {True, False}:  # 0 and 1 are equal to these, "False" is not
        raise ValueError(
            f"--exclude-key {exclude_key}: the column of {path.name} holds {values.unique()[:3].tolist()}; "
            "true or false, or 1 or 0, is needed for every cell."
        )
    is_excluded = values.astype(bool).to_numpy()
    print(f"{path.name}: {(~is_excluded).sum():,} cells, {is_excluded.sum():,} left out")
    return adata[~is_excluded].copy()
