"""Training with few labels: which models and cells get neighbourhoods."""

import numpy as np
import torch
from pretraining_cases import few
from toy import SMALL, cells, pretrained

from celler.data._augmentation import mean_share
from celler.model import Celler
from celler.model import _few_labels as unlabelled
from celler.model._few_labels import with_neighbourhoods
from celler.model._train import _cells_in_memory
from celler.training._plan import TrainingConfig


def views_of(model):
    network = model.module
    before = {name: weights.clone() for name, weights in network.state_dict().items()}
    cells = with_neighbourhoods(
        model._state,
        _cells_in_memory(model._state, model._registered, 0),
        model._registered,
        TrainingConfig(1, 32),
    )
    for name, weights in network.state_dict().items():
        assert torch.equal(weights, before[name])
    assert not model.is_trained
    return cells.source.views


def test_with_neighbourhoods_of_pretrained_models(monkeypatch):
    adata = few(cells(60))
    setup = {"labels_key": "few"}
    views = views_of(pretrained(adata, setup=setup, max_epochs=1))
    is_labelled = adata.obs["few"].notna().to_numpy()
    np.testing.assert_array_equal((views.of_cell >= 0).all(axis=1), is_labelled)
    assert views.share == mean_share(is_labelled.sum(), 4)
    monkeypatch.setattr(unlabelled, "MAX_UNLABELLED", 12)
    fewer = views_of(pretrained(adata, setup=setup, max_epochs=1))
    np.testing.assert_array_equal((fewer.of_cell >= 0).all(axis=1), is_labelled)
    assert (fewer.X != views.X).nnz
    full = {"encoder": "transformer", "n_layers": 1}
    assert views_of(pretrained(adata, setup, full, max_epochs=1)) is None
    Celler.setup_anndata(adata, **setup)
    assert views_of(Celler(adata, **SMALL)) is None
    assert views_of(pretrained(cells(60), setup={"labels_key": "cell_type"}, max_epochs=1)) is None
