"""Setup: checks an AnnData, registers it with scvi-tools, and describes it in plain values."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField

from celler._utils._messages import column
from celler.data._expression import ExpressionReader, check_values, is_log, warn_of_binned
from celler.data._genes import check_unique, gene_names
from celler.labels import LabelTree, as_strings, parent_mapping
from celler.network._config import NetworkConfig

#: The obs column with the labels as Celler read them; ``unlabeled_category`` where there is none.
LABELS_COLUMN = "_celler_labels"


def register(adata: AnnData, setup_method_args: dict[str, Any]) -> AnnDataManager:
    """Check ``adata`` against the arguments of ``setup_anndata`` and register it.

    Every check runs before the first write, so a failed call leaves ``adata`` as it was.
    """
    args = setup_method_args["setup_args"]
    # Labels become str, so the value that means "no label", an integer perhaps, does too.
    args["unlabeled_category"] = str(args["unlabeled_category"])
    if args["parents"] is not None:
        args["parents"] = parent_mapping(args["parents"])
    labels = _checked(adata, args)
    adata.obs[LABELS_COLUMN] = pd.Categorical(labels)
    # The layer is left in the format it came in: rows are converted a chunk at a time, on reading.
    data_fields = [
        LayerField(
            REGISTRY_KEYS.X_KEY, args["layer"], is_count_data=False, correct_data_format=False
        ),
        CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, LABELS_COLUMN),
        CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, args["batch_key"]),
    ]
    manager = AnnDataManager(fields=data_fields, setup_method_args=setup_method_args)
    with warnings.catch_warnings():
        # scvi-tools counts cells per category of every column; train() says what matters of it.
        warnings.filterwarnings(
            "ignore", message="Category .* has fewer than", category=UserWarning
        )
        manager.register_fields(adata)
    return manager


def describe(adata: AnnData, setup_args: dict[str, Any]) -> dict[str, Any]:
    """What the model keeps of a registered AnnData, as lists of str: genes, classes and parents."""
    tree = read_tree(adata, adata.obs[LABELS_COLUMN].to_numpy().astype(object), setup_args)
    return {
        "gene_names": [str(name) for name in gene_names(adata.var, setup_args["gene_key"])],
        "classes": list(tree.classes),
        "parents": list(tree.parents),
    }


def plain_setup(
    registry: dict[str, Any], described: dict[str, Any], init_params: dict[str, Any]
) -> dict[str, Any]:
    """What a model is built from without AnnData, in values that a checkpoint can hold."""
    kept = ("model_name", "setup_method_name", "scvi_version")
    plain_registry = {name: registry[name] for name in kept} | {
        "setup_args": _plain(registry["setup_args"]),
        "field_registries": {},
        "celler": described,
    }
    return {"registry": plain_registry, "init_params": _plain(init_params["non_kwargs"])}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The same with Python's numbers and strings for NumPy's."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in values.items()
    }


def _checked(adata: AnnData, args: dict[str, Any]) -> np.ndarray:
    """The labels ``(n_obs,)`` of an AnnData that can be registered; raises where it cannot."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"a {type(adata).__name__} was given; an AnnData is needed.")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(
            f"adata has {adata.n_obs} cells and {adata.n_vars} genes; both are needed."
        )
    if adata.is_view:
        raise ValueError(
            "adata is a view; setup_anndata writes to it, so copy it first: adata = adata.copy()."
        )
    reader = ExpressionReader(adata, args["layer"])
    genes = gene_names(adata.var, args["gene_key"])
    if (genes == "").any():
        raise ValueError(
            f"gene_key={args['gene_key']!r} has no name for {int((genes == '').sum()):,} genes; fill them, for "
            "example with adata.var_names, or leave those genes out."
        )
    check_unique(genes, "the genes of adata")
    is_log(reader)
    if not adata.isbacked:  # the values of a file are checked as they are read
        check_values(reader.matrix(), reader)
    if args["batch_key"] is not None:
        batches = column(adata.obs, args["batch_key"], "batch_key")
        if batches.isna().any():
            raise ValueError(
                f"batch_key={args['batch_key']!r} has {int(batches.isna().sum()):,} missing values; every cell "
                "needs a donor/assay batch, or pass batch_key=None."
            )
    labels = read_labels(adata, args)
    read_tree(adata, labels, args)
    warn_of_binned(reader)
    return labels


def read_labels(adata: AnnData, args: dict[str, Any]) -> np.ndarray:
    """Labels of all cells as str ``(n_obs,)``, those without one as ``unlabeled_category``."""
    key, unlabeled = args["labels_key"], args["unlabeled_category"]
    if key is None:
        return np.full(adata.n_obs, unlabeled, dtype=object)
    labels = as_strings(column(adata.obs, key, "labels_key"), key, unlabeled)
    if (labels == unlabeled).all():
        raise ValueError(
            f"all {adata.n_obs:,} cells of adata.obs[{key!r}] are unlabelled (missing, or {unlabeled!r}); "
            "name the column that holds cell types with labels_key."
        )
    return labels


def read_tree(adata: AnnData, labels: np.ndarray, args: dict[str, Any]) -> LabelTree:
    """Classes among the labels and, with ``parent_labels_key`` or ``parents``, their parents."""
    key, unlabeled = args["parent_labels_key"], args["unlabeled_category"]
    mapping = args.get("parents")  # a model saved by an earlier version has none
    if key is not None and mapping is not None:
        raise ValueError(
            f"both parent_labels_key={key!r} and parents were given; the parents can come from one of them."
        )
    if key is None:
        tree = LabelTree.from_labels(labels, unlabeled)
        return tree if mapping is None else tree.with_parents(mapping)
    parents = as_strings(column(adata.obs, key, "parent_labels_key"), key, unlabeled)
    return LabelTree.from_labels(labels, unlabeled, parents)


def network_config(init_params: dict[str, Any], described: dict[str, Any]) -> NetworkConfig:
    """The sizes among the arguments of :class:`celler.model.Celler`, with those of the data.

    Arguments that are ``None`` take the defaults; sizes of attention without an ``encoder`` ask for latents.
    """
    arguments = init_params["non_kwargs"] | {
        "n_genes": len(described["gene_names"]),
        "n_classes": max(1, len(described["classes"])),
    }
    if arguments["encoder"] == "scgpt":
        if "scgpt" not in described:
            raise ValueError(
                "encoder='scgpt' was given; its weights come from a folder: Celler.from_pretrained(folder, adata)."
            )
        arguments |= {name: described["scgpt"][name] for name in ("d_feed", "pad_value")}
    arguments["use_evidence"] = arguments.pop("evidence")
    attention = [
        name
        for name in ("n_layers", "n_heads", "n_latents", "n_bins")
        if arguments[name] is not None
    ]
    if attention and arguments["encoder"] is None:
        arguments["encoder"] = "latent"
    if attention and arguments["encoder"] == "additive":
        raise ValueError(
            f"{attention[0]}={arguments[attention[0]]} was given with encoder='additive', which has no attention; "
            "pass encoder='latent' or 'transformer', or leave it out."
        )
    names = [field.name for field in fields(NetworkConfig)]
    return NetworkConfig(
        **{name: arguments[name] for name in names if arguments.get(name) is not None}
    )
