"""The command `celler`: demo, train, annotate, atlas and benchmark from the shell."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celler._utils._version import __version__
from celler.cli._atlas import add_atlas
from celler.cli._benchmark import add_benchmark

ORGANISMS = ["human", "mouse"]
SETUP = ["labels_key", "parent_labels_key", "gene_key", "unlabeled_category", "layer"]
ANNOTATE = ["key_added", "cluster_key", "threshold", "unknown_label", "false_alarm_rate"]
ANNOTATE += ["backoff", "correct_shift", "propagate"]


class Parser(argparse.ArgumentParser):
    """A parser that accepts ``--traceback``, as its subcommands do, which are of its class."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        what = "print the traceback of an error, for a bug report"
        self.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=what)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, 2 for input that cannot be used."""
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    # A list of paths ends at the first option; those after it belong to it.
    if others and ("paths" not in options or any(other.startswith("-") for other in others)):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:
        options.paths += others

    def say(message: object, *_: object, **__: object) -> None:
        print(f"celler {options.name}: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = say
            options.command(options)
    except (ImportError, KeyError, ValueError, OSError, RuntimeError) as error:
        if "traceback" in options:
            raise
        say(error.args[0] if isinstance(error, KeyError) else error)
        return 2
    return 0


def _parser() -> Parser:
    parser = Parser(prog="celler", description="Cell-type annotation that keeps the rare types.")
    parser.add_argument("--version", action="version", version=f"celler {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_annotate(commands)
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


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train on a labelled .h5ad and save the model")
    train.set_defaults(command=_train)
    add = train.add_argument
    add("reference", type=Path, metavar="REFERENCE.h5ad")
    add("--labels-key", required=True, help="column of obs with the cell types")
    add("--parent-labels-key", help="column of obs with their parents")
    add("--gene-key", help="column of var with the gene names (default: var_names)")
    add("--layer", help="layer with counts or log1p values (default: X)")
    add("--unlabeled-category", default="Unknown", help="label of cells without a type (default: Unknown)")
    add("--max-epochs", type=int, help="default: by the number of cells")
    add("--seed", type=int, default=0, help="seed of split and training (default: 0)")
    add("--out", type=Path, required=True, metavar="MODEL", help="folder to write")
    add("--overwrite", action="store_true", help="replace a model in that folder")


def _add_annotate(commands: Any) -> None:
    what = "label the cells of an .h5ad with a saved model, or by the atlases of a tissue"
    usage = "celler annotate (MODEL | --tissue TISSUE) QUERY.h5ad --out OUT.h5ad [options]"
    annotate = commands.add_parser("annotate", help=what, usage=usage)
    annotate.set_defaults(command=_annotate)
    add = annotate.add_argument
    what = "folder that train wrote, or hf://owner/name on a hub; then the cells"
    add("paths", nargs="+", metavar="[MODEL] QUERY.h5ad", help=what)
    tissue = "without a model: name cells by the atlases of this tissue; several times for several, or 'all'"
    add("--tissue", action="append", metavar="TISSUE", help=tissue)
    add("--organism", choices=ORGANISMS, help="with --tissue: whose atlases (default: both)")
    add("--key-added", default="celler", help="column of obs to write (default: celler)")
    add("--threshold", type=float, help="lowest probability of a label; Unknown below it")
    add("--backoff", action="store_true", help="below the threshold, give the parent if it passes")
    novel = "give Unknown to cells more novel than all but this share of the reference"
    add("--false-alarm-rate", type=float, metavar="SHARE", help=novel)
    add("--unknown-label", default="Unknown", help="name of that label (default: Unknown)")
    add("--cluster-key", help="column of obs with clusters, for majority labels")
    add("--propagate", action="store_true", help="spread labels over the nearest cells")
    add("--reference", type=Path, metavar="REFERENCE.h5ad", help="include its cells in --propagate")
    shift = "undo differences from the reference that all types share (default: yes)"
    add("--correct-shift", action=argparse.BooleanOptionalAction, default=True, help=shift)
    add("--out", type=Path, required=True, metavar="OUT.h5ad", help="annotated copy to write")


def _add_tissues(commands: Any) -> None:
    tissues = commands.add_parser("tissues", help="list the tissues of celler-base, or the types of one")
    tissues.set_defaults(command=_tissues)
    tissues.add_argument("tissue", nargs="*", metavar="TISSUE", help="list its types and their sources")
    tissues.add_argument("--organism", choices=ORGANISMS, help="whose atlases (default: both)")


def _demo(options: argparse.Namespace) -> None:
    from celler.cli._demo import run

    run(options.out, options.seed)


def _train(options: argparse.Namespace) -> None:
    from celler.data._expression import read_h5ad
    from celler.model import Celler
    from celler.model._folder import holds_model

    # Now, not after an hour of training.
    if holds_model(options.out) and not options.overwrite:
        raise FileExistsError(f"{options.out} holds a model; pass --overwrite to replace it, or another --out.")
    adata = read_h5ad(options.reference)
    Celler.setup_anndata(adata, **{name: getattr(options, name) for name in SETUP})
    model = Celler(adata)
    model.train(options.max_epochs, seed=options.seed)
    model.save(options.out, overwrite=options.overwrite)
    print(f"{model}\nwrote {options.out}")


def _annotate(options: argparse.Namespace) -> None:
    *folder, query = options.paths
    query = Path(query)
    if len(folder) > 1 or (len(folder) == 1) == (options.tissue is not None):
        raise ValueError(
            f"{' '.join(map(str, options.paths))} was given; a model and a query are needed, or a query and --tissue."
        )
    if options.organism is not None and options.tissue is None:
        raise ValueError("--organism has an effect only with --tissue; pass both or neither.")
    if options.out.resolve() == query.resolve():
        raise ValueError(f"--out {options.out} is the query itself; name another file.")
    if options.reference is not None and (not options.propagate or options.tissue is not None):
        raise ValueError("--reference has an effect only with a model and --propagate; pass these or leave it out.")
    from celler.data._expression import read_h5ad
    from celler.model import Celler

    if options.tissue is not None:
        tissue = None if "all" in options.tissue else options.tissue
        model = Celler.from_pretrained("celler-base", tissue=tissue, organism=options.organism)
    else:
        reference = None if options.reference is None else read_h5ad(options.reference)
        model = Celler.load(folder[0], adata=reference)
    adata = read_h5ad(query)
    model.annotate(adata, **{name: getattr(options, name) for name in ANNOTATE})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(options.out)
    counts = adata.obs[options.key_added].value_counts()
    print(counts[counts > 0].to_string() if options.tissue is not None else counts.to_string())
    print(f"wrote {options.out}")


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
