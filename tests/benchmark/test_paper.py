"""The paper's tables: files in the layout of TOSICA's and scGPT's, and tables by hand."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import toy
from sklearn.metrics import f1_score

from celler.benchmark import level_scores, level_table, paper_cells, paper_table
from celler.benchmark._compare import COLUMNS
from celler.benchmark._paper import SETS
from celler.model import Celler
from celler.pp import check_input

LABELS = "Factor Value[inferred cell type - authors labels]"


def hpancreas(adata: ad.AnnData) -> ad.AnnData:
    """As TOSICA's files: log values, ``Celltype``, names in the index and in ``Gene Symbol``."""
    obs = pd.DataFrame({"Celltype": adata.obs["cell_type"]}, index=adata.obs_names)
    var = pd.DataFrame({"Gene Symbol": adata.var_names}, index=adata.var_names)
    sums = np.asarray(adata.X.sum(axis=1)).ravel()
    return ad.AnnData(adata.X.multiply(1e4 / sums[:, None]).tocsr().log1p(), obs=obs, var=var)


def ms(adata: ad.AnnData) -> ad.AnnData:
    """As scGPT's files: positions as the index, symbols in ``gene_name``, one missing and two the same."""
    adata = hpancreas(adata)
    adata.obs = adata.obs.rename(columns={"Celltype": LABELS})
    names = list(adata.var_names)
    names[3], names[5] = None, names[4]
    adata.var = pd.DataFrame(
        {"index_column": [f"ENSG{i:011}" for i in range(80)], "gene_name": names},
        index=[str(i) for i in range(80)],
    )
    return adata


def test_paper_cells_of_pancreas(tmp_path):
    reference = hpancreas(toy.cells(60))
    reference.write_h5ad(tmp_path / "demo_train.h5ad")
    reference = ad.read_h5ad(tmp_path / "demo_train.h5ad")
    query, before = hpancreas(toy.cells(40, seed=1)), toy.snapshot(reference)
    with pytest.warns(UserWarning, match="the public files have 10,600 and 4,218 cells, these 60 and 40"):
        known, unlabeled = paper_cells("hpancreas", reference, query)
    toy.assert_unchanged(reference, before)
    assert list(known.obs["cell_type"]) == list(reference.obs["Celltype"])
    assert list(unlabeled.var_names) == list(query.var_names)
    assert check_input(known).kind == "log1p"


def test_paper_cells_of_multiple_sclerosis():
    reference, query = ms(toy.cells(60)), ms(toy.cells(40, seed=1))
    with pytest.warns(UserWarning, match="ms: the public files have 7,844 and 13,468 cells") as caught:
        known, unlabeled = paper_cells("ms", reference, query)
    assert caught[0].filename == __file__, "a warning points at the line that called"
    assert list(unlabeled.obs["cell_type"]) == list(query.obs[LABELS])
    assert list(known.var_names[:6]) == ["gene 0", "gene 1", "gene 2", "3", "4", "5"]
    assert known.var_names.is_unique
    renamed = query.copy()
    renamed.obs = renamed.obs.rename(columns={LABELS: "celltype"})
    with pytest.warns(UserWarning, match="the published figures are for other cells"):
        _, other = paper_cells("ms", reference, renamed)
    assert list(other.obs["cell_type"]) == list(query.obs[LABELS])


def test_paper_cells_of_multiple_sclerosis_train_on_either(monkeypatch):
    healthy, patients = ms(toy.cells(60)), ms(toy.cells(40, seed=1))
    monkeypatch.setitem(SETS, "ms", SETS["ms"]._replace(n_cells=(60, 40)))
    for train_on, expected in {None: (60, 40), "healthy": (60, 40), "patients": (40, 60)}.items():
        known, unlabeled = paper_cells("ms", healthy, patients, train_on=train_on)
        assert (known.n_obs, unlabeled.n_obs) == expected
        by_size = {60: healthy, 40: patients}
        for cells in (known, unlabeled):
            assert list(cells.obs["cell_type"]) == list(by_size[cells.n_obs].obs[LABELS])
    with pytest.raises(ValueError, match=r"exchanged, they hold 40 and 60 cells\. To train .* train_on='patients'"):
        paper_cells("ms", patients, healthy)


def test_paper_cells_with_exchanged_files(monkeypatch):
    large, small = hpancreas(toy.cells(60)), hpancreas(toy.cells(40, seed=1))
    monkeypatch.setitem(SETS, "hpancreas", SETS["hpancreas"]._replace(n_cells=(60, 40)))
    with pytest.raises(ValueError, match=r"hpancreas: reference and query are exchanged, they hold 40 and 60 cells\.$"):
        paper_cells("hpancreas", small, large)


def test_paper_with_an_unknown_split():
    cells = toy.cells(60)
    for dataset, train_on, message in [
        ("ms", "healty", "ms has 'healthy' or 'patients'. Closest: 'healthy'"),
        ("hpancreas", "patients", "hpancreas has no other split than that of its files"),
    ]:
        with pytest.raises(ValueError, match=message):
            paper_cells(dataset, cells, cells, train_on=train_on)
        with pytest.raises(ValueError, match=message):
            paper_table(dataset, train_on=train_on)


def test_paper_cells_with_another_layout():
    cells = toy.cells(60)
    with pytest.raises(ValueError, match=r"dataset='MS' was given; hpancreas or ms is needed\."):
        paper_cells("MS", cells, cells)
    query = cells.copy()
    query.obs = query.obs.rename(columns={"cell_type": "types of cells"})
    with (
        pytest.warns(UserWarning, match="the public files have"),
        pytest.raises(KeyError, match=r"'Celltype' is not a column of query\.obs\. Closest"),
    ):
        paper_cells("hpancreas", cells, query)


def test_paper_cells_with_the_published_size(monkeypatch):
    cells = hpancreas(toy.cells(60))
    monkeypatch.setitem(SETS, "hpancreas", SETS["hpancreas"]._replace(n_cells=(60, 60)))
    paper_cells("hpancreas", cells, cells)


# ---- tables ----


def test_paper_table_by_hand():
    scores = {"macro_f1": [0.7, 0.8], "macro_precision": [0.5, 0.6]}
    rows = pd.DataFrame({"method": "celler", "seed": [0, 1], **scores})
    table = paper_table("ms", rows.reindex(columns=COLUMNS))
    measured = ["0.750 ± 0.071", "0.550 ± 0.071", "measured here, 2 seeds"]
    assert list(table.loc["Celler"]) == [*measured, "healthy to patients"]
    table = paper_table("ms", rows.reindex(columns=COLUMNS), train_on="patients")
    assert list(table.loc["Celler"]) == [*measured, "patients to healthy"]


#: Macro-F1 and precision on MS and on hPancreas, as they were published.
PAPER = """
CellTypist     .667±.002 .693±.001 .708±.023 .736±.025
ACTINN         .628±.012 .634±.009 .705±.005 .709±.006
SingleCellNet  .637±.001 .700±.001 .739±.006 .761±.004
TOSICA         .578      .664      .656      .661
scBERT         .599±.001 .604±.004 .685±.003 .699±.007
scGPT          .703±.002 .729±.002 .718±.003 .735±.001
Celler         .799±.004 .841±.002 .767±.010 .755±.010
"""
SCDIVA = """
UCE .708 .801
scDiVa .727 .792
GeneCompass .704 .780
CellFM .705 .778
GeneMamba .534 .771
scGPT .663 .763
Geneformer .622 .745
scFoundation .681 .711
"""


def published(dataset: str, source: str) -> pd.DataFrame:
    table = paper_table(dataset)
    pd.testing.assert_frame_equal(table, paper_table(dataset, pd.DataFrame(columns=COLUMNS)))
    return table[table["source"].str.contains(source, regex=False)]


@pytest.mark.parametrize(("dataset", "columns"), [("ms", [1, 2]), ("hpancreas", [3, 4])])
def test_paper_table_has_the_published_figures(dataset, columns):
    table = published(dataset, "arXiv:2504.00020")
    lines = [line.split() for line in PAPER.split("\n") if line]
    assert len(table) == len(lines)
    for name, *scores in lines:
        row = table.loc[name if name != "Celler" else "Celler, the paper"]
        shown = [row[score].replace("0.", ".").replace(" ", "") for score in ("F1", "precision")]
        assert shown == [scores[i - 1] for i in columns]
    table = published(dataset, "arXiv:2602.03477")
    lines = [line.split() for line in SCDIVA.split("\n") if line]
    expected = {name: figures[dataset == "hpancreas"] for name, *figures in lines}
    assert {name: f1.removeprefix("0") for name, f1 in table["F1"].items()} == expected
    assert (table["precision"] == "not given").all()
    assert list(published(dataset, "ICLR 2024")["F1"]) == [{"ms": "0.766", "hpancreas": "0.749"}[dataset]]


def test_paper_table_says_how_each_figure_of_multiple_sclerosis_was_split():
    assert set(published("ms", "arXiv:2504.00020")["split"]) == {"13,468 to 7,844 by its text; files: the reverse"}
    for source in ("scGPT's Tutorial_Annotation.ipynb", "ICLR 2024"):
        assert list(published("ms", source)["split"]) == ["healthy to patients"]
    assert set(published("ms", "arXiv:2602.03477")["split"]) == {"not given"}


@pytest.mark.slow
def test_level_scores_match_scikit_learn():
    reference, query = toy.cells(150), toy.cells(60, seed=1)
    before = toy.snapshot(reference)
    organs = {"skin": (reference, query)}
    rows = level_scores(organs, "cell_type", "parent_type", seeds=[3], max_epochs=3)
    toy.assert_unchanged(reference, before)
    assert list(rows["level"]) == ["parent", "class"]
    Celler.setup_anndata(reference, labels_key="cell_type", parent_labels_key="parent_type")
    model = Celler(reference)
    model.train(3, seed=3, show_progress=False)
    for score, level, key in zip(rows["macro_f1"], ("parent", "class"), ("parent_type", "cell_type"), strict=True):
        labels = model.predict(query, level=level)
        assert score == pytest.approx(f1_score(query.obs[key].astype(str), labels, average="macro"))
    table = level_table(pd.concat([rows, rows.assign(seed=4, macro_f1=rows["macro_f1"] + 0.2)]))
    mean, sd = rows["macro_f1"][1] + 0.1, 0.2 / np.sqrt(2)
    assert table.loc[("skin", "class"), "F1"] == f"{mean:.3f} ± {sd:.3f}"
    assert set(table["the paper"]) == {"not given"}
