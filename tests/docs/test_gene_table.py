"""docs/benchmarks/gene_table.py: its rules on a few genes worked by hand."""

import pandas as pd
import scripts

gene_table = scripts.load("gene_table")


def gene_id(number: int) -> str:
    return f"ENSG{number:011d}"


def approved(rows: list[tuple[str, int, str, str]]) -> pd.DataFrame:
    columns = ["symbol", "ensembl_id", "prev_symbols", "alias_symbols"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(ensembl_id=[gene_id(number) if number else "" for number in table["ensembl_id"]])


def release(**number_by_name: int) -> pd.Series:
    return pd.Series(list(number_by_name), [gene_id(number) for number in number_by_name.values()], dtype=object)


TABLE = approved(
    [
        # symbol, id, previous symbols, aliases
        ("MARCHF1", 1, "MARCH1", "RNF171"),
        ("NAA38", 2, "LSMD1", ""),
        ("LSM8", 3, "", ""),
        ("TAFAZZIN", 4, "TAZ", "G45"),
        ("WWTR1", 5, "", "TAZ|gene 12|AB"),
        ("FCGR3A", 6, "", "CD16"),
        ("FCGR3B", 7, "", "CD16"),
        ("NOID", 0, "", ""),
    ]
)
NAMES = {
    "93": release(MARCH1=1, LSMD1=2, NAA38=3, TAZ=4, CLONE=8, OLD=9, RNA=10),
    "114": release(MARCHF1=1, NAA38=2, LSM8=3, TAFAZZIN=4, WWTR1=5, RNA=10),
}


def test_build_follows_its_rules():
    species = gene_table.build(TABLE, NAMES)
    assert species.symbols == {
        **dict(zip(TABLE["symbol"], TABLE["ensembl_id"], strict=True)),
        "CLONE": gene_id(8), "OLD": gene_id(9), "RNA": gene_id(10),
    }  # fmt: skip
    assert species.earlier == {"MARCH1": "MARCHF1", "RNF171": "MARCHF1", "LSMD1": "NAA38", "TAZ": "TAFAZZIN"}
    assert species.disputed == {"TAZ": {"WWTR1"}}
    assert species.contested == {"NAA38": "LSM8"}


def test_build_gives_a_retired_id_to_the_gene_that_had_its_name():
    names = {"93": release(MARCH1=11, NAA38=12), "114": NAMES["114"]}
    species = gene_table.build(TABLE, names)
    assert species.gene_of_id[gene_id(11)] == "MARCHF1"
    assert species.gene_of_id[gene_id(12)] == "NAA38"


def test_best_supported_pairs_need_more_sources_than_any_other():
    human = gene_table.Species(gene_of_id={"h1": "TMSB4X", "h2": "TMSB4Y", "h3": "CD3E", "h4": "CTSL", "h5": "CTSV"})
    mouse = gene_table.Species(gene_of_id={"m1": "Tmsb4x", "m3": "Cd3e", "m4": "Ctsl"})
    hcop = pd.DataFrame(
        [("h1", "m1", "A,B,C"), ("h2", "m1", "A,B"), ("h3", "m3", "A"), ("h4", "m4", "A,B"), ("h5", "m4", "B,C")],
        columns=["Gene stable ID", "Mouse gene stable ID", "supporting_source"],
    )
    assert gene_table.best_supported(hcop, human, mouse) == {("Tmsb4x", "TMSB4X"), ("Cd3e", "CD3E")}
