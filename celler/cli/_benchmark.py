"""The command `celler benchmark`: methods and losses compared, from the shell."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData


def add_benchmark(commands: Any) -> None:
    """Add ``celler benchmark`` with ``compare``, ``paper`` and ``ablation``."""
    benchmark = commands.add_parser("benchmark", help="compare methods or losses on your data")
    kinds = benchmark.add_subparsers(dest="benchmark", required=True, metavar="WHAT")
    _add_compare(kinds)
    _add_paper(kinds)
    _add_ablation(kinds)


def _add_compare(kinds: Any) -> None:
    compare = kinds.add_parser(
        "compare", help="train methods on a reference and compare the labels they give to a query"
    )
    compare.add_argument("reference", type=Path, metavar="REFERENCE.h5ad")
    compare.add_argument(
        "query", type=Path, metavar="QUERY.h5ad", help="with labels to compare with"
    )
    compare.add_argument("--labels-key", required=True, help="column of obs with the cell types")
    compare.add_argument("--query-labels-key", help="that of the query (default: --labels-key)")
    compare.add_argument("--layer", help="layer with the counts, in both (default: X)")
    compare.add_argument("--methods", help="names, with commas between them (default: all)")
    compare.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    compare.add_argument(
        "--out",
        type=Path,
        default=Path("benchmark"),
        help="folder for its files (default: benchmark)",
    )
    compare.set_defaults(command=_compare)


def _add_paper(kinds: Any) -> None:
    paper = kinds.add_parser("paper", help="compute the paper's tables from the files you have")
    files: dict[str, Any] = {"type": Path, "nargs": "+", "required": True, "metavar": "FILE.h5ad"}
    paper.add_argument(
        "--dataset",
        choices=["hpancreas", "ms", "organs"],
        required=True,
        help="table 3: hpancreas (TOSICA's demo_train, demo_test) or ms (scGPT's c_data, "
        "filtered_ms_adata); table 2: organs, a reference and a query of each, at both levels",
    )
    paper.add_argument("--reference", **files, help="one; of organs one or more")
    paper.add_argument("--query", **files, help="as many, in the same order")
    paper.add_argument("--labels-key", help="organs: column of obs with the subclasses")
    paper.add_argument("--parent-labels-key", help="organs: column of obs with their parents")
    paper.add_argument("--methods", help="names, with commas between them (default: all)")
    paper.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    paper.add_argument(
        "--out", type=Path, default=Path("paper"), help="folder for its files (default: paper)"
    )
    paper.set_defaults(command=_paper)


def _add_ablation(kinds: Any) -> None:
    ablation = kinds.add_parser(
        "ablation", help="train the same network with each loss on a long-tailed half of your cells"
    )
    ablation.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="FILE.h5ad", help="one or more"
    )
    ablation.add_argument("--labels-key", required=True, help="column of obs with the cell types")
    ablation.add_argument(
        "--exclude-key", help="true-or-false column of obs: leave out the cells where it is true"
    )
    ablation.add_argument(
        "--imbalance", type=float, default=100.0, help="largest : smallest type (default: 100)"
    )
    ablation.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    ablation.add_argument("--max-epochs", type=int, help="default: by the number of cells")
    ablation.add_argument("--jobs", type=int, default=1, help="trainings at once (default: 1)")
    ablation.add_argument(
        "--out", type=Path, default=Path(), help="folder for its files (default: here)"
    )
    ablation.set_defaults(command=_ablation)


def _compare(options: argparse.Namespace) -> None:
    from celler.benchmark import (
        class_figure,
        class_scores,
        run,
        score_figure,
        summary,
        summary_text,
    )
    from celler.data._expression import read_h5ad

    rows = run(
        read_h5ad(options.reference),
        read_h5ad(options.query),
        options.labels_key,
        _methods(options),
        options.seeds,
        query_labels_key=options.query_labels_key,
        layer=options.layer,
        folder=options.out,
    )
    if rows["error"].notna().all():
        raise RuntimeError("no method gave a result; the lines above say why.")
    print(f"\nMean ± sd of {options.seeds} seeds\n\n{summary_text(summary(rows))}")
    scores, classes = options.out / "macro_f1.png", options.out / "class_f1.png"
    score_figure(rows).savefig(scores, dpi=150)
    class_figure(class_scores(rows, options.out)).savefig(classes, dpi=150)
    print(
        f"\nwrote {options.out} (runs.csv, classes.csv; a rerun goes on from them), {scores}, {classes}"
    )


def _methods(options: argparse.Namespace) -> list[str]:
    from celler.benchmark.methods import METHODS

    return options.methods.split(",") if options.methods else list(METHODS)


def _paper(options: argparse.Namespace) -> None:
    from celler.benchmark import level_scores, level_table, paper_cells, paper_table, run
    from celler.data._expression import read_h5ad

    if len(options.reference) != len(options.query):
        raise ValueError(
            f"{len(options.reference)} references and {len(options.query)} queries were given; each "
            "reference needs its query."
        )
    pairs = [
        (read_h5ad(reference), read_h5ad(query))
        for reference, query in zip(options.reference, options.query, strict=True)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    if options.dataset == "organs":
        keys = options.labels_key, options.parent_labels_key
        if None in keys:
            raise ValueError("--dataset organs needs --labels-key and --parent-labels-key.")
        organs = {path.stem: pair for path, pair in zip(options.reference, pairs, strict=True)}
        table = level_table(level_scores(organs, *keys, seeds=options.seeds))
    else:
        rows = run(
            *paper_cells(options.dataset, *pairs[0]),
            "cell_type",
            _methods(options),
            options.seeds,
            folder=options.out / options.dataset,
        )
        table = paper_table(options.dataset, rows)
    file = options.out / f"{options.dataset}.csv"
    table.to_csv(file)
    print(f"\n{table.to_string()}\n\nwrote {file}")


def _ablation(options: argparse.Namespace) -> None:
    from celler.benchmark import ablation, ablation_figure, ablation_table, ablation_text
    from celler.data._expression import read_h5ad

    data = {
        path.stem: _without(read_h5ad(path), options.exclude_key, path) for path in options.data
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file, figure = options.out / "ablation.csv", options.out / "ablation.png"
    rows = ablation(
        data,
        options.labels_key,
        imbalance=options.imbalance,
        seeds=range(options.seeds),
        file=file,
        n_jobs=options.jobs,
        max_epochs=options.max_epochs,
    )
    print(f"\nPercent, mean ± sd of {options.seeds} seeds; Δ: gain over cross-entropy\n")
    print(ablation_text(ablation_table(rows)))
    ablation_figure(rows).savefig(figure, dpi=150, bbox_inches="tight")
    print(f"\nwrote {file} (a row per training and type; a rerun goes on from it) and {figure}")


def _without(adata: AnnData, exclude_key: str | None, path: Path) -> AnnData:
    """The cells whose ``exclude_key`` is not true; says how many were left out."""
    if exclude_key is None or exclude_key not in adata.obs:
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
