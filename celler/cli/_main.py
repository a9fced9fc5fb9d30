"""The command `celler`: demo, train, annotate, atlas and benchmark from the shell."""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celler._utils._version import __version__
from celler._utils._write import check_out
from celler.cli._annotate import add_annotate
from celler.cli._atlas import add_atlas
from celler.cli._benchmark import add_benchmark
from celler.cli._usage import CELLS, JSON, ORGANISMS, UsageError, print_json

SETUP = ["labels_key", "parent_labels_key", "gene_key", "unlabeled_category", "layer"]

#: What is wrong with the input, and what can only be a mistake of Celler's.
FROM_INPUT = (ImportError, KeyError, ValueError, OSError, RuntimeError)
FROM_US = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)


class Parser(argparse.ArgumentParser):
    """A parser that accepts ``--debug``, as its subcommands do, which are of its class."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        what = "print the traceback of an error, for a bug report"
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=what)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 done, 1 for input that cannot be used, 2 for wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without the letter of a label is no reason to stop
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    # A list of paths ends at the first option; those after it belong to it.
    if others and ("paths" not in options or any(other.startswith("-") for other in others)):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:
        options.paths += others

    def say(message: object, *_: object, **__: object) -> None:
        print(f"celler {options.name}: {message}", file=sys.stderr)

    def fail(error: BaseException, message: object, status: int = 1) -> int:
        if "debug" in options:
            raise error
        say(" ".join(str(message).split()))
        return status

    try:
        with warnings.catch_warnings():
            warnings.showwarning = say
            options.command(options)
            sys.stdout.flush()
    except UsageError as error:
        return fail(error, error, 2)
    except BrokenPipeError:
        sys.stdout = None  # its reader, such as head, has seen enough
    except FROM_INPUT as error:
        return fail(error, error.args[0] if isinstance(error, KeyError) and error.args else error)
    except MemoryError as error:
        return fail(error, "there is not enough memory; take a machine with more, or fewer cells.")
    except FROM_US as error:
        told = f"{type(error).__name__}: {error}. This is a mistake of Celler; --debug prints what to report."
        return fail(error, told)
    except KeyboardInterrupt as error:
        return fail(error, "interrupted.", 130)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="celler", description="Cell-type annotation that keeps the rare types.")
    parser.add_argument("--version", action="version", version=f"celler {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    add_annotate(commands)
    _add_tissues(commands)
    add_atlas(commands)
    add_benchmark(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="label 350 real blood cells and compare; half a minute")
    demo.set_defaults(command=_demo)
    add = demo.add_argument
    add("--out", type=Path, default=Path(), help="folder for the files (default: here)")
    add("--seed", type=int, default=0, help="seed of split and training (default: 0)")
    add("--overwrite", action="store_true", help="replace the files of an earlier demo")


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train on labelled cells and save the model")
    train.set_defaults(command=_train)
    add = train.add_argument
    add("reference", type=Path, metavar="REFERENCE", help=CELLS)
    add("--labels-key", help="column of obs, or of --labels, with the cell types")
    add("--labels", type=Path, metavar="FILE.csv", help="labels by name of cell, .csv or .tsv, instead of obs")
    add("--parent-labels-key", help="column of obs with their parents")
    add("--gene-key", help="column of var with the gene names (default: var_names)")
    add("--layer", help="layer with counts or log1p values (default: X)")
    add("--unlabeled-category", default="Unknown", help="label of cells without a type (default: Unknown)")
    add("--max-epochs", type=int, help="default: by the number of cells")
    add("--seed", type=int, default=0, help="seed of split and training (default: 0)")
    add("--out", type=Path, required=True, metavar="MODEL", help="folder to write")
    add("--overwrite", action="store_true", help="replace a model in that folder")
    add("--json", action="store_true", help=JSON)


def _add_tissues(commands: Any) -> None:
    tissues = commands.add_parser("tissues", help="list the tissues of celler-base, or the types of one")
    tissues.set_defaults(command=_tissues)
    tissues.add_argument("tissue", nargs="*", metavar="TISSUE", help="list its types and their sources")
    tissues.add_argument("--organism", choices=ORGANISMS, help="whose atlases (default: both)")


def _demo(options: argparse.Namespace) -> None:
    from celler.cli._demo import run

    run(options.out, options.seed, overwrite=options.overwrite)


def _train(options: argparse.Namespace) -> None:
    from celler.data._read import read_cells, with_labels
    from celler.model import Celler
    from celler.model._folder import check_target, holds_model

    if options.labels_key is None and options.labels is None:
        raise UsageError("--labels-key names the column of obs with the cell types, or --labels a file of them.")
    # Now, not after an hour of training.
    if holds_model(options.out) and not options.overwrite:
        raise FileExistsError(f"{options.out} holds a model; pass --overwrite to replace it, or another --out.")
    check_target(options.out, overwrite=options.overwrite)
    check_out(options.out / "config.json", overwrite=options.overwrite, inputs=[options.reference, options.labels])
    adata = read_cells(options.reference)
    if options.labels is not None:
        options.labels_key = with_labels(adata, options.labels, options.labels_key)
    Celler.setup_anndata(adata, **{name: getattr(options, name) for name in SETUP})
    model = Celler(adata)
    model.train(options.max_epochs, seed=options.seed, show_progress=not options.json)
    model.save(options.out, overwrite=options.overwrite)
    if options.json:
        counts = adata.obs[options.labels_key].value_counts()
        print_json(out=str(options.out), n_cells=adata.n_obs, n_genes=adata.n_vars, classes=list(model.classes_),
                   counts={str(name): int(n) for name, n in counts.items()}, seed=options.seed)  # fmt: skip
    else:
        print(f"{model}\nwrote {options.out}")


def _tissues(options: argparse.Namespace) -> None:
    import numpy as np

    from celler.data._atlas_types import read_atlas_types
    from celler.data._tissues import tissue_types

    every = read_atlas_types().of(None, options.organism)
    if not options.tissue:
        for name, codes in every.tissues.items():
            used = np.intersect1d(every.table["dataset"], codes)
            if len(used):
                n_types = len(tissue_types(name, options.organism).tree.classes)
                of_each = every.datasets["organism"].iloc[used].value_counts()
                atlases = ", ".join(f"{n} {organism}" for organism, n in of_each.items())
                print(f"{name:16} {n_types:4} types, atlases: {atlases}")
        print("\nceller annotate QUERY.h5ad --tissue TISSUE --out OUT.h5ad")
        return
    found = tissue_types(None if "all" in options.tissue else options.tissue, options.organism)
    print(found.describe())
    for name, parent in found.tree.parent_of.items():
        print(f"  {name} ({found.ids.get(name, 'no id')}), {parent}")
    for code in sorted(set(found.types.table["dataset"])):
        print(f"source: {found.types.datasets['name'][code]}. {found.types.datasets['citation'][code]}")
