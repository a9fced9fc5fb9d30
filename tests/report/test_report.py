"""report: one well-formed page that says what annotate wrote, loads nothing, and runs nothing of a label."""

from importlib.metadata import version

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from report_cases import CLASSES, Page, annotated, references
from toy import assert_unchanged, cells, snapshot, trained

import celler
from celler.tl import report

HOSTILE = "<script>alert(1)</script> & \"T\" 'x' {{ 7 * 7 }} </style><img src=x onerror=alert(1)>"
SHOWN = {"cluster_key": "leiden", "truth_key": "truth"}


def write(adata, folder, **options) -> Page:
    return Page(report(adata, folder / "report.html", overwrite=True, **options).read_text("utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    return write(annotated(), tmp_path_factory.mktemp("report"), **SHOWN)


def test_report_is_well_formed(page):
    assert page.errors == []
    assert page.source.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert max(np.diff(page.headings)) <= 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= set(ids)


def test_report_loads_and_runs_nothing(page):
    assert all(address.startswith("data:") for address in page.loads)
    assert "//" not in page.source.replace("arXiv", "")
    assert not page.all("script")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_report_embeds_every_chart(page):
    assert len(page.pictures) == 5
    for image, data in zip(page.all("img"), page.pictures, strict=True):
        assert image["src"].startswith("data:image/svg+xml;base64,")
        assert len(image["alt"]) > 20
        assert int(image["width"]) > 100
        assert int(image["height"]) > 50
        assert all(address.startswith(("#", "data:image/png;base64,")) for address in references(data))
    assert len(page.source) < 1_500_000


def test_report_says_what_annotate_wrote(page):
    for words in (
        "120 cells, 3 of the model's 3 types: B, T, Rare",
        "5 March 2026 by Celler 0.1.0",
        "my_model",
        "Celler-base (384 wide)",
        "909 cells of 3 types in obs['cell_type']",
        "kept epoch 12 of 20, seed 3",
        "30 of the model's 40 genes are in these data; they carry 80% of the reference's expression",
        "0.62: standard deviation",
        "30 of the model's 40 genes are in the query.",
        "arXiv:2504.00020",
        f"celler {celler.__version__}, anndata {version('anndata')}",
    ):
        assert words in page.text
    # 60 + 54 cells of the right label have 0.9, the last of each type 0.4
    assert page.rows("Cells by label") == [
        ["B", "60", "50%", "0.90", "1", "-0.50", "500"],
        ["T", "54", "45%", "0.90", "1", "0.44", "400"],
        ["Rare", "6", "5.0%", "0.90", "1", "0.94", "9"],
    ]
    assert page.rows("Rare types") == [
        ["Rare", "supported", "6", "6", "9", "0.90", "5 of the 6 cells with this label have its markers.", "g20, g21"]
    ]


def test_report_of_a_truth_matches_a_count_by_hand(page):
    # Of 60 B cells 59 are labelled B, of 54 T 53, of 6 rare ones 5; each label has one cell of another type.
    expected = {"B": (60, 59 / 60, 59 / 60), "T": (54, 53 / 54, 53 / 54), "Rare": (6, 5 / 6, 5 / 6)}
    found = {name: tuple(map(float, values)) for name, *values in page.rows("Agreement by type")}
    assert list(found) == list(expected)
    for name, (n_cells, precision, recall) in expected.items():
        assert found[name] == pytest.approx((n_cells, precision, recall, precision), abs=0.005)
    mean = np.mean([59 / 60, 53 / 54, 5 / 6])
    assert f"<dt>macro-F1</dt><dd>{mean:.2f}</dd>" in page.source


def test_report_of_a_truth_by_other_names(tmp_path):
    """Two names of the truth become one of the model's; a type that the model lacks is named."""
    adata = annotated()
    truth = adata.obs["truth"].astype(str)
    truth[truth == "T"] = np.where(np.arange(54) < 50, "CD4", "CD8")
    adata.obs["truth"] = truth
    foreign = write(adata, tmp_path, truth_key="truth")
    assert "The model has no type named CD4, CD8, so no cell of these can agree." in foreign.text
    common = write(adata, tmp_path, truth_key="truth", mapping={"CD4": "T cell", "CD8": "T cell", "T": "T cell"})
    assert "The model has no type" not in common.text
    assert ["T cell", "54", "0.98", "0.98", "0.98"] in common.rows("Agreement by type")


def test_report_with_a_truth_says_what_disagrees_first(tmp_path):
    """10 of 60 B cells keep their label, 30 get another and 20 none; a type that the model lacks is not counted."""
    adata = annotated(expected_accuracy=0.87)
    labels = adata.obs["celler"].astype(str).to_numpy()
    labels[:30], labels[30:50] = "Rare", "Unknown"
    adata.obs["celler"] = pd.Categorical(labels, [*CLASSES, "Unknown"])
    adata.obs["truth"] = adata.obs["truth"].cat.rename_categories({"Rare": "new"})
    first = write(adata, tmp_path, truth_key="truth").texts["li"]
    # 9 of 60 B cells and 53 of 54 T cells
    said = "54% of the labels agree with truth, and by their confidence 87% would: it is too high in these data."
    assert said in first
    assert "B: 15% of 60 cells have this label; 30 are labelled Rare." in first
    assert not any(line.startswith(("T:", "new:")) for line in first)
    assert said not in write(adata, tmp_path).texts["li"]
    adata.uns["celler"]["expected_accuracy"] = 0.55
    assert not any("too high" in line for line in write(adata, tmp_path, truth_key="truth").texts["li"])


def test_report_says_where_unknown_cells_are(tmp_path):
    adata = annotated()
    labels = adata.obs["celler"].astype(str).to_numpy()
    labels[[0, 1, 2, 70, 119]] = "Unknown"
    adata.obs["celler"] = pd.Categorical(labels, [*CLASSES, "Unknown"])
    # 3 of 60, 1 of 54 and 1 of 6 cells; the novelty of the third is -1 + 2 * 2 / 119
    found = write(adata, tmp_path).text
    assert "5 cells (4.2%) have no type; their median novelty is -1.0." in found
    assert "The clusters with the largest share of them: 2 (17%), 0 (5%), 1 (2%)." in found


def test_report_lists_the_least_sure_cells_with_their_neighbours(page):
    rows = page.rows("The least sure and the most novel cells")
    assert [row[0] for row in rows[:3]] == ["cell 59", "cell 113", "cell 119"]
    assert rows[0][1:5] == ["lowest confidence", "T", "0.40", "Rare"]
    assert rows[0][6].startswith("B ")  # of the types' own place on the embedding
    assert rows[2][1] == "lowest confidence, highest novelty"
    assert len(rows) == 22  # of 12 each, two stand for both reasons


def test_report_with_hostile_names(tmp_path):
    classes = [HOSTILE, "T", "Rare"]
    adata = annotated(classes)
    adata.obs_names = [HOSTILE, *adata.obs_names[1:]]
    adata.obs["leiden"] = pd.Categorical(np.where(adata.obs["leiden"] == "0", HOSTILE, "1"))
    adata.uns["celler"]["warnings"] = [HOSTILE]
    found = write(adata, tmp_path, title=HOSTILE, **SHOWN)
    plain = write(annotated(), tmp_path, **SHOWN)
    assert found.errors == []
    assert [tag for tag, _ in found.tags if tag not in ("li", "p")] == [
        tag for tag, _ in plain.tags if tag not in ("li", "p")
    ]
    assert HOSTILE in found.texts["h1"][0]
    assert HOSTILE in "".join(found.texts["td"])
    assert all(b"<script" not in data for data in found.pictures)


def test_report_of_a_file_is_that_of_memory(tmp_path):
    query = cells(60, seed=3)
    query.obs["leiden"] = pd.Categorical(np.arange(60) % 3).rename_categories(str)
    query.obsm["X_umap"] = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    trained().annotate(query, cluster_key="leiden", backoff=True, false_alarm_rate=0.2)
    query.write_h5ad(tmp_path / "query.h5ad")
    before = snapshot(query)
    first = write(query, tmp_path, truth_key="cell_type")
    assert_unchanged(query, before)
    assert first.errors == []
    record = query.uns["celler"]
    assert record["model"]["training"] in first.text
    assert f"{sum(record['model']['class_counts']):,} cells of 4 types in obs['cell_type']" in first.text
    assert first.source == write(ad.read_h5ad(tmp_path / "query.h5ad"), tmp_path, truth_key="cell_type").source


def test_report_of_a_backed_file(tmp_path):
    file = tmp_path / "cells.h5ad"
    annotated().write_h5ad(file)
    backed = ad.read_h5ad(file, backed="r")
    assert len(write(backed, tmp_path).pictures) == 4
    with pytest.raises(FileExistsError, match=r"cells.h5ad is a file of .*, which is read"):
        report(backed, file, overwrite=True)
    backed.file.close()


def test_report_of_an_early_record(tmp_path):
    """Celler 0.1.0 recorded neither the model nor the markers."""
    adata = annotated()
    for name in ("date", "model", "warnings", "by_markers", "missed_types", "markers"):
        del adata.uns["celler"][name]
    del adata.obs["celler_novelty"]
    found = write(adata, tmp_path)
    assert found.errors == []
    assert "not recorded" in found.text
    assert "chosen from the labels" in found.text
    assert [row[-1] for row in found.rows("Cells by label")] == ["–"] * 3


def test_report_without_embedding_clusters_and_truth(tmp_path):
    adata = annotated()
    del adata.obsm["X_umap"], adata.obs["leiden"]
    found = write(adata, tmp_path)
    assert len(found.pictures) == 2
    assert not {"Embedding", "Clusters"} & set(found.texts["h2"])
    assert "Labels of neighbours" not in found.text


@pytest.mark.parametrize(("basis", "name"), [("umap", "X_umap"), ("X_pca", "X_pca"), (None, "spatial")])
def test_report_draws_the_embedding_that_is_named(tmp_path, basis, name):
    adata = annotated()
    adata.obsm["X_pca"] = adata.obsm["spatial"] = adata.obsm["X_umap"]
    if basis is None:
        del adata.obsm["X_umap"]
    assert f"Labels on {name}, rare ones on top." in write(adata, tmp_path, basis=basis).texts["figcaption"]


def test_report_of_values_that_cannot_be_drawn(tmp_path):
    """The page says why a chart is missing, and has the others."""
    adata = annotated()
    adata.X = adata.X - 1
    found = write(adata, tmp_path)
    assert "This chart cannot be drawn" in found.text
    assert len(found.pictures) == 3


def test_report_of_unknown_cells_alone(tmp_path):
    adata = annotated(by_markers="none")
    adata.obs["celler"] = pd.Categorical(["Unknown"] * 120, [*CLASSES, "Unknown"])
    found = write(adata, tmp_path)
    assert found.errors == []
    assert "120 cells, none with a type." in found.text
    assert "100% of the cells have no type (Unknown)." in found.text


def test_report_leaves_figures_and_style_of_the_user(tmp_path):
    figure = plt.figure()
    before = plt.get_fignums()
    with plt.style.context("dark_background"):
        style = dict(plt.rcParams)
        dark = write(annotated(), tmp_path)
        assert dict(plt.rcParams) == style
    assert plt.get_fignums() == before
    assert plt.gcf() is figure
    plt.close(figure)
    assert dark.source == write(annotated(), tmp_path).source


def test_report_of_many_cells_is_small(tmp_path):
    """Points become one picture, whatever their number."""
    n_obs = 20_000
    found = write(annotated(n_obs=n_obs), tmp_path)
    assert len(found.source) < 1_500_000
    assert any(b"data:image/png" in data for data in found.pictures)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"key": "celer"}, KeyError, r"key='celer' was given, and adata.uns has no record .* it has celler"),
        ({"cluster_key": "leidn"}, KeyError, "cluster_key='leidn' is not a column of adata.obs. Closest: 'leiden'"),
        ({"truth_key": "thruth"}, KeyError, "truth_key='thruth' is not a column of adata.obs. Closest: 'truth'"),
        ({"basis": "tsne"}, KeyError, r"basis='tsne' is not in adata.obsm. There are: \['X_umap'\]"),
        ({"key": 3}, TypeError, "key=3 was given"),
    ],
)
def test_report_refuses(tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        report(annotated(), tmp_path / "report.html", **options)
    assert list(tmp_path.iterdir()) == []


def test_report_overwrite(tmp_path):
    file = tmp_path / "report.html"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="pass overwrite=True to replace it"):
        report(annotated(), file)
    assert file.read_text() == "mine"
    assert report(annotated(), file, overwrite=True) == file
    assert file.read_text("utf-8").startswith("<!DOCTYPE")


def test_report_without_the_columns(tmp_path):
    adata = annotated()
    del adata.obs["celler_confidence"]
    with pytest.raises(KeyError, match="adata.obs lacks celler_confidence, which annotate wrote"):
        report(adata, tmp_path / "report.html")
