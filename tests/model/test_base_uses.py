"""What a model that starts from the base can do: save, extend, explain, pretrain, impute, adapt, stream."""

from copy import deepcopy
from importlib.util import find_spec

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from base_cases import N_GENES, SYMBOLS, fit_known, known_cells, untrained
from legacy_cases import converts, write_legacy
from scipy import sparse, special
from toy import QUICK, SMALL, assert_equal_frames

from celler.data._query import align_query, token_passes
from celler.model import Celler
from celler.model import _forward as inference
from celler.model._explain import contributions
from celler.model._legacy import FILE_NAME
from celler.network._encoders import AdditiveEncoder, BaseEncoder

pytestmark = pytest.mark.filterwarnings("ignore:.*are not of the new types:UserWarning")


@pytest.fixture(scope="module")
def model() -> Celler:
    return fit_known()


@pytest.fixture(scope="module")
def query() -> ad.AnnData:
    return known_cells(150, seed=1)


@pytest.fixture
def no_base(monkeypatch):
    """The file of the base cannot be read."""

    def fail(*_):
        raise FileNotFoundError("base.safetensors")

    monkeypatch.setattr("celler.model._base.read_base", fail)
    monkeypatch.setattr("celler.network._base.load_file", fail)


def accuracy(model: Celler, cells: ad.AnnData, **options) -> float:
    return float((np.asarray(model.predict(cells, **options)) == cells.obs["cell_type"].to_numpy()).mean())


@pytest.mark.usefixtures("no_base")
def test_load_needs_no_base_file(model, query, tmp_path):
    model.save(tmp_path)
    loaded = Celler.load(tmp_path)
    assert_equal_frames(loaded.predict(query, soft=True), model.predict(query, soft=True))
    for name, weights in model.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], weights), name
    assert f"knows {N_GENES} of {N_GENES} genes" in repr(loaded)
    assert (loaded.module.encoder_share, loaded.module.sum_share) == (0.5, model.module.sum_share)
    loaded.save(tmp_path / "again")
    again = Celler.load(tmp_path / "again")
    assert_equal_frames(again.predict(query, soft=True), model.predict(query, soft=True))


def test_load_query_data_of_few_known_genes(model, query, tmp_path):
    """Too few for a new model to start from the base; this one goes on with its own."""
    model.save(tmp_path)
    few = known_cells(200, seed=4)[:, :60].copy()
    for reference in (model, str(tmp_path)):
        with pytest.warns(UserWarning, match="60 of the reference model's 140 genes"):
            extended = Celler.load_query_data(few.copy(), reference)
        assert isinstance(extended.module.encoder, BaseEncoder)
        assert torch.equal(extended.module.encoder.gene, model.module.encoder.gene)
    extended.train(**QUICK)
    assert accuracy(extended, query) > 0.9
    extended.save(tmp_path / "extended")
    again = Celler.load(tmp_path / "extended")
    assert_equal_frames(again.predict(query, soft=True), extended.predict(query, soft=True))


@pytest.mark.parametrize("encoder", [None, "additive"])
def test_load_of_a_model_of_before_the_base(query, tmp_path, encoder):
    """Its genes are known today, but its weights are those of a sum, and its share was a scalar."""
    model = fit_known(network={"encoder": "additive"})
    expected = model.predict(query, soft=True)
    write_legacy(model, tmp_path)
    contents = torch.load(tmp_path / FILE_NAME, weights_only=True)
    del contents["registry"]["celler"]["base"]
    contents["init_params"]["encoder"] = encoder
    contents["weights"]["_extra_state"] = contents["weights"]["_extra_state"][0]
    torch.save(contents, tmp_path / FILE_NAME)
    with converts():
        loaded = Celler.load(tmp_path)
    assert isinstance(loaded.module.encoder, AdditiveEncoder)
    assert_equal_frames(loaded.predict(query, soft=True), expected)
    loaded.save(tmp_path / "again")
    assert_equal_frames(Celler.load(tmp_path / "again").predict(query, soft=True), expected)


def with_more_genes(adata: ad.AnnData) -> ad.AnnData:
    """With ten more genes, of which the base would know five, and all cells of the first type renamed."""
    rng = np.random.default_rng(2)
    more = sparse.csr_matrix(rng.poisson(1.0, (adata.n_obs, 10)).astype(np.float32))
    names = [*adata.var_names, *("PTPRC", "CD19", "CD3E", "LYZ", "NKG7"), *(f"Xq{i}zz" for i in range(5))]
    wide = ad.AnnData(sparse.hstack([adata.X, more], format="csr"), obs=adata.obs, var=pd.DataFrame(index=names))
    labels = wide.obs["cell_type"].astype(str)
    wide.obs["cell_type"] = np.where(labels == "type 0", "new type", labels)
    return wide


def test_load_query_data_with_more_genes_and_a_class(model, query):
    assert not {"PTPRC", "CD19", "CD3E", "LYZ", "NKG7"} & set(SYMBOLS)
    with pytest.warns(UserWarning, match="10 genes of adata are new to the model"):
        extended = Celler.load_query_data(with_more_genes(known_cells(200, seed=3)), model, extend_labels=True)
    assert isinstance(extended.module.encoder, BaseEncoder)
    assert extended.module.encoder.gene.shape[0] == N_GENES + 10
    assert (extended.module.encoder.score[N_GENES:] == -torch.inf).all()
    places = [list(extended.classes_).index(name) for name in model.classes_]
    tokens = tokens_of(model, query)
    with torch.no_grad():
        before, after = model.module.eval()(*tokens), extended.module.eval()(*tokens)
    torch.testing.assert_close(after.expert_logits[..., places], before.expert_logits, rtol=1e-5, atol=1e-5)
    gene = extended.module.encoder.gene.detach().clone()
    with pytest.warns(UserWarning, match="new types take cells of others"):
        extended.train(**QUICK | {"max_epochs": 8})
    assert torch.equal(extended.module.encoder.gene, gene)
    assert extended.module.evidence.weight[N_GENES:].any()
    new = with_more_genes(known_cells(200, seed=6))
    assert accuracy(extended, new[new.obs["cell_type"] == "new type"].copy()) > 0.7


def tokens_of(model: Celler, adata: ad.AnnData):
    """Tokens of all cells in their order."""
    aligned = align_query(model._state.genes, adata, None)
    ((rows, tokens),) = token_passes(model._state.tokenizer, aligned, np.arange(adata.n_obs))
    order = torch.as_tensor(np.argsort(rows))
    return type(tokens)(*(part[order] for part in tokens))


@pytest.mark.parametrize("method", ["evidence", "gradient"])
def test_get_gene_importance_finds_the_markers(model, query, method):
    """Genes 10 k to 10 k + 9 mark type k."""
    table = model.get_gene_importance(query, groupby="cell_type", n_genes=5, method=method)
    for k in range(3):
        genes = table[table["group"] == f"type {k}"]["gene"]
        assert len(genes) == 5
        assert np.isin(genes, SYMBOLS[10 * k : 10 * k + 10]).mean() >= 0.8


@pytest.mark.parametrize("share", [None, 0.9])
def test_contributions_match_finite_differences(model, query, share):
    """Of a gene's embeddings in the base and the sum and its row of evidence; what a latent attends to is kept.

    The share of the query replaces the network's.
    """
    network, tokens = deepcopy(model.module).double().eval(), tokens_of(model, query[:1].copy())
    tokens = tokens._replace(expression=tokens.expression.double())
    target = torch.tensor([[1.0, -0.5, 0.0, -0.5]], dtype=torch.float64)
    (actual,) = contributions(network, tokens, [target], "gradient", share)
    network.encoder_share = network.encoder_share if share is None else share
    step = 1e-3
    for t in range(6):
        logits = []
        for sign in (1, -1):
            moved, gene = deepcopy(network), int(tokens.gene_ids[0, t])
            with torch.no_grad():
                for table in (moved.encoder.gene, moved.sum.encoder.gene, moved.evidence.weight):
                    table[gene] *= 1 + sign * step
                logits.append((moved(*tokens).logits * target).sum())
        expected = (logits[0] - logits[1]) / (2 * step)
        # the network returns float32 logits
        torch.testing.assert_close(actual[0, t].double(), expected.double(), rtol=2e-2, atol=2e-3)


def test_pretrain_keeps_the_base_and_imputes(query, tmp_path):
    model = untrained(known_cells())
    before = model.module.encoder.gene.detach().clone()
    model.pretrain(max_epochs=3, batch_size=64, show_progress=False)
    assert torch.equal(model.module.encoder.gene, before)
    cells = query.copy()
    model.impute(cells)
    assert np.isfinite(cells.layers["celler_imputed"]).all()
    model.save(tmp_path)
    loaded = Celler.load(tmp_path)
    loaded.pretrain(1, adata=known_cells(), batch_size=64, show_progress=False)
    assert torch.equal(loaded.module.encoder.gene, before)
    model.train(**QUICK)
    assert torch.equal(model.module.encoder.gene, before)
    assert accuracy(model, query) > 0.9
    model.impute(cells, layer_added="again")
    np.testing.assert_allclose(cells.layers["again"], cells.layers["celler_imputed"], rtol=1e-4, atol=1e-4)


def test_train_with_the_masked_task(query):
    model = fit_known(masked_weight=0.5)
    assert torch.equal(model.module.encoder.gene, untrained(known_cells()).module.encoder.gene)
    cells = query.copy()
    model.impute(cells)
    assert np.isfinite(cells.layers["celler_imputed"]).all()


def test_predict_of_each_cell_alone(model, query):
    """Without correction of a shift, the other cells of a query are not read."""
    whole = model.predict(query, soft=True, correct_shift=False)
    for rows in (slice(3), slice(140, 150), slice(0, 120)):
        part = model.predict(query[rows].copy(), soft=True, correct_shift=False)
        np.testing.assert_allclose(part, whole[rows], atol=2e-6)


def probabilities(logits: np.ndarray, model: Celler) -> np.ndarray:
    return special.softmax(logits / model._state.decision.temperature, axis=1)


def test_get_gene_importance_with_the_share_of_the_query(model, query, monkeypatch):
    """By gradient, as predict mixes the experts; without the base's own part it is that of the others."""
    tables = []
    for share in (0.0, 0.0, 1.0):
        monkeypatch.setattr(inference, "share_of_query", lambda *_, share=share: share)
        table = model.get_gene_importance(query, groupby="cell_type", method="gradient", n_genes=None)
        tables.append(table.set_index(["group", "gene"])["importance"].sort_index())
    pd.testing.assert_series_equal(tables[0], tables[1])
    assert (tables[2] - tables[0]).abs().max() > 0.05


@pytest.mark.filterwarnings("ignore:the query is far")
@pytest.mark.parametrize("batch_size", [None, 7])
def test_predict_is_that_of_the_whole_network(model, monkeypatch, batch_size):
    """With a shift, which both read, and a cell without counts."""
    query = known_cells(300, seed=9)
    factors = np.exp(np.random.default_rng(0).normal(scale=1.5, size=N_GENES))
    counts = np.round(query.X.toarray() * factors) * (np.arange(300) != 5)[:, None]
    query.X = sparse.csr_matrix(counts, dtype=np.float32)
    found = []
    for is_folded in (True, False):
        if not is_folded:
            monkeypatch.setattr(inference, "can_fold", lambda _: False)
        model._reported.clear()
        with pytest.warns(UserWarning, match="1 cell has no counts"):
            found.append(model.predict(query, soft=True, batch_size=batch_size))
    np.testing.assert_allclose(*found, atol=1e-5)
    assert np.abs(found[0] - model.predict(query, soft=True, correct_shift=False)).max(axis=None) > 0.01


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_predict_with_the_share_of_the_query(model, query, monkeypatch, share):
    """Logits of the encoder and of the others are mixed anew, as the query says."""
    monkeypatch.setattr(inference, "share_of_query", lambda *_: share)
    monkeypatch.setattr(inference, "shift_factors", lambda _, found: np.ones(N_GENES))
    with torch.no_grad():
        z = model.module.eval()(*tokens_of(model, query)).expert_logits.double().numpy()
    own = model.module.sum_share * z[1] + (1 - model.module.sum_share) * z[2]
    expected = probabilities(share * z[0] + (1 - share) * own, model)
    np.testing.assert_allclose(model.predict(query, soft=True), expected, atol=1e-4)


def test_predict_of_a_small_query_keeps_the_trained_share(model, query, monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(inference, "share_of_query", fail)
    model.predict(query[:99].copy())
    with pytest.raises(AssertionError):
        model.predict(query[:100].copy())


def test_predict_of_a_large_query_follows_its_sample(model, monkeypatch):
    """Cells beyond the sample get the share that the sample says, in blocks as well."""
    query = known_cells(400, seed=8)
    monkeypatch.setattr(inference, "share_of_query", lambda *_: 0.9)
    monkeypatch.setattr(inference, "shift_factors", lambda _, found: np.ones(N_GENES))
    whole = model.predict(query, soft=True)
    monkeypatch.setattr(inference, "SHIFT_CELLS", 200)
    np.testing.assert_allclose(model.predict(query, soft=True), whole, atol=2e-6)
    index = np.random.default_rng(1).choice(400, 50)  # some of the sample, some not, some twice
    np.testing.assert_allclose(model.predict(query, index, soft=True), whole.iloc[index], atol=2e-6)


@pytest.mark.filterwarnings("ignore:the query is far")
@pytest.mark.parametrize("n_sampled", [5000, 150])
def test_predict_of_permuted_rows(model, rng, monkeypatch, n_sampled):
    """Bit for bit, within the sample and beyond it; and so are parts of the query, by all cells."""
    monkeypatch.setattr(inference, "SHIFT_CELLS", n_sampled)
    query = known_cells(330, seed=8)
    query.X.data *= np.exp(rng.normal(0, 1, N_GENES))[query.X.indices].round(1) + 0.1
    query.X.data = query.X.data.round() + 1
    whole, order = model.predict(query, soft=True), rng.permutation(330)
    assert model._state.base is not None
    turned = model.predict(query[order].copy(), soft=True)
    np.testing.assert_array_equal(turned.to_numpy(), whole.to_numpy()[order])
    for index in ([5], [7, 2], np.arange(40), order[:137]):
        np.testing.assert_array_equal(model.predict(query, index, soft=True).to_numpy(), whole.to_numpy()[index])
    spread = model.predict(query, soft=True, propagate=True)
    turned = model.predict(query[order].copy(), soft=True, propagate=True)
    np.testing.assert_array_equal(turned.to_numpy(), spread.to_numpy()[order])
    np.testing.assert_array_equal(model.get_novelty(query[order].copy()), model.get_novelty(query)[order])


def test_predict_computes_each_cell_once(model, monkeypatch):
    """Cells of the sample have their outputs where the query has no shift."""
    monkeypatch.setattr(inference, "SHIFT_CELLS", 200)
    monkeypatch.setattr(inference, "shift_factors", lambda _, found: np.ones(N_GENES))
    seen, compute = [], inference.network_outputs
    monkeypatch.setattr(inference, "network_outputs", lambda *given: seen.extend(given[2]) or compute(*given))
    model.predict(known_cells(400, seed=8))
    assert sorted(seen) == list(range(400))


def test_predict_other_outputs(model, query):
    """With novelty, propagation and candidates, all of which read the adapted outputs."""
    assert accuracy(model, query, propagate=True) > 0.9
    cells = query.copy()
    model.annotate(cells)
    assert (cells.obs["celler"].to_numpy().astype(str) == np.asarray(model.predict(query))).all()
    assert np.isfinite(model.get_latent_representation(query)).all()


@pytest.mark.skipif(find_spec("annbatch") is None, reason="stores need annbatch")
def test_train_from_a_store(query, tmp_path):
    from store_cases import shuffled, write_store

    from celler.atlas import DataModule

    dm = DataModule(write_store(tmp_path, shuffled(known_cells(400))), labels_key="cell_type")
    model = Celler(registry=dm.registry, **SMALL)
    assert isinstance(model.module.encoder, BaseEncoder)
    assert torch.equal(model.module.encoder.score, untrained(known_cells()).module.encoder.score)
    model.train(datamodule=dm, **QUICK)
    assert accuracy(model, query) > 0.9
    predicted = model.predict(dataloader=dm.inference_dataloader(), soft=True)
    assert len(predicted) == 400
    assert np.isfinite(predicted).all().all()


def test_load_encoder_between_genes_in_another_order():
    one, order = untrained(known_cells()), np.random.default_rng(0).permutation(N_GENES)
    one.pretrain(max_epochs=1, batch_size=32, show_progress=False)
    adata = known_cells()[:, order].copy()
    other = untrained(adata)
    expected = {name: weights.clone() for name, weights in other.module.encoder.state_dict().items()}
    other.load_encoder(one)
    for name, weights in other.module.encoder.state_dict().items():
        assert torch.equal(weights, expected[name]), name
