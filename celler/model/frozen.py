"""Pretrained encoders in training: their embedding is measured, and computed once where they are frozen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, distributed
from tqdm import tqdm

from celler.devices import autocast
from celler.mining import rank_and_size
from celler.network import GeneTransformer
from celler.running import has_bars

if TYPE_CHECKING:
    from celler.model.loaders import Loaders

#: Cells in which the embedding of a pretrained encoder is measured.
MEASURED_CELLS = 256


def prepared(network: GeneTransformer, loaders: Loaders, rows: np.ndarray) -> Loaders:
    """The loaders, with the embedding of the cells ``rows`` where the encoder is frozen.

    A pretrained encoder's embedding is measured once, for the head to be given it standardized.
    """
    if network.standardize is None:
        return loaders
    is_frozen = not any(weights.requires_grad for weights in network.encoder.parameters())
    if not is_frozen:
        rng = np.random.default_rng(loaders.config.seed)
        rows = np.sort(rng.permutation(rows)[:MEASURED_CELLS])
    if is_frozen or not network.standardize.is_measured:
        embedding = embed(network, loaders, rows)
    if not network.standardize.is_measured:
        network.standardize.measure(embedding[rows])
    return replace(loaders, embedding=embedding) if is_frozen else loaders


@torch.no_grad()
def embed(network: GeneTransformer, loaders: Loaders, rows: np.ndarray) -> Tensor:
    """Embedding ``(n_cells, D)`` of the cells ``rows`` of the source, zeros elsewhere.

    Processes that are connected already share the cells; all get the embedding of all.
    """
    config = loaders.config
    embedding = torch.zeros(len(loaders.source), network.config.d_model)
    network.to(config.device).eval()
    minibatches = loaders.ordered(rows)
    for minibatch in tqdm(minibatches, "Embedding", disable=not has_bars(config)):
        with autocast(config.device, config.precision):
            output = network(*(part.to(config.device) for part in minibatch.tokens))
        embedding[minibatch.source_index] = output.embedding.float().cpu()
    if rank_and_size()[1] == 1:
        return embedding
    embedding = embedding.to(config.device)
    distributed.all_reduce(embedding)
    return embedding.cpu()
