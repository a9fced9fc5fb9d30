"""Bad names and labels: one row for an input and a public function, with the outcome and the words that it says.

Outcomes: ``same`` as for the clean input without a word; ``says`` a warning and gives the same; ``less``, which says a
warning and reads fewer genes; and ``refused`` with an error of ours. No row changes the user's object.
"""

from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from name_cases import GENES, HAS_ATLAS, TYPES, clean, model, outcome_of, quietly
from scipy import sparse
from toy import assert_unchanged, snapshot

import celler as cl
from celler.model import Celler


def check(door, change, outcome, words):
    adata = quietly(change, clean())
    was = snapshot(adata)
    model()._reported.clear()
    if outcome == "refused":
        with pytest.raises((ValueError, TypeError)) as error:
            outcome_of(lambda: door(adata))
        assert words in str(error.value)
        assert_unchanged(adata, was)
        return
    (result, said), before = outcome_of(lambda: door(adata)), usual(door)
    if door is not annotate:
        assert_unchanged(adata, was)
    if outcome == "same":
        assert not said
    else:
        assert any(words in message for message in said), said
    assert np.shape(result) == np.shape(before)
    if outcome != "less" and np.asarray(before).dtype.kind == "f":
        np.testing.assert_allclose(result, before, rtol=1e-4, atol=1e-5)
    elif outcome != "less":
        np.testing.assert_array_equal(result, before)


# ---- names of genes ----
def named(rename, dtype=object):
    def change(adata):
        adata.var_names = pd.Index([rename(name) for name in adata.var_names], dtype=dtype)

    return change


def with_one(value):
    def change(adata):
        adata.var_names = pd.Index([*adata.var_names[:9], value, *adata.var_names[10:]], dtype=object)

    return change


def with_more(names, kinds, column="feature_types", first=False):
    """Rows that are no genes, with high counts, before or after the genes."""

    def change(adata):
        counts = np.random.default_rng(0).poisson(50, (adata.n_obs, len(names))).astype(np.float32)
        parts, rows = [adata.X, sparse.csr_matrix(counts)], [[kinds[0]] * adata.n_vars, [kinds[1]] * len(names)]
        of_genes = [f"{name}-1" if first and name in names else name for name in adata.var_names]
        all_names = [of_genes, list(names)]
        if first:
            parts, rows, all_names = parts[::-1], rows[::-1], all_names[::-1]
        var = pd.DataFrame({column: sum(rows, [])}, index=sum(all_names, []))
        return ad.AnnData(sparse.hstack(parts, format="csr"), obs=adata.obs, var=var)

    return change


def with_centred(adata):
    """Antibodies as centred log ratios, which have negative values, beside counts of genes."""
    adata = with_more(["TotalSeq1", "TotalSeq2"], ["Gene Expression", "Antibody Capture"])(adata)
    X = adata.X.toarray()
    X[:, -2:] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    adata.X = sparse.csr_matrix(X)
    return adata


def numbered(column=None, start=0, step=1):
    def change(adata):
        adata = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
        if column is not None:
            adata.var[column] = adata.var_names.to_numpy()
        adata.var_names = [str(start + step * i) for i in range(adata.n_vars)]
        return adata

    return change


def multi_index(adata):
    adata._var = adata.var.set_axis(pd.MultiIndex.from_arrays([adata.var_names, adata.var_names]))


def with_raw(adata):
    adata.raw = adata
    return adata[:, :12].copy()


def transposed(adata):
    adata = adata.T.copy()
    adata.var["group"], adata.obs["group"] = "x", "x"
    adata.obs["cell_type"] = [*TYPES] * 20
    return adata


#: input: (change, outcome, words)
NAMES = {
    "categories": (lambda a: setattr(a, "var_names", pd.CategoricalIndex(a.var_names)), "same", ""),
    "pandas' string": (named(str, "string"), "same", ""),
    "blanks": (named(lambda name: f" {name}\t"), "same", ""),
    "no-break spaces": (named(lambda name: f"{name}\xa0"), "same", ""),
    "a byte order mark": (with_one("\ufeffGENE9"), "same", ""),
    "zero-width spaces": (named(lambda name: f"{name}\u200b"), "same", ""),
    "bytes": (named(str.encode), "same", ""),
    "one of bytes": (with_one(b"GENE9"), "same", ""),
    "text of bytes": (named(lambda name: repr(name.encode())), "same", ""),
    "quotes": (named(lambda name: f'"{name}"'), "same", ""),
    "R's dots": (named(lambda name: name.replace("-", ".")), "same", ""),
    "underscores": (named(lambda name: name.replace("-", "_")), "same", ""),
    "made unique": (with_one("GENE9-1"), "same", ""),
    "NaN": (with_one(np.nan), "less", "79 of the model's 80 genes"),
    "None": (with_one(None), "less", "79 of the model's 80 genes"),
    "NA": (with_one(pd.NA), "less", "79 of the model's 80 genes"),
    "text of NaN": (with_one("nan"), "less", "79 of the model's 80 genes"),
    "a number": (with_one(7), "less", "79 of the model's 80 genes"),
    "antibodies": (
        with_more(["TotalSeq1", "TotalSeq2"], ["Gene Expression", "Antibody Capture"]), "says",
        "2 of 82 rows are no genes by adata.var['feature_types']: 2 Antibody Capture; they are left out",
    ),
    "peaks": (with_more(["chr1:1-9"], ["gene expression", "Peaks"]), "says", "1 Peaks; it is left out"),
    "guides": (with_more(["g1"], ["GEX", "CRISPR Guide Capture"]), "says", "1 CRISPR Guide Capture"),
    "hashtags": (with_more(["h1"], ["Gene_Expression", "Multiplexing Capture"]), "says", "1 Multiplexing Capture"),
    "bytes as kinds": (with_more(["h1"], [b"Gene Expression", b"Custom"]), "says", "1 Custom"),
    "modalities": (with_more(["p1"], ["rna", "prot"], "modality"), "says", "1 prot"),
    "antibodies of another unit": (
        with_centred, "says", "2 of 82 rows are no genes by adata.var['feature_types']: 2 Antibody Capture"
    ),
    "a date": (with_one("2-Sep"), "less", "1 name is a date or number that a spreadsheet made of symbols"),
    "a date with its time": (with_one("2021-03-01 00:00:00"), "less", "symbols such as MARCH1 and SEPT2: 2021-03-01"),
    "half a surrogate pair": (with_one("\ud800"), "less", "79 of the model's 80 genes"),
    "biotypes": (with_more(["LNC1"], ["protein_coding", "lncRNA"], "feature_type"), "same", ""),
    "antibodies named as genes": (
        with_more(GENES[:40], ["Gene Expression", "Antibody Capture"], first=True), "says",
        "40 of 120 rows are no genes by adata.var['feature_types']",
    ),
    "row numbers, names in a column": (numbered("symbol"), "says", "The names are those of adata.var['symbol']"),
    "row numbers": (numbered(), "refused", "The query's names are row numbers, which name no gene"),
    "row numbers from 1": (numbered(start=1), "refused", "The query's names are row numbers"),
    "row numbers as floats": (
        lambda a: setattr(a, "_var", a.var.set_axis(np.arange(80.0))), "refused", "The query's names are row numbers"
    ),
    "no names": (with_more([], ["", ""]), "same", ""),
    "all missing": (named(lambda _: None), "refused", "The query has no names of genes"),
    "several levels": (multi_index, "refused", "the names are a MultiIndex of 2 levels"),
    "a genome": (named(lambda name: f"GRCh38_{name}"), "refused", "without the prefix 'GRCh38_' are the model's genes"),
    "another prefix": (named(lambda name: f"hum.{name}"), "refused", "name.removeprefix('hum.')"),
    "a suffix": (named(lambda name: f"{name}_x"), "refused", "query.var_names = [name.removesuffix('_x')"),
    "probes": (named(lambda name: f"{name}|{hash(name)}"), "refused", "The parts before the"),
    "ids and symbols": (
        named(lambda name: f"ENSG{hash(name) % 10**11:011d}-{name}"), "refused", "name.partition('-')[2]"
    ),
    "small letters": (named(str.lower), "refused", "more would match if case were ignored"),
    "a panel": (lambda a: a[:, :12].copy(), "refused", "All 12 genes of the query are among the model's 80"),
    "genes in raw": (with_raw, "says", "adata.raw.X has 80 of the model's genes"),
    "transposed": (transposed, "refused", "query.obs_names hold 80 of the model's genes: pass query.T"),
    "other genes": (named(lambda name: f"ab{hash(name)}"), "refused", "Both look alike"),
    "obs_names of numbers": (lambda a: setattr(a, "obs_names", pd.RangeIndex(a.n_obs)), "same", ""),
    "obs_names of bytes": (
        lambda a: setattr(a, "obs_names", pd.Index([n.encode() for n in a.obs_names], dtype=object)), "same", ""
    ),
    "obs_names missing": (
        lambda a: setattr(a, "obs_names", pd.Index([None, np.nan, *a.obs_names[2:]], dtype=object)), "same", ""
    ),
    "equal obs_names": (lambda a: setattr(a, "obs_names", ["a"] * a.n_obs), "same", ""),
}  # fmt: skip


@cache
def usual(door):
    """What a door gives for the clean input."""
    return door(clean())


def annotate(adata):
    model().annotate(adata)
    return adata.obs["celler"].astype(str).to_numpy()


QUERY_DOORS = {
    "predict": lambda adata: model().predict(adata),
    "predict, soft": lambda adata: model().predict(adata, soft=True).to_numpy(),
    "annotate": annotate,
    "get_novelty": lambda adata: model().get_novelty(adata),
    "get_latent_representation": lambda adata: model().get_latent_representation(adata),
}


@pytest.mark.parametrize("door", QUERY_DOORS)
@pytest.mark.parametrize("case", NAMES)
def test_names_of_a_query(case, door):
    check(QUERY_DOORS[door], *NAMES[case])


@pytest.mark.parametrize("case", NAMES)
def test_names_to_align(case):
    change, outcome, words = NAMES[case]
    if case == "genes in raw":  # the columns of an AnnData are those of X
        outcome, words = "refused", "query.raw has 80 of the model's genes: pass query.raw.to_adata()"
    adata = quietly(change, clean())
    if outcome == "refused":
        with pytest.raises((ValueError, TypeError)) as error:
            cl.pp.align_genes(adata, model(), duplicates="drop")
        assert words in str(error.value)
        return
    (aligned, report), _ = outcome_of(lambda: cl.pp.align_genes(adata, model(), duplicates="drop"))
    assert set(aligned.var_names) <= set(GENES)
    assert len(report.missing) == (outcome == "less")
    assert words in str(report)
    expected = clean()[:, aligned.var_names].X.toarray()
    np.testing.assert_array_equal(aligned.X.toarray(), expected)


#: input: (outcome, words, names of the first ten genes that a model has, or their number)
REFERENCE = {
    "categories": ("same", "", 80), "pandas' string": ("same", "", 80), "blanks": ("same", "", 80),
    "bytes": ("same", "", 80), "quotes": ("same", "", 80), "a byte order mark": ("same", "", 80),
    "R's dots": ("same", "", 80), "obs_names missing": ("same", "", 80), "equal obs_names": ("same", "", 80),
    "NaN": ("says", "1 gene has no name in adata.var_names; it is left out", 79),
    "None": ("says", "1 gene has no name in adata.var_names", 79),
    "text of NaN": ("says", "1 gene has no name in adata.var_names", 79),
    "antibodies": ("says", "2 of 82 rows are no genes by adata.var['feature_types']: 2 Antibody Capture", 80),
    "peaks": ("says", "1 Peaks; it is left out", 80),
    "bytes as kinds": ("says", "1 Custom; it is left out", 80),
    "antibodies named as genes": ("says", "40 Antibody Capture; they are left out", 80),
    "antibodies of another unit": ("says", "2 of 82 rows are no genes by adata.var['feature_types']", 80),
    "a date": ("says", "1 name is a date or number that a spreadsheet made of symbols", 80),
    "half a surrogate pair": ("same", "", 80),
    "biotypes": ("same", "", 81),
    "row numbers": ("refused", "adata.var_names holds row numbers such as ['0', '1', '2'], which name no gene", 0),
    "row numbers, names in a column": ("refused", "Pass gene_key= with the column of var that holds the names", 0),
    "row numbers from 1": ("refused", "row numbers", 0),
    "row numbers as floats": ("refused", "row numbers", 0),
    "all missing": ("refused", "adata.var_names has no name for any gene", 0),
    "several levels": ("refused", "the names are a MultiIndex of 2 levels", 0),
}  # fmt: skip


@pytest.mark.parametrize("case", REFERENCE)
def test_names_of_a_reference(case):
    outcome, words, n_genes = REFERENCE[case]
    adata = quietly(NAMES[case][0], clean())
    before = snapshot(adata)
    if outcome == "refused":
        with pytest.raises((ValueError, TypeError)) as error:
            Celler.setup_anndata(adata, "cell_type")
        assert words in str(error.value)
        assert_unchanged(adata, before)
        return
    made, said = outcome_of(lambda: Celler.setup_anndata(adata, "cell_type") or Celler(adata))
    assert bool(said) == (outcome == "says")
    assert all(words in message for message in said)
    assert len(made.genes_) == n_genes
    assert "" not in made.genes_.index


@pytest.mark.parametrize("case", REFERENCE)
def test_names_of_a_reference_to_align_with(case):
    outcome, _, n_genes = REFERENCE[case]
    adata = quietly(NAMES[case][0], clean())
    if outcome == "refused":
        with pytest.raises((ValueError, TypeError), match=r"row numbers|no name for any gene|MultiIndex"):
            cl.pp.align_genes(clean(), adata)
    elif case not in ("antibodies named as genes", "a date", "half a surrogate pair"):  # whose genes are GENE3-1
        assert cl.pp.align_genes(clean(), adata)[1].n_matched == min(n_genes, 80)


def test_names_of_entrez_are_no_row_numbers():
    adata = clean()
    adata.var_names = [str(number) for number in np.random.default_rng(0).choice(200_000, 80, replace=False)]
    Celler.setup_anndata(adata, "cell_type")
    assert len(Celler(adata).genes_) == 80


@pytest.mark.parametrize("case", ["blanks", "bytes", "NaN", "None", "text of NaN", "a number", "R's dots"])
def test_names_in_tools_and_plots(case):
    adata = quietly(NAMES[case][0], clean())
    markers, said = outcome_of(lambda: cl.tl.rank_markers(adata, "cell_type", 80))
    assert not said
    assert markers["gene"].map(type).eq(str).all()
    assert not set(markers["gene"]) & {"", "nan", "None", "<NA>"}
    cl.pl.marker_bubble(adata, ["HLA-DRA", b"GENE5", " GENE4", None], "cell_type", show=False)


#: A store takes half a second.
IN_STORE = ["bytes", "obs_names missing", "None", "antibodies", "row numbers", "row numbers, names in a column"]
IN_STORE += ["all missing", "several levels", "a date", "half a surrogate pair"]


@pytest.mark.skipif(not HAS_ATLAS, reason="annbatch needs Python 3.12")
@pytest.mark.parametrize("case", IN_STORE)
def test_names_of_a_source_of_a_store(case, tmp_path):
    outcome, words, n_genes = REFERENCE[case]
    adata = quietly(NAMES[case][0], clean())
    if case == "obs_names missing":
        outcome, words = "refused", "2 cells of source 'a' have no name in obs_names"
    build = lambda: cl.atlas.build({"a": adata}, tmp_path / "store", labels_key="cell_type")
    before = snapshot(adata)
    if outcome == "refused":
        with pytest.raises((ValueError, TypeError), match="source 'a'|MultiIndex") as error:
            build()
        words = next(
            (known for known in ("row numbers", "no name for any gene", "MultiIndex") if known in words), words
        )
        assert words in str(error.value)
    else:
        _, said = outcome_of(build)
        assert bool(said) == (outcome == "says")
        assert all(words in message and "source 'a': " in message for message in said)
        assert len(cl.atlas.DataModule(tmp_path / "store").store.genes) == n_genes
    assert_unchanged(adata, before)
