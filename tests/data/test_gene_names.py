"""Which rows are genes, and whether their names are names."""

import numpy as np
import pandas as pd
import pytest

from celler._utils._kinds import kinds_of_rows
from celler.data._gene_names import (
    are_row_numbers,
    check_names,
    gene_names,
    left_out,
    name_columns,
)


def var_of(names, **columns) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(names, dtype=object))


#: numbers, whether they are those of rows
NUMBERS = [
    (range(30), True), (range(1, 31), True), (range(0, 30_000), True), (np.random.default_rng(0).permutation(50), True),
    (np.random.default_rng(0).choice(33_000, 2000, replace=False), True),  # selected genes
    (range(100, 130), False), ([916, 925, 4069, 4818, 10578, 931], False),  # Entrez ids of a panel
    (np.random.default_rng(0).choice(200_000, 2000, replace=False), False),  # Entrez ids
    ([0], False),
]  # fmt: skip


@pytest.mark.parametrize(("numbers", "expected"), NUMBERS)
@pytest.mark.parametrize("form", ["{}", "{}.0"])
def test_are_row_numbers(numbers, expected, form):
    names = pd.Index([form.format(number) for number in numbers], dtype=object)
    assert are_row_numbers(names) == expected
    few_others = names.append(pd.Index(["ERCC-1"] * (len(names) // 20), dtype=object))
    assert are_row_numbers(few_others) == expected


@pytest.mark.parametrize("form", ["gene {}", "gene_{:04d}", "ENSG{:011d}", "g{}", "-{}"])
def test_are_row_numbers_of_names(form):
    assert not are_row_numbers(pd.Index([form.format(i) for i in range(300)]))


#: column, kind of the genes, kind of other rows
KINDS = [
    ("feature_types", "Gene Expression", "Antibody Capture"), ("feature_types", "gene expression", "peaks"),
    ("feature_types", "GEX", "ATAC"), ("feature_type", "Gene_Expression", "CRISPR Guide Capture"),
    ("feature_types", b"Gene Expression", b"Custom"), ("modality", "rna", "adt"),
    ("feature_types", " gene-expression ", "Multiplexing Capture"),
]  # fmt: skip


@pytest.mark.parametrize("as_category", [False, True])
@pytest.mark.parametrize(("column", "gene", "other"), KINDS)
def test_gene_names_leaves_out_rows_that_are_no_genes(column, gene, other, as_category):
    kinds = pd.Series([gene, other, None, gene], dtype=object)
    var = var_of(["A", "B", "C", "D"], **{column: (kinds.astype("category") if as_category else kinds).to_numpy()})
    assert gene_names(var, None).tolist() == ["A", "", "C", "D"]
    text = other.decode() if isinstance(other, bytes) else other
    said = f"1 of 4 rows is no gene by adata.var['{column}']: 1 {text}; it is left out."
    assert left_out(var, None) == said


def test_gene_names_of_antibodies_alone_are_kept_and_said():
    var = var_of(["CD3", "CD4"], feature_types="Antibody Capture")
    assert gene_names(var, None).tolist() == ["CD3", "CD4"]
    assert left_out(var, None).endswith("2 Antibody Capture; they are read as if they were genes.")


@pytest.mark.parametrize("values", [["protein_coding", "lncRNA"], ["Gene Expression"] * 2, [np.nan, np.nan], [1, 2]])
def test_gene_names_where_no_column_says_what_is_no_gene(values):
    var = var_of(["A", "B"], feature_type=values)
    assert gene_names(var, None).tolist() == ["A", "B"]
    assert left_out(var, None) == ""
    assert kinds_of_rows(var) is None or not kinds_of_rows(var).others


def test_gene_names_of_a_column():
    var = var_of(["1", "2", "3"], symbol=["A", None, " B "])
    assert gene_names(var, "symbol").tolist() == ["A", "", "B"]
    assert left_out(var, "symbol") == "1 gene has no name in adata.var['symbol']; it is left out."


def test_check_names_of_row_numbers_names_the_column_that_helps():
    var = var_of([str(i) for i in range(20)], symbol=[f"G{i}" for i in range(20)], chromosome=["chr1"] * 20)
    with pytest.raises(ValueError, match=r"adata.var_names holds row numbers such as \['0', '1', '2'\].*: 'symbol'\."):
        check_names(gene_names(var, None), var, None)
    assert "'chromosome'" not in name_columns(var)
    assert "adata.var_names = 'gene ' + adata.var_names" in name_columns(var[[]])
    check_names(gene_names(var, "symbol"), var, "symbol")


def test_check_names_of_a_column_of_numbers():
    var = var_of(["A", "B", "C"], index=["0", "1", "2"])
    with pytest.raises(ValueError, match=r"adata.var\['index'\] holds row numbers"):
        check_names(gene_names(var, "index"), var, "index")


def test_left_out_names_what_a_spreadsheet_made_of_symbols():
    names = ["A", "1-Mar", "Sep-02", "2-SEP", "1-Dec", "2021-03-01", "2021-09-02 00:00:00", "2.31E+13", "44256"]
    names += [f"GENE{i}" for i in range(200)]
    said = left_out(var_of(names), None)
    assert said.startswith("8 names are dates or numbers that a spreadsheet made of symbols such as MARCH1")


@pytest.mark.parametrize(
    "names",
    [
        ["MARCHF1", "SEPTIN2", "HLA-DRA", "NKX2-1", "7SK", "5S_rRNA", "Sep-like", "1-8D", "44001"],
        [str(number) for number in range(36_526, 36_926)],  # Entrez ids
    ],
)
def test_left_out_takes_no_symbols_and_ids_for_dates(names):
    assert left_out(var_of([*names, *(f"GENE{i}" for i in range(200))]), None) == ""
