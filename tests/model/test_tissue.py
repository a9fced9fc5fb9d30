"""Labels without a reference: blood cells with known types, and every method on a model that has met no cells."""

import copy
import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from tissue_cases import BROAD, FEW, OF_B_LINEAGE, blood, new, of_all, of_blood, pseudo_cells

from celler.data._tissues import tissue_types
from celler.inference._open_set import OpenSet
from celler.labels._ontology import cell_ontology
from celler.model import Celler
from celler.model._forward import _novelty_report
from celler.network._base import read_base


@pytest.fixture(scope="module")
def of_few() -> ad.AnnData:
    """Cells of the five types of :data:`FEW`."""
    return pseudo_cells(FEW["tissue"])


@pytest.fixture(scope="module")
def annotated() -> tuple[Celler, ad.AnnData]:
    """700 blood cells after the first call on a model of blood."""
    model, adata = of_blood(), blood()
    model.annotate(adata)
    return model, adata


def broad_of(names, parents) -> np.ndarray:
    found = pd.Series(np.asarray(names)).map(parents)
    return found.replace(OF_B_LINEAGE).to_numpy(str)


def test_annotate_names_blood_cells(annotated):
    model, adata = annotated
    found = broad_of(adata.obs["celler"], model.parents_)
    truth = adata.obs["cell_type"].map(BROAD).to_numpy(str)
    assert (found == truth).mean() >= 0.85
    recall = {name: (found[truth == name] == name).mean() for name in set(truth)}
    assert min(recall.values()) > 0.7
    assert all(recall[name] > 0.9 for name in ("B", "monocyte", "natural killer cell", "hematopoietic precursor cell"))


def test_history_of_a_model_that_nothing_trained(annotated):
    assert annotated[0].history is None
    assert of_blood().history is None


def test_annotate_writes_ids_of_the_ontology(annotated):
    model, adata = annotated
    terms = cell_ontology().terms
    ids = adata.obs["celler_cl_id"]
    assert [terms[i].name for i in ids] == adata.obs["celler"].tolist()
    assert set(adata.obs["celler"].cat.categories) == set(model.classes_)
    assert set(adata.uns["celler"]["columns"]) == {name for name in adata.obs if name.startswith("celler")}
    np.testing.assert_array_equal(adata.obs["celler"], model.predict(adata))
    np.testing.assert_allclose(adata.obs["celler_novelty"], model.get_novelty(adata), atol=1e-6)


def test_annotate_gives_unknown_cells_no_id(of_few):
    adata = of_few.copy()
    new().annotate(adata, threshold=0.999)
    is_unknown = adata.obs["celler"] == "Unknown"
    assert 0 < is_unknown.sum() < len(is_unknown)
    np.testing.assert_array_equal(adata.obs["celler_cl_id"].isna(), is_unknown)


def test_annotate_gives_the_id_of_a_parent(annotated):
    model, adata = annotated[0], blood()
    model.annotate(adata, backoff=True)
    is_parent = adata.obs["celler_level"] == "parent"
    terms = cell_ontology().terms
    assert is_parent.sum() > 50
    assert [terms[i].name for i in adata.obs["celler_cl_id"][is_parent]] == adata.obs["celler"][is_parent].tolist()


def test_get_novelty_is_higher_for_types_that_are_taken_away(monkeypatch):
    found = tissue_types("blood", None)
    is_b = found.types.table["cl_id"].map(lambda i: "CL:0000945" in cell_ontology().above(cell_ontology().terms[i]))
    kept = np.flatnonzero(~is_b)
    assert 0 < is_b.sum() < 30

    def without_b(self, tissue=None, organism=None):
        types = whole(self, tissue, organism)
        return types if tissue is None else type(types)(**vars(types) | {
            "table": types.table.iloc[kept], "levels": types.levels[:, kept]})  # fmt: skip

    whole = type(found.types).of
    monkeypatch.setattr(type(found.types), "of", without_b)
    adata = blood()
    model = of_blood()
    assert "memory B cell" not in model.classes_
    novelty = model.get_novelty(adata, correct_shift=False)
    truth = adata.obs["cell_type"]
    is_novel, is_t = (truth == "CD19+ B").to_numpy(), truth.str.startswith("CD4").to_numpy()
    pairs = novelty[is_novel][:, None] > novelty[is_t][None, :]
    assert pairs.mean() > 0.9  # the area under the ROC curve


def test_predict_names_pseudo_cells_of_its_types(of_few):
    found = new().predict(of_few)
    assert (found == of_few.obs["name"]).mean() > 0.9


# Called first, a method must not use what the model was before it met the cells.
FIRST = {
    "predict": lambda model, cells: model.predict(cells),
    "soft": lambda model, cells: model.predict(cells, soft=True).to_numpy(),
    "unknown": lambda model, cells: model.predict(cells, false_alarm_rate=0.05),
    "propagate": lambda model, cells: model.predict(cells, propagate=True),
    "novelty": lambda model, cells: model.get_novelty(cells),
    "embedding": lambda model, cells: model.get_latent_representation(cells),
    "importance": lambda model, cells: model.get_gene_importance(cells, method="gradient")["importance"].to_numpy(),
}


@pytest.mark.parametrize("name", FIRST)
def test_method_called_first(of_few, name):
    call, model = FIRST[name], new()
    first = call(model, of_few)
    np.testing.assert_array_equal(call(model, of_few), first)
    assert model.genes_.index.isin(of_few.var_names).all()


def test_annotate_called_first(of_few):
    adata, model = of_few.copy(), new()
    model.annotate(adata, cluster_key="name", false_alarm_rate=0.1, backoff=True)
    again = of_few.copy()
    model.annotate(again, cluster_key="name", false_alarm_rate=0.1, backoff=True)
    pd.testing.assert_frame_equal(adata.obs, again.obs)
    # Of a cluster whose type is uncertain, the parent or "Unknown" may be the most frequent label.
    assert (adata.obs["celler_majority"].astype(str) == adata.obs["name"]).mean() > 0.7


def test_predict_soft_agrees_with_labels(of_few):
    model = new()
    soft = model.predict(of_few, soft=True)
    np.testing.assert_allclose(soft.sum(axis=1), 1)
    assert list(soft.columns) == list(model.classes_)
    np.testing.assert_array_equal(soft.idxmax(axis=1), model.predict(of_few))
    by_parent = soft.T.groupby(model.parents_).sum().T
    np.testing.assert_allclose(model.predict(of_few, soft=True, level="parent"), by_parent, atol=1e-6)


def test_predict_candidates(of_few):
    names = ["stromal cell", "thymocyte"]
    assert set(new().predict(of_few, candidates=names)) == set(names)


def test_predict_threshold_and_backoff(of_few):
    model = new()
    soft = model.predict(of_few, soft=True).max(axis=1).to_numpy()
    np.testing.assert_array_equal(model.predict(of_few, threshold=0.9) == "Unknown", soft < 0.9)
    found = model.predict(of_few, threshold=0.9, backoff=True)
    assert set(found) <= {*model.classes_, *model.parents_.values(), "Unknown"}


def test_predict_false_alarm_rate_holds_back_the_novel(of_few):
    model = new()
    novelty = model.get_novelty(of_few)
    is_unknown = model.predict(of_few, false_alarm_rate=0.2) == "Unknown"
    assert novelty[is_unknown].min() > novelty[~is_unknown].max()
    # Cells of known types are called unknown about as often as was asked for.
    assert is_unknown.mean() < 0.4


def test_predict_indices(of_few):
    model = new()
    whole = model.predict(of_few)
    np.testing.assert_array_equal(model.predict(of_few, [5, 3, -1]), whole[[5, 3, -1]])
    np.testing.assert_array_equal(model.predict(of_few, np.arange(len(whole)) < 7), whole[:7])
    with pytest.raises(IndexError, match="indices run from 999 to 999"):
        new().predict(of_few, [999])


def test_predict_depends_on_the_cell_alone(of_few):
    model = new()
    whole = model.predict(of_few, soft=True)
    np.testing.assert_allclose(model.predict(of_few[7:8].copy(), soft=True), whole[7:8], atol=1e-5)
    np.testing.assert_allclose(model.predict(of_few, soft=True, batch_size=5), whole, atol=1e-5)


def test_predict_copies_of_a_model(of_few):
    model = new()
    expected = model.predict(of_few, soft=True)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(new())):
        np.testing.assert_array_equal(same.predict(of_few, soft=True), expected)


def test_predict_two_queries_in_turn(of_few):
    few, other, model = of_few[:, :400].copy(), of_few[:, 100:].copy(), new()
    expected = [new().predict(cells, soft=True) for cells in (few, other)]
    for _ in range(2):
        for cells, soft in zip((few, other), expected, strict=True):
            np.testing.assert_array_equal(model.predict(cells, soft=True), soft)
            assert list(model.genes_.index) == sorted(cells.var_names)


def test_predict_no_cells_and_empty_ones(of_few):
    model = new()
    assert model.predict(of_few[:0].copy()).shape == (0,)
    empty = of_few[:4].copy()
    empty.X = sparse.csr_matrix(sparse.diags_array(np.float32([0, 1, 1, 0])) @ empty.X)
    with pytest.warns(UserWarning, match="2 cells have no counts in the model's genes"):
        found = model.predict(empty)
    assert list(found == "Unknown") == [True, False, False, True]
    empty.X = sparse.csr_matrix(empty.shape, dtype=np.float32)
    with pytest.warns(UserWarning, match="4 cells have no counts"):
        assert set(new().predict(empty)) == {"Unknown"}
    with pytest.warns(UserWarning, match="4 cells have no counts"):
        assert np.isnan(new().get_novelty(empty)).all()


@pytest.mark.slow
def test_predict_of_all_tissues():
    model, adata = of_all()
    found = model.predict(adata)
    assert len(model.classes_) == 183
    assert (broad_of(found, model.parents_) == adata.obs["cell_type"].map(BROAD)).mean() > 0.8
    # There are no other types; novelty is how little a cell resembles any.
    assert np.isfinite(model.get_novelty(adata)).all()
    assert "183 types of all tissues" in repr(model)


def test_predict_says_that_the_tissue_is_another():
    cells, model = pseudo_cells("brain", 100, 1500), new(tissue="blood", organism="human")
    with pytest.warns(
        UserWarning, match=r"% of the cells resemble types that the atlases of this tissue lack, most of "
    ):
        model.predict(cells)
    model.predict(cells)  # once is enough
    model.annotate(cells)


def test_novelty_report_where_there_are_no_other_types(rng):
    vectors = np.eye(6, dtype=np.float32)
    open_set = OpenSet(vectors[:3], vectors[:0], ()).fitted(vectors[:3].repeat(20, 0) + 0.1 * rng.random((60, 6)))
    far = -vectors[:3]
    report = _novelty_report(open_set, open_set.score(far), 0.0, far)
    assert report.startswith("100% of the cells resemble no type of the atlases; look at <key>_novelty")
    assert _novelty_report(open_set, open_set.known, 0.0, far) is None
    assert _novelty_report(open_set, open_set.known[:0], 0.0, far[:0]) is None


def test_get_latent_representation_is_that_of_the_base(of_few):
    embedding = new().get_latent_representation(of_few)
    assert embedding.shape == (of_few.n_obs, 384)
    unit = new().get_latent_representation(of_few, normalize=True)
    np.testing.assert_allclose(unit, embedding / np.linalg.norm(embedding, axis=1, keepdims=True), rtol=1e-5)
    # Another tissue has the same encoder.
    other = new(tissue="liver").get_latent_representation(of_few, correct_shift=False)
    np.testing.assert_allclose(other, embedding, rtol=1e-4, atol=1e-5)


def test_get_gene_importance_finds_markers():
    adata = blood()
    adata = adata[adata.obs["cell_type"].isin(["CD19+ B", "CD56+ NK"])].copy()
    table = of_blood().get_gene_importance(adata, groupby="cell_type", method="gradient")
    genes = table.groupby("group")["gene"].agg(set)
    assert genes["CD19+ B"] & {"CD79A", "CD79B", "MS4A1", "CD74", "HLA-DRA"}
    assert genes["CD56+ NK"] & {"NKG7", "GNLY", "GZMB", "PRF1", "KLRD1"}
    with pytest.raises(ValueError, match="this model has no evidence table; pass method='gradient'"):
        of_blood().get_gene_importance(adata)


def test_get_gene_importance_per_cell(of_few):
    table = new().get_gene_importance(of_few, indices=[1, 4], method="gradient", per_cell=True)
    assert list(table["group"].unique()) == ["cell 1", "cell 4"]


CANNOT = {
    "train": (
        "is not trained on cells: predict or annotate.*Celler.load_query_data",
        lambda model, cells: model.train(),
    ),
    "pretrain": ("is trained, and its classes rest", lambda model, cells: model.pretrain(adata=cells)),
    "learn_profiles": ("is trained, and its classes rest", lambda model, cells: model.learn_profiles(cells)),
    "load_encoder": ("is trained, and its classes rest", lambda model, cells: model.load_encoder(model)),
    "predict_expression": ("has no decoder that predicts genes", lambda model, cells: model.predict_expression(cells)),
    "impute": ("has no decoder that predicts genes", lambda model, cells: model.impute(cells)),
}


@pytest.mark.parametrize("name", CANNOT)
def test_method_that_needs_cells_of_its_own(of_few, name):
    message, call = CANNOT[name]
    with pytest.raises(RuntimeError, match=message):
        call(new(), of_few)


def test_predict_without_cells():
    with pytest.raises(ValueError, match="this model has no AnnData; pass the cells as adata"):
        new().predict()
    with pytest.raises(FileNotFoundError, match="no_cells.h5ad does not exist"):
        new().predict("no_cells.h5ad")


def test_repr_says_what_the_classes_are(of_few):
    model = new()
    assert "without a reference: 5 classes" in repr(model)
    assert "5 types of human thymus, from 1 atlas" in repr(model)
    assert "all of the base, until it meets a query" in repr(model)
    model.predict(of_few)
    assert "those of the last query" in repr(model)
    assert "600 genes" in repr(model)


def test_from_pretrained_on_bfloat16(of_few):
    model = Celler.from_pretrained("celler-base", **FEW, precision="bfloat16")
    assert (model.predict(of_few) == new().predict(of_few)).mean() > 0.95
    assert np.isfinite(model.get_novelty(of_few)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adata": ad.AnnData(np.ones((2, 2)))}, "adata was given with 'celler-base', which needs no reference"),
        ({"tissue": "blod"}, "Closest: 'blood'"),
        ({"tissue": []}, r"tissue=\[\] was given; text that is not empty, or a list of texts"),
        ({"tissue": "bladder", "organism": "human"}, "no atlas of human bladder is in the base"),
        ({"organism": "rat"}, "organism='rat' was given; 'human', 'mouse' or None"),
        ({"max_genes": 300}, "head and max_genes are for scGPT; leave them out for 'celler-base'"),
        ({"head": "vgg"}, "are for scGPT"),
        ({"evidence": False}, "are for scGPT"),
        ({"freeze_encoder": True}, "are for scGPT"),
    ],
)
def test_from_pretrained_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Celler.from_pretrained("celler-base", **options)


@pytest.mark.parametrize("options", [{"tissue": "blood"}, {"organism": "human"}])
def test_from_pretrained_of_a_folder_has_no_tissue(tmp_path, options):
    with pytest.raises(ValueError, match="tissue and organism are for 'celler-base';.* was given. Leave them out"):
        Celler.from_pretrained(tmp_path, **options)
    with pytest.raises(ValueError, match="Leave them out. Closest: 'celler-base'"):
        Celler.from_pretrained("celler_base", **options)


def test_from_pretrained_of_a_folder_with_its_name(tmp_path, monkeypatch, of_few):
    model = new()
    expected = model.predict(of_few)
    monkeypatch.chdir(tmp_path)
    model.save("celler-base")
    np.testing.assert_array_equal(Celler.from_pretrained("./celler-base").predict(of_few), expected)
    assert "183 types of all tissues" in repr(Celler.from_pretrained("celler-base"))


def test_celler_of_the_atlas_head_is_refused():
    adata = blood(50)
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(ValueError, match=r"head='atlas' is for models made by Celler.from_pretrained\('celler-base'"):
        Celler(adata, head="atlas")


def test_the_encoder_is_never_trained(of_few):
    model = new()
    model.predict(of_few)
    base = read_base()
    rows = base.genes.get_indexer(model.genes_.index)
    expected = base.weights["gene"].float()[rows] * base.weights["gene_scale"].float()[rows][:, None]
    assert torch.equal(model.module.encoder.gene, expected)
    assert not any(weights.requires_grad for weights in model.module.encoder.parameters())


def test_from_pretrained_with_a_name_like_the_base():
    with pytest.raises(FileNotFoundError, match="celler_base does not exist; the base .* is 'celler-base'"):
        Celler.from_pretrained("celler_base")
