"""The traps that queries fall into with scANVI and other tools, one test each, by the public API alone."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, special
from toy import (
    assert_close,
    assert_equal_frames,
    assert_unchanged,
    celler_warning,
    cells,
    fit,
    snapshot,
    truth,
)

import celler as cl


@pytest.fixture(scope="module")
def model() -> cl.model.Celler:
    return fit(cells(), {"batch_key": "donor"})


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


def soft(model, query):
    return model.predict(query, soft=True)


# ---- the query ----


def test_key_error_without_a_label_column(model, query):
    expected = soft(model, query)
    bare = ad.AnnData(query.X, obs=pd.DataFrame(index=query.obs_names), var=query.var)
    assert_equal_frames(soft(model, bare), expected)


def test_value_error_for_a_new_label(model, query):
    expected = soft(model, query)
    query.obs["cell_type"] = "a type the reference lacks"
    assert_equal_frames(soft(model, query), expected)


def test_value_error_for_a_new_batch(model, query):
    expected = soft(model, query)
    query.obs["donor"] = pd.Categorical(["a new donor"] * 60)
    assert_equal_frames(soft(model, query), expected)


def test_value_error_for_missing_genes(query):
    """They are masked, so a query without them is told from one in which they are zero."""
    fewer = query[:, :40].copy()
    zero = query.copy()
    zero.X = sparse.csr_matrix(query.X.toarray() * (np.arange(80) < 40))
    model = fit(cells())
    with pytest.warns(UserWarning, match="40 of the model's 80 genes .* 40 are missing"):
        masked = soft(model, fewer)
    assert np.abs(masked - soft(model, zero)).max(axis=None) > 0.01
    assert_close(soft(model, fewer), masked)  # said once: again would be an error


def test_the_same_genes_in_another_order_silently_accepted(model, query, rng):
    expected = soft(model, query)
    shuffled = query[:, rng.permutation(80)].copy()
    assert_close(soft(model, shuffled), expected)
    renamed = query.copy()  # the same columns under permuted names are other genes
    renamed.var_names = query.var_names[rng.permutation(80)]
    assert np.abs(soft(model, renamed) - expected).max(axis=None) > 0.1


def test_extra_genes(model, query, rng):
    expected = soft(model, query)
    extra = ad.AnnData(
        rng.poisson(9.0, (60, 20)).astype(np.float32),
        obs=query.obs,
        var=pd.DataFrame(index=[f"other {i}" for i in range(20)]),
    )
    assert_close(soft(model, ad.concat([extra, query], axis=1, merge="same")), expected)


def test_writing_to_the_users_object(model, query):
    query.layers["counts"], query.raw = query.X.toarray(), query.copy()
    query.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(80)]
    query.obsm["X_pca"], query.uns["log1p"] = np.ones((60, 2)), {"base": None}
    before = snapshot(query)
    model.predict(query, threshold=0.5)
    soft(model, query)
    model.get_latent_representation(query)
    cl.pp.check_input(query)
    cl.pp.align_genes(query, model)
    assert_unchanged(query, before)


def test_registering_a_foreign_query(model, query):
    soft(model, query)
    kept = [*query.uns, *query.obs, *query.var, *query.layers, *query.obsm]
    assert not [key for key in kept if key is not None and key.startswith(("_scvi", "_celler"))]


def test_another_form_of_values_than_the_references(model, query):
    """A peer that is given log values for counts, or the reverse, answers without a word."""
    expected, counts = soft(model, query), query.X.toarray()
    per_10k = counts / counts.sum(axis=1, keepdims=True) * 1e4
    for values in (per_10k, np.log1p(per_10k), np.log2(1 + per_10k), np.log1p(counts)):
        query.X = sparse.csr_matrix(values)
        pd.testing.assert_frame_equal(soft(model, query), expected, atol=1e-3)


def test_scaled_values_silently_accepted(model, query):
    query.layers["counts"] = query.X
    query.X = query.X.toarray() - query.X.toarray().mean(axis=0)
    with pytest.raises(ValueError, match=r"scaled or centred.*pass layer='counts' \(counts\)"):
        model.predict(query)


def test_a_report_that_goes_down_with_an_error(query):
    """It is said once: where the values are refused, the next call still has to say it."""
    model, fewer = fit(cells()), query[:, :40].copy()
    scaled = fewer.copy()
    scaled.X = scaled.X.toarray() - 1
    with pytest.raises(ValueError, match="scaled or centred"):
        model.predict(scaled)
    with pytest.warns(UserWarning, match="40 of the model's 80 genes"):
        model.predict(fewer)


def test_binned_values_silently_accepted(query):
    X = query.X.toarray()
    ranks = np.array([np.searchsorted(np.unique(row[row > 0]), row) + 1 for row in X]) * (X > 0)
    query.X = (ranks * 50 // ranks.max(axis=1, keepdims=True)).astype(np.float32)
    with pytest.warns(
        UserWarning, match=r"adata\.X looks binned already .* is 50 in every"
    ) as said:
        fit(cells()).predict(query)
    assert celler_warning(said).filename == __file__
    with pytest.warns(UserWarning, match="looks binned already") as said:
        cl.model.Celler.setup_anndata(query, "cell_type")
    assert celler_warning(said).filename == __file__


def test_ensembl_ids_against_symbols(model, query):
    expected = soft(model, query)
    query.var["feature_name"] = pd.Categorical(query.var_names)
    query.var_names = [f"ENSG{i:011d}.4" for i in range(80)]
    with pytest.warns(UserWarning, match=r"names are those of adata\.var\['feature_name'\]"):
        assert_close(soft(model, query), expected)
    del query.var["feature_name"]
    message = r"only 0 of .*model has symbols .*query human Ensembl ids .*gene_key=.*mapping="
    with pytest.raises(ValueError, match=message):
        soft(model, query)


# ---- the reference's labels ----


def test_labels_that_are_nan(query):
    reference = cells()
    labels = reference.obs["cell_type"].astype(object)
    labels[::3] = np.nan
    reference.obs["cell_type"] = labels
    model = fit(reference)
    assert list(model.classes_) == sorted(set(truth(cells())))
    assert soft(model, query).notna().all(axis=None)
    assert soft(model, None).shape == (300, 4)


@pytest.mark.parametrize("dtype", [np.int64, "category", "Int64"])
def test_labels_that_are_integers(query, dtype):
    reference = cells()
    reference.obs["cell_type"] = reference.obs["cell_type"].str[5:].astype(np.int64).astype(dtype)
    model = fit(reference)
    assert list(model.classes_) == ["0", "1", "2", "3"]
    expected = fit(cells()).predict(query)
    np.testing.assert_array_equal(model.predict(query), [label[5:] for label in expected])


def test_categories_without_cells_are_not_classes(query):
    reference = cells()
    reference.obs["cell_type"] = reference.obs["cell_type"].cat.add_categories(["a", "unused"])
    model = fit(reference)
    assert list(model.classes_) == [f"type {j}" for j in range(4)]
    assert_equal_frames(soft(model, query), soft(fit(cells()), query))


def test_the_class_order_is_sorted_whatever_the_categories(query):
    reference = cells()
    reversed_ = reference.obs["cell_type"].cat.reorder_categories(
        [f"type {j}" for j in (3, 1, 0, 2)]
    )
    reference.obs["cell_type"] = reversed_
    assert_equal_frames(soft(fit(reference), query), soft(fit(cells()), query))


def test_the_unlabelled_category_is_not_a_class(query):
    reference = cells()
    labels = reference.obs["cell_type"].astype(str)
    labels[:30] = "?"
    reference.obs["cell_type"] = labels
    model = fit(reference, {"unlabeled_category": "?"})
    assert "?" not in model.classes_
    assert "?" not in soft(model, query).columns


def test_a_class_of_one_cell_is_never_the_logarithm_of_zero(query):
    reference = cells()
    labels = reference.obs["cell_type"].astype(str).to_numpy()
    labels[0] = "single"
    reference.obs["cell_type"] = labels
    with pytest.warns(UserWarning, match="fewer than 3 labelled cells"):
        model = fit(reference)
    assert np.isfinite(soft(model, query)).all(axis=None)
    assert np.isfinite(model.history["train_loss"]).all()


# ---- what comes back ----


def test_probabilities_are_probabilities_in_the_order_of_the_cells(model, query):
    probabilities = soft(model, query)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert list(probabilities.index) == list(query.obs_names)
    part = probabilities.iloc[[9, 3]]
    assert_close(model.predict(query, indices=[9, 3], soft=True), part)


def test_a_head_that_returns_probabilities_for_logits(model, query):
    seen = []
    hook = model.module.register_forward_hook(lambda *given: seen.append(given[-1].logits))
    rows = [soft(model, query[[i]]).to_numpy()[0] for i in range(20)]
    hook.remove()
    logits = torch.cat(seen).double().numpy()
    assert logits.shape == (20, 4)
    assert not np.allclose(logits.sum(axis=1), 1)
    # One softmax over one temperature: the log-odds are a multiple of the differences of logits.
    log_odds = np.log(rows) - np.log(rows).mean(axis=1, keepdims=True)
    logits -= logits.mean(axis=1, keepdims=True)
    inverse = (log_odds * logits).sum() / (logits**2).sum()
    np.testing.assert_allclose(special.softmax(inverse * logits, axis=1), rows, atol=1e-4)


def test_the_whole_matrix_made_dense(model, query, monkeypatch):
    def refuse(self, *args, **kwargs):
        pytest.fail("a matrix was made dense")

    for kind in (sparse.csr_matrix, sparse.csc_matrix):
        monkeypatch.setattr(kind, "toarray", refuse)
        monkeypatch.setattr(kind, "todense", refuse)
    query.X = query.X.tocsc()
    assert soft(model, query).shape == (60, 4)
    assert cl.pp.check_input(query).kind == "counts"
    assert cl.pp.align_genes(query, model)[0].shape == query.shape


# ---- training, and what a model keeps ----


def test_bfloat16_with_clipping_beside_a_fused_optimizer(query):
    model = fit(cells(), network={"precision": "bfloat16"})
    assert np.isfinite(model.history["train_loss"]).all()
    assert np.mean(model.predict(query) == truth(query)) > 0.8


def test_validation_only_if_asked_and_another_monitor(model):
    assert model.history["validation_macro_f1"].notna().all()
    assert "elbo_validation" not in model.history


def test_attributes_that_an_older_pandas_cannot_read(model):
    kept = {name: value for name, value in vars(model).items() if name.endswith("_")}
    assert {"init_params_", "is_trained_"} <= set(kept)
    for name, value in kept.items():
        plain = (str, bool, int, float, list, np.ndarray, dict, type(None))
        assert isinstance(value, plain), f"{name} is a {type(value).__name__}"


def test_layers_that_yield_none(model, query):
    expected = soft(model, query)
    query.layers["counts"] = query.X.copy()
    assert_equal_frames(soft(model, query), expected)
    assert set(cl.pp.check_input(query).elsewhere) == {"layer='counts'"}


def test_an_unknown_gene_and_an_empty_group_in_a_plot(query):
    groups = query.obs["cell_type"].astype("category").cat.add_categories(["empty"])
    query.obs["cell_type"] = groups
    genes = [*query.var_names[:2], "no such gene"]
    with pytest.warns(UserWarning, match="no such gene"):
        axes = cl.pl.marker_bubble(query, genes, groupby="cell_type", show=False)
    assert axes
