"""State: all that a model knows, as one frozen value that methods read and replace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from celler._utils._devices import choose_precision
from celler._utils._messages import counted
from celler.data._profile import Profile
from celler.data._query import Genes
from celler.data._tissues import TissueTypes
from celler.data._tokenizer import Tokenizer
from celler.inference._calibration import Decision
from celler.inference._novelty import Novelty
from celler.inference._open_set import OpenSet
from celler.labels._tree import LabelTree
from celler.model._base import BaseOrigin
from celler.network._config import NetworkConfig
from celler.network._heads import GeneDecoder
from celler.network._network import GeneTransformer
from celler.training._callbacks import kept_epoch
from celler.training._plan import Teacher

HARD_CELL_COLUMNS = ("cell", "label", "prediction", "confidence", "n_epochs", "n_failed")


@dataclass(frozen=True)
class Setup:
    """Arguments of :meth:`celler.model.Celler.setup_anndata`."""

    labels_key: str | None = None
    unlabeled_category: str = "Unknown"
    layer: str | None = None
    batch_key: str | None = None
    parent_labels_key: str | None = None
    parents: Mapping[str, str] | None = None
    gene_key: str | None = None


@dataclass(frozen=True)
class ScGPTOrigin:
    """What a model keeps of the scGPT checkpoint it came from."""

    d_feed: int  # width of the feed-forward layers
    pad_value: float  # value of the cell token
    is_frozen: bool  # whether training leaves the encoder as it is
    is_vocabulary: bool  # whether the genes are the whole vocabulary rather than those of a reference


@dataclass(frozen=True)
class Fitted:
    """What training leaves, the weights excepted; indices are rows of the source."""

    train_indices: np.ndarray
    validation_indices: np.ndarray
    class_counts: np.ndarray
    gene_share: np.ndarray
    decision: Decision
    history: dict[str, list[float]]
    hard_cells: dict[str, list[Any]]
    profile: Profile | None = None
    seed: int | None = None
    novelty: Novelty | OpenSet | None = None
    class_prior: float | None = None  # power of the class frequencies that labels are weighed by

    @property
    def kept_epoch(self) -> int:
        """The epoch, from 0, whose weights were kept: chosen by validation, without it the last."""
        names = ("validation_macro_f1", "validation_macro_f1_error")
        if not self.is_validated:
            return len(self.history["train_loss"]) - 1
        return kept_epoch(*(np.array(self.history[name]) for name in names))

    @property
    def is_validated(self) -> bool:
        """Whether cells were held out in training."""
        return "validation_macro_f1" in self.history

    def to_plain(self) -> dict[str, Any]:
        """Convert to arrays and plain values, for a checkpoint."""
        return vars(self) | {
            "decision": asdict(self.decision),
            "profile": self.profile and dict(vars(self.profile)),
            "novelty": self.novelty and self.novelty.to_plain(),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Fitted:
        """Convert back from :meth:`to_plain`; a file of an earlier version may hold more."""
        values = {one.name: plain[one.name] for one in fields(cls) if one.name in plain}
        if values.get("profile") is not None:
            values["profile"] = Profile(**values["profile"])
        if values.get("novelty") is not None:
            kind = OpenSet if "inside" in values["novelty"] else Novelty
            values["novelty"] = kind.from_plain(values["novelty"])
        return cls(**values | {"decision": Decision(**plain["decision"])})


@dataclass(frozen=True)
class Pretrained:
    """What pretraining leaves, the encoder's weights excepted."""

    decoder: GeneDecoder  # predicts genes from the cell embedding
    batches: tuple[str, ...]  # donor/assay batches that the decoder knows
    gene_share: np.ndarray  # mean share of a cell's counts that each gene has (n_genes,)
    n_cells: int  # number of cells it learned from
    history: dict[str, list[float]]  # curves, a value per epoch

    def to_plain(self) -> dict[str, Any]:
        """Convert to arrays and plain values, for a checkpoint."""
        return {
            "decoder": {name: tensor.cpu().numpy() for name, tensor in self.decoder.state_dict().items()},
            "batches": list(self.batches),
            "gene_share": self.gene_share,
            "n_cells": self.n_cells,
            "history": self.history,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any], config: NetworkConfig) -> Pretrained:
        """Convert back from :meth:`to_plain`, for a network of the same sizes."""
        decoder = GeneDecoder(config, len(plain["batches"]))
        decoder.load_state_dict({name: torch.from_numpy(array) for name, array in plain["decoder"].items()})
        return cls(decoder.eval(), tuple(plain["batches"]), plain["gene_share"], plain["n_cells"], plain["history"])


@dataclass(frozen=True)
class OldKnowledge:
    """What a model that is extended keeps of the model it came from."""

    fitted: Fitted  # of the old model
    gene_map: np.ndarray  # gene of the extended model in each column of the new cells (n_vars,), −1 for none
    n_genes: int  # number of genes of the extended model; the old model's come first
    teacher: Teacher  # the old network, with the codes of its classes among those of the extended model
    factors: np.ndarray | None = None  # what undoes the shift of the new cells from the reference (n_genes,)


@dataclass(frozen=True)
class ModelState:
    """A model: its genes and classes, its network, and what training and pretraining left."""

    setup: Setup  # how to read an AnnData
    genes: Genes  # genes of the model, and how much of a cell's counts each carries
    tree: LabelTree  # classes and their parents
    network: GeneTransformer  # the network, whose weights training changes in place
    tokenizer: Tokenizer  # makes tokens of cells
    precision: str  # "float32" or "bfloat16"
    scgpt: ScGPTOrigin | None = None  # the scGPT checkpoint it came from
    base: BaseOrigin | None = None  # the base that it starts from
    fitted: Fitted | None = None  # what training left
    pretrained: Pretrained | None = None  # what pretraining left
    old: OldKnowledge | None = None  # what an extended model keeps of the model it came from
    origin: str | None = None  # address and commit of the hub, or name of the folder, it was loaded from
    card: str | None = None  # the model card that it was loaded with, where its author changed it
    license: str | None = None  # the licence in that card
    tissue: TissueTypes | None = None  # types of atlases, which the model names without a reference
    ids: Mapping[str, str] = field(default_factory=dict)  # Cell Ontology id by name of class and parent

    @property
    def decision(self) -> Decision:
        """How logits become probabilities; without a temperature before training."""
        return Decision() if self.fitted is None else self.fitted.decision

    @property
    def profile(self) -> Profile | None:
        """Mean expression by class; ``None`` before training."""
        return None if self.fitted is None else self.fitted.profile

    @property
    def names_atlases(self) -> bool:
        """Whether the classes are types of atlases, without a reference."""
        return self.network.config.head == "atlas"

    @property
    def n_members(self) -> int:
        """Members that are averaged."""
        return self.network.config.n_members

    @property
    def is_pretrained(self) -> bool:
        """Whether the encoder has learned without the reference's labels."""
        return self.pretrained is not None or self.scgpt is not None or self.base is not None

    @property
    def is_frozen(self) -> bool:
        """Whether training leaves the encoder as it is."""
        return self.base is not None or (self.scgpt is not None and self.scgpt.is_frozen)

    @property
    def described(self) -> dict[str, Any]:
        """Genes, classes and parents as plain values, for a checkpoint."""
        some: dict[str, Any] = {} if self.n_members == 1 else {"n_members": self.n_members}
        some |= {} if self.scgpt is None else {"scgpt": asdict(self.scgpt)}
        some |= {"ids": dict(self.ids)} if self.ids else {}
        return some | {
            "base": self.base and asdict(self.base),
            "gene_names": [str(name) for name in self.genes.names],
            "classes": list(self.tree.classes),
            "parents": list(self.tree.parents),
        }

    def trained(self) -> Fitted:
        """Return what training left; raise ``RuntimeError`` before it."""
        if self.fitted is not None:
            return self.fitted
        if self.scgpt is not None:
            raise RuntimeError(
                "this Celler embeds cells but has learned no classes: Celler.setup_anndata(reference, labels_key=...), "
                "then model = Celler.from_pretrained(folder, reference) and model.train()."
            )
        raise RuntimeError("this Celler is not trained; call train() first, or load a trained one.")

    def on(self, device: torch.device, precision: str) -> ModelState:
        """Return the state ready to predict on ``device``."""
        self.network.to(device).eval()
        return replace(self, precision=choose_precision(precision, device))

    def with_fitted(self, fitted: Fitted) -> ModelState:
        """Return the state after training."""
        genes = replace(self.genes, share=fitted.gene_share)
        return replace(self, fitted=fitted, genes=genes, origin=None, card=None)

    def with_pretrained(self, pretrained: Pretrained) -> ModelState:
        """Return the state after pretraining."""
        genes = replace(self.genes, share=pretrained.gene_share)
        return replace(self, pretrained=pretrained, genes=genes, origin=None, card=None)


ENCODERS = {
    "base": "Celler-base",
    "additive": "sum of gene embeddings",
    "latent": "latent attention",
    "transformer": "full self-attention",
    "scgpt": "scGPT's encoder",
}


def summary(state: ModelState) -> str:
    """Describe the model in one line, then the network, the training and what to call next."""
    config = state.network.config
    classes = f"{len(state.tree.classes)} classes, {config.n_genes:,} genes"
    if state.names_atlases:
        rows = _of_atlases(state, classes)
    else:
        rows = _untrained(state, classes) if state.fitted is None else _trained(state, state.fitted, classes)
    if state.origin is not None:
        rows.insert(-1, f"loaded    {state.origin}")
    return "\n  ".join(rows)


def network_line(state: ModelState) -> str:
    """Describe the network in one line."""
    config = state.network.config
    network = f"{ENCODERS[config.encoder]} ({config.d_model} wide)"
    times = f"{state.n_members} times " if state.n_members > 1 else ""
    if state.base is None:
        network = times + network
    else:
        network = f"{network[:-1]}, {state.base.describe(config.n_genes)})"
    network += f" + {times}sum of gene embeddings ({config.d_sum} wide)" if state.network.sum is not None else ""
    return network + (" + evidence table" if config.use_evidence else "")


def _trained(state: ModelState, fitted: Fitted, classes: str) -> list[str]:
    counts, prior = fitted.class_counts, fitted.class_prior
    rows = [
        f"Celler, trained: {classes}",
        f"cells     {int(counts.sum()):,} labelled, {counts.max():,} to {counts.min():,} a class",
        f"network   {network_line(state)}, on {state.network.device}",
        f"training  {training_line(fitted)}",
    ]
    if state.n_members > 1:
        rows.append(f"members   {state.n_members}, averaged; annotate writes how many of them agree")
    if len(fitted.validation_indices):
        rows.append("accuracy  that macro-F1 is of the reference's own studies; model.adapt(query) estimates a query's")
    if prior is not None:
        rows.append(f"labels    class prior {round(prior, 2):g}: 0 is balanced, 1 has the reference's frequencies")
    return [*rows, "next      model.predict(adata), model.annotate(adata) or model.save(folder)"]


def _of_atlases(state: ModelState, classes: str) -> list[str]:
    """Describe a model of a tissue, which has genes once it has met a query."""
    what = "types of atlases" if state.tissue is None else state.tissue.describe()
    genes = "all of the base, until it meets a query"
    if state.fitted is not None and state.fitted.novelty is not None:
        genes = "those of the last query" if state.tissue is not None else "those of the query it was saved for"
    return [
        f"Celler, without a reference: {classes}",
        f"classes   {what}",
        f"network   {network_line(state)}, on {state.network.device}",
        f"genes     {genes}",
        "next      model.predict(adata) or model.annotate(adata)",
    ]


def _untrained(state: ModelState, classes: str) -> list[str]:
    has_classes, pretrained, network = bool(state.tree.classes), state.pretrained, network_line(state)
    if state.scgpt is not None and not has_classes:
        return [
            f"Celler, pretrained: no classes, {state.network.config.n_genes:,} genes",
            f"network   {network}, on {state.network.device}",
            "next      model.get_latent_representation(adata), or from_pretrained(folder, reference) to train",
        ]
    if pretrained is None:
        return [f"Celler, not trained: {classes}", f"network   {network}", "next      model.train()"]
    embed = "Celler(labelled cells).load_encoder(this model), or get_latent_representation(adata)"
    return [
        f"Celler, pretrained: {classes}",
        f"cells     {pretrained.n_cells:,}, labels not needed",
        f"network   {network}",
        f"next      {'model.train()' if has_classes else embed}",
    ]


def training_line(fitted: Fitted) -> str:
    """Epochs, which of them is kept, seed and its validation macro-F1."""
    history, validation = fitted.history, fitted.validation_indices
    n_epochs, kept = len(history["train_loss"]), fitted.kept_epoch
    parts = [f"kept epoch {kept + 1} of {n_epochs}" if fitted.is_validated else counted(n_epochs, "epochs")]
    if fitted.seed is not None:
        parts.append(f"seed {fitted.seed}")
    if len(validation):
        parts.append(
            f"macro-F1 {history['validation_macro_f1'][kept]:.3f} on {counted(len(validation), 'held-out cells')}"
        )
        if np.isin(validation, fitted.train_indices).all():
            parts.append("then trained again on all cells")
    return ", ".join(parts)
