"""Text: what was done in words, what to look at first, the methods section and what to cite."""

from __future__ import annotations

import platform
from datetime import date
from importlib import metadata

from celler._utils._messages import counted, listed
from celler.report._annotation import LOW, Annotation
from celler.report._tables import Agreement, LabelRow, RareRow

#: Packages whose versions the methods name.
PACKAGES = ("celler", "anndata", "scanpy", "numpy", "scikit-learn", "torch", "scvi-tools")
CITATIONS = (
    "Zhao H, Liu Y, Yao J, Xiong L, Zhou Z, Zhang Z. Celler: A Genomic Language Model for Long-Tailed Single-Cell "
    "Annotation. arXiv:2504.00020, 2025.",
    "Gayoso A et al. A Python library for probabilistic analysis of single-cell omics data. Nature Biotechnology 40, "
    "163-166, 2022.",
    "Wolf FA, Angerer P, Theis FJ. SCANPY: large-scale single-cell gene expression data analysis. Genome Biology 19, "
    "15, 2018.",
    "Virshup I, Rybakov S, Theis FJ, Angerer P, Wolf FA. anndata: Access and store annotated data matrices. Journal of "
    "Open Source Software 9, 4371, 2024.",
)
#: Shares from which a sentence at the top of the page asks for a look.
MANY_LOW, MANY_UNKNOWN = 0.2, 0.2
#: A type of which a smaller share is found, and labels that are right less often than expected by more, are named too.
FEW_FOUND, TOO_SURE = 0.5, 0.05
N_FOUND = 5  #: types that are named for it, the largest


def day(text: str | None) -> str:
    """Return an ISO date in words."""
    if text is None:
        return "not recorded"
    try:
        found = date.fromisoformat(text)
    except ValueError:
        return text
    return f"{found.day} {found:%B %Y}"


def facts(found: Annotation) -> list[tuple[str, str]]:
    """Return what was done with which model, as names and texts."""
    record, model = found.record, found.model
    rows = [
        ("Labels", f"obs[{found.key!r}], written on {day(record.get('date'))} by Celler {record['celler_version']}"),
        ("Model", model.get("source") or "not named"),
        ("Network", model.get("network")),
        ("Learned from", _learned_from(found)),
        ("Training", model.get("training")),
        ("Licence of the model", model.get("license")),
        ("Genes", _genes(found)),
        ("Shift", _shift(found)),
        ("Options", _options(found)),
        ("Novelty of known cells", _location(found)),
    ]
    return [(name, text) for name, text in rows if text]


def _learned_from(found: Annotation) -> str | None:
    model, n_classes = found.model, len(found.record.get("classes", []))
    if model.get("names_atlases"):
        n_atlases = len(model.get("atlases", []))
        atlases = counted(n_atlases, "atlases") if n_atlases else "public atlases"
        return f"{counted(n_classes, 'types')} of {atlases}; no reference"
    if not model.get("labelled_cells"):
        return counted(n_classes, "types")
    where = f" in obs[{model['labels_key']!r}]" if model.get("labels_key") else ""
    return f"{counted(model['labelled_cells'], 'cells')} of {counted(n_classes, 'types')}{where}"


def _genes(found: Annotation) -> str | None:
    genes = found.record.get("genes") or {}
    if "matched" not in genes:
        return None
    n_genes = genes["matched"] + genes["missing"]
    carried = None if found.model.get("names_atlases") else genes.get("expression_share")
    of = "" if carried is None else f"; they carry {carried:.0%} of the reference's expression"
    return (
        f"{genes['matched']:,} of the model's {n_genes:,} genes are in these data{of}. "
        f"{counted(genes['extra'], 'others are')} not read."
    )


def _shift(found: Annotation) -> str | None:
    shift = found.record.get("shift")
    if shift is None or found.model.get("names_atlases"):
        return None
    if not found.record.get("correct_shift", True):
        return "not estimated, on request"
    return (
        f"{shift:.2f}: standard deviation over genes of the log2 ratio of their means within types to the "
        "reference's, beyond chance. What all types share of it was undone."
    )


def _options(found: Annotation) -> str:
    record, parts = found.record, []
    if record.get("threshold") is not None:
        parts.append(f"labels of a probability of at least {record['threshold']:g}")
    if record.get("backoff"):
        parts.append("below it the parent, where that passes")
    if record.get("false_alarm_rate") is not None:
        parts.append(f"cells more novel than all but {record['false_alarm_rate']:.0%} of the reference's are unknown")
    if record.get("propagation") is not None:
        spread = record["propagation"]
        parts.append(
            f"labels spread over neighbours ({counted(spread['cells'], 'cells')}, {spread['labelled_cells']:,} of the "
            "reference)"
        )
    if record.get("cluster_key") is not None:
        parts.append(f"majority labels of the clusters in obs[{record['cluster_key']!r}]")
    return "; ".join(parts) or "the defaults: every cell gets its most probable type"


def _location(found: Annotation) -> str | None:
    record = found.record
    if record.get("novelty_threshold") is None or record.get("novelty_location") is None:
        return None
    return (
        f"{record['novelty_location']:+.2f} standard deviations from the reference's, subtracted; cells above "
        f"{record['novelty_threshold']:.2f} are {found.unknown!r}"
    )


def attention(
    found: Annotation, rows: list[LabelRow], rare: list[RareRow], truth: Agreement | None = None
) -> list[str]:
    """Return what to look at first, most urgent first."""
    said = [] if truth is None else _disagreement(found, truth)
    said += [f"{row.name}: {row.text}" for row in rare if row.verdict == "missed"]
    said += [f"{row.name}, a rare type: {row.text}" for row in rare if row.verdict == "doubtful"]
    n_cells, n_unknown = len(found.names), int(found.is_unknown.sum())
    n_low = sum(row.n_low for row in rows if not row.is_unknown)
    if n_unknown > MANY_UNKNOWN * n_cells:
        said.append(f"{n_unknown / n_cells:.0%} of the cells have no type ({found.unknown}).")
    if n_low > MANY_LOW * n_cells:
        said.append(f"{n_low / n_cells:.0%} of the cells have a label with a probability below {LOW:g}.")
    return said


def _disagreement(found: Annotation, truth: Agreement) -> list[str]:
    """Say which types of the truth are mostly labelled otherwise, and whether the labels are surer than right."""
    truth_key = truth.cells.columns[0]
    given, labels = (truth.cells[name].astype(object) for name in (truth_key, found.key))
    agreed = (labels == given)[given.notna() & ~given.isin(truth.foreign)].mean()
    expected = None if found.record.get("backoff") else found.record.get("expected_accuracy")
    said = []
    if expected is not None and expected - agreed > TOO_SURE:
        said.append(
            f"{agreed:.0%} of the labels agree with {truth_key}, and by their confidence {expected:.0%} would: it is "
            "too high in these data."
        )
    scores = truth.scores.per_class
    few = scores[(scores["recall"] < FEW_FOUND) & ~scores.index.isin(truth.foreign)]
    for name, row in few.sort_values("query_cells", ascending=False).iloc[:N_FOUND].iterrows():
        others = labels[(given == name) & (labels != name)].fillna(found.unknown).value_counts()
        said.append(
            f"{name}: {row['recall']:.0%} of {row['query_cells']:,} cells have this label; {others.iloc[0]:,} are "
            f"labelled {others.index[0]}."
        )
    return said


def methods(found: Annotation) -> list[str]:
    """Return the methods section, a text for each paragraph."""
    record, model = found.record, found.model
    learned = _learned_from(found) or "a reference"
    named = f" (model {model['source']})" if model.get("source") else ""
    made = f" The network is {model['network']}." if model.get("network") else ""
    trained = f" Training: {model['training']}." if model.get("training") else ""
    first = f"Cells were labelled with Celler {record['celler_version']}{named}, from {learned}.{made}{trained}"
    second = [_genes(found) or ""]
    if record.get("correct_shift") and record.get("shift") and not model.get("names_atlases"):
        second.append(
            "Differences from the reference that all types share were estimated from the expression within predicted "
            f"types and undone (size {record['shift']:.2f})."
        )
    second.append(
        "The label of a cell is the type of the highest probability, which is also its confidence; probabilities are a "
        f"softmax with a temperature of {record.get('temperature', 1):.2f}, found on validation cells."
    )
    if (options := _options(found)) and not options.startswith("the defaults"):
        second.append(f"Options: {options}.")
    if found.by_markers is not None:
        second.append("Labels were compared with markers of the reference's types, which are chosen and scored "
                      "without the network.")  # fmt: skip
    return [first, " ".join(part for part in second if part), f"Software: {versions()}."]


def versions() -> str:
    """Return the versions of Python and the packages that wrote the report."""
    names = [f"{name} {found}" for name in PACKAGES if (found := _version(name))]
    return f"Python {platform.python_version()}, {', '.join(names)}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def summary_line(found: Annotation, rows: list[LabelRow]) -> str:
    """Return the first sentence of the page."""
    types = [row.name for row in rows if not row.is_unknown]
    n_classes = len(found.record.get("classes", []))
    return (
        f"{counted(len(found.names), 'cells')}, {len(types)} of the model's {n_classes:,} types: {listed(types, 3)}."
        if types
        else f"{counted(len(found.names), 'cells')}, none with a type."
    )
