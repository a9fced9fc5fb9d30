"""pretrain of a loaded model: the AnnData given to load is matched by gene name."""

import warnings

import numpy as np
import pytest
from toy import cells, pretrained

from celler.model import Celler


@pytest.mark.parametrize("kept", [slice(None), slice(20)], ids=["all genes", "some genes"])
def test_pretrain_after_load_matches_genes_by_name(kept, tmp_path):
    """The same cells with their genes in another order teach the same."""
    pretrained(max_epochs=1).save(tmp_path)
    adata = cells(seed=5)[:, kept].copy()
    embeddings = []
    for query in (adata, adata[:, ::-1].copy()):
        model = Celler.load(tmp_path, query)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "20 of the model's 80 genes")
            model.pretrain(1, batch_size=64, show_progress=False)
        embeddings.append(model.get_latent_representation(cells(40, seed=6)))
    np.testing.assert_allclose(*embeddings, atol=1e-5)
