"""A pretrained model: its encoder in a model with other genes, and what it expects of genes."""

import numpy as np
import pytest
from toy import SMALL, cells, fit, pretrained, truth

from celler.model import Celler

# ---- an encoder for other genes ----


@pytest.mark.parametrize("encoder", ["additive", "latent", "transformer"])
def test_the_encoder_goes_to_a_model_with_the_genes_in_another_order(encoder, tmp_path):
    network = {"encoder": encoder}
    model, reference = pretrained(network=network, max_epochs=1), cells(seed=5)[:, ::-1].copy()
    model.save(tmp_path)
    query = cells(30, seed=2)
    expected = model.get_latent_representation(query)
    Celler.setup_anndata(reference, "cell_type")
    for source in (model, tmp_path):
        other = Celler(reference, **(SMALL | network))
        other.load_encoder(source)
        embedding = other.get_latent_representation(query)
        np.testing.assert_allclose(embedding, expected, atol=1e-5)
    other.train(max_epochs=1, learning_rate=1e-12, refit=False, show_progress=False)
    embedding = other.get_latent_representation(query, correct_shift=False)
    np.testing.assert_allclose(embedding, expected, atol=1e-5)


def test_new_genes_start_fresh_and_are_reported():
    model, reference = pretrained(max_epochs=1), cells(seed=5)
    reference.var_names = [
        f"new {name}" if i < 8 else name for i, name in enumerate(reference.var_names)
    ]
    Celler.setup_anndata(reference, "cell_type")
    other = Celler(reference, **SMALL)
    with pytest.warns(UserWarning, match="72 of the model's 80 genes.*other 8 start fresh.*'new "):
        other.load_encoder(model)
    old, new = (m.module.encoder.gene.detach().numpy() for m in (model, other))
    np.testing.assert_array_equal(new[8:], old[8:])
    assert not np.isclose(new[:8], old[:8]).all(axis=1).any()
    expected = model.predict_expression(cells(20, seed=2), list(reference.var_names[8:]))
    assert expected.shape == (20, 72)


def test_encoders_that_do_not_fit():
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(ValueError, match="a Celler that was pretrained"):
        Celler(adata, **SMALL).load_encoder(Celler(adata, **SMALL))
    with pytest.raises(ValueError, match=r"d_model=16, this one 32.*Celler\(adata, d_model=16\)"):
        Celler(adata, d_model=32).load_encoder(pretrained(max_epochs=1))
    strangers = cells()
    strangers.var_names = [f"x{i}" for i in range(80)]
    Celler.setup_anndata(strangers, "cell_type")
    with pytest.raises(ValueError, match="20 %|20%"):
        Celler(strangers, **SMALL).load_encoder(pretrained(max_epochs=1))
    with pytest.raises(RuntimeError, match="pretrain first"):
        fit(cells(), max_epochs=1).load_encoder(pretrained(max_epochs=1))


def test_repr_says_what_to_do_next():
    assert repr(pretrained(max_epochs=1)).splitlines()[-1].split()[1] == "Celler(labelled"
    with_labels = repr(pretrained(setup={"labels_key": "cell_type"}, max_epochs=1))
    assert "300, labels not needed" in with_labels
    assert with_labels.splitlines()[-1].split()[1] == "model.train()"


# ---- expression ----


def test_expected_expression_follows_the_type():
    model = pretrained(cells(800, depth=1.0), max_epochs=40)
    query = cells(300, depth=1.0, seed=4)
    expected = model.predict_expression(query)
    assert expected.shape == query.shape
    assert (expected.to_numpy() >= 0).all()
    total = np.asarray(query.X.sum(axis=1)).reshape(-1, 1)
    observed = np.log1p(query.X.toarray() / total * 1e4)
    types = truth(query)
    means = {name: observed[types == name].mean(axis=0) for name in np.unique(types)}
    overall, expected_overall = observed.mean(axis=0), expected.to_numpy().mean(axis=0)
    for name, mean in means.items():
        estimate = expected.to_numpy()[types == name].mean(axis=0)
        np.testing.assert_allclose(estimate.mean(), mean.mean(), rtol=0.2)
        assert np.corrcoef(estimate - expected_overall, mean - overall)[0, 1] > 0.5


def test_a_gene_that_the_query_lacks_is_imputed_and_one_the_model_lacks_is_not():
    model = pretrained(cells(800), max_epochs=10)
    query = cells(100, seed=4)
    gene = query.var_names[int(np.asarray(query.X.sum(axis=0)).argmax())]
    without = query[:, query.var_names != gene].copy()
    with pytest.warns(UserWarning, match="79 of the model's 80 genes"):
        estimate = model.predict_expression(without, gene)
    assert list(estimate.columns) == [gene]
    assert (estimate > 0).all(axis=None)
    renamed = query.copy()
    renamed.var_names = ["of nobody", *query.var_names[1:]]
    with pytest.warns(UserWarning, match="1 extra"):
        model.impute(renamed, layer_added="imputed")
    assert np.isnan(renamed.layers["imputed"][:, 0]).all()
    np.testing.assert_array_equal(
        renamed.layers["imputed"][:, 1:], model.predict_expression(renamed).to_numpy()[:, 1:]
    )


def test_genes_that_are_not_there_and_encoders_that_cannot():
    model = pretrained()
    with pytest.raises(KeyError, match="genes names 'gene_7x'.*Closest"):
        model.predict_expression(cells(), ["gene_7x"])
    model = pretrained(network={"encoder": "transformer"}, max_epochs=1)
    with pytest.raises(ValueError, match="Choose another encoder"):
        model.predict_expression(cells())
