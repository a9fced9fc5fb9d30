"""predict_expression and impute."""

import numpy as np
import pytest
from toy import cells, pretrained, truth


def test_predict_expression_follows_the_type():
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


def test_impute_with_missing_and_unknown_genes():
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
    np.testing.assert_array_equal(renamed.layers["imputed"][:, 1:], model.predict_expression(renamed).to_numpy()[:, 1:])


def test_predict_expression_with_bad_genes_or_encoder():
    model = pretrained()
    with pytest.raises(KeyError, match="genes names 'gene_7x'.*Closest"):
        model.predict_expression(cells(), ["gene_7x"])
    model = pretrained(network={"encoder": "transformer"}, max_epochs=1)
    with pytest.raises(ValueError, match="Choose another encoder"):
        model.predict_expression(cells())
