"""Markers, against the equation in dense float64 and against known markers of blood cells."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from pl_cases import assert_same
from scipy import sparse

from celler.datasets import pbmc68k, toy_long_tail
from celler.tl import _markers as values
from celler.tl import rank_markers


@pytest.fixture
def counts():
    return toy_long_tail(300, 80, n_classes=4, imbalance=20)


def log_cp10k(matrix):
    dense = np.asarray(matrix.todense() if sparse.issparse(matrix) else matrix, dtype=np.float64)
    return np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))


def by_the_equation(logs, groups, n_genes):
    """A double loop over groups and genes."""
    names = sorted(set(groups))
    prior_mean, prior_share = logs.mean(axis=0), (logs > 0).mean(axis=0)
    mean, share = {}, {}
    for name in names:
        cells = logs[groups == name]
        mean[name] = (cells.sum(axis=0) + 5 * prior_mean) / (len(cells) + 5)
        share[name] = ((cells > 0).sum(axis=0) + 5 * prior_share) / (len(cells) + 5)
    rows = []
    for name in names:
        others = [other for other in names if other != name]
        found = []
        for gene in range(logs.shape[1]):
            stronger = mean[name][gene] - np.mean([mean[other][gene] for other in others])
            frequent = share[name][gene] - np.mean([share[other][gene] for other in others])
            rival = max(others, key=lambda other: mean[other][gene])
            lead = 1 - mean[rival][gene] / max(mean[name][gene], 1e-300)
            if min(stronger, frequent, lead) > 0:
                found.append((name, f"gene {gene}", stronger * frequent * lead, rival))
        rows += sorted(found, key=lambda row: -row[2])[:n_genes]
    return pd.DataFrame(rows, columns=["group", "gene", "score", "next_group"])


def test_rank_markers_scores_by_the_equation(counts):
    found = rank_markers(counts, "cell_type", n_genes=12)
    logs, groups = log_cp10k(counts.X), counts.obs["cell_type"].to_numpy().astype(str)
    expected = by_the_equation(logs, groups, 12)
    for column in ("group", "gene", "next_group"):
        assert found[column].tolist() == expected[column].tolist()
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5)
    for row in found.itertuples():
        gene = counts.var_names.get_loc(row.gene)
        cells, rivals = logs[groups == row.group, gene], logs[groups == row.next_group, gene]
        np.testing.assert_allclose([row.mean, row.next_mean], [cells.mean(), rivals.mean()], rtol=1e-5)
        np.testing.assert_allclose([row.share, row.next_share], [(cells > 0).mean(), (rivals > 0).mean()])


def test_rank_markers_finds_the_markers_of_the_toy(counts):
    """Ten genes of each type are raised; the rarest type has five cells."""
    found = rank_markers(counts, "cell_type", n_genes=5)
    for j in range(4):
        genes = found.loc[found["group"] == f"type {j}", "gene"]
        assert len(genes) == 5
        assert set(genes) <= {f"gene {i}" for i in range(10 * j, 10 * j + 10)}


def test_rank_markers_of_blood_cells_are_known_ones():
    found = rank_markers(pbmc68k(), "cell_type", n_genes=5)
    best = found.groupby("group")["gene"].agg(set)
    assert {"CD79A", "MS4A1", "CD79B"} <= best["CD19+ B"]
    assert {"GNLY", "GZMB"} <= best["CD56+ NK"]
    assert {"FCER1A", "CLEC10A"} <= best["Dendritic"]
    assert {"CD3D", "CD3E"} <= best["CD4+/CD25 T Reg"]
    assert {"CD8A", "CD8B"} <= best["CD8+/CD45RA+ Naive Cytotoxic"]
    assert {"CCL5", "GZMK"} <= best["CD8+ Cytotoxic T"]
    assert "FCN1" in best["CD14+ Monocyte"]
    assert "PRSS57" in best["CD34+"]


def test_rank_markers_with_counts_and_logarithms(counts):
    before = counts.copy()
    logs = counts.copy()
    sc.pp.normalize_total(logs, target_sum=1e4)
    sc.pp.log1p(logs)
    found = rank_markers(counts, "cell_type")
    pd.testing.assert_frame_equal(found, rank_markers(logs, "cell_type"), rtol=1e-4)
    logs.layers["counts"] = counts.X
    pd.testing.assert_frame_equal(found, rank_markers(logs, "cell_type", layer="counts"))
    half = counts.copy()
    half.X = half.X * 20.5  # expected counts are no whole numbers
    pd.testing.assert_frame_equal(found, rank_markers(half, "cell_type"), rtol=1e-4)
    assert_same(counts, before)


def test_rank_markers_with_shallow_expected_counts(counts):
    """Small values that are no whole numbers are still proportional to counts."""
    found = rank_markers(counts, "cell_type")
    counts.X = counts.X * 0.7
    assert counts.X.max() < 30
    pd.testing.assert_frame_equal(found, rank_markers(counts, "cell_type"), rtol=1e-4)


def test_rank_markers_with_scaled_values_reads_raw(counts):
    counts.raw = counts
    found = rank_markers(counts, "cell_type")
    scaled = counts.copy()
    scaled.X = scaled.X.toarray() - 1
    pd.testing.assert_frame_equal(found, rank_markers(scaled, "cell_type"))
    with pytest.raises(ValueError, match=r"adata\.X holds the value -1; negative values"):
        rank_markers(scaled, "cell_type", layer="X")
    scaled.X[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN and infinite"):
        rank_markers(scaled, "cell_type", layer="X")
    with pytest.raises(KeyError, match="layer='count' is not in adata.layers"):
        rank_markers(scaled, "cell_type", layer="count")


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("is_backed", [False, True])
def test_rank_markers_with_every_storage(counts, tmp_path, monkeypatch, kind, is_backed):
    found = rank_markers(counts, "cell_type")
    monkeypatch.setattr(values, "ROWS_AT_ONCE", 70)
    counts.X = kind(counts.X.toarray())
    if is_backed:
        counts.write_h5ad(tmp_path / "cells.h5ad")
        counts = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    pd.testing.assert_frame_equal(found, rank_markers(counts, "cell_type"), rtol=1e-5)
    view = counts[: counts.n_obs // 2]
    pd.testing.assert_frame_equal(
        rank_markers(view, "cell_type"), rank_markers(view.to_memory(), "cell_type"), rtol=1e-5
    )


def test_rank_markers_with_repeated_entries(counts):
    found = rank_markers(counts, "cell_type")
    X = counts.X
    twice = sparse.csr_matrix((np.repeat(X.data / 2, 2), np.repeat(X.indices, 2), 2 * X.indptr), shape=X.shape)
    counts.X = twice
    pd.testing.assert_frame_equal(found, rank_markers(counts, "cell_type"), rtol=1e-4)
    assert counts.X.nnz == 2 * X.nnz


def test_rank_markers_with_cells_without_a_group(counts):
    labels = counts.obs["cell_type"].astype(object)
    counts.obs["label"] = labels.where(counts.obs["donor"] != "donor 0", None)
    found = rank_markers(counts, "label")
    rest = counts[counts.obs["donor"] != "donor 0"]
    pd.testing.assert_frame_equal(found, rank_markers(rest, "cell_type"), rtol=1e-5)


def test_rank_markers_with_one_group_or_equal_groups(counts):
    counts.obs["all"] = "all"
    found = rank_markers(counts, "all", n_genes=3)
    logs = log_cp10k(counts.X)
    best = np.argsort(-logs.mean(axis=0) * (logs > 0).mean(axis=0))[:3]
    assert found["gene"].tolist() == counts.var_names[best].tolist()
    counts.X = np.ones(counts.shape, dtype=np.float32)
    none = rank_markers(counts, "cell_type")
    assert len(none) == 0
    assert list(none) == list(found)


def test_rank_markers_with_empty_cells_and_wrong_options(counts):
    counts.X = counts.X.toarray()
    counts.X[0] = 0
    assert np.isfinite(rank_markers(counts, "cell_type")["score"]).all()
    with pytest.raises(ValueError, match="n_genes=0 was given; a whole number of at least 1"):
        rank_markers(counts, "cell_type", n_genes=0)
    with pytest.raises(KeyError, match="groupby='celltype' .*Closest: 'cell_type'"):
        rank_markers(counts, "celltype")


def test_tl_imports_no_torch():
    code = "import sys, celler.tl; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def with_antibodies(counts, first=False, values=None, names=("CD3-protein", "CD4-protein")):
    """The cells of ``counts`` with two antibodies, which tell the groups apart better than any gene."""
    codes = pd.Categorical(counts.obs["cell_type"]).codes
    values = 1000.0 * (codes[:, None] == [0, 1]) if values is None else values
    antibodies = ad.AnnData(sparse.csr_matrix(values), counts.obs, pd.DataFrame(index=list(names)))
    parts = [antibodies, counts] if first else [counts, antibodies]
    kinds = [["Antibody Capture" if part is antibodies else "Gene Expression"] * part.n_vars for part in parts]
    both = ad.concat([ad.AnnData(part.X, counts.obs, part.var[[]]) for part in parts], axis=1)
    both.obs, both.var["feature_types"] = counts.obs.copy(), np.concatenate(kinds)
    return both


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", ["counts", "centred"])
def test_rank_markers_leaves_antibodies_out(counts, first, kind):
    """Neither are they markers, nor do they count in a cell's sum, nor is their unit that of the genes."""
    values = np.linspace(-2, 2, 2 * counts.n_obs).reshape(-1, 2) if kind == "centred" else None
    both = with_antibodies(counts, first, values)
    with pytest.warns(UserWarning, match=r"2 of \d+ rows are no genes by adata.var\['feature_types'\]: 2 Antibody"):
        found = rank_markers(both, "cell_type", 3)
    pd.testing.assert_frame_equal(found, rank_markers(counts, "cell_type", 3))


def test_markers_are_antibodies_where_they_are_asked_for_by_name(counts):
    both = with_antibodies(counts, first=True, names=("CD4", str(counts.var_names[0]) + "-1"))
    source = values.find_source(both, None, ["CD4"])
    assert source.gene_names[0] == "CD4"
    assert source.rows(slice(None))[:, 0].sum() > 0
    both.var_names = ["CD4", "CD8", "CD4", *both.var_names[3:]]
    (column,) = np.flatnonzero(values.find_source(both, None, ["CD4"]).gene_names == "CD4")
    assert column == 2  # the gene
