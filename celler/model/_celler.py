"""Celler, the model class: each method gathers what a room needs and calls it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model.base import BaseModelClass

from celler._utils._devices import choose_device, choose_precision
from celler.data._query import Genes
from celler.data._tokenizer import Tokenizer
from celler.inference._calibration import Decision
from celler.labels import LabelTree
from celler.model._checkpoint import read_checkpoint, write_checkpoint
from celler.model._explain import get_gene_importance
from celler.model._expression import impute, predict_expression
from celler.model._extend import Knowledge, load_query_data, prepare_query_anndata
from celler.model._predict import (
    annotate,
    annotate_store,
    get_latent_representation,
    get_novelty,
    predict,
)
from celler.model._pretrain import adopt_pretrained, pretrain
from celler.model._setup import describe, network_config, plain_setup, register
from celler.model._state import Fitted, Pretrained, summary
from celler.model._train import train
from celler.model._transfer import from_pretrained, load_encoder
from celler.network._network import build_network


class Celler(BaseModelClass):
    """Cell-type annotation that keeps the rare types.

    A registered reference trains two experts, a linear evidence table and an encoder of the cell's
    genes, with the GInf and Hard Data Mining losses; :meth:`predict` labels any AnnData by gene name.

    adata: a registered AnnData. ``None`` is for :meth:`load`, which passes ``registry`` instead, as
        :meth:`from_pretrained` does.
    encoder: ``"additive"``, the sum of gene embeddings weighted by expression; ``"latent"``, which adds
        the attention of a few learned latents; or ``"transformer"``, the paper's full self-attention
        over all genes and a cell token, slower by far. ``None`` is additive, or latent where a size
        of the attention is given. ``"scgpt"`` is what :meth:`from_pretrained` takes.
    head: ``"mlp"``, or ``"vgg"`` for the paper's convolutions.
    d_model: width of the encoder and of the cell embedding.
    n_layers, n_heads, n_latents, n_bins: of an encoder with attention, its blocks, heads, latents, and
        bins that a cell's values are ranked into, the zero bin included; ``None`` is 1, 4, 8 and 51.
    dropout_rate: in training, share of a cell's genes and of the encoder's hidden units left out at
        random.
    evidence: keep the linear expert. Without it the encoder stands alone, as in the paper.
    max_genes: most genes read per cell: a random subset in training, those of highest value at
        prediction.
    precision: ``"float32"``, ``"bfloat16"`` or ``"auto"``: bfloat16 where the hardware is made for it.
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        encoder: Literal["additive", "latent", "transformer", "scgpt"] | None = None,
        head: Literal["mlp", "vgg"] = "mlp",
        n_layers: int | None = None,
        d_model: int = 64,
        n_heads: int | None = None,
        n_latents: int | None = None,
        dropout_rate: float = 0.3,
        evidence: bool = True,
        max_genes: int = 2048,
        n_bins: int | None = None,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        super().__init__(adata, registry)
        self.init_params_ = self._get_init_params(locals())
        self._precision = choose_precision(precision, choose_device())
        self._decision = Decision()
        self._reported: set[str] = set()
        self._knowledge: Knowledge | None = None
        self._pretrained: Pretrained | None = None
        described: dict[str, Any] = {"classes": [], "parents": []}
        if adata is not None:
            described = describe(adata, self._setup_args)
        self._describe_as(described | (registry or {}).get("celler", {}))

    def _describe_as(self, described: dict[str, Any]) -> None:
        """Take the genes and classes of ``described``, with a new network for them."""
        self._described = described
        self._tree = LabelTree(tuple(self._described["classes"]), tuple(self._described["parents"]))
        names = pd.Index(self._described["gene_names"])
        self._genes = Genes(
            names,
            np.full(len(names), 1 / len(names)),
            self._setup_args["gene_key"],
            self._scgpt.get("is_vocabulary", False),
        )
        config = network_config(self.init_params_, self._described)
        self._tokenizer = Tokenizer(
            n_bins=config.n_bins, max_genes=self.init_params_["non_kwargs"]["max_genes"]
        )
        self.module = build_network(config, seed=0)
        self._model_summary_string = repr(self)

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        labels_key: str | None = None,
        unlabeled_category: str = "Unknown",
        layer: str | None = None,
        batch_key: str | None = None,
        *,
        parent_labels_key: str | None = None,
        parents: Mapping[str, str] | pd.Series | LabelTree | None = None,
        gene_key: str | None = None,
    ) -> None:
        """Check and register a reference; adds ``_celler_*`` and ``_scvi_*`` entries to ``adata``.

        labels_key: column of ``adata.obs`` with the cell types: text, categories or integers.
        unlabeled_category: the value that means "no label"; missing values mean the same.
        layer: entry of ``adata.layers`` with counts or log1p-normalised values; ``None`` is ``X``.
        batch_key: column of ``adata.obs`` with the donor/assay batch. It is checked and recorded;
            the classifier never sees it, so that cells of other batches can be labelled.
        parent_labels_key: column of ``adata.obs`` with each cell's coarser type.
        parents: in its place, the coarser type of each class: a dict, a Series or a
            :class:`celler.labels.LabelTree`, which reads ontologies.
        gene_key: column of ``adata.var`` with the gene names; ``None`` is ``var_names``.

        Raises ``KeyError`` for a column or layer that is not there, and ``ValueError`` for values,
        labels or genes that cannot be used; ``adata`` is then unchanged.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        cls.register_manager(register(adata, setup_method_args))

    @classmethod
    def setup_annbatch(cls, *args: object, **kwargs: object) -> None:
        """Not supported: scvi-tools' annbatch loader makes every row dense. Raises ``NotImplementedError``."""
        raise NotImplementedError(
            "Celler has no annbatch setup; read the cells into an AnnData and use setup_anndata."
        )

    # These are functions of their own files, one for each thing they do.
    train = train
    predict = predict
    annotate = annotate
    annotate_store = annotate_store
    impute = impute
    predict_expression = predict_expression
    pretrain = pretrain
    get_latent_representation = get_latent_representation
    get_gene_importance = get_gene_importance
    get_novelty = get_novelty
    load_encoder = load_encoder
    load_query_data = classmethod(load_query_data)
    prepare_query_anndata = staticmethod(prepare_query_anndata)
    __repr__ = summary

    from_pretrained = classmethod(from_pretrained)

    @property
    def classes_(self) -> np.ndarray:
        """Names of the classes, sorted ``(C,)``."""
        return np.array(self._tree.classes)

    @property
    def parents_(self) -> dict[str, str]:
        """Parent of each class; empty where none were given."""
        return self._tree.parent_of

    @property
    def history(self) -> pd.DataFrame | None:
        """Loss and validation curves, one row per epoch; ``None`` before training."""
        if self.history_ is None:
            return None
        return pd.DataFrame(self.history_).rename_axis("epoch")

    @property
    def pretraining_history(self) -> pd.DataFrame | None:
        """Loss and correlation of hidden bins, one row per epoch; ``None`` before :meth:`pretrain`."""
        if self._pretrained is None or not self._pretrained.history:
            return None
        return pd.DataFrame(self._pretrained.history).rename_axis("epoch")

    @property
    def hard_cells_(self) -> pd.DataFrame:
        """Training cells that were confidently misclassified in the most epochs: likely label errors.

        Up to ``n_per_class`` for each predicted class; empty after ``replay=None``. Columns ``cell``
        (obs_name), ``label`` (the one given), ``prediction``, ``confidence`` (its highest probability
        in training), ``n_epochs``, and ``n_failed`` (epochs in a row it was wrong after a replay).
        """
        self._require_trained()
        return pd.DataFrame(self._fitted.hard_cells)

    @property
    def is_pretrained(self) -> bool:
        """Whether the encoder learned without labels, by :meth:`pretrain` or as :meth:`from_pretrained` found it."""
        return self._pretrained is not None or bool(self._scgpt)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.module.device

    def save(self, dir_path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the trained or pretrained model to ``dir_path/model.pt``, whole or not at all; see :meth:`load`.

        The file holds tensors and plain values only and opens on any supported Python. Raises
        ``FileExistsError`` where a model is already, unless ``overwrite``.
        """
        if not self.is_pretrained:
            self._require_trained()
        contents = plain_setup(self.registry_, self._described, self.init_params_) | {
            "fitted": self._fitted.to_plain() if self.is_trained else None,
            "pretrained": self._pretrained and self._pretrained.to_plain(),
            "weights": {name: tensor.cpu() for name, tensor in self.module.state_dict().items()},
        }
        write_checkpoint(dir_path, contents, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike[str],
        adata: AnnData | None = None,
        accelerator: str = "auto",
    ) -> Celler:
        """The model that :meth:`save` wrote, ready to predict, with or without an AnnData.

        adata: becomes the default of :meth:`predict`; it is neither registered nor changed.
        accelerator: as in :meth:`train`; where to predict.

        Raises ``FileNotFoundError`` or, for a damaged, foreign or later file, ``ValueError``.
        """
        contents = read_checkpoint(dir_path)
        model = cls(registry=contents["registry"], **contents["init_params"])
        model._adata = adata
        if contents.get("pretrained") is not None:
            adopt_pretrained(model, Pretrained.from_plain(contents["pretrained"], model))
        if contents["fitted"] is not None:
            model._adopt(Fitted.from_plain(contents["fitted"]))
        model.module.load_state_dict(contents["weights"])
        device = choose_device(accelerator)
        model._precision = choose_precision(contents["init_params"]["precision"], device)
        model.module.to(device).eval()
        return model

    def _adopt(self, fitted: Fitted) -> None:
        """Take over what training left, now or in a saved model."""
        self._fitted, self._decision = fitted, fitted.decision
        self.module.encoder_share = fitted.encoder_share
        self._genes = replace(self._genes, share=fitted.gene_share)
        for name in ("train_indices", "validation_indices", "class_counts", "history"):
            setattr(self, f"{name}_", getattr(fitted, name))
        self.is_trained_ = True
        self._model_summary_string = repr(self)

    @property
    def _setup_args(self) -> dict[str, Any]:
        args: dict[str, Any] = self.registry_["setup_args"]
        return args

    @property
    def _scgpt(self) -> dict[str, Any]:
        """What is known of an encoder that came from scGPT, empty for others."""
        known: dict[str, Any] = self._described.get("scgpt", {})
        return known

    def _require_registered(self) -> None:
        if self.adata_manager is None:
            build = "from_pretrained(scgpt_folder, adata)" if self._scgpt else "Celler(adata)"
            raise RuntimeError(
                "this model was loaded and can only predict. To train: Celler.setup_anndata(adata, ...), then "
                f"{build}.train(); from a store on disk, train(datamodule=dm); to go on from this model, "
                "Celler.load_query_data(adata, model)."
            )

    def _require_trained(self) -> None:
        if self._scgpt and not self.is_trained:
            raise RuntimeError(
                "this Celler embeds cells but has learned no classes: Celler.setup_anndata(reference, labels_key=...), "
                "then model = Celler.from_pretrained(folder, reference) and model.train()."
            )
        if not self.is_trained:
            raise RuntimeError(
                "this Celler is not trained; call train() first, or load a trained one."
            )
