"""Expression: what a pretrained model expects of genes in each cell."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from celler._utils._devices import autocast
from celler._utils._messages import closest
from celler.data._query import token_passes
from celler.data._tokenizer import TokenBatch
from celler.model._predict import Cells
from celler.model._pretrain import batch_names, known_key
from celler.model._state import ModelState
from celler.network._heads import context_of

#: Genes times cells decoded in one pass.
VALUES_PER_PASS = 2**18


def check_decoder(state: ModelState) -> None:
    """Raise for a model that cannot predict genes from the cell embedding."""
    if state.names_atlases:
        raise RuntimeError(
            "this model names cells by public atlases and has no decoder that predicts genes; learn one from cells: "
            "model = Celler(adata), then model.pretrain()."
        )
    if state.pretrained is None:
        raise RuntimeError(
            "this Celler was not pretrained, and the decoder that predicts genes is learned there; call "
            "pretrain() before train()."
        )
    if state.network.config.encoder == "transformer":
        raise ValueError(
            "predict_expression decodes the cell embedding, which encoder='transformer' does not learn: it predicts "
            "hidden values from the outputs of their own tokens. Choose another encoder."
        )


def predict_expression(state: ModelState, cells: Cells, genes: str | list[str] | None) -> pd.DataFrame:
    """Predict the expression of genes; see :meth:`celler.model.Celler.predict_expression`."""
    index, names = cells.index, state.genes.names
    genes = [genes] if isinstance(genes, str) else genes
    wanted = np.arange(len(names)) if genes is None else gene_positions(genes, names)
    values = np.empty((len(index), len(wanted)), np.float32)
    for rows, part in decoded(state, cells, torch.from_numpy(wanted)):
        values[rows] = part
    obs_names = cells.adata.obs_names[index]
    return pd.DataFrame(values, index=obs_names, columns=list(names[wanted]))


def impute(state: ModelState, cells: Cells, layer_added: str) -> None:
    """Write the expected expression to a layer; see :meth:`celler.model.Celler.impute`."""
    adata: AnnData = cells.adata
    estimate = predict_expression(state, cells, None)
    alignment, _share = state.genes.align(adata)
    layer = np.full(adata.shape, np.nan, np.float32)
    is_known = alignment.gene_map >= 0
    layer[:, is_known] = estimate.to_numpy()[:, alignment.gene_map[is_known]]
    adata.layers[layer_added] = layer


def gene_positions(genes: list[str], names: pd.Index) -> np.ndarray:
    """Position of each gene among the model's ``names``, or a KeyError that names the closest."""
    position = names.get_indexer(pd.Index(genes))
    for gene in np.array(genes, dtype=object)[position < 0][:1]:
        raise KeyError(f"genes names {gene!r}, which the model does not know.{closest(str(gene), names)}")
    return position


@torch.inference_mode()
def decoded(state: ModelState, cells: Cells, wanted: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions in the cells' ``index`` and the expected expression ``(n, M)`` of the genes ``wanted (M,)``."""
    query, index = cells.align(state), cells.index
    pretrained, network = state.pretrained, state.network
    assert pretrained is not None
    device, decoder = network.device, pretrained.decoder.to(network.device).eval()
    names = batch_names(cells.adata, known_key(state, cells.adata))
    batch = pd.Index(pretrained.batches).get_indexer(pd.Index(names)).astype(np.int64)
    network.eval()
    batch_size = max(1, VALUES_PER_PASS // max(1, len(wanted)))
    passes = token_passes(state.tokenizer, query, index, batch_size=batch_size)
    for rows, tokens in passes:
        tokens = TokenBatch(*(part.to(device) for part in tokens))
        with autocast(device, state.precision):
            embedding = network.encoder(tokens.gene_ids.long(), tokens.values.long(), *tokens[2:])
            value, presence = decoder(
                embedding,
                context_of(tokens.values, ~tokens.padding_mask, state.tokenizer.n_bins),
                torch.from_numpy(batch[index[rows]]).to(device),
                wanted.to(device).expand(len(rows), -1),
            )
        # Pretraining shows as many absent genes as hidden ones; these odds are those among all genes.
        n_tokens = (~tokens.padding_mask).sum(1, keepdim=True)
        odds = (n_tokens.clamp(min=1) / query.alignment.n_matched).log()
        is_there = (presence.float() + odds).sigmoid()
        expected = is_there * at_quantile(tokens, value.float())
        yield rows, expected.cpu().numpy()


def at_quantile(tokens: TokenBatch, share: Tensor) -> Tensor:
    """Quantile ``share (B, M)`` of the expression of a cell's expressed genes ``(B, M)``; 0 without any."""
    n_tokens = (~tokens.padding_mask).sum(1, keepdim=True)
    highest = tokens.expression.max(1, keepdim=True).values
    ordered = torch.where(tokens.padding_mask, highest, tokens.expression).sort(1).values
    last = (n_tokens - 1).clamp(min=0)
    position = (share * n_tokens - 1).clamp(min=0).minimum(last)
    below = position.floor().long()
    above = (below + 1).minimum(last)
    low, high = ordered.gather(1, below), ordered.gather(1, above)
    return low + (position - below) * (high - low)
