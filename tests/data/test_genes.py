"""Matching genes by name, against a plain dictionary; its report and its errors."""

import numpy as np
import pandas as pd
import pytest

from celler.data._gene_names import check_unique, gene_names
from celler.data._genes import (
    align_genes,
    without_suffix,
    without_version,
)
from celler.data._mismatch import kinds_of


def names(numbers) -> pd.Index:
    return pd.Index([f"gene {i}" for i in numbers])


def test_align_genes_is_a_dictionary_look_up(rng):
    reference, query = names(rng.permutation(60)), names(rng.permutation(90)[:70])
    place = {name: row for row, name in enumerate(reference)}
    alignment = align_genes(query, reference)
    assert alignment.gene_map.dtype == np.int32
    assert alignment.gene_map.tolist() == [place.get(name, -1) for name in query]
    assert list(alignment.missing) == [name for name in reference if name not in set(query)]
    assert alignment.n_extra == len(set(query) - set(reference))
    assert alignment.n_matched == len(set(query) & set(reference))


def test_describe_adds_up():
    alignment = align_genes(names(range(500, 3000)), names(range(2000)))
    message = alignment.describe(0.876)
    assert "1,500 of the model's 2,000 genes" in message
    assert "88% of the reference's expression" in message
    assert "500 are missing with the other 12% (masked, not taken for zero) and 1,000 extra" in message
    unknown = str(alignment)
    assert "500 are missing (masked" in unknown
    assert "%" not in unknown


def test_align_genes_with_the_same_genes_in_the_same_order():
    alignment = align_genes(names(range(5)), names(range(5)))
    assert alignment.gene_map.tolist() == [0, 1, 2, 3, 4]
    assert (len(alignment.missing), alignment.n_extra) == (0, 0)


def test_align_genes_with_too_few_genes_shows_both_kinds_of_name():
    ensembl = pd.Index([f"ENSG{i:011d}" for i in range(30)])
    message = r"only 0 of the model's 100 genes .*20% .*'gene 0'.*'ENSG00000000000'.*gene_key"
    with pytest.raises(ValueError, match=message):
        align_genes(ensembl, names(range(100)))
    with pytest.raises(ValueError, match="only 19 of the model's 100 genes"):
        align_genes(names(range(81, 200)), names(range(100)))
    assert align_genes(names(range(80, 200)), names(range(100))).n_matched == 20


def test_check_unique_with_repeated_names():
    repeated = pd.Index(["a", "b", "a", "b", "c", "a"])
    with pytest.raises(ValueError, match=r"query's genes hold 2 names more than once .*'a', 'b'\]"):
        check_unique(repeated, "the query's genes")
    with pytest.raises(ValueError, match="var_names_make_unique"):
        check_unique(repeated, "adata.var_names")
    check_unique(pd.Index(["a", "b"]), "adata.var_names")


# ---- names that differ but mean the same gene ----


def mapped(query: list[str], reference: list[str], **options) -> dict[str, str]:
    """Query name -> reference name of what was matched, with genes that make the overlap large."""
    filler = [f"filler {i}" for i in range(3 * len(reference))]
    alignment = align_genes(pd.Index([*query, *filler]), pd.Index([*reference, *filler]), **options)
    names = [*reference, *filler]
    rows = alignment.gene_map[: len(query)]
    return {name: names[row] for name, row in zip(query, rows, strict=True) if row >= 0}


#: name: (query, reference, query name -> reference name)
NAMES = {
    "versions of the query": (
        ["ENSG00000156738.17", "ENSMUSG00000024673.9"],
        ["ENSMUSG00000024673", "ENSG00000156738"],
        {"ENSG00000156738.17": "ENSG00000156738", "ENSMUSG00000024673.9": "ENSMUSG00000024673"},
    ),
    "versions of the reference": (
        ["ENSG00000156738"], ["ENSG00000156738.17"], {"ENSG00000156738": "ENSG00000156738.17"},
    ),
    "two versions": (
        ["ENSG00000156738.16"], ["ENSG00000156738.17"], {"ENSG00000156738.16": "ENSG00000156738.17"},
    ),
    "the exact version wins": (
        ["ENSG1.2", "ENSG1.3"], ["ENSG1.3", "ENSG1.9"], {"ENSG1.3": "ENSG1.3", "ENSG1.2": "ENSG1.9"},
    ),
    "two of one id": (["ENSG1.2", "ENSG1.3"], ["ENSG1"], {}),
    "the copy on Y is another gene": (["ENSG00000182378.14_PAR_Y"], ["ENSG00000182378"], {}),
    "dots that are no versions": (["RP11-34P13.7", "AC5.1"], ["RP11-34P13", "AC5"], {}),
    "made unique": (["TBCE-1"], ["TBCE"], {"TBCE-1": "TBCE"}),
    "made unique, the first is there": (["TBCE", "TBCE-1"], ["TBCE"], {"TBCE": "TBCE"}),
    "made unique, two copies": (["TBCE-1", "TBCE-2"], ["TBCE"], {}),
    "ends in -1 in truth": (
        ["NKX2-1", "HLA-DRB1", "MIR9-1"], ["NKX2-1", "HLA-DRB1", "MIR9", "MIR9-1"],
        {"NKX2-1": "NKX2-1", "HLA-DRB1": "HLA-DRB1", "MIR9-1": "MIR9-1"},
    ),
    "ends in -1 in truth, without a base": (["NKX2-1", "HLA-A"], ["NKX2-5", "HLA"], {}),
    "the case differs": (["Ms4a1", "C1ORF127"], ["MS4A1", "C1orf127"], {}),
    "R's names": (
        ["qHLA.DRA", "X7qSK", "A.B_C"], ["qHLA-DRA", "7qSK", "A-B-C"],
        {"qHLA.DRA": "qHLA-DRA", "X7qSK": "7qSK", "A.B_C": "A-B-C"},
    ),
    "R's names of the reference": (["qHLA-DRA", "q_A"], ["qHLA.DRA", "q-A"], {"qHLA-DRA": "qHLA.DRA", "q_A": "q-A"}),
    "R's names, the exact one wins": (["qA.B", "qA-B"], ["qA-B"], {"qA-B": "qA-B"}),
    "R's names of two": (["qA.B"], ["qA-B", "qA_B"], {}),
    "R's names, two of one": (["qA.B", "qA_B"], ["qA-B"], {}),
    "R's copies": (["qA", "qA.1"], ["qA", "qA-1"], {"qA": "qA"}),
    "R's copies of a gene of the reference": (["qA.1"], ["qA", "qA-1"], {}),
    "R's number without a base": (["qX2.1"], ["qX2-1"], {"qX2.1": "qX2-1"}),
}  # fmt: skip

#: The same with ignore_case.
CASES = {
    "case": (["Ms4a1", "C1ORF127"], ["MS4A1", "C1orf127"], {"Ms4a1": "MS4A1", "C1ORF127": "C1orf127"}),
    "the exact case wins": (["Ms4a1", "MS4A1"], ["MS4A1"], {"MS4A1": "MS4A1"}),
    "case of two query genes": (["Ms4a1", "ms4a1"], ["MS4A1"], {}),
    "case of two reference genes": (["ms4a1"], ["MS4A1", "Ms4a1"], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_align_genes_with_names_that_mean_the_same_gene(case):
    query, reference, expected = NAMES[case]
    assert mapped(query, reference) == expected


@pytest.mark.parametrize("case", CASES)
def test_align_genes_with_ignore_case(case):
    query, reference, expected = CASES[case]
    assert mapped(query, reference, ignore_case=True) == expected


def test_align_genes_of_another_species_is_refused_and_counts_what_case_hides():
    mouse, human = names(range(9)).str.title(), names(range(9)).str.upper()
    message = r"only 0 of the model's 9 genes .* 9 more would match if case were ignored, .*orthologs"
    with pytest.raises(ValueError, match=message):
        align_genes(mouse, human)
    part = align_genes(mouse.append(human[:4]), human)
    assert (part.n_matched, part.n_other_case) == (4, 5)
    assert "5 more would match if case were ignored, as symbols of another species do" in str(part)
    assert align_genes(mouse, human, ignore_case=True).n_matched == 9


def test_str_of_an_alignment_names_the_ways():
    query = pd.Index(["ENSG1.4", "TBCE-1", "cd19", "CD3E"])
    reference = pd.Index(["ENSG1", "TBCE", "CD19", "CD3E"])
    alignment = align_genes(query, reference, ignore_case=True)
    assert alignment.gene_map.tolist() == [0, 1, 2, 3]
    assert list(alignment.n_inexact.values()) == [1, 1, 1]
    assert not alignment.is_exact
    message = str(alignment)
    assert "1 without the version of Ensembl ids, 1 without the suffix" in message
    assert "1 in another case" in message
    assert "species" not in message
    mouse = align_genes(names(range(9)).str.title(), names(range(9)).str.upper(), ignore_case=True)
    assert "9 in another case. Most names differ in case: check that both are of one" in str(mouse)
    assert align_genes(query, query[::-1]).is_exact


def test_align_genes_with_several_of_one_gene_leaves_them_out():
    query = pd.Index(["a", "b", "b", "c", "B"])
    alignment = align_genes(query, pd.Index(["a", "b", "c", "x"]))
    assert alignment.gene_map.tolist() == [0, -1, -1, 2, -1]
    assert alignment.repeated.tolist() == [-1, 1, 1, -1, -1]
    assert (list(alignment.missing), alignment.n_repeated) == (["b", "x"], 1)
    assert "1 is claimed by several genes of the query and left out; cl.pp" in str(alignment)


# ---- names that the table of genes knows ----


#: Human genes, current symbols: Ensembl ids, earlier symbols, R-style names and genome prefixes meet them.
CURRENT = {
    "MS4A1": "ENSG00000156738", "MARCHF1": "ENSG00000145416", "TENT5C": "ENSG00000183508", "SEPTIN9": "ENSG00000184640",
    "HLA-DRA": "ENSG00000204287", "CD3E": "ENSG00000198851", "NKG7": "ENSG00000105374", "LYZ": "ENSG00000090382",
    "PPBP": "ENSG00000163736", "H3-3A": "ENSG00000163041",
}  # fmt: skip
MARKERS = ["CD3E", "CD8A", "CD14", "LYZ", "NKG7", "GNLY", "PPBP", "FCER1A", "CST3", "IL7R"]
OLD = ["MS4A1", "MARCH1", "FAM46C", "SEPT9", "HLA-DRA", "CD3E", "NKG7", "LYZ", "PPBP", "H3F3A"]
#: name: (query, reference, genes by way)
TABLE = {
    "ids, symbols": (list(CURRENT.values()), list(CURRENT), {"by Ensembl id": 10}),
    "ids with versions, symbols": ([f"{i}.3" for i in CURRENT.values()], list(CURRENT), {"by Ensembl id": 10}),
    "symbols, ids": (list(CURRENT), list(CURRENT.values()), {"by Ensembl id": 10}),
    "earlier symbols, current ones": (OLD, list(CURRENT), {"by earlier symbol or alias": 4}),
    "current symbols, earlier ones": (list(CURRENT), OLD, {"by earlier symbol or alias": 4}),
    "earlier symbols, ids": (
        OLD, list(CURRENT.values()), {"by Ensembl id": 6, "by earlier symbol or alias": 4},
    ),
    "R, symbols": ([name.replace("-", ".") for name in OLD], OLD, {"by R-style name": 1}),
    "genome prefixes": (
        [f"GRCh38_{name}" for name in CURRENT], list(CURRENT), {"by name without its genome prefix": 10},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_align_genes_by_the_table(case, rng):
    query, reference, ways = TABLE[case]
    order = rng.permutation(10)
    alignment = align_genes(pd.Index(query), pd.Index(reference)[order])
    assert order[alignment.gene_map].tolist() == list(range(10))
    assert alignment.n_inexact == ways
    assert not alignment.is_exact
    first = next(iter(ways))
    assert f"Not by equal names: {ways[first]} {first}" in str(alignment)
    assert "(table of Ensembl 114)." in str(alignment)


def test_align_genes_by_the_table_does_not_guess():
    # an alias of two genes, a gene twice in the query, and one twice in the reference
    query = pd.Index(["CD16", "FAM46C", "ENSG00000183508", "CD20", "GRCh38_CD20", "CD4", *MARKERS])
    reference = pd.Index(["FCGR3A", "FCGR3B", "TENT5C", "MS4A1", *MARKERS])
    alignment = align_genes(query, reference)
    assert alignment.gene_map.tolist() == [-1, -1, 2, -1, -1, -1, *range(4, 4 + len(MARKERS))]
    assert alignment.repeated[:6].tolist() == [-1, -1, -1, 3, 3, -1]
    assert list(alignment.missing) == ["FCGR3A", "FCGR3B", "MS4A1"]
    twice = pd.Index(["ENSG00000145416", *MARKERS])
    assert align_genes(twice, pd.Index(["MARCH1", "MARCHF1", *MARKERS])).gene_map[0] == 1
    assert align_genes(twice, pd.Index(["CD20", "GRCh38_CD20", *MARKERS])).gene_map[0] == -1


def test_align_genes_with_equal_names_does_not_read_the_table(monkeypatch):
    monkeypatch.setattr("celler.data._genes.find_genes", None)
    known = pd.Index(OLD)
    assert align_genes(known[::-1], known).gene_map.tolist() == list(range(10))[::-1]
    assert align_genes(known.append(pd.Index(["CD4", "x"])), known).n_extra == 2
    assert align_genes(known[:5], known).n_matched == 5


@pytest.mark.parametrize("name", ["gene_{:04d}", "Gene {}", "{}", "ENSG_{}", "g{}"])
def test_align_genes_with_placeholders_matches_none_by_the_table(name):
    placeholders = pd.Index([name.format(i) for i in range(300)])
    for query, reference in ((placeholders, pd.Index(MARKERS)), (pd.Index(MARKERS), placeholders)):
        with pytest.raises(ValueError, match="only 0 of the model's"):
            align_genes(query, reference)
    if name == "{}":  # row numbers need gene_key=
        return
    mixed = align_genes(placeholders.append(pd.Index(MARKERS)), pd.Index([*MARKERS, *CURRENT.values()]))
    assert (mixed.n_matched, mixed.n_inexact) == (10, {})


#: Symbols of one-to-one orthologs; H2-Ab1 and Lyz2 have none.
MOUSE_OF_HUMAN = {"MS4A1": "Ms4a1", "MARCHF1": "March1", "TENT5C": "Fam46c", "CD3E": "Cd3e", "NKG7": "Nkg7"}


def test_align_genes_of_another_species_needs_orthologs():
    mouse, human = pd.Index([*MOUSE_OF_HUMAN.values(), "H2-Ab1", "Lyz2"]), pd.Index([*MOUSE_OF_HUMAN, "LYZ", "PPBP"])
    message = r"only 0 of the model's 7 .* 5 of the model's genes have a one-to-one ortholog .*orthologs=True\) matches"
    with pytest.raises(ValueError, match=message):
        align_genes(mouse, human)
    alignment = align_genes(mouse, human, orthologs=True)
    assert alignment.gene_map.tolist() == [0, 1, 2, 3, 4, -1, -1]
    assert alignment.n_inexact == {"by one-to-one ortholog": 5}
    back = align_genes(human, mouse, orthologs=True)
    assert back.gene_map.tolist() == [0, 1, 2, 3, 4, -1, -1]
    shared = align_genes(mouse.append(human[5:]), human)
    assert (shared.n_matched, shared.n_orthologs) == (2, 5)
    assert "5 of the model's genes have a one-to-one ortholog in the query" in str(shared)
    same_and_ortholog = align_genes(
        pd.Index(["Ms4a1", "Cd3e", "Nkg7", "mt-Nd1", "MT-ND2"]), pd.Index([*human, "MT-ND2"]), orthologs=True
    )
    assert (same_and_ortholog.n_matched, same_and_ortholog.n_other_case) == (4, 0)
    within = align_genes(pd.Index(OLD), pd.Index(list(CURRENT)), orthologs=True)
    assert within.n_inexact == {"by earlier symbol or alias": 4}


def test_align_genes_with_few_genes_under_known_names_is_a_panel():
    query, reference = (
        pd.Index(list(CURRENT.values())[:2]),
        pd.Index([*CURRENT, *(f"other gene {i}" for i in range(30))]),
    )
    with pytest.raises(ValueError, match="only 2 of the model's 40 genes .* is a panel.*genes=query.var_names"):
        align_genes(query, reference)


def test_align_genes_with_a_column_that_only_the_table_matches():
    query = names(range(10))
    alignment = align_genes(query, pd.Index(list(CURRENT)), var_of(query, gene_ids=list(CURRENT.values())))
    assert (alignment.column, alignment.n_inexact) == ("gene_ids", {"by Ensembl id": 10})
    var = var_of(pd.Index(OLD), gene_ids=list(CURRENT.values()))
    assert align_genes(pd.Index(OLD), pd.Index(list(CURRENT.values())), var).column == "gene_ids"


# ---- names in another column ----


ENSEMBL = [f"ENSG{i:011d}" for i in range(40)]


def var_of(query: pd.Index, **columns) -> pd.DataFrame:
    return pd.DataFrame(columns, index=query)


@pytest.mark.parametrize("kind", [list, pd.Categorical, lambda ids: [f"{i}.3" for i in ids]])
def test_align_genes_with_a_column_that_matches(kind):
    query = names(range(40))
    var = var_of(query, other="x", n=1.5, gene_ids=kind(ENSEMBL), few=[*ENSEMBL[:30], *"x" * 10])
    alignment = align_genes(query, pd.Index(ENSEMBL[::-1]), var)
    assert alignment.gene_map.tolist() == list(range(40))[::-1]
    assert alignment.column == "gene_ids"
    assert not alignment.is_exact
    assert "those of adata.var['gene_ids'], because var_names do not match" in str(alignment)


def test_align_genes_with_var_names_that_match_ignores_columns():
    query = names(range(40))
    reference = pd.Index([*query[:20], *ENSEMBL[:20]])
    assert align_genes(query, reference, var_of(query, gene_ids=ENSEMBL)).column is None
    reference = pd.Index([*query[:9], *ENSEMBL[:19]])  # more than twice as many
    assert align_genes(query, reference, var_of(query, gene_ids=ENSEMBL)).column == "gene_ids"


def test_gene_names_with_missing_names_match_nothing():
    var = pd.DataFrame({"s": pd.Categorical(["A", None, "B"]), "t": ["A", np.nan, None]})
    assert gene_names(var, "s").tolist() == ["A", "", "B"]
    assert gene_names(var, "t").tolist() == ["A", "", ""]
    alignment = align_genes(gene_names(var, "t"), pd.Index(["A", "B"]))
    assert alignment.gene_map.tolist() == [0, -1, -1]
    with pytest.raises(KeyError, match=r"gene_key='sym' is not .*Closest: 'symbol'.*\['symbol'\]"):
        gene_names(pd.DataFrame({"symbol": ["A"]}), "sym")


# ---- names of another kind ----


MOUSE = [f"ENSMUSG{i:011d}" for i in range(40)]
SYMBOLS = ["MS4A1", "CD3E", "HLA-DRA", "RP11-34P13.7", *(f"ABC{i}" for i in range(36))]
#: name: (query, reference, what the message says)
KINDS = {
    "symbols, Ensembl": (
        SYMBOLS, ENSEMBL,
        ["the model has human Ensembl ids", "the query symbols", "gene_key=", "mapping=", "['note']"],
    ),
    "Ensembl, symbols": (
        ENSEMBL, SYMBOLS, ["the model has symbols", "from human Ensembl ids to symbols"],
    ),
    "two species": (MOUSE, ENSEMBL, ["human Ensembl ids", "mouse Ensembl ids", "mapping="]),
    "other genes": (SYMBOLS, list(names(range(40))), ["look alike", "species", "orthologs"]),
    "row numbers": (list(map(str, range(40))), SYMBOLS, ["the query numbers such as ['0', '1'"]),
    "mixed": (
        [*SYMBOLS[:20], *ENSEMBL[:20]], MOUSE, ["symbols (50%) and human Ensembl ids (50%)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_align_genes_with_names_of_another_kind(case):
    query, reference, words = KINDS[case]
    query = pd.Index(query)
    with pytest.raises(ValueError) as error:
        align_genes(query, pd.Index(reference), var_of(query, note="x"))
    for word in ["only 0 of the model's 40 genes", *words]:
        assert word.lower() in str(error.value).lower(), f"{word!r} not in {error.value}"


def test_align_genes_with_mixed_kinds_reports_them():
    query = pd.Index([*SYMBOLS[:20], *ENSEMBL[20:]])
    message = str(align_genes(query, pd.Index(SYMBOLS)))
    assert "symbols (50%) and human Ensembl ids (50%), the model's symbols." in message
    assert "the model's symbols" not in str(align_genes(query, query[:30]))


def test_kinds_of_gives_shares():
    kinds = kinds_of(pd.Index([*ENSEMBL[:6], *SYMBOLS[:3], "7157"]))
    assert kinds.to_dict() == {"human Ensembl ids": 0.6, "symbols": 0.3, "numbers": 0.1}


def test_without_version_and_without_suffix():
    index = pd.Index(["ENSG1.2", "ENST3.4", "A-1", "A-B", "-1", "RP11-34P13.7", "", "HLA-A-12"])
    stripped = ["ENSG1", "ENST3", "A-1", "A-B", "-1", "RP11-34P13.7", "", "HLA-A-12"]
    assert without_version(index).tolist() == stripped
    suffixes = ["ENSG1.2", "ENST3.4", "A", "A-B", "-1", "RP11-34P13.7", "", "HLA-A"]
    assert without_suffix(index).tolist() == suffixes
