"""State: what a model is made of and what training left, and the summary that repr shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from celler.data._profile import Profile
from celler.inference._calibration import Decision
from celler.inference._novelty import Novelty
from celler.network._heads import GeneDecoder

if TYPE_CHECKING:
    from celler.model._celler import Celler

HARD_CELL_COLUMNS = ("cell", "label", "prediction", "confidence", "n_epochs", "n_failed")


@dataclass(frozen=True)
class Fitted:
    """What training leaves beside the weights: indices are rows of the source."""

    train_indices: np.ndarray
    validation_indices: np.ndarray
    class_counts: np.ndarray
    gene_share: np.ndarray
    decision: Decision
    history: dict[str, list[float]]
    hard_cells: dict[str, list[Any]]
    profile: Profile | None = None
    seed: int | None = None
    novelty: Novelty | None = None
    encoder_share: float = 0.5

    def to_plain(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        arrays = ("train_indices", "validation_indices", "class_counts", "gene_share")
        plain: dict[str, Any] = {name: torch.from_numpy(getattr(self, name)) for name in arrays}
        return plain | {
            "decision": asdict(self.decision),
            "history": self.history,
            "hard_cells": self.hard_cells,
            "seed": self.seed,
            "encoder_share": self.encoder_share,
            "profile": self.profile
            and {name: torch.from_numpy(value) for name, value in asdict(self.profile).items()},
            "novelty": self.novelty
            and {name: torch.from_numpy(value) for name, value in self.novelty.to_plain().items()},
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Fitted:
        """What :meth:`to_plain` was made from."""
        values: dict[str, Any] = {
            name: value.numpy() if isinstance(value, Tensor) else value
            for name, value in plain.items()
        }
        if values.get("profile") is not None:
            arrays = {name: tensor.numpy() for name, tensor in plain["profile"].items()}
            values["profile"] = Profile(**arrays)
        if values.get("novelty") is not None:
            arrays = {name: tensor.numpy() for name, tensor in plain["novelty"].items()}
            values["novelty"] = Novelty.from_plain(arrays)
        return cls(**values | {"decision": Decision(**plain["decision"])})


@dataclass(frozen=True)
class Pretrained:
    """What pretraining leaves beside the encoder's weights: ``gene_share (n_genes,)`` as in the reference."""

    decoder: GeneDecoder
    batches: tuple[str, ...]
    gene_share: np.ndarray
    n_cells: int
    history: dict[str, list[float]]

    def to_plain(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return {
            "decoder": {name: tensor.cpu() for name, tensor in self.decoder.state_dict().items()},
            "batches": list(self.batches),
            "gene_share": torch.from_numpy(self.gene_share),
            "n_cells": self.n_cells,
            "history": self.history,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any], model: Celler) -> Pretrained:
        """What :meth:`to_plain` was made from, in a model of the same sizes."""
        decoder = GeneDecoder(model.module.config, len(plain["batches"]))
        decoder.load_state_dict(plain["decoder"])
        share, n_cells = plain["gene_share"].numpy(), plain["n_cells"]
        return cls(decoder.eval(), tuple(plain["batches"]), share, n_cells, plain["history"])


ENCODERS = {
    "additive": "sum of gene embeddings",
    "latent": "latent attention",
    "transformer": "full self-attention",
    "scgpt": "scGPT's encoder",
}


def summary(self: Celler) -> str:
    """One line on what the model is, then the network, the training and what to call next."""
    config = self.module.config
    classes = f"{len(self.classes_)} classes, {config.n_genes:,} genes"
    network = f"{ENCODERS[config.encoder]} ({config.d_model} wide)"
    network += " + evidence table" if config.use_evidence else ""
    if not self.is_trained:
        if self._scgpt and not len(self.classes_):
            rows = [
                f"Celler, pretrained: no classes, {config.n_genes:,} genes",
                f"network   {network}, on {self.device}",
                "next      model.get_latent_representation(adata), or from_pretrained(folder, reference) to train",
            ]
            return "\n  ".join(rows)
        pretrained = self._pretrained
        rows = [
            f"Celler, {'not trained' if pretrained is None else 'pretrained'}: {classes}",
            f"network   {network}",
            "next      model.train()",
        ]
        if pretrained is not None:
            rows.insert(1, f"cells     {pretrained.n_cells:,}, labels not needed")
        if pretrained is not None and not len(self.classes_):
            rows[-1] = (
                "next      Celler(labelled cells).load_encoder(this model), or get_latent_representation(adata)"
            )
        return "\n  ".join(rows)
    fitted: Fitted = self._fitted
    n_cells = int(fitted.class_counts.sum())
    sizes = f"{fitted.class_counts.max():,} to {fitted.class_counts.min():,} a class"
    rows = [
        f"Celler, trained: {classes}",
        f"cells     {n_cells:,} labelled, {sizes}",
        f"network   {network}, on {self.device}",
        f"training  {training(fitted)}",
        "next      model.predict(adata), model.annotate(adata) or model.save(folder)",
    ]
    return "\n  ".join(rows)


def training(fitted: Fitted) -> str:
    """Epochs, seed and the validation macro-F1 of the weights that were kept."""
    history = fitted.history
    parts = [f"{len(history['train_loss'])} epochs"]
    if fitted.seed is not None:
        parts.append(f"seed {fitted.seed}")
    if len(fitted.validation_indices):
        score, error = (
            np.array(history[f"validation_macro_f1{suffix}"]) for suffix in ("", "_error")
        )
        # the rule of celler.training._callbacks.BestWeights: the latest within a standard error of the best so far
        kept = np.flatnonzero(score >= np.maximum.accumulate(score) - error)[-1]
        parts.append(
            f"macro-F1 {score[kept]:.3f} on {len(fitted.validation_indices):,} held-out cells"
        )
    return ", ".join(parts)
