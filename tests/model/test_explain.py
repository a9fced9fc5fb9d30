"""get_gene_importance: its parts sum to the logits, and it reads cells as predict does."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from toy import assert_unchanged, cells, fit, snapshot, trained, truth

import celler as cl
from celler.data._query import align_query, token_passes
from celler.model._explain import contributions

METHODS = ["evidence", "gradient"]


@pytest.fixture
def query() -> ad.AnnData:
    return cells(120, seed=3)


def importance(query: ad.AnnData, **options) -> pd.DataFrame:
    """Of the one model, whose labels depend on the cells alone here."""
    return trained().get_gene_importance(query, **({"correct_shift": False} | options))


def tokens_of(model, query):
    """Tokens of all cells in their order."""
    parts = (
        model._state.tokenizer,
        align_query(model._state.genes, query, None),
        np.arange(query.n_obs),
    )
    ((rows, tokens),) = token_passes(*parts)
    order = torch.as_tensor(np.argsort(rows))
    return type(tokens)(*(part[order] for part in tokens))


def log_expression(query: ad.AnnData) -> np.ndarray:
    counts = query.X.toarray().astype(np.float64)
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


@torch.no_grad()
def expert_logits(model, query) -> np.ndarray:
    """Encoder first, evidence second ``(2, N, C)``."""
    return model.module(*tokens_of(model, query)).expert_logits.double().numpy()


def biases(model, query) -> np.ndarray:
    """What the evidence table adds to the logits of each cell beside its genes: less where it has little expression."""
    evidence = model.module.evidence
    share = np.minimum(1, log_expression(query).sum(axis=1) / evidence.enough.item())
    return np.outer(share, evidence.bias.detach().numpy())


def test_get_gene_importance_and_bias_sum_to_the_linear_logit(query):
    model = trained()
    evidence, x = model.module.evidence, log_expression(query)
    weight, bias = evidence.weight.detach().numpy().astype(np.float64), biases(model, query)
    np.testing.assert_allclose(x @ weight + bias, expert_logits(model, query)[1], atol=1e-4)
    table = importance(query, per_cell=True, n_genes=None)
    sums = table.groupby("group", sort=False)["importance"].sum()
    assert list(sums.index) == list(query.obs_names)
    first = table.drop_duplicates("group")
    label, second = (np.searchsorted(model.classes_, first[key]) for key in ("label", "runner_up"))
    logits, rows = expert_logits(model, query)[1], np.arange(query.n_obs)
    expected = logits[rows, label] - logits[rows, second] - (bias[rows, label] - bias[rows, second])
    np.testing.assert_allclose(sums, expected, atol=1e-4)


@pytest.mark.parametrize("groupby", [None, "cell_type"])
def test_get_gene_importance_matches_the_table_times_mean_expression(query, groupby):
    model, x = trained(), log_expression(query)
    groups = model.predict(query, correct_shift=False) if groupby is None else truth(query)
    table = importance(query, groupby=groupby, n_genes=None)
    weight = model.module.evidence.weight.detach().numpy().astype(np.float64)
    weight = weight - weight.mean(axis=1, keepdims=True)
    means = {name: x[groups == name].mean(axis=0) for name in np.unique(groups)}
    for name, part in table.groupby("group"):
        part = part.set_index("gene").loc[query.var_names]
        own = weight[:, list(model.classes_).index(name)]
        others = np.mean([mean for other, mean in means.items() if other != name], axis=0)
        np.testing.assert_allclose(part["contribution"], own * means[name], atol=1e-5)
        np.testing.assert_allclose(part["elsewhere"], own * others, atol=1e-5)
        np.testing.assert_allclose(part["importance"], own * (means[name] - others), atol=1e-5)
        assert set(part["label"]) == {name}


def test_get_gene_importance_sums_to_the_difference_of_mean_logits(query):
    logits = expert_logits(trained(), query)[1] - biases(trained(), query)
    logits -= logits.mean(axis=1, keepdims=True)
    labels, table = truth(query), importance(query, groupby="cell_type", n_genes=None)
    for k, name in enumerate(trained().classes_):
        means = pd.Series(logits[:, k]).groupby(labels).mean()
        expected = means[name] - means.drop(name).mean()
        assert table[table["group"] == name]["importance"].sum() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("encoder", ["additive", "latent"])
def test_contributions_match_finite_differences(query, encoder):
    """Of the latents only the sum reads expression, so there the attention is switched off."""
    model = trained() if encoder == "additive" else fit(cells(), network={"encoder": encoder})
    if encoder == "latent":
        with torch.no_grad():
            model.module.encoder.gate.zero_()
    network, tokens = model.module.double(), tokens_of(model, query[:4])
    tokens = tokens._replace(expression=tokens.expression.double())
    target = torch.eye(4, dtype=torch.float64)
    try:
        (actual,) = contributions(network, tokens, [target], "gradient")
        step, expected = 1e-5, torch.zeros_like(actual)
        for t in range(5):
            logits = []
            for sign in (1, -1):
                moved = tokens.expression.clone()
                moved[:, t] *= 1 + sign * step
                with torch.no_grad():
                    z = network(*tokens._replace(expression=moved)).logits
                logits.append((z * target).sum(1))
            expected[:, t] = (logits[0] - logits[1]) / (2 * step)
    finally:
        network.float()
    # the network returns float32 logits
    torch.testing.assert_close(actual[:, :5], expected[:, :5], rtol=2e-2, atol=2e-2)


def test_get_gene_importance_by_gradient_sums_to_the_evidence_share(query):
    """Its norm undoes a common factor, so what is left of the sum is the evidence's share."""
    options = {"per_cell": True, "n_genes": None}
    full, linear = (
        importance(query, method=method, **options).groupby("group", sort=False)["importance"].sum()
        for method in ("gradient", "evidence")
    )
    share = 1 - trained().module.encoder_share
    np.testing.assert_allclose(full, linear * share, atol=1e-3)


@pytest.mark.parametrize(
    "network",
    [
        {"encoder": "latent", "head": "vgg"},
        {"encoder": "transformer"},
        {"evidence": False},
    ],
)
def test_get_gene_importance_by_gradient_of_every_network(query, network):
    model = fit(cells(), network=network, max_epochs=1)
    table = model.get_gene_importance(query, method="gradient", n_genes=None)
    assert np.isfinite(table["importance"]).all()
    assert (table["importance"] != 0).mean() > 0.5
    if not network.get("evidence", True):
        with pytest.raises(ValueError, match="no evidence table; pass method='gradient'"):
            model.get_gene_importance(query)


@pytest.mark.parametrize("method", METHODS)
def test_get_gene_importance_with_other_genes_order_and_values(query, method, rng):
    options = {"method": method, "groupby": "cell_type", "n_genes": None}
    full = importance(query, **options).set_index(["group", "gene"])["importance"]
    shuffled = query[:, rng.permutation(query.n_vars)].copy()
    log = query.copy()
    log.X = sparse.csr_matrix(log_expression(query).astype(np.float32))
    for other, more in ((shuffled, {}), (log, {}), (query, {"batch_size": 7})):
        again = importance(other, **options, **more).set_index(["group", "gene"])["importance"]
        np.testing.assert_allclose(again.loc[full.index], full, atol=1e-4)
    trained()._reported.clear()  # a report is made once
    with pytest.warns(UserWarning, match="75 of the model's 80 genes"):
        part = importance(query[:, 5:].copy(), **options).set_index(["group", "gene"])
    for name in query.var_names[:5]:
        assert (part["importance"].xs(name, level="gene") == 0).all()


def test_get_gene_importance_undoes_the_shift(query, monkeypatch):
    factors = np.linspace(0.5, 2, query.n_vars)
    monkeypatch.setattr("celler.model._forward.shift_factors", lambda *_: factors)
    table = trained().get_gene_importance(query, groupby="cell_type", n_genes=None)
    shifted = query.copy()
    shifted.X = query.X @ sparse.diags_array(factors)
    shifted.X = sparse.csr_matrix(log_expression(shifted).astype(np.float32))
    expected = importance(shifted, groupby="cell_type", n_genes=None)
    keys = ["group", "gene"]
    pd.testing.assert_frame_equal(
        table.sort_values(keys, ignore_index=True),
        expected.sort_values(keys, ignore_index=True),
        atol=1e-4,
    )


@pytest.mark.parametrize("method", METHODS)
def test_get_gene_importance_lists_expressed_genes(query, method):
    table = importance(query, groupby="cell_type", n_genes=6, method=method)
    assert (table["importance"] > 0).all()
    assert (table["contribution"] > 0).all()
    assert (table.groupby("group").size() <= 6).all()
    for _, part in table.groupby("group"):
        assert part["importance"].is_monotonic_decreasing
    # as rank_markers has them
    markers = cl.tl.rank_markers(query, "cell_type", 6)
    assert list(table.columns[:2]) == list(markers.columns[:2]) == ["group", "gene"]
    assert list(dict.fromkeys(table["group"])) == list(dict.fromkeys(markers["group"]))
    shared = {
        name: set(part["gene"]) & set(markers[markers["group"] == name]["gene"])
        for name, part in table.groupby("group")
    }
    assert all(len(genes) >= 2 for genes in shared.values()), shared


def test_get_gene_importance_gives_markers_of_a_plot(query):
    before = snapshot(query)
    figure = cl.pl.marker_bubble(
        query, importance(query, groupby="cell_type", n_genes=2), groupby="cell_type",
        return_fig=True, show=False,
    )  # fmt: skip
    assert figure is not None
    assert_unchanged(query, before)


def test_get_gene_importance_of_groups_that_are_no_classes(query):
    query.obs["cluster"] = pd.Series(truth(query), index=query.obs_names).map(
        {name: f"cluster {k}" for k, name in enumerate(trained().classes_)}
    )
    query.obs.loc[query.obs_names[0], "cluster"] = None
    table = importance(query, groupby="cluster")
    named = table.drop_duplicates("group").set_index("group")["label"]
    assert named.to_dict() == {f"cluster {k}": name for k, name in enumerate(trained().classes_)}


def test_get_gene_importance_of_cells_without_counts(query):
    query.X = sparse.vstack([sparse.csr_matrix((1, query.n_vars)), query.X[1:]], format="csr")
    with pytest.warns(UserWarning, match="no counts"):
        table = importance(query, per_cell=True, indices=[0, 1])
    assert set(table["group"]) == {query.obs_names[1]}
    with pytest.raises(ValueError, match="no cell has counts"):
        importance(query, per_cell=True, indices=[0])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "shap"}, ValueError, "method='shap' was given"),
        ({"n_genes": 0}, ValueError, "n_genes=0"),
        ({"groupby": "celltype"}, KeyError, "Closest: 'cell_type'"),
        ({"groupby": "cell_type", "per_cell": True}, ValueError, "leave out groupby"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
    ],
)
def test_get_gene_importance_with_bad_options(query, options, error, words):
    with pytest.raises(error, match=words):
        importance(query, **options)


def test_get_gene_importance_before_training(query):
    cl.model.Celler.setup_anndata(query, labels_key="cell_type")
    with pytest.raises(RuntimeError, match="not trained"):
        cl.model.Celler(query).get_gene_importance()
