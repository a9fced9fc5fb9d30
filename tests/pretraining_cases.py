"""What tests of masked genes and of few labels share."""

import numpy as np
import torch

from celler.data._tokenizer import Tokenizer
from celler.training._masking import hide

N_GENES, N_BINS = 30, 11
BRIEF = {"max_epochs": 2, "batch_size": 64, "show_progress": False}


def few(adata, n=5):
    """``adata`` with a column in which all but ``n`` cells of each type have no label."""
    labels = adata.obs["cell_type"].astype(object)
    adata.obs["few"] = labels.where(labels.index.isin(labels.groupby(labels).head(n).index), None)
    return adata


def tokens_of(counts):
    return Tokenizer(N_BINS)(counts, np.arange(N_GENES, dtype=np.int32))


def hidden(counts, seed=0, mask_ratio=0.3, keep_genes=False):
    """Tokens of ``counts`` before and after genes were hidden."""
    tokens = tokens_of(counts)
    options = {"mask_ratio": mask_ratio, "n_genes": N_GENES, "n_bins": N_BINS}
    generator = torch.Generator().manual_seed(seed)
    batch = torch.full((len(tokens.gene_ids),), -1)
    return tokens, hide(tokens, batch, **options, keep_genes=keep_genes, generator=generator)
