"""load_encoder: the encoder of a pretrained model in a model with other genes."""

import numpy as np
import pytest
from toy import SMALL, cells, fit, pretrained

from celler.model import Celler


@pytest.mark.parametrize("encoder", ["additive", "latent", "transformer"])
def test_load_encoder_with_genes_in_another_order(encoder, tmp_path):
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


def test_load_encoder_with_new_genes():
    model, reference = pretrained(max_epochs=1), cells(seed=5)
    reference.var_names = [f"new {name}" if i < 8 else name for i, name in enumerate(reference.var_names)]
    Celler.setup_anndata(reference, "cell_type")
    other = Celler(reference, **SMALL)
    with pytest.warns(UserWarning, match="72 of the model's 80 genes.*other 8 start fresh.*'new "):
        other.load_encoder(model)
    old, new = (m.module.encoder.gene.detach().numpy() for m in (model, other))
    np.testing.assert_array_equal(new[8:], old[8:])
    assert not np.isclose(new[:8], old[:8]).all(axis=1).any()
    expected = model.predict_expression(cells(20, seed=2), list(reference.var_names[8:]))
    assert expected.shape == (20, 72)


def test_load_encoder_that_does_not_fit():
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
