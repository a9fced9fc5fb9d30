"""What a marker chart reads: markers, groups and values, in every way users hand them over."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from pl_cases import assert_same
from scipy import sparse

from celler.datasets import toy_long_tail
from celler.pl import marker_bubble
from celler.pl._markers import automatic_markers
from celler.tl import _markers as values_module
from celler.tl import rank_markers

mpl.use("Agg")

GENES = [f"gene{i}" for i in range(6)]
GROUPS = ["alpha", "beta", "gamma", "delta"]


@pytest.fixture(scope="module")
def pbmc():
    return sc.datasets.pbmc68k_reduced()


@pytest.fixture
def adata():
    """Log values of six genes in four groups of 30 cells; the counts in a layer."""
    rng = np.random.default_rng(0)
    rates = np.repeat(rng.gamma(0.7, 1.0, size=(4, 6)), 30, axis=0)
    counts = rng.poisson(rates).astype(np.float32)
    obs = pd.DataFrame({"type": pd.Categorical(np.repeat(GROUPS, 30), categories=GROUPS)})
    var = pd.DataFrame({"symbol": [f"S{i}" for i in range(6)]}, index=GENES)
    obs.index = obs.index.map("cell{}".format)
    return ad.AnnData(np.log1p(counts), obs=obs, var=var, layers={"counts": counts})


def assert_drawn(adata, genes, groupby, values, genes_drawn=None, **options):
    """The dots are the share above zero and the mean by group of ``values``, cells by genes."""
    dot_plot = marker_bubble(adata, genes, groupby, return_fig=True, **options)
    frame = pd.DataFrame(np.asarray(values, dtype=float), columns=genes_drawn or genes)
    by_group = frame.groupby(adata.obs[groupby].astype(str).to_numpy())
    share, mean = by_group.agg(lambda column: (column > 0).mean()), by_group.mean()
    share = share.where(share >= 0.05, 0)
    order = dot_plot.dot_size_df.index
    assert set(order) == set(share.index)
    np.testing.assert_allclose(dot_plot.dot_size_df, share.loc[order], rtol=1e-6)
    np.testing.assert_allclose(dot_plot.dot_color_df, mean.loc[order], rtol=1e-5, atol=1e-7)


def log1p_cp10k(counts):
    return np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def drawn(adata, markers, groupby="type", **options):
    """Genes and groups as the axes show them."""
    main = marker_bubble(adata, markers, groupby, show=False, **options)["mainplot_ax"]
    genes, rows = (
        [label.get_text() for label in labels] for labels in (main.get_xticklabels(), main.get_yticklabels())
    )
    return genes, [name.rpartition(" (")[0] for name in rows]


def test_known_markers_with_unknown_ones(adata):
    markers = {"one": ["gene0", "Gene1", "nonsense"], "two": ["zzz"], "three": "gene4"}
    with pytest.warns(UserWarning, match="Left out") as caught:
        panels = marker_bubble(adata, markers, "type", show=False)
    caught = [warning for warning in caught if warning.category is UserWarning]
    (message,) = [str(warning.message) for warning in caught]
    assert "Left out 3 of 5 markers, no genes of adata.X: Gene1 (closest: gene1 or" in message
    assert "Left out labels without genes: two." in message
    assert caught[0].filename == __file__
    labels = [label.get_text() for label in panels["mainplot_ax"].get_xticklabels()]
    assert labels == ["gene0", "gene4"]
    assert [text.get_text() for text in panels["gene_group_ax"].texts] == ["one", "three"]


def test_known_markers_with_many_unknown_ones(adata):
    with pytest.warns(UserWarning, match="Left out 20 of 21 markers.* and 12 more"):
        marker_bubble(adata, ["gene0", *(f"no{i}" for i in range(20))], "type", show=False)


def test_known_markers_with_none_known(adata):
    with pytest.raises(ValueError, match=r"None of the 2 markers .*: CD3, CD8\. .*gene0, gene1"):
        marker_bubble(adata, ["CD3", "CD8"], "type")
    for nothing in ([], {}, {"alpha": []}):
        with pytest.raises(ValueError, match="markers is empty"):
            marker_bubble(adata, nothing, "type")


def test_markers_by_label_with_repeated_ones(adata):
    assert drawn(adata, ["gene1", "gene0", "gene1"])[0] == ["gene1", "gene0"]
    assert drawn(adata, pd.Index(["gene1", "gene0"]))[0] == ["gene1", "gene0"]
    shared = {"one": ["gene0", "gene1", "gene0"], "two": ["gene1", "gene2"]}
    assert drawn(adata, shared)[0] == ["gene0", "gene1", "gene1", "gene2"]
    sizes = marker_bubble(adata, shared, "type", return_fig=True).dot_size_df.to_numpy()
    np.testing.assert_array_equal(sizes[:, 1], sizes[:, 2])


def test_known_markers_in_a_column_of_var(adata):
    assert_drawn(adata, ["S3", "S0"], "type", adata.X[:, [3, 0]])
    adata.var["symbol"] = ["S0", "S0", "S1", "S1", "S4", "S5"]
    assert_drawn(adata, ["S4", "S5"], "type", adata.X[:, 4:])
    with pytest.raises(ValueError, match=r"S0, S1: the name of more than one gene.*Make names"):
        marker_bubble(adata, ["S0", "S1", "S4"], "type")


def test_automatic_markers_equal_rank_markers(pbmc):
    found = rank_markers(pbmc, "bulk_labels", n_genes=3)
    genes, groups = drawn(pbmc, None, "bulk_labels")
    assert genes == found["gene"].tolist()
    assert groups == list(pbmc.obs["bulk_labels"].cat.categories)
    assert drawn(pbmc, found, "bulk_labels")[0] == genes
    values = pbmc.raw.to_adata()[:, genes].X.toarray()
    assert_drawn(pbmc, None, "bulk_labels", values, genes_drawn=genes)
    annotated = pbmc.copy()
    annotated.obs["celler"] = pbmc.obs["bulk_labels"]
    panels = marker_bubble(annotated, show=False)
    labels = [label.get_text() for label in panels["mainplot_ax"].get_xticklabels()]
    assert labels == genes, "the default are the labels of Celler.annotate"


@pytest.mark.parametrize(("n_groups", "n_genes"), [(12, 3), (13, 2), (30, 2), (31, 1)])
def test_automatic_markers_of_many_groups(n_groups, n_genes):
    cells = toy_long_tail(20 * n_groups, 10 * n_groups, n_classes=n_groups, imbalance=2)
    found = automatic_markers(cells, "cell_type", None, [])
    assert (found["group"].value_counts() == n_genes).all()
    assert found["group"].nunique() == n_groups


def test_automatic_markers_of_equal_groups(adata):
    equal = ad.concat([adata, adata[adata.obs["type"] == "beta"]], index_unique="-")
    equal.obs["type"] = [*adata.obs["type"], *["copy"] * 30]
    with pytest.warns(UserWarning, match="No gene leads in beta, copy, .*: without markers"):
        genes, groups = drawn(equal, None, "type")
    assert "copy" in groups
    adata.X[:] = 1
    with pytest.raises(ValueError, match="No gene tells the groups of 'type' apart; pass markers"):
        marker_bubble(adata, groupby="type")
    with pytest.raises(KeyError, match="groupby='celler' is not a column of adata.obs"):
        marker_bubble(adata)


def test_marker_bubble_grouped_by_numbers_or_nothing(adata):
    with pytest.raises(KeyError, match=r"groupby='Types' is not a column.*Closest: 'type'"):
        marker_bubble(adata, GENES, "Types")
    adata.obs["depth"] = np.arange(120) / 4
    with pytest.raises(ValueError, match=r"numbers such as 0\.25; a column of labels"):
        marker_bubble(adata, GENES, "depth")
    adata.obs["empty"] = pd.Series([None] * 120, index=adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match="No cell has a label"):
        marker_bubble(adata, GENES, "empty")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a c", "ü/x"], ["a c", "b", "ü/x"]),
        ([True, False, True], ["False", "True"]),
        ([10, 9, 2], ["2", "9", "10"]),
        ([2.0, 10.0, 2.0], ["2", "10"]),
        (pd.array(["x", "y", "x"], dtype="string"), ["x", "y"]),
        (pd.cut([0.5, 1.5, 2.5], [0, 1, 2, 3]), ["(0, 1]", "(1, 2]", "(2, 3]"]),
    ],
)
def test_marker_bubble_with_any_kind_of_label(adata, labels, expected):
    adata.obs["group"] = pd.Series(labels).repeat(40).array
    before = adata.copy()
    assert drawn(adata, GENES, "group")[1] == expected
    if len(expected) > 2:
        assert sorted(drawn(adata, GENES, "group", dendrogram=True)[1]) == sorted(expected)
    assert_same(adata, before)


def test_marker_bubble_with_missing_labels_and_unused_categories(adata):
    labels = np.array(adata.obs["type"], dtype=object)
    labels[::3] = None
    adata.obs["type"] = pd.Categorical(labels, ["never", "gamma", "beta", "alpha", "delta"])
    with pytest.warns(UserWarning, match="Left out 40 of 120 cells, no label in 'type'"):
        dot_plot = marker_bubble(adata, GENES, "type", return_fig=True)
    assert list(dot_plot.dot_size_df.index) == ["gamma", "beta", "alpha", "delta"]
    beta = adata.X[labels == "beta"]
    np.testing.assert_allclose(dot_plot.dot_color_df.loc["beta"], beta.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(dot_plot.dot_size_df.loc["beta"], (beta > 0).mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("standard_scale", [None, "var", "group"])
def test_marker_bubble_of_one_group_and_no_expression(adata, standard_scale):
    one = adata[adata.obs["type"] == "beta"].copy()
    assert drawn(one, GENES, standard_scale=standard_scale)[1] == ["beta"]
    one.X[:] = 0
    main = marker_bubble(one, GENES, "type", standard_scale=standard_scale, show=False)["mainplot_ax"]
    main.figure.canvas.draw()
    assert not main.collections[0].get_sizes().any()


def test_marker_bubble_from_x_raw_or_layer(adata):
    """X; raw where X is scaled or lacks markers; whatever ``layer`` names."""
    raw = adata.copy()
    raw.X = raw.X * 2
    adata = adata[:, :4].copy()
    adata.raw = raw
    assert_drawn(adata, GENES[:2], "type", adata.X[:, :2])
    assert_drawn(adata, GENES, "type", raw.X)
    assert_drawn(adata, GENES[:2], "type", adata.X[:, :2], layer="X")
    assert_drawn(adata, GENES[:2], "type", raw.X[:, :2], layer="raw")
    assert_drawn(adata, GENES[:2], "type", log1p_cp10k(adata.layers["counts"])[:, :2], layer="counts")
    adata.X = adata.X - 1
    assert_drawn(adata, GENES[:2], "type", raw.X[:, :2])
    adata.X = None
    assert_drawn(adata, GENES[:2], "type", raw.X[:, :2])


def test_marker_bubble_of_scaled_and_broken_values(pbmc, adata):
    with pytest.raises(
        ValueError,
        match=r"adata\.X holds the value -.*negative values mean scaled.*layer=: X, raw\.",
    ):
        marker_bubble(pbmc, "CD3D", "bulk_labels", layer="X")
    adata.layers["z"] = adata.X - 1
    with pytest.raises(ValueError, match=r"layers\['z'\] holds the value -1.*layer=: counts, z, X\."):
        marker_bubble(adata, GENES, "type", layer="z")
    adata.X[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"adata\.X holds the value nan; NaN and infinite"):
        marker_bubble(adata, GENES, "type")


def test_marker_bubble_from_a_missing_layer(adata):
    with pytest.raises(KeyError, match="layer='count' is not in .*Closest: 'counts'"):
        marker_bubble(adata, GENES, "type", layer="count")
    with pytest.raises(KeyError, match=r"layer='raw' .*There are: counts, X\."):
        marker_bubble(adata, GENES, "type", layer="raw")
    adata.X = None
    with pytest.raises(ValueError, match=r"adata\.X is empty; pass layer=\. Layers: counts\."):
        marker_bubble(adata, GENES, "type")


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("is_view", [False, True])
@pytest.mark.parametrize("layer", ["X", "raw"])
@pytest.mark.parametrize("is_backed", [False, True])
def test_small_copy_of_every_storage(adata, tmp_path, monkeypatch, kind, is_view, layer, is_backed):
    monkeypatch.setattr(values_module, "ROWS_AT_ONCE", 50)
    values = adata.X
    adata.X = kind(values)
    adata.raw = adata
    if is_backed:
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    rows = np.arange(0, 120, 2 if is_view else 1)
    cells = adata[rows] if is_view else adata
    assert_drawn(cells, ["gene4", "gene0"], "type", values[rows][:, [4, 0]], layer=layer)
    assert cells.is_view == is_view


@pytest.mark.parametrize("options", [{}, {"dendrogram": True, "swap_axes": True, "title": "x"}])
@pytest.mark.parametrize("step", [1, 2])
def test_marker_bubble_changes_nothing(pbmc, options, step):
    given = pbmc[::step] if step > 1 else pbmc.copy()
    before = given.copy()
    markers = {"T cells": ["CD3D", "CD3E"], "B": "CD79A"}
    marker_bubble(given, markers, "bulk_labels", show=False, **options)
    assert markers == {"T cells": ["CD3D", "CD3E"], "B": "CD79A"}
    assert given.is_view == (step > 1)
    assert_same(given.copy(), before)


def test_import_without_torch():
    code = "import sys, celler.pl; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
