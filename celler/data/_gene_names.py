"""Names of genes: which rows of var are genes, under what name, and whether these are names at all."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd

from celler._utils._messages import column, listed
from celler._utils._text import as_names, text_of

#: Columns of var in which 10x Genomics, scanpy and muon say what a row measures, and what they call a gene there.
KIND_COLUMNS = ("feature_types", "feature_type", "modality")
GENE_KINDS = ("gene expression", "gex", "rna", "mrna", "gene", "genes")
#: What else they call a row.
OTHER_KINDS = (
    "antibody capture", "adt", "antibody", "protein", "prot", "peaks", "peak", "atac", "crispr guide capture", "custom",
    "multiplexing capture", "hto", "antigen capture", "vdj",
)  # fmt: skip
#: Share of names that are numbers from which all are row numbers, and what no row number exceeds.
MIN_NUMBERS, MAX_ROWS = 0.9, 100_000
N_PROBED = 200  #: names read first, to be fast where they are none
#: From so many numbers on, Entrez ids would have some above ``MAX_ROWS``.
MIN_SELECTED = 100
_NUMBER = re.compile(r"(\d{1,9})(\.0+)?")


class Kinds(NamedTuple):
    """What the rows of var measure, by one of its columns."""

    column: str
    is_gene: np.ndarray  # (n_vars,)
    others: Counter[str]  # rows by what they measure instead

    def __str__(self) -> str:
        shown = listed([f"{n:,} {kind}" for kind, n in self.others.most_common()])
        return (
            f"{self.others.total():,} of {len(self.is_gene):,} rows are no genes by adata.var[{self.column!r}]: {shown}"
        )


def kinds_of_rows(var: pd.DataFrame) -> Kinds | None:
    """Read which rows are genes; ``None`` where no column says it. A row of no kind is a gene."""
    for key in KIND_COLUMNS:
        if key not in var.columns or isinstance(var[key], pd.DataFrame):
            continue
        values = pd.Categorical(var[key])
        texts = [text_of(value) or "" for value in values.categories]
        plain = [re.sub(r"[\s_.-]+", " ", text.strip().casefold()) for text in texts]
        if not set(plain) & {*GENE_KINDS, *OTHER_KINDS}:
            continue
        is_other = np.array([*(kind not in ("", "nan", "none", *GENE_KINDS) for kind in plain), False])
        found = is_other[values.codes]
        return Kinds(key, ~found, Counter(np.array([*texts, ""], object)[values.codes[found]].tolist()))
    return None


def other_rows(var: pd.DataFrame) -> Kinds | None:
    """Return the kinds where some rows are genes and some are not, else ``None``."""
    kinds = kinds_of_rows(var)
    return kinds if kinds is not None and kinds.others and kinds.is_gene.any() else None


def gene_names(var: pd.DataFrame, gene_key: str | None) -> pd.Index:
    """Return the names of ``gene_key`` or ``var_names``; ``""`` matches nothing: no name, or a row that is no gene."""
    names = as_names(var.index if gene_key is None else column(var, gene_key, "gene_key", "adata.var"))
    kinds = other_rows(var)
    return names if kinds is None else pd.Index(np.where(kinds.is_gene, names, ""), dtype=object)


def check_unique(names: pd.Index, what: str) -> None:
    """Raise ``ValueError`` where a gene name occurs twice."""
    names = names[names != ""]
    if not names.is_unique:
        repeated = names[names.duplicated()].unique()
        raise ValueError(
            f"{what} hold {len(repeated):,} names more than once (for example {list(repeated[:3])}); genes are "
            "aligned by name, so each must be unique. adata.var_names_make_unique() renames the repeats."
        )


def are_row_numbers(names: pd.Index) -> bool:
    """Whether names are the numbers of rows, of all or of selected ones; these are never Entrez ids."""
    named = names[names != ""]
    probed = named[:: 1 + len(named) // N_PROBED]
    if 2 * sum(_NUMBER.fullmatch(name) is not None for name in probed) < len(probed):
        return False
    numbers = [int(match[1]) for name in named if (match := _NUMBER.fullmatch(name))]
    if len(numbers) < max(2, MIN_NUMBERS * len(named)):
        return False
    first, last, n = min(numbers), max(numbers), len(set(numbers))
    return (first <= 1 and last - first + 1 == n) or (n >= MIN_SELECTED and last < MAX_ROWS)


def check_names(names: pd.Index, var: pd.DataFrame, gene_key: str | None) -> None:
    """Raise ``ValueError`` where the genes of a reference have no usable names."""
    what = "adata.var_names" if gene_key is None else f"adata.var[{gene_key!r}]"
    if (names == "").all():
        raise ValueError(f"{what} has no name for any gene. {name_columns(var)}")
    if are_row_numbers(names):
        raise ValueError(
            f"{what} holds row numbers such as {list(names[:3])}, which name no gene: the columns of any other AnnData "
            f"would match them. {name_columns(var)}"
        )
    check_unique(names, "the genes of adata")


def name_columns(var: pd.DataFrame) -> str:
    """Say which columns of var may hold names of genes instead of row numbers."""
    found = [repr(key) for key in text_columns(var) if _may_be_names(gene_names(var, key))]
    if found:
        return f"Pass gene_key= with the column of var that holds the names of the genes: {listed(found)}."
    return (
        "Put the names of the genes into adata.var_names. If there are none and every AnnData has the same columns: "
        "adata.var_names = 'gene ' + adata.var_names."
    )


def _may_be_names(names: pd.Index) -> bool:
    return bool(names.nunique() > len(names) / 2) and not are_row_numbers(names)


def text_columns(var: pd.DataFrame) -> pd.Index:
    """Columns of ``var`` that can hold names."""
    is_text = [isinstance(kind, pd.CategoricalDtype) or pd.api.types.is_string_dtype(kind) for kind in var.dtypes]
    columns = var.columns[is_text]
    return columns[~columns.duplicated(keep=False)]


def left_out(var: pd.DataFrame, gene_key: str | None) -> str:
    """Say which rows of a reference are not read as genes; ``""`` where all are."""
    kinds, said = kinds_of_rows(var), []
    if kinds is not None and kinds.others:
        said.append(
            f"{kinds}; {'they are left out' if kinds.is_gene.any() else 'they are read as if they were genes'}."
        )
    names = as_names(var.index if gene_key is None else var[gene_key])
    if n_unnamed := int((names == "").sum()):
        where = "var_names" if gene_key is None else f"var[{gene_key!r}]"
        said.append(f"{n_unnamed:,} genes have no name in adata.{where}; they are left out.")
    return " ".join(said)
