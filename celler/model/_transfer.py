"""Weights of others: a Celler or scGPT folder becomes a model that embeds cells, or can be fine-tuned."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from torch import Tensor, nn

from celler._utils._devices import choose_device, choose_precision
from celler._utils._messages import warn
from celler.data._expression import ExpressionReader
from celler.data._genes import align_genes
from celler.data._query import Genes
from celler.model._checkpoint import FILE_NAME
from celler.model._pretrain import adopt_pretrained, require_untrained
from celler.model._state import Pretrained
from celler.network._config import NetworkConfig
from celler.network._heads import GeneDecoder
from celler.network._network import build_network
from celler.network._scgpt import (
    ARGS,
    VOCABULARY,
    WEIGHTS,
    ScGPTCheckpoint,
    is_scgpt_folder,
    read_scgpt,
)

if TYPE_CHECKING:
    from celler.model._celler import Celler

#: What an AnnData that was never set up is read with.
NO_SETUP = {
    "labels_key": None, "unlabeled_category": "Unknown", "layer": None, "batch_key": None,
    "parent_labels_key": None, "gene_key": None,
}  # fmt: skip
#: Sizes that are arguments of the model.
SIZES = ("d_model", "n_heads", "n_layers", "n_bins", "dropout_rate")


def from_pretrained(
    cls: type[Celler],
    path: str | os.PathLike[str],
    adata: AnnData | None = None,
    *,
    freeze_encoder: bool = False,
    evidence: bool = True,
    head: Literal["mlp", "vgg"] = "mlp",
    max_genes: int = 1200,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    accelerator: str = "auto",
) -> Celler:
    """A model from a folder: one that :meth:`save` wrote, as :meth:`load`, or an scGPT checkpoint.

    An scGPT folder holds ``args.json``, ``vocab.json`` and ``best_model.pt`` or ``model.pt``. Tensors are
    all that is read of it; a file that holds anything else is refused.

    adata: registered with :meth:`setup_anndata`, to fine-tune on with :meth:`train`. Without it the
        model embeds cells, :meth:`get_latent_representation`, and knows no classes.
    freeze_encoder: train the head alone. The encoder then embeds each cell once before the training
        and not in every epoch. Otherwise it learns at a thirtieth of the learning rate.
    evidence, head, max_genes, precision: as for a new model, with what scGPT's own embedding takes as
        ``max_genes``; not for Celler folders, which have their own.
    accelerator: where to embed, as in :meth:`train`.

    Raises ``FileNotFoundError`` and ``ValueError`` for a folder or file that cannot be used. Genes
    outside the vocabulary are reported with a warning and not read.
    """
    path, options = Path(path), (freeze_encoder, evidence, head, max_genes, precision)
    if not is_scgpt_folder(path):
        has_options = options != (False, True, "mlp", 1200, "auto")
        return load_celler(cls, path, adata, accelerator, has_options=has_options)
    checkpoint = read_scgpt(path)
    genes, names = np.arange(len(checkpoint.gene_names)), checkpoint.gene_names
    if adata is not None:
        genes, names = genes_in_vocabulary(cls, adata, names)
    model = cls(
        adata,
        registry_of(checkpoint, names, is_frozen=freeze_encoder, is_vocabulary=adata is None),
        encoder="scgpt",
        head=head,
        evidence=evidence and adata is not None,
        max_genes=max_genes,
        precision=precision,
        **{name: checkpoint.sizes[name] for name in SIZES},
    )
    model.module.encoder.load_state_dict(checkpoint.encoder_weights(genes))
    device = choose_device(accelerator)
    model._precision = choose_precision(precision, device)
    model.module.to(device).eval()
    return model


def load_celler(
    cls: type[Celler], path: Path, adata: AnnData | None, accelerator: str, *, has_options: bool
) -> Celler:
    """:meth:`load`, with words for a folder that was meant to be scGPT's."""
    needed = f"An scGPT folder needs {ARGS}, {VOCABULARY} and {' or '.join(WEIGHTS)}."
    if not (path / FILE_NAME).is_file():
        raise FileNotFoundError(
            f"{path} holds no model: there is no {FILE_NAME}, which model.save() writes. {needed}"
        )
    if has_options:
        raise ValueError(
            f"{path} is no scGPT folder, and a saved Celler keeps the network it has; leave out freeze_encoder, "
            f"evidence, head, max_genes and precision. {needed}"
        )
    try:
        return cls.load(path, adata, accelerator)
    except ValueError as error:
        raise ValueError(f"{error} {needed}") from error


def registry_of(
    checkpoint: ScGPTCheckpoint, names: pd.Index, *, is_frozen: bool, is_vocabulary: bool
) -> dict[str, Any]:
    """What a model is built from beside an AnnData, or without one."""
    scgpt = {name: checkpoint.sizes[name] for name in ("d_feed", "pad_value")}
    scgpt |= {"is_frozen": is_frozen, "is_vocabulary": is_vocabulary}
    return {
        "model_name": "Celler",
        "setup_method_name": "setup_anndata",
        "scvi_version": scvi.__version__,
        "setup_args": NO_SETUP,
        "field_registries": {},
        "celler": {
            "gene_names": [str(name) for name in names],
            "scgpt": scgpt,
        },
    }


def genes_in_vocabulary(
    cls: type[Celler], adata: AnnData, vocabulary: pd.Index
) -> tuple[np.ndarray, pd.Index]:
    """Position in the vocabulary and name of each gene of a registered AnnData that is in it."""
    reference = cls(adata)
    reader = ExpressionReader(adata, reference._setup_args["layer"])
    genes = Genes(vocabulary, np.zeros(len(vocabulary)), is_vocabulary=True)
    names = reference._genes.names
    alignment = align_genes(names, vocabulary, adata.var, is_vocabulary=True)
    report = genes.report(alignment, 0.0, reader)
    if report is not None:
        warn(report)
    is_known = alignment.gene_map >= 0
    return alignment.gene_map[is_known], names[is_known]


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
