"""Transfer: encoders of other models, Celler's own by gene name, and scGPT checkpoints."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor, nn

from celler._utils._devices import choose_device
from celler._utils._messages import agreed, similar, warn
from celler.data._expression import ExpressionReader
from celler.data._genes import align_genes
from celler.data._query import Genes
from celler.model._base import NAME
from celler.model._folder import CONFIG, holds_model
from celler.model._hub import is_address
from celler.model._pretrain import require_untrained
from celler.model._setup import align_to_vocabulary, registry_without_data
from celler.model._state import ModelState, ScGPTOrigin
from celler.network._config import NetworkConfig
from celler.network._heads import GeneDecoder
from celler.network._network import build_network
from celler.network._scgpt import ARGS, VOCABULARY, WEIGHTS, ScGPTCheckpoint, is_scgpt_folder

#: Sizes of a checkpoint that are arguments of the model.
SIZES = ("d_model", "n_heads", "n_layers", "n_bins", "dropout_rate")
#: Parameters with a row for each gene; all others are copied whole.
BY_GENE = ("gene", "gene_bias", "score")
#: Sizes that two models may differ in: the encoder does not depend on them.
FREE_SIZES = ("n_genes", "n_classes", "head", "d_sum", "dropout_rate", "use_evidence")


@dataclass(frozen=True)
class ScGPTOptions:
    """Options of :meth:`celler.model.Celler.from_pretrained` for an scGPT folder; the defaults are its own."""

    freeze_encoder: bool = False
    evidence: bool = True
    head: Literal["mlp", "vgg"] = "mlp"
    max_genes: int = 1200
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def arguments(self, checkpoint: ScGPTCheckpoint, *, has_classes: bool) -> dict[str, Any]:
        """Arguments of the class for a model of the checkpoint."""
        return {name: checkpoint.sizes[name] for name in SIZES} | {
            "encoder": "scgpt",
            "head": self.head,
            "evidence": self.evidence and has_classes,
            "max_genes": self.max_genes,
            "precision": self.precision,
        }


def is_scgpt(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is a folder of scGPT, rather than one of Celler or an address on a hub."""
    return not is_address(path) and is_scgpt_folder(Path(path))


def check_celler_folder(path: str | os.PathLike[str], options: ScGPTOptions) -> None:
    """Raise for a folder that is neither scGPT's nor Celler's, or for options that a saved Celler has already."""
    if not is_address(path) and not holds_model(Path(path)):
        if similar(path, [NAME], cutoff=0.8) and not Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist; the base that comes with Celler is {NAME!r}.")
        raise FileNotFoundError(
            f"{path} holds no model: there is no {CONFIG}, which model.save() writes. {scgpt_needs()}"
        )
    if options != ScGPTOptions():
        raise ValueError(
            f"{path} is no scGPT folder, and a saved Celler keeps the network it has; leave out freeze_encoder, "
            f"evidence, head, max_genes and precision. {scgpt_needs()}"
        )


def scgpt_needs() -> str:
    """Return the files of an scGPT folder, in words."""
    return f"An scGPT folder needs {ARGS}, {VOCABULARY} and {' or '.join(WEIGHTS)}."


def scgpt_registry(checkpoint: ScGPTCheckpoint, *, is_frozen: bool, is_vocabulary: bool) -> dict[str, Any]:
    """Return the registry that a model of the checkpoint is made from, with or without an AnnData."""
    sizes = {name: checkpoint.sizes[name] for name in ("d_feed", "pad_value")}
    origin = ScGPTOrigin(**sizes, is_frozen=is_frozen, is_vocabulary=is_vocabulary)
    names = "gene_names" if is_vocabulary else "vocabulary"
    described = {names: [str(name) for name in checkpoint.gene_names], "scgpt": asdict(origin)}
    return registry_without_data(described)


def with_checkpoint(
    state: ModelState, adata: AnnData | None, checkpoint: ScGPTCheckpoint, accelerator: str, precision: str
) -> ModelState:
    """Load the checkpoint's encoder; warn of genes of a registered AnnData that are not in its vocabulary."""
    genes = np.arange(len(checkpoint.gene_names))
    if adata is not None:
        alignment = align_to_vocabulary(adata, state.setup, checkpoint.gene_names)
        vocabulary = Genes(checkpoint.gene_names, np.zeros(len(genes)), is_vocabulary=True)
        report = vocabulary.report(alignment, 0.0, ExpressionReader(adata, state.setup.layer))
        if report is not None:
            warn(report)
        genes = alignment.gene_map[alignment.gene_map >= 0]
    state.network.encoder.load_state_dict(checkpoint.encoder_weights(genes))
    return state.on(choose_device(accelerator), precision)


def load_encoder(state: ModelState, other: ModelState) -> ModelState:
    """Start from the encoder of another pretrained model; see :meth:`celler.model.Celler.load_encoder`."""
    require_untrained(state)
    before = other.pretrained
    assert before is not None
    own = state.network.config
    _check_sizes(own, other.network.config)
    names = state.genes.names
    gene_map = align_genes(other.genes.names, names).gene_map
    is_known = np.isin(np.arange(len(names)), gene_map)
    # A base knows genes that the other model lacks.
    network = build_network(own, seed=0) if state.base is None else deepcopy(state.network)
    decoder = GeneDecoder(own, len(before.batches))
    copy_weights(other.network.encoder, network.encoder, gene_map)
    copy_weights(before.decoder, decoder, gene_map)
    if not is_known.all():
        missing = names[~is_known]
        warn(
            f"{int(is_known.sum()):,} of the model's {len(names):,} genes are known from pretraining; the other "
            f"{len(missing):,} {agreed(len(missing), 'start')} fresh (first: {missing[0]!r}). pretrain() would teach "
            f"{agreed(len(missing), 'them')} as well."
        )
    share = np.zeros(len(names))
    share[gene_map[gene_map >= 0]] = before.gene_share[gene_map >= 0]
    pretrained = replace(before, decoder=decoder.eval(), gene_share=share / share.sum())
    network = network.to(state.network.device).eval()
    return replace(state, network=network).with_pretrained(pretrained)


def _check_sizes(own: NetworkConfig, other: NetworkConfig) -> None:
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
    """Copy weights, those of genes into the rows ``gene_map (n_genes,)`` of ``target``, −1 for none."""
    kept = torch.from_numpy(np.flatnonzero(gene_map >= 0))
    rows = torch.from_numpy(gene_map[gene_map >= 0]).long()
    weights: dict[str, Tensor] = target.state_dict()
    for name, values in source.state_dict().items():
        if name in BY_GENE:
            weights[name][rows] = values[kept].cpu()
        else:
            weights[name].copy_(values)
