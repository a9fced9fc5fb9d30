"""Alignment of genes, against the predictions of a model and a pandas group-by."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy import (
    assert_close,
    assert_equal_frames,
    assert_unchanged,
    celler_warning,
    cells,
    fit,
    snapshot,
    soft,
    trained,
)

import celler as cl
from celler.data._expression import ExpressionReader
from celler.data._gene_table import FILE

ENSEMBL = [f"ENSG{i:011d}" for i in range(80)]


@pytest.fixture
def query() -> ad.AnnData:
    adata = cells(60, seed=1)
    adata.layers["counts"] = adata.X.copy()
    return adata


def as_ensembl(adata, version=".7"):
    adata.var["symbol"] = adata.var_names.to_numpy()
    adata.var_names = [name + version for name in ENSEMBL]
    return adata


@pytest.mark.parametrize("mapping", ["dict", "series", "gene_key", "automatic", "names"])
def test_align_genes_keeps_the_labels_of_the_query(query, rng, mapping):
    expected, symbols = soft(query), query.var_names
    other = as_ensembl(query.copy())[:, rng.permutation(80)].copy()
    table = dict(zip(ENSEMBL, symbols, strict=True))
    options = {
        "dict": {"mapping": table},
        "series": {"mapping": pd.Series(table).astype("category")},
        "gene_key": {"gene_key": "symbol"},
    }.get(mapping, {})
    before = snapshot(other)
    reference = symbols if mapping == "names" else trained()
    aligned, report = cl.pp.align_genes(other, reference, **options)
    assert_unchanged(other, before)
    assert list(aligned.var_names) == list(symbols)
    assert set(aligned.var["original_name"]) == set(other.var_names)
    assert_close(soft(aligned), expected)
    assert (report.n_matched, report.n_extra, len(report.missing)) == (80, 0, 0)
    assert ("adata.var['symbol']" in str(report)) == (mapping in ("automatic", "names"))
    assert ("carry 100%" in str(report)) == (mapping != "names")


def test_align_genes_drops_extra_genes_and_adds_none(query, rng):
    extra = ad.AnnData(
        sparse.csr_matrix(rng.poisson(5.0, (60, 9)).astype(np.float32)),
        obs=query.obs,
        var=pd.DataFrame(index=[f"other {i}" for i in range(9)]),
    )
    fewer = query[:, :50].copy()
    both = ad.concat([extra, fewer], axis=1, merge="same")
    both.obsm["X_pca"] = np.ones((60, 2))
    model = fit(cells())
    aligned, report = cl.pp.align_genes(both, model)
    assert list(aligned.var_names) == list(fewer.var_names)
    assert (report.n_extra, len(report.missing)) == (9, 30)
    assert report.expression_share == pytest.approx(model._state.genes.share[:50].sum())
    assert "X_pca" in aligned.obsm
    with pytest.warns(UserWarning, match="50 of the model's 80 genes") as caught:
        actual = model.predict(aligned, soft=True)
    assert celler_warning(caught).filename == __file__
    assert_close(actual, model.predict(fewer, soft=True))


def test_align_genes_with_an_anndata_as_reference(query):
    reference = cells()[:, ::-1]
    aligned, report = cl.pp.align_genes(query, reference)
    assert list(aligned.var_names) == list(reference.var_names)
    assert report.is_exact


def test_align_genes_with_a_model_that_has_a_gene_key(query):
    reference = as_ensembl(cells(), "")
    model = fit(reference, {"gene_key": "symbol"})
    expected = model.predict(query, soft=True)
    other = as_ensembl(query.copy())
    other.var["symbol"] = other.var["symbol"].str.upper()
    aligned, report = cl.pp.align_genes(other, model, ignore_case=True)
    assert report.n_inexact == {"in another case": 80}
    assert list(aligned.var["symbol"]) == list(aligned.var_names) == list(query.var_names)
    assert_close(model.predict(aligned, soft=True), expected)


def test_align_genes_with_another_case_needs_ignore_case(query):
    """Symbols of mouse and human differ in case alone, so a mouse query must not pass for a human one."""
    expected, other = soft(query), query.copy()
    other.var_names = other.var_names.str.title()
    message = "only 0 of the model's 80 genes .* 80 more would match if case were ignored"
    for refused in (trained().predict, lambda adata: cl.pp.align_genes(adata, trained())):
        with pytest.raises(ValueError, match=message):
            refused(other)
    aligned, report = cl.pp.align_genes(other, trained(), ignore_case=True)
    assert "Most names differ in case: check that both are of one species." in str(report)
    assert_close(soft(aligned), expected)


def genes_with_ortholog() -> pd.DataFrame:
    """Human symbol and id, and mouse symbol and id, of 80 genes; read from the table's arrays."""
    with np.load(FILE) as table:
        human, mouse = (table[f"{name}_symbols"].tobytes().decode().split("\n") for name in ("human", "mouse"))
        ids = {name: table[f"{name}_ids"] for name in ("human", "mouse")}
        of_mouse = table["mouse_ortholog"]
    rows = np.flatnonzero((of_mouse >= 0) & (ids["mouse"] > 0))[2000:10000:100]
    return pd.DataFrame(
        {
            "human": [human[of_mouse[i]] for i in rows],
            "human id": [f"ENSG{ids['human'][of_mouse[i]]:011d}.4" for i in rows],
            "mouse": [mouse[i] for i in rows],
            "mouse id": [f"ENSMUSG{ids['mouse'][i]:011d}" for i in rows],
        }
    )


@pytest.mark.parametrize("names", ["human id", "R", "prefix", "mouse", "mouse id"])
def test_align_genes_by_the_table_gives_the_labels_of_a_mapping(query, names, rng):
    genes = genes_with_ortholog().assign(
        prefix=lambda t: "hg19_" + t["human"], R=lambda t: t["human"].str.replace("-", ".")
    )
    reference = cells()
    reference.var_names = genes["human"].to_numpy()
    model = fit(reference)
    other = query[:, rng.permutation(80)].copy()
    old_names = dict(zip(query.var_names, genes["human"], strict=True))
    expected = model.predict(cl.pp.align_genes(other, model, mapping=old_names)[0], soft=True)
    other.var_names = genes[names].set_axis(query.var_names)[other.var_names].to_numpy()
    before = snapshot(other)
    if names.startswith("mouse"):
        with pytest.raises(ValueError, match="80 of the model's genes have a one-to-one ortholog"):
            model.predict(other)
    elif names != "R":
        with pytest.warns(UserWarning, match=r"80 of the model's 80 genes .* Not by equal names: 80 by .*Ensembl 114"):
            assert_close(model.predict(other, soft=True), expected)
    aligned, report = cl.pp.align_genes(other, model, orthologs=names.startswith("mouse"))
    assert_unchanged(other, before)
    assert report.n_matched == 80
    assert list(aligned.var_names) == list(genes["human"])
    assert_close(model.predict(aligned, soft=True), expected)


class WithGenes:
    """What a model shows: the share of expression of each gene, the index named after its var column."""

    genes_ = pd.Series([0.5, 0.25, 0.25], pd.Index(["a", "b", "c"], name="symbol"))


def test_align_genes_with_the_public_genes_of_a_model():
    cells = ad.AnnData(np.eye(2, dtype=np.float32), var=pd.DataFrame({"symbol": ["c", "a"]}, ["x", "y"]))
    aligned, report = cl.pp.align_genes(cells, WithGenes())
    assert list(aligned.var_names) == list(aligned.var["symbol"]) == ["a", "c"]
    assert list(aligned.var["original_name"]) == ["y", "x"]
    assert report.expression_share == 0.75


def test_align_genes_with_views_and_files(query, tmp_path):
    expected, part = soft(query), query[10:30, ::-1]
    aligned, _ = cl.pp.align_genes(part, trained())
    assert not aligned.is_view
    assert part.is_view
    assert_close(soft(aligned), expected.iloc[10:30])
    query.write_h5ad(tmp_path / "query.h5ad")
    backed = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
    aligned, _ = cl.pp.align_genes(backed, trained())
    assert not aligned.isbacked
    assert_close(soft(aligned), expected)
    backed.file.close()


# ---- several genes of one name ----


def with_repeats(query):
    """Genes 0, 1 and 2 measured twice, under one symbol each."""
    again = query[:, :3].copy()
    again.var_names = ["id 0", "id 1", "id 2"]
    twice = ad.concat([query, again], axis=1, merge="same")
    twice.var["symbol"] = [*query.var_names, *query.var_names[:3]]
    twice.var_names = [f"id {i}" for i in range(83)]
    return twice


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, lambda X: X.toarray()])
def test_align_genes_with_repeats_sums_them_on_request(query, kind):
    twice = with_repeats(query)
    twice.X = kind(twice.X)
    before = snapshot(twice)
    message = r"3 genes of the reference .*'gene 0', by columns \[0, 80\].*duplicates='sum'.*'drop'"
    with pytest.raises(ValueError, match=message):
        cl.pp.align_genes(twice, trained(), gene_key="symbol")
    summed, report = cl.pp.align_genes(twice, trained(), gene_key="symbol", duplicates="sum")
    assert_unchanged(twice, before)
    dense = pd.DataFrame(ExpressionReader(twice).matrix().toarray())
    expected = dense.T.groupby(twice.var["symbol"].to_numpy()).sum().T[list(summed.var_names)]
    for layer in (None, "counts"):
        actual = ExpressionReader(summed, layer).matrix().toarray()
        np.testing.assert_array_equal(actual, expected)
    assert (report.n_matched, report.n_repeated, len(report.missing)) == (80, 0, 0)
    assert report.expression_share == pytest.approx(1.0)


def test_align_genes_with_dropped_repeats_predicts_as_without(query):
    twice, model = with_repeats(query), fit(cells())
    dropped, report = cl.pp.align_genes(twice, model, gene_key="symbol", duplicates="drop")
    assert list(dropped.var_names) == list(query.var_names[3:])
    assert (report.n_repeated, list(report.missing)) == (3, list(query.var_names[:3]))
    with pytest.warns(UserWarning, match="3 are claimed by several genes of the query and left"):
        actual = model.predict(twice, soft=True)
    with pytest.warns(UserWarning, match="77 of the model's 80"):
        assert_close(model.predict(dropped, soft=True), actual)


def test_align_genes_with_logarithms_refuses_to_sum(query):
    twice = with_repeats(query)
    twice.layers["counts"] = twice.layers["counts"].log1p()
    with pytest.raises(ValueError, match=r"layers\['counts'\] holds log1p values, .*added up"):
        cl.pp.align_genes(twice, trained(), gene_key="symbol", duplicates="sum")


# ---- errors ----

#: arguments of align_genes after the query: error, what the message says
ERRORS = {
    "no such column": (
        {"gene_key": "symbols"}, KeyError, ["gene_key='symbols'", "Closest: 'symbol'"],
    ),
    "useless mapping": (
        {"mapping": {"a": "gene 1"}}, ValueError, ["renames none of the 80 genes", "['a']", "'gene 0'"],
    ),
    "mapping turned around": (
        {"mapping": dict(zip([f"gene {i}" for i in range(80)], ENSEMBL, strict=True))}, ValueError,
        ["renames none of the 80 genes", "runs the other way: {new: old"],
    ),
    "mapping of old names twice": (
        {"mapping": pd.Series(["gene 1", "gene 2"], index=["x", "x"])}, ValueError,
        ["old names of mapping", "'x'"],
    ),
    "mapping to other genes": (
        {"mapping": dict.fromkeys(ENSEMBL, "BRCA1")}, ValueError, ["only 0 of the model's 80 genes"],
    ),
    "duplicates": ({"duplicates": "first"}, ValueError, ["duplicates='first'", "'sum'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_align_genes_with_wrong_options(query, case):
    options, kind, words = ERRORS[case]
    other = as_ensembl(query)
    with pytest.raises(kind) as error:
        cl.pp.align_genes(other, trained(), **options)
    for word in words:
        assert word in str(error.value), f"{word!r} not in {error.value}"


@pytest.mark.parametrize(
    ("adata", "reference", "words"),
    [("query.h5ad", ["a"], "of type str; an AnnData is needed"), (None, "gene 0", "'gene 0' is one string")],
)
def test_align_genes_with_arguments_of_the_wrong_type(query, adata, reference, words):
    with pytest.raises(TypeError, match=words):
        cl.pp.align_genes(query if adata is None else adata, reference)


def test_align_genes_with_a_reference_that_repeats_names(query):
    with pytest.raises(ValueError, match="reference's genes hold 1 name more than once"):
        cl.pp.align_genes(query, ["a", "a"])


def test_align_genes_in_predict_uses_a_column_and_warns_once(query):
    expected, model = soft(query), fit(cells(), {"parent_labels_key": "parent_type"})
    other = as_ensembl(query.copy())
    message = re.escape("names are those of adata.var['symbol'], because var_names do not match")
    with pytest.warns(UserWarning, match=message) as caught:
        actual = model.predict(other, soft=True)
    assert celler_warning(caught).filename == __file__
    assert_close(actual, expected)
    assert_equal_frames(model.predict(other, soft=True), actual)  # again would be an error
