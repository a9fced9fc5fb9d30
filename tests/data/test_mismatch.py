"""Why names do not meet: each cause by its words."""

import pandas as pd
import pytest

from celler.data._genes import align_genes

REFERENCE = pd.Index(["HLA-DRA", "NKX2-1", *(f"GENE{i}" for i in range(98))])
IDS = pd.Index([f"ENSG{i:011d}" for i in range(100)])


def query(form, reference=REFERENCE):
    return pd.Index([form(i, name) for i, name in enumerate(reference)], dtype=object)


#: query, words, and the expression that makes the names of the reference, if there is one
CAUSES = {
    "a genome": (query(lambda i, n: f"GRCh38_{n}"), "without the prefix 'GRCh38_'", "name.removeprefix('GRCh38_')"),
    "a genome with more signs": (query(lambda i, n: f"mm10___{n}"), "prefix 'mm10___'", "name.removeprefix('mm10___')"),
    "two genomes": (
        query(lambda i, n: f"{('hg19', 'mm10')[i % 2]}_{n}"), "The parts after the first '_'", "name.partition('_')[2]"
    ),
    "a suffix": (query(lambda i, n: f"{n}.hs"), "without the suffix '.hs'", "name.removesuffix('.hs')"),
    "probes": (query(lambda i, n: f"{n}|p{i}"), "The parts before the first '|'", "name.partition('|')[0]"),
    "id-symbol": (query(lambda i, n: f"{IDS[i]}-{n}"), "The parts after the first '-'", "name.partition('-')[2]"),
    "symbol_id": (query(lambda i, n: f"{n}_{IDS[i]}"), "The parts before the first '_'", "name.partition('_')[0]"),
    "a path": (query(lambda i, n: f"chr{i}/x/{n}"), "The parts after the last '/'", "name.rpartition('/')[2]"),
    "a panel": (REFERENCE[:15], "All 15 genes of the query are among the model's 100: the query is a panel", None),
    "a panel with controls": (
        REFERENCE[:15].append(pd.Index(["NegPrb1", "NegPrb2"])), "15 of the 17 genes of the query are among", None
    ),
    "row numbers": (query(lambda i, n: str(i)), "The query's names are row numbers, which name no gene", None),
    "no names": (query(lambda i, n: ""), "The query has no names of genes", None),
    "other kinds": (IDS, "Bring both to the same kind of name: put symbols into query.var_names", None),
    "small letters": (query(lambda i, n: n.lower()), "100 more would match if case were ignored", None),
    "others": (query(lambda i, n: f"QQ{i}Q"), "Both look alike: pass the query with all measured genes", None),
}  # fmt: skip


@pytest.mark.parametrize("case", CAUSES)
def test_align_genes_says_why_names_do_not_meet(case):
    names, words, expression = CAUSES[case]
    with pytest.raises(ValueError, match="of the model's 100 genes are in the query; at least 20% are needed") as error:
        align_genes(names, REFERENCE)
    assert words in str(error.value)
    if expression is None:
        return
    assert f"query.var_names = [{expression} for name in query.var_names]" in str(error.value)
    renamed = pd.Index([eval(expression, {"name": name}) for name in names])
    assert align_genes(renamed, REFERENCE).n_matched == 100


def test_align_genes_with_row_numbers_as_reference():
    with pytest.raises(ValueError, match=r"The model's genes are row numbers.*reference up again with gene_key="):
        align_genes(REFERENCE, query(lambda i, n: str(i)))


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"query.T": REFERENCE}, "query.obs_names hold 100 of the model's genes: pass query.T"),
        ({"query.raw.to_adata()": REFERENCE[5:]}, "query.raw has 95 of the model's genes: pass query.raw.to_adata()"),
    ],
)
def test_align_genes_finds_the_genes_elsewhere(others, words):
    with pytest.raises(ValueError, match="at least 20% are needed") as error:
        align_genes(REFERENCE[:10], REFERENCE, others=others)
    assert words in str(error.value)
    with pytest.raises(ValueError, match="is a panel"):
        align_genes(REFERENCE[:10], REFERENCE, others={"query.T": IDS})


@pytest.mark.parametrize(("n_shared", "is_told"), [(19, False), (20, True)])
def test_align_genes_of_a_query_that_may_be_a_panel(n_shared, is_told):
    """A panel of another tissue has few of the model's genes, and most of its own are not the model's."""
    reference = pd.Index([*REFERENCE, *(f"R{i}Q" for i in range(100))])
    query = pd.Index([*REFERENCE[:n_shared], *(f"OTHER{i}X" for i in range(60))])
    with pytest.raises(ValueError, match="of the model's 200 genes are in the query") as error:
        align_genes(query, reference)
    advice = "If the query is a gene panel: train a model on its genes: "
    assert (advice in str(error.value)) == is_told
    assert ("genes=query.var_names" in str(error.value)) == is_told
