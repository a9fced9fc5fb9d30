"""Names of genes: which rows of var are genes, under what name, and whether these are names at all."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from celler._utils._kinds import kinds_of_rows, other_rows
from celler._utils._messages import agreed, column, counted, listed
from celler._utils._text import as_names

#: Share of names that are numbers from which all are row numbers, and what no row number exceeds.
MIN_NUMBERS, MAX_ROWS = 0.9, 100_000
N_PROBED = 200  #: names read first, to be fast where they are none
#: From so many numbers on, Entrez ids would have some above ``MAX_ROWS``.
MIN_SELECTED = 100
_MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
#: What a spreadsheet makes of SEPT2, MARCH1, DEC1 and of RIKEN clones such as 2310009E13.
_SPREADSHEET = re.compile(
    rf"\d{{1,2}}-{_MONTH}(-\d{{2,4}})?|{_MONTH}-\d{{1,4}}|\d{{4}}-\d\d-\d\d( 00:00:00)?|\d\.\d+E\+\d+",
    re.IGNORECASE,
)
#: Numbers of the days from 2000 to 2049, as a spreadsheet counts them from 1900, and the months it takes genes for.
DAYS, MONTHS = range(36_526, 54_789), (3, 9, 12)
_NUMBER = re.compile(r"(\d{1,9})(\.0+)?")


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
            f"{what} hold {counted(len(repeated), 'names')} more than once (for example {list(repeated[:3])}); genes "
            "are aligned by name, so each must be unique. adata.var_names_make_unique() renames the repeats."
        )


def made_by_spreadsheet(names: pd.Index) -> list[str]:
    """Return names that are dates, or numbers of days among names that are none, which were symbols of genes."""
    starts = [name for name in names if name[:1].isdigit() or name[3:4] == "-"]
    found = [name for name in starts if _SPREADSHEET.fullmatch(name)]
    numbers = [name for name in starts if len(name) == 5 and name.isdecimal() and int(name) in DAYS]
    if 0 < len(numbers) < 0.01 * len(names):  # else they are ids
        days = pd.to_datetime([int(name) for name in numbers], unit="D", origin="1899-12-30")
        is_gene = days.month.isin(MONTHS) & (days.day <= 15)
        found += [name for name, is_so in zip(numbers, is_gene, strict=True) if is_so]
    return found


def describe_spreadsheet(names: pd.Index) -> str:
    """Say which names a spreadsheet has spoiled; ``""`` for none."""
    found = made_by_spreadsheet(names)
    if not found:
        return ""
    return (
        f"{counted(len(found), 'names are')} {'a date or number' if len(found) == 1 else 'dates or numbers'} that a "
        "spreadsheet made of symbols such as MARCH1 and SEPT2: "
        f"{listed(found)}. Take the names from a file that no spreadsheet has saved, or from Ensembl ids."
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
    """Say which rows of a reference are not read as genes, and which names are spoiled; ``""`` for none."""
    kinds, said = kinds_of_rows(var), []
    if kinds is not None and kinds.others:
        they_are = agreed(kinds.others.total(), "they are")
        said.append(
            f"{kinds}; {f'{they_are} left out' if kinds.is_gene.any() else 'they are read as if they were genes'}."
        )
    names = as_names(var.index if gene_key is None else var[gene_key])
    if n_unnamed := int((names == "").sum()):
        where = "var_names" if gene_key is None else f"var[{gene_key!r}]"
        said.append(
            f"{counted(n_unnamed, 'genes have')} no name in adata.{where}; {agreed(n_unnamed, 'they are')} left out."
        )
    if spoiled := describe_spreadsheet(names):
        said.append(spoiled)
    return " ".join(said)
