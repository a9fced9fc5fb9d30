"""Queries: genes matched by name, rows selected by index, and cells read in chunks."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy import assert_close, celler_warning, cells, fit, soft, trained

import celler as cl
from celler.data import _genes, _query
from celler.data._query import Genes, _in_order, align_query, flat_passes, token_passes


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


def test_predict_with_genes_in_another_order(query, rng):
    shuffled = query[:, rng.permutation(query.n_vars)].copy()
    assert_close(soft(shuffled), soft(query))


def test_align_query_names_the_panel_in_raw(query):
    """Of a finished object, scaled and with few genes in X, the values of raw are read."""
    of_panel = query[:, :20].copy()
    names = pd.Index([*query.var_names[:20], *(f"more {i}" for i in range(100))])
    genes = Genes(names, np.full(120, 1 / 120))
    with pytest.raises(ValueError, match=r"is a panel.*genes=query\.var_names"):
        align_query(genes, of_panel, None)
    of_panel.raw = of_panel.copy()
    of_panel = of_panel[:, :5].copy()
    of_panel.X = of_panel.X.toarray() - 1
    with (
        pytest.warns(UserWarning, match=r"adata\.raw\.X .* is read instead"),
        pytest.raises(ValueError, match=r"is a panel.*genes=query\.raw\.var_names"),
    ):
        align_query(genes, of_panel, None)


def test_align_query_aligns_the_genes_of_x_and_of_raw_once(query, monkeypatch):
    part, aligned = query[:, :40].copy(), []
    part.raw = query
    genes = Genes(query.var_names, np.full(80, 1 / 80))

    def align_genes(names, *arguments, **options):
        aligned.append(len(names))
        return _genes.align_genes(names, *arguments, **options)

    monkeypatch.setattr(_query, "align_genes", align_genes)
    with pytest.warns(UserWarning, match=r"adata\.raw\.X has 80 of the model's genes"):
        assert align_query(genes, part, None).is_exact
    assert aligned == [80, 40]


def test_predict_with_missing_genes_masks_them(query):
    """A gene that is not there says nothing; a gene that is there and zero says something."""
    kept = query.var_names[:40]  # the markers of all types
    present, absent = query.copy(), query[:, kept].copy()
    is_kept = present.var_names.isin(kept)
    present.X = sparse.csr_matrix(query.X.toarray() * is_kept)
    with pytest.warns(UserWarning, match="40 of the model's 80 genes"):
        masked = fresh().predict(absent, soft=True)
    zero = fresh().predict(present, soft=True)
    assert np.abs(masked - zero).max(axis=None) > 0.01
    assert list(masked.columns) == list(zero.columns)


def test_predict_with_missing_genes_keeps_the_scale(query):
    """As zeros, the genes that are left would be scaled up to the whole library, and so would their evidence."""
    kept = query.var_names[:40]
    present, absent = query.copy(), query[:, kept].copy()
    present.X = sparse.csr_matrix(query.X.toarray() * present.var_names.isin(kept))

    def parts(adata):
        every = {"per_cell": True, "n_genes": None, "correct_shift": False}
        table = model.get_gene_importance(adata, **every)
        return table.set_index(["group", "gene", "label", "runner_up"])["importance"]

    model = fresh()
    complete, zero = parts(query), parts(present)
    with pytest.warns(UserWarning, match="40 of the model's 80 genes"):
        masked = parts(absent)
    both = masked.index.intersection(zero.index).intersection(complete.index)
    assert len(both) > 200
    error = [(found[both] - complete[both]).abs().mean() for found in (masked, zero)]
    assert error[0] < 0.5 * error[1]


def fresh():
    """A model that has reported nothing yet."""
    return fit(cells())


def test_predict_reports_missing_genes_once(query):
    model, fewer = fresh(), query[:, :70]
    with pytest.warns(UserWarning, match="70 of the model's 80 genes") as caught:
        model.predict(fewer)
    assert "10 are missing" in str(celler_warning(caught).message)
    assert "0 extra" in str(celler_warning(caught).message)
    assert celler_warning(caught).filename == __file__
    model.predict(fewer)  # a second warning would be an error
    with pytest.warns(UserWarning, match="75 of the model's 80 genes"):
        model.predict(query[:, :75])


def test_predict_with_extra_genes(query, rng):
    extra = ad.AnnData(
        sparse.csr_matrix(rng.poisson(5.0, (60, 30)).astype(np.float32)),
        obs=query.obs,
        var=pd.DataFrame(index=[f"other {i}" for i in range(30)]),
    )
    both = ad.concat([extra, query], axis=1, merge="same")
    assert_close(soft(both), soft(query))


def test_predict_with_too_few_genes(query):
    names = [f"ENSG{i:05d}" for i in range(80)]
    names[3:18] = query.var_names[3:18]
    query.var_names = names
    with pytest.raises(ValueError, match=r"only 15 of the model's 80 genes") as error:
        soft(query)
    assert "'gene 0'" in str(error.value)
    assert "'ENSG00000'" in str(error.value)
    assert "gene_key" in str(error.value)


def test_predict_with_gene_names_in_a_column(query, tmp_path):
    reference = cells()
    for adata in (reference, query):
        adata.var["symbol"] = adata.var_names
        adata.var_names = [f"ENSG{i:05d}" for i in range(80)]
    model = fit(reference, {"gene_key": "symbol"})
    expected = fit(cells()).predict(cells(60, seed=1), soft=True)
    query = query[:, ::-1].copy()
    query.var["symbol"] = query.var["symbol"].astype("category")  # as files give it back
    assert_close(model.predict(query, soft=True), expected)
    query.var_names = query.var["symbol"].astype(str)
    del query.var["symbol"]
    assert_close(model.predict(query, soft=True), expected)


@pytest.mark.parametrize(
    "indices",
    [
        [3, 1, 2],
        [5, 5, 2, 5],
        [-1, 0],
        np.arange(60) % 7 == 0,
        np.array([4], np.uint8),
        [],
        range(9),
    ],
    ids=["list", "repeated", "negative", "mask", "uint8", "none", "range"],
)
def test_predict_with_indices(query, indices):
    rows = np.array(indices, dtype=None if len(indices) else int)
    assert_close(soft(query, indices=indices), soft(query).iloc[rows])


@pytest.mark.parametrize(
    ("indices", "error", "words"),
    [
        ([0, 60], IndexError, "60; there are 60 cells"),
        ([-61], IndexError, "-61"),
        (np.ones(59, bool), IndexError, "mask of 59 values .* 60 cells"),
        ([0.5], TypeError, r"\[0.5\] was given; .*whole numbers"),
        (["cell 3"], TypeError, "get_indexer"),
        (3, TypeError, "indices=3"),
        (slice(3), TypeError, "slice"),
        (np.ones((60, 1), bool), TypeError, "boolean mask"),
    ],
)
def test_predict_with_bad_indices(query, indices, error, words):
    with pytest.raises(error, match=words):
        soft(query, indices=indices)


@pytest.mark.parametrize("batch_size", [1, 7, 60, 1000])
def test_predict_with_any_batch_size(query, batch_size):
    assert_close(soft(query, batch_size=batch_size), soft(query))


def test_predict_of_more_cells_than_a_chunk(query, monkeypatch):
    expected, order = soft(query), np.random.default_rng(0).permutation(60)
    monkeypatch.setattr("celler.data._query.CHUNK_SIZE", 7)
    monkeypatch.setattr("celler.model._forward.CHUNK_SIZE", 7)
    assert_close(soft(query), expected)
    assert_close(soft(query, indices=order), expected.iloc[order])
    monkeypatch.setattr("celler.data._query.TOKENS_PER_PASS", 50)
    assert_close(soft(query), expected)


def test_predict_reads_a_chunk_at_once(query, monkeypatch):
    """Of a view, which copies the rows that it is asked for."""
    sizes, query = [], query[:]
    read = ad.AnnData.__getitem__
    monkeypatch.setattr("celler.data._query.CHUNK_SIZE", 7)
    monkeypatch.setattr("celler.model._forward.CHUNK_SIZE", 7)
    monkeypatch.setattr("celler._utils._matrix.N_PROBED", 4)
    monkeypatch.setattr(
        ad.AnnData,
        "__getitem__",
        lambda self, index: sizes.append(len(v := read(self, index))) or v,
    )
    soft(query)
    assert sizes
    assert max(sizes) <= 7


@pytest.mark.parametrize(("batch_size", "most"), [(None, 3), (4, 4), (100, 7)])
@pytest.mark.parametrize("is_shifted", [False, True])
def test_flat_passes_are_the_tokens_of_each_cell(query, rng, monkeypatch, batch_size, most, is_shifted):
    """Without a batch_size three cells a pass; a cell without counts has no token."""
    monkeypatch.setattr("celler.data._query.CHUNK_SIZE", 7)
    monkeypatch.setattr("celler.data._query.CELLS_PER_PASS", 3)
    query.X = sparse.csr_matrix(query.X.toarray() * (np.arange(60) != 11)[:, None])
    state = trained()._state
    aligned, index = align_query(state.genes, query, None), rng.permutation(60)[:31]
    factors = np.exp(rng.normal(size=80)) if is_shifted else None
    parts = state.tokenizer, aligned, index
    expected = {}
    for rows, tokens in token_passes(*parts, factors=factors):
        for row, genes, _, expression, is_padding in zip(rows, *tokens, strict=True):
            expected[row] = genes[~is_padding].tolist(), expression[~is_padding].tolist()
    seen = []
    for rows, tokens in flat_passes(*parts, factors=factors, batch_size=batch_size):
        assert 1 <= len(rows) <= most
        for i, row in enumerate(rows):
            cell = tokens.cells(i, i + 1)
            assert cell.gene_ids.tolist() == expected[row][0]
            np.testing.assert_allclose(cell.expression, expected[row][1], rtol=1e-5)
        seen.extend(rows)
    assert seen == list(range(31))


@pytest.mark.parametrize(("length", "n_tokens", "sizes"), [(50, 100, [2, 2, 1]), (400, 100, [1] * 5), (0, 100, [5])])
def test_flat_passes_of_long_cells(length, n_tokens, sizes):
    """Groups of rows have so many tokens, and one cell at least."""
    groups = _in_order(np.full(5, length), n_tokens)
    assert [len(rows) for rows in groups] == sizes
    assert np.concatenate(groups).tolist() == list(range(5))


@pytest.fixture(scope="module")
def model() -> cl.model.Celler:
    return fit(cells(), {"batch_key": "donor"})


def soft_of(model, query):
    return model.predict(query, soft=True)


def test_predict_with_missing_genes_differs_from_zeros(query):
    """They are masked, so a query without them is told from one in which they are zero."""
    fewer = query[:, :40].copy()
    zero = query.copy()
    zero.X = sparse.csr_matrix(query.X.toarray() * (np.arange(80) < 40))
    model = fit(cells())
    with pytest.warns(UserWarning, match="40 of the model's 80 genes .* 40 are missing"):
        masked = soft_of(model, fewer)
    assert np.abs(masked - soft_of(model, zero)).max(axis=None) > 0.01
    assert_close(soft_of(model, fewer), masked)  # said once: again would be an error


@pytest.mark.filterwarnings("ignore:the query is far from the reference")
def test_predict_matches_genes_by_name(model, query, rng):
    expected = soft_of(model, query)
    shuffled = query[:, rng.permutation(80)].copy()
    assert_close(soft_of(model, shuffled), expected)
    renamed = query.copy()  # the same columns under permuted names are other genes
    renamed.var_names = query.var_names[rng.permutation(80)]
    assert np.abs(soft_of(model, renamed) - expected).max(axis=None) > 0.1


def test_predict_with_extra_genes_in_a_dense_matrix(model, query, rng):
    expected = soft_of(model, query)
    extra = ad.AnnData(
        rng.poisson(9.0, (60, 20)).astype(np.float32),
        obs=query.obs,
        var=pd.DataFrame(index=[f"other {i}" for i in range(20)]),
    )
    assert_close(soft_of(model, ad.concat([extra, query], axis=1, merge="same")), expected)


def test_predict_reports_missing_genes_after_an_error(query):
    """It is said once: where the values are refused, the next call still has to say it."""
    model, fewer = fit(cells()), query[:, :40].copy()
    scaled = fewer.copy()
    scaled.X = scaled.X.toarray() - 1
    with pytest.raises(ValueError, match="scaled or centred"):
        model.predict(scaled)
    with pytest.warns(UserWarning, match="40 of the model's 80 genes"):
        model.predict(fewer)


def test_predict_with_ensembl_ids(model, query):
    expected = soft_of(model, query)
    query.var["feature_name"] = pd.Categorical(query.var_names)
    query.var_names = [f"ENSG{i:011d}.4" for i in range(80)]
    with pytest.warns(UserWarning, match=r"names are those of adata\.var\['feature_name'\]"):
        assert_close(soft_of(model, query), expected)
    del query.var["feature_name"]
    message = r"only 0 of .*model has symbols .*query human Ensembl ids .*gene_key=.*mapping="
    with pytest.raises(ValueError, match=message):
        soft_of(model, query)


# ---- rows that are no genes ----


def with_antibodies(adata, names, kinds=("Gene Expression", "Antibody Capture"), counts=None):
    """Cells with rows for antibodies after the genes."""
    X = np.random.default_rng(0).poisson(30, (adata.n_obs, len(names))) if counts is None else counts
    parts = [adata.X, sparse.csr_matrix(X.astype(np.float32))]
    var = pd.DataFrame(index=[*adata.var_names, *names])
    if kinds is not None:
        var["feature_types"] = [kinds[0]] * adata.n_vars + [kinds[1]] * len(names)
    return ad.AnnData(sparse.hstack(parts, format="csr"), obs=adata.obs, var=var)


ANTIBODIES = [f"TotalSeq{i}" for i in range(12)]


def test_predict_by_a_model_that_learned_antibodies_reads_them(query):
    """Before Celler read feature_types, it learned them as genes."""
    model = fit(with_antibodies(cells(), ANTIBODIES, kinds=None))
    expected = model.predict(with_antibodies(query, ANTIBODIES, kinds=None), soft=True)
    with pytest.warns(UserWarning, match=r"12 of 92 rows are no genes.*12 are read, as the model learned them"):
        found = model.predict(with_antibodies(query, ANTIBODIES), soft=True)
    assert_close(found, expected)


@pytest.mark.parametrize("others", [ANTIBODIES, [f"gene {i}" for i in range(40)]], ids=["antibodies", "gene names"])
def test_predict_by_a_model_of_genes_leaves_antibodies_out(query, others):
    expected = fresh().predict(query, soft=True)
    query.var_names = [f"{name}-1" if name in others else name for name in query.var_names]
    both = with_antibodies(query, others)
    with pytest.warns(UserWarning, match=r"rows are no genes by adata.var\['feature_types'\].*they are left out"):
        found = fresh().predict(both, soft=True)
    assert_close(found, expected)


def test_setup_anndata_with_antibodies_learns_the_genes_alone():
    adata = cells()
    expected = fit(adata)
    both = with_antibodies(cells(), ANTIBODIES)
    with pytest.warns(UserWarning, match="12 Antibody Capture; they are left out"):
        model = fit(both)
    assert list(model.genes_.index) == list(expected.genes_.index)
    query = cells(60, seed=1)
    pd.testing.assert_frame_equal(model.predict(query, soft=True), expected.predict(query, soft=True), check_exact=True)


def test_predict_by_a_model_of_row_numbers_says_so(query):
    """As a model that an earlier version saved."""
    model = fit(cells())
    genes = model._state.genes
    numbers = pd.Index([str(i) for i in range(80)], dtype=object)
    model._become(replace(model._state, genes=replace(genes, names=numbers)))
    query.var_names = numbers
    with pytest.warns(UserWarning, match="model's genes are row numbers.*its labels are right only"):
        model.predict(query)
    with pytest.raises(ValueError, match="model's genes are row numbers.*set its reference up again with gene_key="):
        model.predict(cells(60, seed=1))
