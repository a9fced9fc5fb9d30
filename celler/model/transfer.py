"""Transfer: the encoder of a pretrained model goes into another, gene by gene name."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from celler.door import warn
from celler.genes import align_genes
from celler.model.pretraining import Pretrained, adopt_pretrained, require_untrained
from celler.network import NetworkConfig, build_network
from celler.network.decoder import GeneDecoder

if TYPE_CHECKING:
    from celler.model.celler import Celler

#: Parameters with a row for each gene; all others are copied whole.
BY_GENE = ("gene", "gene_bias")
#: Sizes that two models may differ in: what they depend on is no part of the encoder.
FREE_SIZES = ("n_genes", "n_classes", "head", "dropout_rate", "use_evidence")


def load_encoder(self: Celler, pretrained: Celler | str | os.PathLike[str]) -> None:
    """Start from the encoder of another model that was pretrained, matched by gene name; then :meth:`train`.

    pretrained: a Celler after :meth:`pretrain`, or the folder that it was saved to. Genes that it
        does not know start fresh, and a warning says how many there are.

    Raises ``RuntimeError`` after :meth:`train`, and ``ValueError`` for a model that was not pretrained, has
    another encoder or other sizes, or shares under 20 % of this model's genes.
    """
    require_untrained(self)
    other = type(self).load(pretrained) if isinstance(pretrained, str | os.PathLike) else pretrained
    if not isinstance(other, type(self)) or other._pretrained is None:
        raise ValueError(
            f"{pretrained!r} was given; a Celler that was pretrained, or its folder, is needed."
        )
    check_sizes(self.module.config, other.module.config)
    names = self._genes.names
    gene_map = align_genes(other._genes.names, names).gene_map
    is_known = np.isin(np.arange(len(names)), gene_map)
    network = build_network(self.module.config, seed=0)
    decoder = GeneDecoder(self.module.config, len(other._pretrained.batches))
    copy_weights(other.module.encoder, network.encoder, gene_map)
    copy_weights(other._pretrained.decoder, decoder, gene_map)
    if not is_known.all():
        missing = names[~is_known]
        warn(
            f"{int(is_known.sum()):,} of the model's {len(names):,} genes are known from pretraining; the other "
            f"{len(missing):,} start fresh (first: {missing[0]!r}). pretrain() would teach them as well."
        )
    share = np.zeros(len(names))
    share[gene_map[gene_map >= 0]] = other._pretrained.gene_share[gene_map >= 0]
    self.module = network.to(self.device).eval()
    before = other._pretrained
    adopt_pretrained(
        self,
        Pretrained(
            decoder.eval(), before.batches, share / share.sum(), before.n_cells, before.history
        ),
    )


def check_sizes(own: NetworkConfig, other: NetworkConfig) -> None:
    """Raise ``ValueError`` where the encoders cannot have the same weights."""
    for field in fields(NetworkConfig):
        have, given = getattr(own, field.name), getattr(other, field.name)
        if field.name not in FREE_SIZES and have != given:
            raise ValueError(
                f"the pretrained model has {field.name}={given!r}, this one {have!r}; build it with "
                f"Celler(adata, {field.name}={given!r})."
            )


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module, gene_map: np.ndarray) -> None:
    """Weights of ``source`` into ``target``, those by gene into the rows ``gene_map (n_genes,)``, −1 for none."""
    kept = torch.from_numpy(np.flatnonzero(gene_map >= 0))
    rows = torch.from_numpy(gene_map[gene_map >= 0]).long()
    weights: dict[str, Tensor] = target.state_dict()
    for name, values in source.state_dict().items():
        if name in BY_GENE:
            weights[name][rows] = values[kept].cpu()
        else:
            weights[name].copy_(values)
