"""The base in a model: when it is the default, what it knows, and that nothing else moves it."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from base_cases import N_GENES, SYMBOLS, TABLE, fit_known, known_cells, untrained
from scipy import sparse
from toy import SMALL, assert_equal_frames, cells, fit

from celler.data._gene_table import human_symbols
from celler.losses import CrossEntropy
from celler.model import Celler
from celler.network._base import read_base
from celler.network._encoders import AdditiveEncoder, BaseEncoder, LatentEncoder
from celler.network._heads import LinearHead


@pytest.fixture(scope="module")
def model() -> Celler:
    return fit_known()


@pytest.fixture(scope="module")
def query() -> ad.AnnData:
    return known_cells(150, seed=1)


def named(names: list[str]) -> ad.AnnData:
    """Twenty cells of two types with these genes, all of which are expressed."""
    X = sparse.csr_matrix(np.random.default_rng(0).poisson(3.0, (20, len(names))).astype(np.float32) + 1)
    obs = pd.DataFrame({"cell_type": ["a", "b"] * 10}, index=[f"cell {i}" for i in range(20)])
    return ad.AnnData(X, obs, pd.DataFrame(index=names))


def in_mouse() -> tuple[list[str], list[str]]:
    """Genes of :data:`SYMBOLS` that have a mouse gene of the same name, and the names of both."""
    mouse = [name.capitalize() for name in SYMBOLS]
    found = human_symbols(pd.Index(mouse), organism="mouse").names
    pairs = [(own, human) for own, human in zip(mouse, found, strict=True) if own.upper() == human]
    return tuple(map(list, zip(*pairs, strict=True)))


def ensembl_ids() -> list[str]:
    return [f"ENSG{TABLE.own_ids[TABLE.row_of_symbol[name]]:011d}.7" for name in SYMBOLS]


def table_of(model: Celler) -> torch.Tensor:
    return model.module.encoder.gene.detach()


def test_celler_starts_from_the_base():
    model, base = untrained(known_cells()), read_base()
    encoder = model.module.encoder
    assert isinstance(encoder, BaseEncoder)
    rows = [list(base.genes).index(name) for name in SYMBOLS]
    expected = base.weights["gene"].float()[rows] * base.weights["gene_scale"].float()[rows][:, None]
    assert torch.equal(encoder.gene, expected)
    assert torch.equal(encoder.score, base.weights["score"].float()[rows])
    assert torch.equal(encoder.read.weight, base.weights["read.weight"].float())
    assert not any(weights.requires_grad for weights in encoder.parameters())
    assert isinstance(model.module.head, LinearHead)
    assert model.module.sum.encoder.gene.shape == (N_GENES, 16)
    assert f"knows {N_GENES} of {N_GENES} genes" in repr(model)
    assert "sum of gene embeddings (16 wide) + evidence table" in repr(model)


def test_celler_of_placeholders_is_additive():
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    model = Celler(adata, **SMALL)
    assert isinstance(model.module.encoder, AdditiveEncoder)
    assert model.module.sum is None
    assert "base" not in repr(model)


@pytest.mark.parametrize(
    ("n_known", "n_others", "is_base"), [(100, 0, True), (99, 0, False), (140, 500, True), (140, 600, False)]
)
def test_celler_by_the_number_of_known_genes(n_known, n_others, is_base):
    """At least 100, and a fifth of the genes."""
    model = untrained(named([*SYMBOLS[:n_known], *(f"Xq{i}zz" for i in range(n_others))]))
    assert isinstance(model.module.encoder, BaseEncoder if is_base else AdditiveEncoder)
    if is_base:
        assert f"knows {n_known} of " in repr(model)
        assert not table_of(model)[n_known:].any()
        assert (model.module.encoder.score[n_known:] == -torch.inf).all()


@pytest.mark.parametrize(
    ("options", "encoder"),
    [
        ({"encoder": "additive"}, AdditiveEncoder),
        ({"encoder": "latent"}, LatentEncoder),
        ({"n_heads": 2}, LatentEncoder),
    ],
)
def test_celler_with_another_encoder(options, encoder):
    assert isinstance(untrained(known_cells(), **options).module.encoder, encoder)


def test_celler_with_the_base_by_name():
    assert isinstance(untrained(known_cells(), encoder="base").module.encoder, BaseEncoder)
    with pytest.raises(ValueError, match=re.escape("knows 0 of the 80 genes such as ['gene 0', 'gene 1', 'gene 2']")):
        untrained(cells(), encoder="base")
    with pytest.raises(ValueError, match=r"at least 100 and 20% are needed.*Ensembl ids.*leave encoder out"):
        untrained(cells(), encoder="base")


@pytest.mark.parametrize("size", ["n_layers", "n_heads", "n_latents", "n_bins"])
def test_celler_with_the_base_and_sizes_of_attention(size):
    with pytest.raises(ValueError, match=rf"{size}=4 was given with encoder='base', whose sizes are those it was"):
        untrained(known_cells(), encoder="base", **{size: 4})


def test_celler_with_ensembl_ids():
    """Of any version; they are the same genes, so the model is the same."""
    by_id = known_cells(names=ensembl_ids())
    assert torch.equal(table_of(untrained(by_id)), table_of(untrained(known_cells())))
    one, other = fit_known(by_id, max_epochs=1), fit_known(max_epochs=1)
    expected = other.predict(known_cells(150, seed=1), soft=True)
    assert_equal_frames(one.predict(known_cells(150, seed=1, names=ensembl_ids()), soft=True), expected)


def test_celler_with_mouse_genes():
    mouse, human = in_mouse()
    assert len(mouse) >= 100
    model = untrained(named(mouse))
    assert isinstance(model.module.encoder, BaseEncoder)
    assert torch.equal(table_of(model), table_of(untrained(named(human))))
    assert f"knows {len(mouse)} of {len(mouse)} genes, through one-to-one orthologs" in repr(model)
    assert "ortholog" not in repr(untrained(named(human)))


def test_train_learns_the_types(model, query):
    is_right = np.asarray(model.predict(query)) == query.obs["cell_type"].to_numpy()
    assert is_right.mean() > 0.9


def test_train_leaves_the_base_as_it_is(model):
    before, after = untrained(known_cells()).module.encoder.state_dict(), model.module.encoder.state_dict()
    for name, weights in before.items():
        assert torch.equal(after[name], weights), name
    assert model.module.standardize.is_measured


def test_train_has_the_same_result_twice(model, query):
    again = fit_known()
    assert_equal_frames(again.predict(query, soft=True), model.predict(query, soft=True))
    other = fit_known(seed=1).predict(query, soft=True)
    assert not np.allclose(other, model.predict(query, soft=True), atol=1e-4)


def test_train_once_more(query):
    """Training goes on from the present weights, and still leaves the base as it is."""
    model = fit_known()
    before = table_of(model).clone()
    model.train(max_epochs=1, show_progress=False)
    assert torch.equal(table_of(model), before)
    assert not any(weights.requires_grad for weights in model.module.encoder.parameters())
    assert (np.asarray(model.predict(query)) == query.obs["cell_type"].to_numpy()).mean() > 0.9


def test_train_without_the_evidence_table(query):
    model = fit_known(network={"evidence": False}, max_epochs=20)
    assert model.module.sum is None
    assert (np.asarray(model.predict(query)) == query.obs["cell_type"].to_numpy()).mean() > 0.7


@pytest.mark.parametrize("head", ["mlp", "vgg"])
def test_train_with_another_head(query, head, tmp_path):
    """A linear one is the default, and a loaded model keeps its own."""
    model = fit_known(network={"head": head}, max_epochs=2)
    assert not isinstance(model.module.head, LinearHead)
    expected = model.predict(query, soft=True)
    assert np.isfinite(expected).all().all()
    model.save(tmp_path)
    assert_equal_frames(Celler.load(tmp_path).predict(query, soft=True), expected)


def test_train_with_a_loss_of_the_user(query):
    """Which trains all experts in minibatches."""
    model = fit_known(loss=CrossEntropy(), max_epochs=20)
    assert (np.asarray(model.predict(query)) == query.obs["cell_type"].to_numpy()).mean() > 0.9


def test_train_says_what_it_starts_from(capsys, monkeypatch):
    monkeypatch.setattr("celler.training._run.has_progress", lambda: True)
    fit_known(max_epochs=1, show_progress=True)
    assert f"Starting from celler-base, which knows {N_GENES} of {N_GENES} genes." in "".join(capsys.readouterr())
    fit(cells(), max_epochs=1, show_progress=True)
    expected = "Learning genes from the reference alone: celler-base knows 0 of its 80."
    assert expected in "".join(capsys.readouterr())


def test_get_latent_representation_before_training(query):
    """It is the base's embedding, of ``log1p`` of counts per 10,000."""
    model = untrained(known_cells())
    actual = model.get_latent_representation(query, normalize=False)
    counts = query.X.toarray().astype(np.float64)
    x = np.log1p(1e4 * counts / counts.sum(1, keepdims=True)).astype(np.float32)
    with torch.no_grad():
        expected = model.module.encoder.embed_panel(torch.arange(N_GENES), torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-3, atol=1e-4)
    scaled = np.asarray(model.get_latent_representation(query, normalize=True))
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, rtol=1e-5)


def test_get_latent_representation_is_the_same_after_training(model, query):
    before = untrained(known_cells()).get_latent_representation(query, correct_shift=False)
    np.testing.assert_array_equal(model.get_latent_representation(query, correct_shift=False), before)


def test_predict_finds_genes_by_other_names(model, query):
    """The query's Ensembl ids are those of the reference's symbols, in another order and with others."""
    other = known_cells(150, seed=1, names=ensembl_ids())
    more = ad.AnnData(sparse.csr_matrix(np.ones((150, 3), np.float32)), obs=other.obs)
    more.var_names = ["ENSG00000999991", "ENSG00000999992", "ENSG00000999993"]
    joined = ad.concat([more, other[:, ::-1]], axis=1, merge="same")
    expected = model.predict(query, soft=True, correct_shift=False)
    with pytest.warns(UserWarning, match="140 by Ensembl id"):
        actual = model.predict(joined, soft=True, correct_shift=False)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
