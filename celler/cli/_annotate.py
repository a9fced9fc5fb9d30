"""The command `celler annotate`: label cells, write them or their labels, and a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celler._utils._write import check_key, check_out, write_h5ad, write_text
from celler.cli._usage import CELLS, JSON, ORGANISMS, UsageError, print_json

if TYPE_CHECKING:
    from anndata import AnnData

ANNOTATE = ["key_added", "cluster_key", "threshold", "unknown_label", "false_alarm_rate"]
ANNOTATE += ["layer", "backoff", "correct_shift", "propagate"]
#: What is written by the end of the name of --out: the cells, or the labels with their separator.
SEPARATORS = {".h5ad": None, "": None, ".csv": ",", ".tsv": "\t"}


def add_annotate(commands: Any) -> None:
    """Add ``celler annotate``."""
    what = "label cells with a saved model, or by the atlases of a tissue"
    usage = "celler annotate (MODEL | --tissue TISSUE) QUERY --out OUT [options]"
    annotate = commands.add_parser("annotate", help=what, usage=usage)
    annotate.set_defaults(command=_annotate)
    add = annotate.add_argument
    what = f"folder that train wrote, or hf://owner/name on a hub; then the cells, {CELLS}"
    add("paths", nargs="+", metavar="[MODEL] QUERY", help=what)
    tissue = "without a model: name cells by the atlases of this tissue; several times for several, or 'all'"
    add("--tissue", action="append", metavar="TISSUE", help=tissue)
    add("--organism", choices=ORGANISMS, help="with --tissue: whose atlases (default: both)")
    where = "where the values are: X, raw or a layer (default: that of the model, or what the query has instead)"
    add("--layer", help=where)
    add("--raw", action="store_const", const="raw", dest="layer", help="the same as --layer raw")
    add("--key-added", default="celler", help="column of obs to write (default: celler)")
    add("--threshold", type=float, help="lowest probability of a label; Unknown below it")
    add("--backoff", action="store_true", help="below the threshold, give the parent if it passes")
    novel = "give Unknown to cells more novel than all but this share of the reference"
    add("--false-alarm-rate", type=float, metavar="SHARE", help=novel)
    add("--unknown-label", default="Unknown", help="name of that label (default: Unknown)")
    add("--cluster-key", help="column of obs with clusters, for majority labels")
    add("--propagate", action="store_true", help="spread labels over the nearest cells")
    add("--reference", type=Path, metavar="REFERENCE", help="include its cells in --propagate")
    whole = "file with all cells of the query, of which QUERY is a part; several times for its parts"
    add("--part-of", action="append", type=Path, metavar="WHOLE", help=whole)
    shift = "undo differences from the reference that all types share (default: yes)"
    add("--correct-shift", action=argparse.BooleanOptionalAction, default=True, help=shift)
    what = "annotated copy to write, .h5ad, or a table of the labels, .csv or .tsv"
    add("--out", type=Path, required=True, metavar="OUT", help=what)
    add("--report", type=Path, metavar="REPORT.html", help="page about the labels to write, to look at and to share")
    add("--truth-key", help="with --report: column of obs with true labels, to compare with")
    add("--mapping", type=Path, metavar="FILE", help="with --truth-key: .csv or .tsv of names and their common names")
    add("--overwrite", action="store_true", help="replace files of these names")
    add("--json", action="store_true", help=JSON)


def _annotate(options: argparse.Namespace) -> None:
    *folder, query = options.paths
    _check_annotate(options, folder)
    inputs = [*folder, query, options.reference, options.mapping, *(options.part_of or ())]
    for path in filter(None, (options.out, options.report)):
        check_out(path, overwrite=options.overwrite, inputs=inputs, how="--overwrite")
    _check_names(options)
    from celler.atlas._options import read_mapping
    from celler.data._formats import format_of
    from celler.data._read import read_cells
    from celler.model import Celler
    from celler.tl._columns import label_column

    if options.mapping is not None:
        options.mapping = read_mapping(options.mapping)
    if options.tissue is not None:
        tissue = None if "all" in options.tissue else options.tissue
        model = Celler.from_pretrained("celler-base", tissue=tissue, organism=options.organism)
    else:
        format_of(Path(query))  # a wrong name is said before the model is loaded
        reference = None if options.reference is None else read_cells(options.reference)
        model = Celler.load(folder[0], adata=reference)
    adata = read_cells(query)
    if options.truth_key is not None:
        label_column(adata, options.truth_key, "--truth-key")
    parts = [read_cells(path) for path in options.part_of or ()]
    whole = model.adapt(parts, layer=options.layer) if parts else None
    model.annotate(adata, adaptation=whole, **{name: getattr(options, name) for name in ANNOTATE})
    record = adata.uns[options.key_added]
    name = folder[0] if folder else "celler-base: " + ", ".join(options.tissue)
    if record["model"]["source"] == "none":
        record["model"]["source"] = Path(name).name  # a report is for others, whom the folders above do not concern
    _write(adata, options, inputs)
    counts = adata.obs[options.key_added].value_counts()
    if options.json:
        _summarise(adata, options, name, counts)
        return
    print(counts[counts > 0].to_string() if options.tissue is not None else counts.to_string())
    for path in filter(None, (options.out, options.report)):
        print(f"wrote {path}")


def _check_names(options: argparse.Namespace) -> None:
    """Raise for names that do not say what is written."""
    if options.out.suffix not in SEPARATORS:
        raise UsageError(f"--out {options.out}: cells are written as .h5ad, labels as .csv or .tsv; name it so.")
    if options.report is not None and options.report.suffix not in (".html", ".htm"):
        raise UsageError(f"--report {options.report}: an .html is written; name it so.")


def _write(adata: AnnData, options: argparse.Namespace, inputs: list[Any]) -> None:
    """Write the cells or their labels, and the report."""
    how: dict[str, Any] = {"overwrite": options.overwrite, "inputs": inputs, "how": "--overwrite"}
    separator = SEPARATORS[options.out.suffix]
    if separator is None:
        write_h5ad(adata, options.out, **how)
    else:
        table = adata.obs[list(adata.uns[options.key_added]["columns"])]
        write_text(table.to_csv(sep=separator, index_label="cell", lineterminator="\n"), options.out, **how)
    if options.report is not None:
        from celler.report._report import report

        title = f"Cell types of {Path(options.paths[-1]).name}"
        report(
            adata, options.report, options.key_added, truth_key=options.truth_key, mapping=options.mapping, title=title,
            overwrite=options.overwrite,
        )  # fmt: skip


def _summarise(adata: AnnData, options: argparse.Namespace, model: str, counts: Any) -> None:
    """Print the summary for programs."""
    record = adata.uns[options.key_added]
    n_unknown = int(counts.get(options.unknown_label, 0))
    print_json(
        out=str(options.out), report=None if options.report is None else str(options.report), model=model,
        query=options.paths[-1], n_cells=adata.n_obs, key_added=options.key_added,
        counts={str(label): int(n) for label, n in counts.items() if n}, unknown_label=options.unknown_label,
        unknown_share=n_unknown / max(1, adata.n_obs), genes=dict(record["genes"]),
        expected_accuracy=None if record["expected_accuracy"] == "none" else record["expected_accuracy"],
        label_check=record["label_check"],
    )  # fmt: skip


def _check_annotate(options: argparse.Namespace, folder: list[str]) -> None:
    """Raise for options that do not go together, before anything is read."""
    if len(folder) > 1 or (len(folder) == 1) == (options.tissue is not None):
        raise UsageError(
            f"{' '.join(map(str, options.paths))} was given; a model and a query are needed, or a query and --tissue."
        )
    if options.organism is not None and options.tissue is None:
        raise UsageError("--organism has an effect only with --tissue; pass both or neither.")
    if options.reference is not None and (not options.propagate or options.tissue is not None):
        raise UsageError("--reference has an effect only with a model and --propagate; pass these or leave it out.")
    if options.truth_key is not None and options.report is None:
        raise UsageError("--truth-key has an effect only with --report; pass both or neither.")
    if options.mapping is not None and options.truth_key is None:
        raise UsageError("--mapping has an effect only with --truth-key; pass both or neither.")
    if options.mapping is not None and options.mapping.suffix not in (".csv", ".tsv"):
        raise UsageError(f"--mapping {options.mapping}: a .csv or .tsv of two columns is needed.")
    if options.out.resolve() == Path(options.paths[-1]).resolve():
        raise FileExistsError(f"--out {options.out} is the query itself; name another file.")
    check_key(options.key_added, "--key-added")
