"""Genes: alignment by name against a plain dictionary, its report and its errors."""

import numpy as np
import pandas as pd
import pytest

from celler.genes import align_genes, check_unique


def names(numbers) -> pd.Index:
    return pd.Index([f"gene {i}" for i in numbers])


def test_alignment_is_a_dictionary_look_up(rng):
    reference, query = names(rng.permutation(60)), names(rng.permutation(90)[:70])
    place = {name: row for row, name in enumerate(reference)}
    alignment = align_genes(query, reference)
    assert alignment.gene_map.dtype == np.int32
    assert alignment.gene_map.tolist() == [place.get(name, -1) for name in query]
    assert list(alignment.missing) == [name for name in reference if name not in set(query)]
    assert alignment.n_extra == len(set(query) - set(reference))
    assert alignment.n_matched == len(set(query) & set(reference))


def test_the_report_adds_up():
    alignment = align_genes(names(range(500, 3000)), names(range(2000)))
    message = alignment.describe(0.876)
    assert "1,500 of the model's 2,000 genes" in message
    assert "88% of the reference's expression" in message
    assert "500 are missing (masked, not taken for zero) and 1,000 extra ones" in message


def test_the_same_genes_in_the_same_order():
    alignment = align_genes(names(range(5)), names(range(5)))
    assert alignment.gene_map.tolist() == [0, 1, 2, 3, 4]
    assert (len(alignment.missing), alignment.n_extra) == (0, 0)


def test_too_few_genes_show_both_kinds_of_name():
    ensembl = pd.Index([f"ENSG{i:011d}" for i in range(30)])
    message = r"only 0 of the model's 100 genes .*20% .*'gene 0'.*'ENSG00000000000'.*gene_key"
    with pytest.raises(ValueError, match=message):
        align_genes(ensembl, names(range(100)))
    with pytest.raises(ValueError, match="only 19 of the model's 100 genes"):
        align_genes(names(range(81, 200)), names(range(100)))
    assert align_genes(names(range(80, 200)), names(range(100))).n_matched == 20


def test_repeated_names_are_refused():
    repeated = pd.Index(["a", "b", "a", "b", "c", "a"])
    with pytest.raises(ValueError, match=r"query's genes hold 2 names more than once .*'a', 'b'\]"):
        align_genes(repeated, pd.Index(["a", "b", "c"]))
    with pytest.raises(ValueError, match="var_names_make_unique"):
        check_unique(repeated, "adata.var_names")
    check_unique(pd.Index(["a", "b"]), "adata.var_names")
