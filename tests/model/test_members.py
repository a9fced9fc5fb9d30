"""Models with members: all methods average, annotate writes the agreement, and files keep every member."""

import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from base_cases import fit_known, known_cells
from scipy import sparse
from scipy.special import softmax
from store_cases import write_store
from toy import QUICK, SMALL, assert_equal_frames, cells, fit, pretrained, trained

from celler._utils._digest import digest_of
from celler.atlas import DataModule
from celler.model import Celler
from celler.model._explain import contributions
from celler.model._forward import Reading, network_outputs

pytestmark = pytest.mark.filterwarnings("ignore:.*are not of the new types:UserWarning")


@pytest.fixture(scope="module")
def based() -> Celler:
    return fit_known(n_members=3)


@pytest.fixture(scope="module")
def alone() -> Celler:
    """Without a base; few epochs, so that members differ."""
    return fit(cells(), {"parent_labels_key": "parent_type"}, max_epochs=2, n_members=3)


@pytest.fixture
def query() -> ad.AnnData:
    return cells(120, seed=1)


def member_logits(model: Celler, query: ad.AnnData, monkeypatch, share: float | None = None) -> np.ndarray:
    """Joint logits ``(M, N, C)`` of each member alone, by a network that has no other."""
    state, found = model._state, []
    for k in range(3):
        weights = state.network.state_dict()
        prefix, own = "" if state.network.sum is None else "sum.", f"members.{k - 1}."
        own_weights = {name: value for name, value in weights.items() if k and name.startswith(own)}
        kept = {name: value for name, value in weights.items() if not name.startswith("members.")}
        kept |= {prefix + name.removeprefix(own): value for name, value in own_weights.items()}
        network = type(state.network)(replace(state.network.config, n_members=1)).eval()
        network.load_state_dict(kept)
        whole = model.adapt(query)
        single = Celler.__new__(Celler)
        single.__dict__.update(model.__dict__)
        single._state = replace(state, network=network)
        monkeypatch.setattr("celler.inference._calibration.softmax", lambda z, axis: z)  # logits as they are
        temperature = state.decision.temperature
        found.append(single.predict(query, soft=True, adaptation=whole).to_numpy() * temperature)
        monkeypatch.undo()
    return np.stack(found)


@pytest.mark.parametrize("which", ["based", "alone"])
def test_predict_averages_the_members(which, request, monkeypatch):
    model = request.getfixturevalue(which)
    query = known_cells(150, seed=2) if which == "based" else cells(150, seed=2)
    each = member_logits(model, query, monkeypatch)
    assert np.ptp(each, axis=0).max() > 0.01
    expected = softmax(each.mean(0) / model._state.decision.temperature, axis=1)
    np.testing.assert_allclose(model.predict(query, soft=True), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:1 cell has no counts:UserWarning")
@pytest.mark.parametrize("which", ["based", "alone"])
def test_annotate_writes_the_share_of_members_that_agree(which, request, monkeypatch):
    """With enough cells the base's share follows the query, and the members are weighed by it."""
    model = request.getfixturevalue(which)
    query = known_cells(150, seed=2) if which == "based" else cells(150, seed=2)
    query.X = sparse.csr_matrix(query.X.multiply((np.arange(150) != 3)[:, None]))
    each = member_logits(model, query, monkeypatch)
    model.annotate(query)
    best = each.mean(0).argmax(1)
    expected = (each.argmax(2) == best).mean(0)
    found = query.obs["celler_agreement"].to_numpy()
    assert np.isnan(found[3])
    clear = np.sort(each, axis=2)[..., -1] - np.sort(each, axis=2)[..., -2]
    is_clear = (clear.min(0) > 1e-3) & (np.arange(150) != 3)
    np.testing.assert_allclose(found[is_clear], expected[is_clear])
    assert is_clear.sum() > 140
    assert query.uns["celler"]["n_members"] == 3


def test_annotate_again_with_one_member_removes_the_agreement(alone, query):
    alone.annotate(query)
    assert query.obs["celler_agreement"].between(1 / 3, 1).all()
    trained().annotate(query)
    assert "celler_agreement" not in query.obs


def test_members_differ_and_follow_the_seed(alone, query):
    again, other = (
        fit(cells(), {"parent_labels_key": "parent_type"}, max_epochs=2, n_members=3, seed=s) for s in (0, 1)
    )
    assert_equal_frames(again.predict(query, soft=True), alone.predict(query, soft=True))
    assert not np.allclose(other.predict(query, soft=True), alone.predict(query, soft=True))
    first, second = (part.head[-1].weight for part in alone.module.members)
    assert not torch.allclose(first, second)


def test_save_and_load_keep_every_member(based, tmp_path):
    query = known_cells(60, seed=2)
    based.save(tmp_path / "model")
    loaded = Celler.load(tmp_path / "model")
    assert_equal_frames(loaded.predict(query, soft=True), based.predict(query, soft=True))
    one, other = query.copy(), query.copy()
    based.annotate(one)
    loaded.annotate(other)
    pd.testing.assert_frame_equal(one.obs, other.obs)
    assert "members   3, averaged" in repr(loaded)
    assert "3 times sum of gene embeddings" in (tmp_path / "model" / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("n_members", "message"),
    [(2, "unknown array"), (4, "lacks the array"), (1, "at least 2"), (10**9, "at most 1,000"), ("3", "whole number")],
)
def test_load_of_another_number_of_members_is_refused(alone, tmp_path, n_members, message):
    alone.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["registry"]["celler"]["n_members"] = n_members
    config.pop("digest")
    path.write_text(json.dumps(config | {"digest": digest_of(config)}), "utf-8")
    with pytest.raises(ValueError, match=message):
        Celler.load(tmp_path / "model")


def test_train_again_keeps_the_members(query):
    model = fit(cells(), max_epochs=2, n_members=2)
    with pytest.raises(ValueError, match=r"n_members=3 was given; .* a model with 2"):
        model.train(**QUICK, n_members=3)
    model.train(**QUICK)
    assert model._state.n_members == 2
    assert "members   2" in repr(model)
    assert "members" not in repr(trained())


def test_resumed_training_has_the_same_members(tmp_path):
    path = tmp_path / "last.ckpt"
    first = fit(cells(), max_epochs=2, n_members=2, ckpt_path=path)
    again = fit(cells(), max_epochs=2, n_members=2, ckpt_path=path)
    for name, weights in first.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], weights), name
    with pytest.raises(ValueError, match="other n_members"):
        fit(cells(), max_epochs=2, n_members=3, ckpt_path=path)


@pytest.mark.parametrize("which", ["based", "alone"])
def test_load_query_data_extends_every_member(which, request):
    model = request.getfixturevalue(which)
    more = known_cells(150, seed=3) if which == "based" else cells(150, seed=3)
    more.obs["cell_type"] = more.obs["cell_type"].astype(str)
    more.obs.loc[more.obs_names[:60], "cell_type"] = "new"
    if "parent_type" in more.obs:
        more.obs["parent_type"] = more.obs["parent_type"].astype(str)
        more.obs.loc[more.obs_names[:60], "parent_type"] = "new"
    marked = more.X.tolil()
    marked[:60, :5] = 40
    more.X = marked.tocsr()
    extended = Celler.load_query_data(more, model, extend_labels=True)
    extended.train(show_progress=False)
    assert extended._state.n_members == 3
    labels = extended.predict(more)
    assert (labels[:60] == "new").mean() > 0.9
    code = list(extended.classes_).index("new")
    for head in extended.module.heads:
        assert head[-1].weight[code].abs().max() > 1e-3  # each was solved
    assert {len(part.head[-1].weight) for part in extended.module.members} == {len(extended.classes_)}


def test_pretrained_members_start_from_the_encoder():
    model = pretrained(setup={"labels_key": "cell_type"})
    encoder = {name: weights.clone() for name, weights in model.module.encoder.state_dict().items()}
    model.train(**QUICK | {"max_epochs": 1, "learning_rate": 1e-9, "replay": None}, n_members=2)
    torch.testing.assert_close(model.module.members[0].encoder.state_dict(), encoder, rtol=0, atol=1e-6)


def test_gradients_are_the_mean_of_the_members(alone, query):
    """The logits are a mean, and a gradient is linear."""
    state = alone._state
    aligned = alone._cells(query).align(state)
    tokens = state.tokenizer(aligned.values(np.arange(20)), np.arange(80, dtype=np.int32))
    target = torch.eye(4)[torch.arange(20) % 4]
    (together,) = contributions(state.network, tokens, [target], "gradient")
    parts = []
    for k in range(3):
        own, weights = f"members.{k - 1}.", state.network.state_dict()
        kept = {name: value for name, value in weights.items() if not name.startswith("members.")}
        kept |= {n.removeprefix(own): value for n, value in weights.items() if k and n.startswith(own)}
        network = type(state.network)(replace(state.network.config, n_members=1)).eval()
        network.load_state_dict(kept)
        parts += contributions(network, tokens, [target], "gradient")
    torch.testing.assert_close(together, torch.stack(parts).mean(0), rtol=1e-4, atol=1e-5)


def test_stores_and_parts_are_labelled_as_the_whole(alone, query, tmp_path):
    """Also the agreement, block by block and part by part."""
    pytest.importorskip("annbatch")
    dm, whole = DataModule(write_store(tmp_path, query)), alone.adapt(query)
    expected = query.copy()
    alone.annotate(expected)
    np.testing.assert_array_equal(alone.predict(dataloader=dm.inference_dataloader()), expected.obs["celler"])
    alone.annotate_store(dm)
    table = dm.annotation("celler")
    np.testing.assert_allclose(table["celler_agreement"], expected.obs["celler_agreement"])
    part = query[30:70].copy()
    alone.annotate(part, adaptation=whole)
    np.testing.assert_allclose(part.obs["celler_agreement"], expected.obs["celler_agreement"][30:70])
    assert_equal_frames(alone.predict(part, soft=True, adaptation=whole), alone.predict(query, soft=True)[30:70])


def test_levels_and_propagation_use_all_members(alone, query):
    soft, parents = alone.predict(query, soft=True), alone.predict(query, soft=True, level="parent")
    for parent, part in soft.T.groupby(alone.parents_):
        np.testing.assert_allclose(part.sum(), parents[parent])
    alone.annotate(query, propagate=True, key_added="spread")
    assert query.obs["spread_agreement"].between(0, 1).all()


def test_cells_beyond_the_sample_are_read_with_its_share(based):
    """The members are weighed by the share that the query chose, in the sample and beyond it."""
    query = known_cells(200, seed=4)
    expected = query.copy()
    based.annotate(expected)
    whole = based.adapt(query)
    again = query.copy()
    based.annotate(again, adaptation=whole)
    np.testing.assert_allclose(again.obs["celler_agreement"], expected.obs["celler_agreement"])
    found = network_outputs(based._state, based._cells(query).align(based._state), np.arange(5), Reading(), whole)
    assert found.member_codes is None  # predict does not ask for them


def test_members_that_cannot_be_are_refused():
    adata = cells()
    Celler.setup_anndata(adata, labels_key="cell_type")
    with pytest.raises(ValueError, match="n_members=2 was given with masked_weight"):
        Celler(adata, **SMALL).train(**QUICK, n_members=2, masked_weight=1.0)
    known = known_cells()
    Celler.setup_anndata(known, labels_key="cell_type")
    with pytest.raises(ValueError, match="n_members=2 was given with encoder='base' and evidence=False"):
        Celler(known, d_model=16, evidence=False).train(**QUICK, n_members=2)
    with pytest.raises(ValueError, match="n_members=0 was given"):
        Celler(adata, **SMALL).train(n_members=0)
