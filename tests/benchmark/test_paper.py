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
    with pytest.warns(UserWarning, match="the paper has 10,600 and 4,218 cells, these files 60 and 40"):
        known, unlabeled = paper_cells("hpancreas", reference, query)
    toy.assert_unchanged(reference, before)
    assert list(known.obs["cell_type"]) == list(reference.obs["Celltype"])
    assert list(unlabeled.var_names) == list(query.var_names)
    assert check_input(known).kind == "log1p"


def test_paper_cells_of_multiple_sclerosis():
    reference, query = ms(toy.cells(60)), ms(toy.cells(40, seed=1))
    with pytest.warns(UserWarning, match="ms: the paper has 7,844 and 13,468 cells") as caught:
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


def test_paper_cells_with_another_layout():
    cells = toy.cells(60)
    with pytest.raises(ValueError, match=r"dataset='MS' was given; hpancreas or ms is needed\."):
        paper_cells("MS", cells, cells)
    query = cells.copy()
    query.obs = query.obs.rename(columns={"cell_type": "types of cells"})
    with (
        pytest.warns(UserWarning, match="the paper has"),
        pytest.raises(KeyError, match=r"'Celltype' is not a column of query\.obs\. Closest"),
    ):
        paper_cells("hpancreas", cells, query)


def test_paper_cells_with_the_published_size(monkeypatch):
    cells = hpancreas(toy.cells(60))
    made = SETS["hpancreas"].__class__(("Celltype",), (60, 60), ())
    monkeypatch.setitem(SETS, "hpancreas", made)
    paper_cells("hpancreas", cells, cells)


# ---- tables ----


def test_paper_table_by_hand():
    scores = {"macro_f1": [0.7, 0.8], "macro_precision": [0.5, 0.6]}
    rows = pd.DataFrame({"method": "celler", "seed": [0, 1], **scores})
    table = paper_table("ms", rows.reindex(columns=COLUMNS))
    assert list(table.loc["Celler"]) == ["0.750 ± 0.071", "0.550 ± 0.071", "measured here, 2 seeds"]
    assert list(table.loc["Celler, the paper"])[:2] == ["not given", "not given"]
    published = table.loc["scGPT"]
    assert list(published.iloc[0])[:2] == ["0.732", "0.775"]
    assert list(published.iloc[1])[:2] == ["0.663", "not given"]


def test_published_figures_have_a_source():
    for one in SETS.values():
        for _, *scores, source in one.published:
            assert source
            for score in scores:
                assert np.isnan(score) or 0 < score < 1


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
