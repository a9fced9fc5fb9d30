"""Summary: what a model is, what it was trained on and what to do next, as its repr."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from celler.model.celler import Celler
    from celler.model.fitting import Fitted

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
        # the rule of celler.training.BestWeights: the latest within a standard error of the best so far
        kept = np.flatnonzero(score >= np.maximum.accumulate(score) - error)[-1]
        parts.append(
            f"macro-F1 {score[kept]:.3f} on {len(fitted.validation_indices):,} held-out cells"
        )
    return ", ".join(parts)
