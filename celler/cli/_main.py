"""The command `celler`: demo, train, annotate, atlas and benchmark from the shell."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from celler._utils._version import __version__
from celler.cli._atlas import add_atlas
from celler.cli._benchmark import add_benchmark

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for input that cannot be used."""
    options = _parser().parse_args(arguments)

    def say(message: object, *_: object, **__: object) -> None:
        print(f"celler {options.name}: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = say
            options.command(options)
    except (ImportError, KeyError, ValueError, OSError, RuntimeError) as error:
        say(error.args[0] if isinstance(error, KeyError) else error)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="celler", description="Cell-type annotation that keeps the rare types."
    )
    parser.add_argument("--version", action="version", version=f"celler {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    _add_demo(commands)
    _add_train(commands)
    _add_annotate(commands)
    add_atlas(commands)
    add_benchmark(commands)
    return parser


def _add_demo(commands: Commands) -> None:
    demo = commands.add_parser("demo", help="label 350 real blood cells and compare; half a minute")
    demo.add_argument(
        "--out", type=Path, default=Path(), help="folder for its files (default: here)"
    )
    demo.add_argument("--seed", type=int, default=0, help="of split and training (default: 0)")
    demo.set_defaults(command=_demo)


def _add_train(commands: Commands) -> None:
    train = commands.add_parser("train", help="train on a labelled .h5ad and save the model")
    train.add_argument("reference", type=Path, metavar="REFERENCE.h5ad")
    train.add_argument("--labels-key", required=True, help="column of obs with the cell types")
    train.add_argument("--parent-labels-key", help="column of obs with their parents")
    train.add_argument("--gene-key", help="column of var with the gene names (default: var_names)")
    train.add_argument("--layer", help="layer with counts or log1p values (default: X)")
    train.add_argument(
        "--unlabeled-category", default="Unknown", help="label that means none (default: Unknown)"
    )
    train.add_argument("--max-epochs", type=int, help="default: by the number of cells")
    train.add_argument("--seed", type=int, default=0, help="of split and training (default: 0)")
    train.add_argument("--out", type=Path, required=True, metavar="MODEL", help="folder to write")
    train.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    train.set_defaults(command=_train)


def _add_annotate(commands: Commands) -> None:
    annotate = commands.add_parser(
        "annotate", help="label the cells of an .h5ad with a saved model"
    )
    annotate.add_argument("model", type=Path, metavar="MODEL", help="folder that train wrote")
    annotate.add_argument("query", type=Path, metavar="QUERY.h5ad")
    annotate.add_argument("--key-added", default="celler", help="column to write (default: celler)")
    annotate.add_argument("--threshold", type=float, help="probability below which: Unknown")
    annotate.add_argument(
        "--backoff", action="store_true", help="the parent where only that reaches the threshold"
    )
    annotate.add_argument(
        "--false-alarm-rate",
        type=float,
        metavar="SHARE",
        help="Unknown for cells more novel than all but this share of the reference's",
    )
    annotate.add_argument(
        "--unknown-label", default="Unknown", help="what such cells are called (default: Unknown)"
    )
    annotate.add_argument("--cluster-key", help="column of obs whose clusters get majority labels")
    annotate.add_argument(
        "--propagate", action="store_true", help="spread labels over the nearest cells"
    )
    annotate.add_argument(
        "--reference",
        type=Path,
        metavar="REFERENCE.h5ad",
        help="its cells take part in --propagate",
    )
    annotate.add_argument(
        "--correct-shift",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="undo what differs from the reference in all types alike (default: yes)",
    )
    annotate.add_argument(
        "--out", type=Path, required=True, metavar="OUT.h5ad", help="annotated copy to write"
    )
    annotate.set_defaults(command=_annotate)


def _demo(options: argparse.Namespace) -> None:
    from celler.cli._demo import run

    run(options.out, options.seed)


def _train(options: argparse.Namespace) -> None:
    from celler.data._expression import read_h5ad
    from celler.model import Celler
    from celler.model._checkpoint import FILE_NAME

    # Now, not after an hour of training.
    if (options.out / FILE_NAME).exists() and not options.overwrite:
        raise FileExistsError(
            f"{options.out} holds a model; pass --overwrite to replace it, or another --out."
        )
    adata = read_h5ad(options.reference)
    Celler.setup_anndata(
        adata,
        labels_key=options.labels_key,
        parent_labels_key=options.parent_labels_key,
        gene_key=options.gene_key,
        unlabeled_category=options.unlabeled_category,
        layer=options.layer,
    )
    model = Celler(adata)
    model.train(options.max_epochs, seed=options.seed)
    model.save(options.out, overwrite=options.overwrite)
    print(f"{model}\nwrote {options.out}")


def _annotate(options: argparse.Namespace) -> None:
    if options.out.resolve() == options.query.resolve():
        raise ValueError(f"--out {options.out} is the query itself; name another file.")
    if options.reference is not None and not options.propagate:
        raise ValueError("--reference takes part in --propagate alone; pass both or neither.")
    from celler.data._expression import read_h5ad
    from celler.model import Celler

    reference = None if options.reference is None else read_h5ad(options.reference)
    model = Celler.load(options.model, adata=reference)
    adata = read_h5ad(options.query)
    model.annotate(
        adata,
        options.key_added,
        cluster_key=options.cluster_key,
        threshold=options.threshold,
        unknown_label=options.unknown_label,
        false_alarm_rate=options.false_alarm_rate,
        backoff=options.backoff,
        correct_shift=options.correct_shift,
        propagate=options.propagate,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(options.out)
    print(adata.obs[options.key_added].value_counts().to_string())
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
