"""Setup with genes=: a model of a panel is the model of a reference that was cut to it."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy import assert_close, cells, fit

from celler.model import Celler

PANEL = [f"gene {i}" for i in range(5, 55)]


def test_setup_anndata_with_genes_is_the_cut_reference():
    reference, query = cells(200, depth=0.6), cells(80, depth=0.6, seed=1)[:, PANEL].copy()
    cut = fit(reference[:, PANEL].copy())
    whole = fit(reference, {"genes": pd.Index([*PANEL[::-1], PANEL[0]])})
    assert list(whole.genes_.index) == list(cut.genes_.index) == PANEL
    assert_close(whole.predict(query, soft=True), cut.predict(query, soft=True))
    assert reference.n_vars == 80
    np.testing.assert_array_equal(reference.var["_celler_genes"], np.isin(reference.var_names, PANEL))
    assert len(whole.predict()) == 200


def test_setup_anndata_with_genes_again_without():
    reference = cells(100, depth=0.6)
    of_panel = fit(reference, {"genes": PANEL}, max_epochs=1)
    of_all = fit(reference, max_epochs=1)
    assert "_celler_genes" not in reference.var
    assert (len(of_panel.genes_), len(of_all.genes_)) == (50, 80)


def test_setup_anndata_with_genes_of_a_saved_model(tmp_path):
    model = fit(cells(100, depth=0.6), {"genes": PANEL}, max_epochs=1)
    model.save(tmp_path / "model")
    query = cells(30, depth=0.6, seed=1)
    np.testing.assert_array_equal(Celler.load(tmp_path / "model").predict(query), model.predict(query))


def test_setup_anndata_with_genes_that_are_not_there():
    reference = cells(100)
    with pytest.warns(UserWarning, match=r"50 of the 52 names in genes= .* Not found: BLANK-1, NegControl 2\."):
        Celler.setup_anndata(reference, "cell_type", genes=[*PANEL, "BLANK-1", "NegControl 2"])
    assert reference.var["_celler_genes"].sum() == 50
    before = reference.var.copy()
    with pytest.raises(ValueError, match="genes= and the genes of adata hardly meet: only 1 of the"):
        Celler.setup_anndata(reference, "cell_type", genes=["gene 1", *(f"other {i}" for i in range(20))])
    with pytest.raises(ValueError, match="genes= has 1 name, of which 1 is in adata; two are needed"):
        Celler.setup_anndata(reference, "cell_type", genes=["gene 1"])
    with pytest.raises(TypeError, match="a list of at least one text is needed"):
        Celler.setup_anndata(reference, "cell_type", genes="gene 1")
    pd.testing.assert_frame_equal(reference.var, before)


def test_train_leaves_out_cells_without_the_genes():
    reference = cells(100, depth=0.6)
    X = reference.X.toarray()
    X[:4, :60], X[:4, 60:] = 0, 1
    reference.X = sparse.csr_matrix(X)
    with pytest.warns(UserWarning, match="4 labelled cells express none of the model's genes; they are not trained on"):
        model = fit(reference, {"genes": PANEL}, max_epochs=1)
    assert model.class_counts_.sum() == 96 - len(model.validation_indices)
    X[(reference.obs["cell_type"] == "type 3").to_numpy(), :60] = 0
    X[:, 70] = 1
    reference.X = sparse.csr_matrix(X)
    with pytest.raises(ValueError, match="no cell of type 3 expresses one of the model's genes"):
        fit(reference, {"genes": PANEL}, max_epochs=1)


def test_celler_of_a_reference_whose_copy_was_set_up():
    reference = cells(100)
    Celler.setup_anndata(reference, "cell_type")
    part = reference[:50].copy()
    Celler.setup_anndata(part, "cell_type")
    assert part.uns["_scvi_uuid"] != reference.uns["_scvi_uuid"]
    assert (Celler(reference).adata is reference, Celler(part).adata is part) == (True, True)
    same = part.uns["_scvi_uuid"]
    Celler.setup_anndata(part, "cell_type")
    assert part.uns["_scvi_uuid"] == same
