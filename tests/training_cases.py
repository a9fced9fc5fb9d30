"""Minibatches and small networks to train in tests."""

import numpy as np
import torch
from torch.utils.data import DataLoader

from celler.data._loader import Minibatch
from celler.data._tokenizer import Tokenizer
from celler.datasets import toy_long_tail
from celler.network._config import NetworkConfig
from celler.network._network import build_network
from celler.training._plan import TrainingConfig

N_GENES, N_CLASSES = 40, 4


def toy_minibatches():
    """Minibatches of 80 cells of four types, 240 for training and 160 for validation, and class counts."""
    adata = toy_long_tail(400, N_GENES, N_CLASSES, imbalance=4, seed=0)
    labels = adata.obs["cell_type"].cat.codes.to_numpy().astype(np.int64)
    minibatches = []
    for start in range(0, 400, 80):
        tokens = Tokenizer()(adata.X[start : start + 80], np.arange(N_GENES, dtype=np.int32))
        index = torch.arange(start, start + 80)
        minibatches.append(Minibatch(tokens, torch.as_tensor(labels)[index], index))
    return loader(minibatches[:3]), loader(minibatches[3:]), np.bincount(labels[:240])


def loader(minibatches) -> DataLoader:
    """A plain list would mean several loaders to Lightning."""
    return DataLoader(minibatches, batch_size=None)


def network(seed=0, **options):
    sizes = {"n_genes": N_GENES, "n_classes": N_CLASSES, "d_model": 8, "n_heads": 2, "n_latents": 2}
    return build_network(NetworkConfig(**sizes | options), seed)


def config(**options) -> TrainingConfig:
    return TrainingConfig(**{"max_epochs": 3, "batch_size": 80, "show_progress": False} | options)
