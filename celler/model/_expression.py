"""Methods of :class:`celler.model.Celler` that say what a pretrained model expects of genes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from celler._utils._devices import autocast
from celler._utils._messages import closest
from celler.data._query import rows_of, token_passes
from celler.data._tokenizer import TokenBatch
from celler.model._forward import align_query
from celler.model._pretrain import batch_names, known_key
from celler.network._heads import context_of

if TYPE_CHECKING:
    from celler.model._celler import Celler

#: Genes times cells that are decoded at once.
VALUES_PER_PASS = 2**18


def predict_expression(
    self: Celler,
    adata: AnnData | None = None,
    genes: str | list[str] | None = None,
    indices: np.ndarray | list[int] | None = None,
) -> pd.DataFrame:
    """Expected expression of genes, ``log1p`` of counts per 10,000, as the pretrained model sees the cell.

    The probability that the gene is there times the value it would then have, a quantile of the cell's own
    values. It is a denoised estimate from the cell's type and state and holds no measurement: good for
    looking at genes that a query lacks, or where dropout hides a marker, and not for tests between groups.

    adata, indices: as in :meth:`predict`. genes: names among the model's; ``None`` is all.

    Returns a DataFrame, cells x genes. Raises ``RuntimeError`` before :meth:`pretrain`.
    """
    if self._pretrained is None:
        raise RuntimeError(
            "this Celler was not pretrained, and the decoder that predicts genes is learned there; call "
            "pretrain() before train()."
        )
    if self.module.config.encoder == "transformer":
        raise ValueError(
            "predict_expression asks the cell embedding, which encoder='transformer' does not learn to "
            "answer: it predicts hidden values from the outputs of their own tokens. Take another encoder."
        )
    adata = self.adata if adata is None else adata
    if adata is None:
        raise ValueError("this model was loaded without an AnnData; pass the cells.")
    index = rows_of(adata, indices)
    names = self._genes.names
    genes = [genes] if isinstance(genes, str) else genes
    asked = np.arange(len(names)) if genes is None else gene_positions(genes, names)
    values = np.empty((len(index), len(asked)), np.float32)
    for rows, part in decoded(self, adata, index, torch.from_numpy(asked)):
        values[rows] = part
    return pd.DataFrame(values, index=adata.obs_names[index], columns=list(names[asked]))


def impute(self: Celler, adata: AnnData | None = None, layer_added: str = "celler_imputed") -> None:
    """Write :meth:`predict_expression` of the genes of ``adata`` to a dense layer; NaN where the model lacks one."""
    adata = self.adata if adata is None else adata
    estimate = predict_expression(self, adata)
    alignment, _share = self._genes.align(adata)
    layer = np.full(adata.shape, np.nan, np.float32)
    is_known = alignment.gene_map >= 0
    layer[:, is_known] = estimate.to_numpy()[:, alignment.gene_map[is_known]]
    adata.layers[layer_added] = layer


def gene_positions(genes: list[str], names: pd.Index) -> np.ndarray:
    """Position of each gene among the model's ``names``, or a KeyError that names the closest."""
    position = names.get_indexer(pd.Index(genes))
    for gene in np.array(genes, dtype=object)[position < 0][:1]:
        raise KeyError(
            f"genes names {gene!r}, which the model does not know.{closest(str(gene), names)}"
        )
    return position


@torch.inference_mode()
def decoded(
    self: Celler, adata: AnnData, index: np.ndarray, asked: Tensor
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions in ``index`` and the expected expression ``(n, M)`` of the genes ``asked (M,)``."""
    query = align_query(self, adata)
    pretrained, device = self._pretrained, self.module.device
    assert pretrained is not None
    decoder = pretrained.decoder.to(device).eval()
    names = batch_names(adata, known_key(self, adata))
    batch = pd.Index(pretrained.batches).get_indexer(pd.Index(names)).astype(np.int64)
    self.module.eval()
    passes = token_passes(
        self._tokenizer,
        query,
        index,
        batch_size=max(1, VALUES_PER_PASS // max(1, len(asked))),
    )
    for rows, tokens in passes:
        tokens = TokenBatch(*(part.to(device) for part in tokens))
        with autocast(device, self._precision):
            embedding = self.module.encoder(
                tokens.gene_ids.long(), tokens.values.long(), *tokens[2:]
            )
            value, presence = decoder(
                embedding,
                context_of(tokens.values, ~tokens.padding_mask, self._tokenizer.n_bins),
                torch.from_numpy(batch[index[rows]]).to(device),
                asked.to(device).expand(len(rows), -1),
            )
        # Pretraining shows as many absent genes as hidden ones; the odds are those among all genes.
        n_tokens = (~tokens.padding_mask).sum(1, keepdim=True)
        odds = (n_tokens.clamp(min=1) / query.alignment.n_matched).log()
        is_there = (presence.float() + odds).sigmoid()
        expected = is_there * at_quantile(tokens, value.float())
        yield rows, expected.cpu().numpy()


def at_quantile(tokens: TokenBatch, share: Tensor) -> Tensor:
    """``(B, M)``: the value that the share ``(B, M)`` of a cell's expressed genes lies below; 0 without any."""
    n_tokens = (~tokens.padding_mask).sum(1, keepdim=True)
    highest = tokens.expression.max(1, keepdim=True).values
    ordered = torch.where(tokens.padding_mask, highest, tokens.expression).sort(1).values
    last = (n_tokens - 1).clamp(min=0)
    position = (share * n_tokens - 1).clamp(min=0).minimum(last)
    below = position.floor().long()
    above = (below + 1).minimum(last)
    low, high = ordered.gather(1, below), ordered.gather(1, above)
    return low + (position - below) * (high - low)
