"""The shipped table of genes, against rows from HGNC, MGI and Ensembl checked by hand."""

import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from celler.data._gene_table import FILE, WAYS, find_genes, human_symbols, release

#: Names that only human genes have, current ones; they tell the species of an index.
HUMAN = ["CD3E", "CD8A", "CD14", "LYZ", "NKG7", "GNLY", "PPBP", "FCER1A", "CST3", "IL7R", "CCR7", "KLRB1"]
MOUSE = ["Cd3e", "Cd8a", "Cd14", "Nkg7", "Fcer1a", "Cst3", "Il7r", "Ccr7", "Klrb1c", "Cd4", "Foxp3", "Sox2"]


def symbol(*names: str, beside: list[str] = HUMAN) -> str | list[str]:
    """Human symbols of names in an index with others."""
    found = list(human_symbols(pd.Index([*names, *beside])).names[: len(names)])
    return found[0] if len(found) == 1 else found


#: name -> current human symbol
ROWS = {
    "MS4A1": "MS4A1",
    "MARCH1": "MARCHF1",
    "MARCH8": "MARCHF8",
    "SEPT9": "SEPTIN9",
    "FAM46C": "TENT5C",
    "H3F3A": "H3-3A",
    "HIST1H4C": "H4C3",
    "ATP5A1": "ATP5F1A",
    "TMEM66": "SARAF",
    "GNB2L1": "RACK1",
    "CD20": "MS4A1",
    "PD-L1": "CD274",
    "ENSG00000156738": "MS4A1",
    "ENSG00000156738.17": "MS4A1",
    "ENSG00000145416": "MARCHF1",
    "HLA.DRA": "HLA-DRA",
    "NKX2.1": "NKX2-1",
    "2-Sep": "SEPTIN2",
    "Sep-09": "SEPTIN9",
    "8-Mar": "MARCHF8",
    "1-Mar": "",  # MARCH1 or MARC1
    "1-Dec": "",
    "31-Sep": "",
    "44440": "",
    "MT.CO1": "MT-CO1",
    "MIR9.1": "MIR9-1",
    "GRCh38_MS4A1": "MS4A1",
    "hg19_MS4A1": "MS4A1",
    "GRCh38______MS4A1": "MS4A1",
    "hg19-FAM46C": "TENT5C",
    "GRCh38_ENSG00000156738.12": "MS4A1",
    "mm10___Ms4a1": "",
    # what no gene is called, and what several are
    "ENSG00000182378.14_PAR_Y": "",
    "ENST00000345732": "",
    "ENSG99999999999": "",
    "Gene 12": "",
    "gene_0001": "",
    "7157": "",
    "": "",
    "nan": "",
    "MS4A1-1": "",
    "BCR.1": "",  # a second BCR, or the alias BCR-1
    "CD16": "",  # FCGR3A and FCGR3B
}  # fmt: skip
#: mouse name -> human symbol of its one-to-one ortholog
MOUSE_ROWS = {
    "Ms4a1": "MS4A1",
    "ENSMUSG00000024673": "MS4A1",
    "ENSMUSG00000024673.4": "MS4A1",
    "March1": "MARCHF1",
    "Fam46c": "TENT5C",
    "Cd8b1": "CD8B",
    "Tmsb4x": "TMSB4X",  # Ensembl pairs it with TMSB4Y
    "mt-Nd1": "MT-ND1",
    "Trp53": "TP53",
    "Xist": "XIST",
    "X0610007P14Rik": "ERG28",
    "mm10___Ms4a1": "MS4A1",
    "mt.Nd1": "MT-ND1",
    "H2-Ab1": "",
    "H2.Ab1": "",
    "Lyz2": "",
    "hg19_MS4A1": "",
    "ENSG00000156738": "",
}


@pytest.mark.parametrize("name", ROWS)
def test_human_symbols_of_human_genes(name):
    assert symbol(name) == ROWS[name]


@pytest.mark.parametrize("name", MOUSE_ROWS)
def test_human_symbols_of_mouse_genes(name):
    assert symbol(name, beside=MOUSE) == MOUSE_ROWS[name]


def test_human_symbols_counts_the_ways():
    names = ["MS4A1", "FAM46C", "ENSG00000105374", "HLA.DRA", "GRCh38_CD4", "no gene", *HUMAN[:4], "CD3E-1"]
    found = human_symbols(pd.Index(names))
    assert list(found.names[:6]) == ["MS4A1", "TENT5C", "NKG7", "HLA-DRA", "CD4", ""]
    assert list(found.n_by_way) == [WAYS[0], WAYS[1], WAYS[2], WAYS[4], WAYS[5]]
    assert list(found.n_by_way.values()) == [5, 1, 1, 1, 1]
    assert (found.organism, found.n_known) == ("human", 9)
    words = str(found)
    for part in ("9 of 11 names are known genes (5 by symbol, 1 by Ensembl id", f"table of {release()}"):
        assert part in words, words


def test_human_symbols_of_mouse_counts_genes_without_ortholog():
    found = human_symbols(pd.Index([*MOUSE, "H2-Ab1", "Lyz2", "no gene"]))
    assert (found.organism, found.n_without_ortholog) == ("mouse", 3)  # and Klrb1c
    assert "one-to-one orthologs of mouse" in str(found)


def test_human_symbols_with_a_given_organism():
    shared = pd.Index(["C3", "GM2A", "F2", "HAMP"])  # symbols of both
    assert human_symbols(shared).organism == "human"
    assert human_symbols(shared, organism="mouse").organism == "mouse"
    assert list(human_symbols(pd.Index(MOUSE), organism="human").names) == [""] * len(MOUSE)


def test_human_symbols_of_two_names_of_one_gene():
    # the current symbol, or the gene's own id, stays; two of these, or two others, do not
    assert symbol("MARCHF1", "MARCH1") == ["MARCHF1", ""]
    assert symbol("MARCH1", "ENSG00000145416") == ["", "MARCHF1"]
    assert symbol("MARCHF1", "ENSG00000145416", "MARCH1") == ["", "", ""]
    assert symbol("CD20", "GRCh38_CD20") == ["", ""]
    both = pd.Index(["MARCH1", "MARCHF1", *HUMAN])
    assert list(human_symbols(both, unique=False).names[:2]) == ["MARCHF1", "MARCHF1"]
    assert human_symbols(both).n_shared == 1


def test_human_symbols_of_a_symbol_that_once_named_another_gene():
    # LSM8 was called NAA38 while NAA38 was called LSMD1
    assert symbol("NAA38") == "NAA38"
    assert symbol("NAA38", "LSMD1") == ["", "NAA38"]
    assert symbol("NAA38", "LSM8") == ["NAA38", "LSM8"]
    assert symbol("NAA38", "LSMD1", "LSM8") == ["NAA38", "", "LSM8"]


def test_human_symbols_of_an_earlier_symbol_that_is_an_alias_of_another_gene():
    # TAZ was the symbol of TAFAZZIN and is what people call WWTR1
    assert symbol("TAZ") == ""
    assert symbol("TAZ", "WWTR1") == ["TAFAZZIN", "WWTR1"]


@pytest.mark.parametrize(
    "name",
    ["{}", "gene_{:04d}", "Gene {}", "gene{}", "ENSG_{}", "feature-{}", "V{}", "X{}", "g{}", "F{}", "C{}", "{}.0"],
)
def test_human_symbols_of_placeholders(name):
    found = human_symbols(pd.Index([name.format(i) for i in range(1, 400)]))
    assert (found.organism, found.n_known, set(found.names)) == ("", 0, {""})
    assert "not those of human or mouse" in str(found)


def test_human_symbols_of_no_names():
    assert human_symbols(pd.Index([], dtype=object)).n_known == 0


def test_human_symbols_in_capitals():
    # of a set whose names are all in capitals: the mouse is told from its own genes
    human = ["C14ORF2", "MS4A1", "C1ORF162", *HUMAN]
    assert list(human_symbols(pd.Index(human)).names[:3]) == ["ATP5MJ", "MS4A1", "C1orf162"]
    mouse = pd.Index([name.upper() for name in ["0610007P14Rik", "Gm11808", "Cd8b1", "Ly6c2", "H2-Ab1", *MOUSE]])
    found = human_symbols(mouse)
    assert (found.organism, list(found.names[:3])) == ("mouse", ["ERG28", "", "CD8B"])


def test_find_genes_tells_current_names():
    found = find_genes(pd.Index(["MS4A1", "ENSG00000145416", "FAM46C", "HLA.DRA", "x", *HUMAN]))
    assert found.is_current[:5].tolist() == [True, True, False, True, False]
    assert (found.rows[:5] >= 0).tolist() == [True, True, True, True, False]


def test_every_symbol_and_id_is_found_as_itself():
    with np.load(FILE) as table:
        arrays = dict(table)
    for species, prefix in (("human", "ENSG"), ("mouse", "ENSMUSG")):
        symbols = pd.Index(arrays[f"{species}_symbols"].tobytes().decode().split("\n"))
        assert symbols.is_unique
        assert symbols.is_monotonic_increasing
        own = arrays[f"{species}_ids"]
        found = find_genes(symbols, species)
        assert found.rows.tolist() == list(range(len(symbols)))
        ids = pd.Index([f"{prefix}{number:011d}" for number in own[own > 0]])
        assert ids.is_unique
        assert find_genes(ids).rows.tolist() == np.flatnonzero(own).tolist()
        lines = arrays[f"{species}_earlier"].tobytes().decode().split("\n")
        assert len(lines) == len(symbols)
        earlier = pd.Index([name for line in lines if line for name in line.split("\t")])
        assert earlier.is_unique
        assert not earlier.isin(symbols).any()
    ortholog = arrays["mouse_ortholog"]
    paired = ortholog[ortholog >= 0]
    assert len(paired) == len(set(paired)) > 17_000


def test_the_file_is_small_and_says_where_it_is_from():
    assert FILE.stat().st_size <= 1.5e6
    with np.load(FILE, allow_pickle=False) as table:
        about = json.loads(table["about"].tobytes())
    assert about["release"] == release() == "Ensembl 114"
    assert len(about["sources"]) == 5
    assert all("(MIT)" in package or "(Apache 2.0)" in package for package in about["sources"])
    assert "MGI markers (CC BY 4.0)" in str(about["sources"])
    assert all(entry.filename.endswith(".npy") for entry in zipfile.ZipFile(FILE).infolist())
