"""Setup: check an AnnData, register it with scvi-tools, and make an untrained model of it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField

from celler._utils._devices import choose_device, choose_precision
from celler._utils._messages import column, counted, listed, warn
from celler._utils._text import as_categories, as_names, count_texts, warn_of_labels
from celler.data._expression import ExpressionReader, check_genes, check_values, is_log, warn_of_doubts
from celler.data._gene_names import check_names, gene_names, left_out
from celler.data._genes import GeneAlignment, align_genes
from celler.data._query import Genes
from celler.data._tokenizer import Tokenizer
from celler.labels._tree import LabelTree, as_strings, parent_mapping
from celler.model._base import BaseOrigin, base_for, load_base
from celler.model._state import ModelState, ScGPTOrigin, Setup
from celler.network._config import NetworkConfig
from celler.network._network import GeneTransformer, build_network

#: Sizes of attention.
ATTENTION = ("n_layers", "n_heads", "n_latents", "n_bins")
#: The obs column with the labels as setup read them, which a later setup overwrites; a model keeps its own.
LABELS_COLUMN = "_celler_labels"
#: The var column that says which genes a model of this AnnData learns, where ``genes`` was given.
GENES_COLUMN = "_celler_genes"
#: Entry of ``uns`` by which scvi-tools knows an AnnData, and the one that was set up under each.
UUID_KEY = "_scvi_uuid"
_SET_UP: weakref.WeakValueDictionary[str, AnnData] = weakref.WeakValueDictionary()


def register(adata: AnnData, setup_method_args: dict[str, Any]) -> AnnDataManager:
    """Check ``adata`` against the arguments of ``setup_anndata`` and register it.

    Every check runs before the first write, so a failed call leaves ``adata`` as it was.
    """
    args = setup_method_args["setup_args"]
    # Labels become str, so the value that means "no label", an integer perhaps, does too.
    args["unlabeled_category"] = str(args["unlabeled_category"])
    if args["parents"] is not None:
        args["parents"] = parent_mapping(args["parents"])
    genes, setup = args.pop("genes", None), Setup(**args)
    is_learned = None if genes is None else chosen_genes(adata, setup.gene_key, genes)
    labels = checked(adata, setup)
    adata.obs[LABELS_COLUMN] = pd.Categorical(labels)
    if is_learned is not None:
        adata.var[GENES_COLUMN] = is_learned
        args["genes"] = f"{is_learned.sum():,} of {adata.n_vars:,}"
    elif GENES_COLUMN in adata.var:
        del adata.var[GENES_COLUMN]
    # The layer is left in the format it came in: rows are converted a chunk at a time, on reading.
    data_fields = [
        LayerField(REGISTRY_KEYS.X_KEY, args["layer"], is_count_data=False, correct_data_format=False),
        CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, LABELS_COLUMN),
        CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, args["batch_key"]),
    ]
    # A copy has the id of the AnnData that it was copied from, whose registration it would replace.
    if _SET_UP.get(str(adata.uns.get(UUID_KEY)), adata) is not adata:
        del adata.uns[UUID_KEY]
    manager = AnnDataManager(fields=data_fields, setup_method_args=setup_method_args)
    with warnings.catch_warnings():
        # scvi-tools counts the cells of every category; train() warns where it matters.
        warnings.filterwarnings("ignore", message="Category .* has fewer than", category=UserWarning)
        manager.register_fields(adata)
    _SET_UP[adata.uns[UUID_KEY]] = adata
    return manager


def chosen_genes(adata: AnnData, gene_key: str | None, wanted: Iterable[str]) -> np.ndarray:
    """Return which columns ``(n_vars,)`` are the ``wanted`` genes, matched as those of a query."""
    names = gene_names(adata.var, gene_key)
    columns, given = np.flatnonzero(names != ""), as_names(pd.Index(list(wanted)).unique())
    try:
        found = align_genes(given, names[columns], is_vocabulary=True)
    except ValueError as error:
        raise ValueError(f"genes= and the genes of adata hardly meet: {error}") from error
    if found.n_matched < 2:
        raise ValueError(
            f"genes= has {counted(len(given), 'names')}, of which {found.n_matched} is in adata; two are needed."
        )
    if found.n_extra:
        warn(
            f"{found.n_matched:,} of the {len(given):,} names in genes= are genes of adata; the model learns these. "
            f"Not found: {listed(given[found.gene_map < 0])}."
        )
    is_chosen = np.zeros(adata.n_vars, bool)
    is_chosen[columns[found.gene_map[found.gene_map >= 0]]] = True
    return is_chosen


def setup_of(registry: dict[str, Any]) -> Setup:
    """Return the arguments of ``setup_anndata`` by which an AnnData is read."""
    return Setup(**{name: value for name, value in registry["setup_args"].items() if name != "genes"})


@contextmanager
def registered(adata: AnnData | None) -> Iterator[None]:
    """Say what to do where scvi-tools does not know ``adata``, such as a copy of what was set up."""
    try:
        yield
    except (KeyError, ValueError) as error:
        if adata is None:
            raise
        what = "this AnnData is not set up"
        if any(str(key).startswith("_scvi") for key in adata.uns):
            what = "this AnnData is a copy or a subset of the one that was set up, or was read from a file since"
        raise ValueError(
            f"{what}. Call Celler.setup_anndata(adata, ...) with this very object, then Celler(adata)."
        ) from error


def checked(adata: AnnData, setup: Setup) -> np.ndarray:
    """Return the labels ``(n_obs,)`` of an AnnData that can be registered; raise where it cannot."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata has {adata.n_obs} cells and {adata.n_vars} genes; both are needed.")
    if adata.is_view:
        raise ValueError("adata is a view; setup_anndata writes to it, so copy it first: adata = adata.copy().")
    if not isinstance(adata.obs, pd.DataFrame):
        raise TypeError(
            "adata is read lazily, and setup_anndata writes to its obs; load it first: adata = adata.to_memory(). "
            "predict and annotate take it as it is."
        )
    reader = ExpressionReader(adata, setup.layer)
    genes = gene_names(adata.var, setup.gene_key)
    check_names(genes, adata.var, setup.gene_key)
    is_log(reader)
    check_genes(reader)
    if not adata.isbacked:  # the values of a file are checked as they are read
        check_values(reader.matrix(), reader)
    if setup.batch_key is not None:
        batches = column(adata.obs, setup.batch_key, "batch_key")
        as_categories(batches, f"adata.obs[{setup.batch_key!r}]")
        if batches.isna().any():
            raise ValueError(
                f"batch_key={setup.batch_key!r} has {counted(int(batches.isna().sum()), 'missing values')}; every "
                "cell needs a donor/assay batch, or pass batch_key=None."
            )
    labels = read_labels(adata, setup)
    read_tree(adata, labels, setup)
    warn_of_doubts(reader)
    if not_read := left_out(adata.var, setup.gene_key):
        warn(not_read)
    if setup.labels_key is not None:
        counts = count_texts(adata.obs[setup.labels_key])
        warn_of_labels(counts, f"adata.obs[{setup.labels_key!r}]", setup.unlabeled_category)
    return labels


def read_labels(adata: AnnData, setup: Setup) -> np.ndarray:
    """Labels of all cells as str ``(n_obs,)``, those without one as ``unlabeled_category``."""
    key, unlabeled = setup.labels_key, setup.unlabeled_category
    if key is None:
        return np.full(adata.n_obs, unlabeled, dtype=object)
    labels = as_strings(column(adata.obs, key, "labels_key"), key, unlabeled)
    if (labels == unlabeled).all():
        raise ValueError(
            f"all {adata.n_obs:,} cells of adata.obs[{key!r}] are unlabelled (missing, or {unlabeled!r}); "
            "name the column that holds cell types with labels_key."
        )
    n_labelled, n_classes = int((labels != unlabeled).sum()), len(set(labels) - {unlabeled})
    if n_classes == n_labelled > max(10, adata.n_obs // 2):
        raise ValueError(
            f"adata.obs[{key!r}] gives each of its {n_labelled:,} cells a label of its own, as names of cells do; name "
            "the column that holds cell types with labels_key."
        )
    return labels


def read_tree(adata: AnnData, labels: np.ndarray, setup: Setup) -> LabelTree:
    """Classes among the labels and, with ``parent_labels_key`` or ``parents``, their parents."""
    key, mapping, unlabeled = setup.parent_labels_key, setup.parents, setup.unlabeled_category
    if key is not None and mapping is not None:
        raise ValueError(
            f"both parent_labels_key={key!r} and parents were given; the parents can come from one of them."
        )
    if key is None:
        tree = LabelTree.from_labels(labels, unlabeled)
        return tree if mapping is None else tree.with_parents(mapping)
    parents = as_strings(column(adata.obs, key, "parent_labels_key"), key, unlabeled)
    return LabelTree.from_labels(labels, unlabeled, parents)


def describe(adata: AnnData, labels: pd.Series, setup: Setup, vocabulary: pd.Index | None = None) -> dict[str, Any]:
    """Genes, classes and parents of a registered AnnData with these ``labels`` as lists of str.

    With a ``vocabulary`` the genes are those that it has, and where ``genes`` was given to the setup, those.
    """
    tree = read_tree(adata, labels.to_numpy().astype(object), setup)
    names = gene_names(adata.var, setup.gene_key)
    is_learned = names != ""
    if vocabulary is not None:
        is_learned = align_to_vocabulary(adata, setup, vocabulary).gene_map >= 0
    if GENES_COLUMN in adata.var:
        is_learned = is_learned & adata.var[GENES_COLUMN].to_numpy(bool)
    names = names[is_learned]
    return {"gene_names": [str(name) for name in names], "classes": list(tree.classes), "parents": list(tree.parents)}


def align_to_vocabulary(adata: AnnData, setup: Setup, vocabulary: pd.Index) -> GeneAlignment:
    """Alignment of the genes of a registered AnnData with a vocabulary."""
    names = gene_names(adata.var, setup.gene_key)
    return align_genes(names, vocabulary, adata.var, is_vocabulary=True)


def registry_without_data(described: dict[str, Any]) -> dict[str, Any]:
    """Registry of scvi-tools for a model that is made without a registered AnnData."""
    return {
        "model_name": "Celler",
        "setup_method_name": "setup_anndata",
        "scvi_version": scvi.__version__,
        "setup_args": asdict(Setup()),
        "field_registries": {},
        "celler": described,
    }


def new_state(
    setup: Setup, described: dict[str, Any], arguments: dict[str, Any], network: GeneTransformer | None = None
) -> ModelState:
    """Make an untrained model from what :func:`describe` returns and the arguments of the class.

    A saved model's ``described`` says whether it started from the base; a new one does where the base knows its genes.
    """
    scgpt = ScGPTOrigin(**described["scgpt"]) if "scgpt" in described else None
    names = pd.Index(described["gene_names"])
    share = np.full(len(names), 1 / len(names))
    is_vocabulary = scgpt is not None and scgpt.is_vocabulary
    is_new = "base" not in described
    if not is_new:
        base = described["base"] and BaseOrigin(**described["base"])
    else:
        has_sizes = any(arguments[name] is not None for name in ATTENTION)
        base, base_rows = base_for(names, arguments["encoder"], has_sizes=has_sizes)
    has_atlas = base is not None and base.n_types > 0
    if network is None:
        classes = described.get("classes", ())
        arguments = arguments | {"n_members": described.get("n_members")}
        config = network_config(arguments, len(names), max(1, len(classes)), scgpt, base)
        network = build_network(config, seed=0)
        if is_new and base is not None:
            load_base(network, base_rows)
    return ModelState(
        setup,
        Genes(names, share, setup.gene_key, is_vocabulary, orthologs=has_atlas),
        LabelTree(tuple(described.get("classes", ())), tuple(described.get("parents", ()))),
        network,
        Tokenizer(n_bins=network.config.n_bins, max_genes=arguments["max_genes"]),
        choose_precision(arguments["precision"], choose_device()),
        scgpt,
        base,
        ids=dict(described.get("ids", {})),
    )


def network_config(
    arguments: dict[str, Any], n_genes: int, n_classes: int, scgpt: ScGPTOrigin | None, base: BaseOrigin | None
) -> NetworkConfig:
    """Sizes of the network, from the arguments of :class:`celler.model.Celler` and the data.

    ``None`` is the default; sizes of attention without an ``encoder`` choose the latent encoder.
    """
    arguments = arguments | {"n_genes": n_genes, "n_classes": n_classes}
    if base is not None:
        _check_base_sizes(arguments)
        arguments |= {"encoder": "base", "d_sum": arguments["d_model"]} | dict(base.sizes)
        arguments["head"] = arguments["head"] or "linear"
        if base.n_types:  # no reference from which the other experts could learn
            arguments |= {"head": "atlas", "n_types": base.n_types, "evidence": False}
    if arguments["encoder"] == "scgpt":
        if scgpt is None:
            raise ValueError(
                "encoder='scgpt' was given; its weights come from a folder: Celler.from_pretrained(folder, adata)."
            )
        arguments |= {"d_feed": scgpt.d_feed, "pad_value": scgpt.pad_value}
    arguments["use_evidence"] = arguments.pop("evidence")
    attention = [name for name in ATTENTION if arguments[name] is not None and base is None]
    if attention and arguments["encoder"] is None:
        arguments["encoder"] = "latent"
    if attention and arguments["encoder"] == "additive":
        raise ValueError(
            f"{attention[0]}={arguments[attention[0]]} was given with encoder='additive', which has no attention; "
            "pass encoder='latent' or 'transformer', or leave it out."
        )
    names = [field.name for field in fields(NetworkConfig)]
    return NetworkConfig(**{name: arguments[name] for name in names if arguments.get(name) is not None})


def _check_base_sizes(arguments: dict[str, Any]) -> None:
    """Raise for sizes of attention, which the base has already."""
    given = [name for name in ATTENTION if arguments[name] is not None]
    if given:
        raise ValueError(
            f"{given[0]}={arguments[given[0]]} was given with encoder='base', whose sizes are those it was pretrained "
            "with; leave it out, or pass encoder='latent' or 'transformer'."
        )
