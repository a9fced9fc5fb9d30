"""Celler, the model class: its documented methods, each of which calls one worker."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model.base import BaseModelClass

from celler._utils._check import checked
from celler._utils._devices import choose_device, choose_prediction_devices, one_blas_thread
from celler._utils._messages import closest
from celler._utils._unchanged import unchanged_on_error
from celler.atlas._datamodule import DataModule
from celler.atlas._store import CellBlocks
from celler.data._query import rows_of
from celler.data._tissues import tissue_types
from celler.data._values import opened
from celler.inference._adaptation import Adaptation
from celler.inference._labels import Question
from celler.labels._tree import LabelTree
from celler.losses import Loss
from celler.mining import Replay
from celler.model import (
    _checkpoint,
    _explain,
    _expression,
    _extend,
    _notebook,
    _predict,
    _pretrain,
    _profiles,
    _tissue,
    _train,
    _transfer,
)
from celler.model._base import NAME
from celler.model._checkpoint import Saved
from celler.model._extend import OF_REFERENCE, OfReference
from celler.model._fit import Split
from celler.model._forward import Reading
from celler.model._hub import Upload
from celler.model._predict import Cells
from celler.model._propagate import Reference
from celler.model._registered import Registered
from celler.model._setup import describe, new_state, register, registered, setup_of
from celler.model._state import ModelState, summary
from celler.network._scgpt import read_scgpt
from celler.tl._label_check import LabelCheck

P = ParamSpec("P")
R = TypeVar("R")


class _Unsupported:
    """A member of scvi-tools' base class that Celler does not have; ``dir(model)`` leaves it out."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError(f"Celler does not support scvi-tools' {self.name}.")


def _heavy(method: Callable[Concatenate[Celler, P], R]) -> Callable[Concatenate[Celler, P], R]:
    """Leave one thread to matrix products while a method runs, and the model as it was where it fails.

    A model of a tissue takes on the genes of the cells that it is given.
    """
    computed = one_blas_thread(method)

    @functools.wraps(method)
    def call(model: Celler, /, *args: P.args, **kwargs: P.kwargs) -> R:
        state, reported = model._state, set(model._reported)
        try:
            return computed(model, *args, **kwargs)
        except BaseException:
            model._reported &= reported
            if model._state is not state:
                model._become(state)
            raise

    return call


class Celler(BaseModelClass):
    """Cell-type annotation that keeps the rare types.

    A registered reference trains experts with the GInf and Hard Data Mining losses: a head on the
    pretrained transformer that comes with the package, where it knows the genes, a sum of gene embeddings
    and a linear evidence table. :meth:`predict` then labels any AnnData, with genes matched by name.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`. ``None`` is for models made from ``registry``.
    registry
        Genes and classes of a store: ``dm.registry`` of a :class:`celler.atlas.DataModule`.
    encoder
        ``"base"``, the gene transformer pretrained on public atlases of human and mouse, which stays as it is;
        ``"additive"``, the sum of gene embeddings weighted by expression; ``"latent"``, which adds the
        attention of a few learned latents; or ``"transformer"``, the paper's full self-attention over
        all genes and a cell token, far slower than the others. ``None`` is base where it knows at least 100 and a
        fifth of the genes, else additive, or latent where a size of the attention is given. ``"scgpt"`` is for
        :meth:`from_pretrained`.
    head
        ``"linear"``, ``"mlp"`` with a hidden layer, or ``"vgg"`` for the paper's convolutions. ``None`` is linear
        on a base and else mlp.
    n_layers
        Blocks of an encoder with attention; ``None`` is 1.
    d_model
        Width of the encoder and of the cell embedding; with a base, of the sum of gene embeddings beside it.
    n_heads
        Heads of the attention; ``None`` is 4.
    n_latents
        Latents that attend to the genes; ``None`` is 8.
    dropout_rate
        Share of a cell's genes left out at random in training, and of the encoder's hidden units in the first
        training of a network: a refit or a second :meth:`train` keeps them all.
    evidence
        Keep the linear expert. Without it the encoder is alone, as in the paper.
    max_genes
        Genes read per cell at most: a random subset in training, those of highest value in prediction.
    n_bins
        Bins of a cell's values for an encoder with attention, with the zero bin; ``None`` is 51.
    precision
        ``"float32"``, ``"bfloat16"``, or ``"auto"`` for bfloat16 where the hardware is made for it.

    Examples
    --------
    >>> import celler as cl
    >>> cl.model.Celler.setup_anndata(adata, labels_key="cell_type", layer="counts")
    >>> model = cl.model.Celler(adata)
    >>> model.train()
    >>> query.obs["celler"] = model.predict(query)
    """

    convert_legacy_save = _Unsupported()
    differential_abundance = _Unsupported()
    get_normalized_expression = _Unsupported()
    get_normalized_function_name = _Unsupported()
    get_var_names = _Unsupported()
    load_registry = _Unsupported()
    setup_annbatch = _Unsupported()
    transfer_fields = _Unsupported()

    @checked
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        encoder: Literal["base", "additive", "latent", "transformer", "scgpt"] | None = None,
        head: Literal["linear", "mlp", "vgg"] | None = None,
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
        with registered(adata):
            super().__init__(adata, registry)
        self.init_params_ = self._get_init_params(locals())
        self._loaded_adata: AnnData | None = None
        self._own: Registered | None = None
        self._reported: set[str] = set()
        setup = setup_of(self.registry_)
        described: dict[str, Any] = dict((registry or {}).get("celler", {}))
        vocabulary = described.pop("vocabulary", None)
        if adata is not None:
            names = None if vocabulary is None else pd.Index(vocabulary)
            self._own = Registered.of(adata, setup)
            described = describe(adata, self._own.labels, setup, names) | described
        self._become(new_state(setup, described, self._arguments))

    @classmethod
    @checked
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
        genes: Sequence[str] | pd.Index | None = None,
    ) -> None:
        """Check and register a reference; adds ``_celler_*`` and ``_scvi_*`` entries to ``adata``.

        Parameters
        ----------
        adata
            The reference. After an error it is unchanged.
        labels_key
            Column of ``adata.obs`` with the cell types: text, categories or integers.
        unlabeled_category
            Value that means "no label"; missing values mean the same, and so do "unknown" and what R, pandas and
            spreadsheets write for a missing value, such as "NA".
        layer
            Entry of ``adata.layers`` with counts or log1p-normalised values; ``None`` is ``X``.
        batch_key
            Column of ``adata.obs`` with the donor/assay batch, for the decoder of :meth:`pretrain`. The
            classifier never sees it, so that cells of other batches can be labelled.
        parent_labels_key
            Column of ``adata.obs`` with the coarser type of each cell.
        parents
            Coarser type of each class instead: a dict, a Series or a :class:`celler.labels.LabelTree`,
            which reads ontologies.
        gene_key
            Column of ``adata.var`` with the gene names; ``None`` is ``var_names``. Rows that ``feature_types`` of
            ``var`` calls no genes, such as antibodies, are left out.
        genes
            Names of the genes to learn, such as ``query.var_names`` of a gene panel, matched as those of a query;
            ``None`` is all. ``adata`` keeps its other genes.

        Raises
        ------
        KeyError
            If a column or layer does not exist.
        ValueError
            If values, labels or genes cannot be used, such as row numbers as gene names.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        with unchanged_on_error(adata):
            cls.register_manager(register(adata, setup_method_args))

    @checked
    @_heavy
    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | str | list[int] = "auto",
        train_size: float = 0.9,
        validation_size: float | None = None,
        batch_size: int | None = None,
        early_stopping: bool = True,
        *,
        class_prior: Literal["auto", "balanced", "reference"] | float = "auto",
        class_balance: float = 0.0,
        loss: Loss | None = None,
        replay: Replay | None = Replay(),
        masked_weight: float = 0.0,
        learning_rate: float = 3e-3,
        refit: bool | None = None,
        n_members: int | None = None,
        seed: int = 0,
        show_progress: bool = True,
        datamodule: DataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
    ) -> None:
        """Train on the labelled cells of the registered AnnData, or of a store on disk.

        A call trains up to three times, each with a progress bar of its own: "First labels" after
        :meth:`pretrain` and with few labels, to find unlabelled cells of each class; "Training"; and
        "Refitting" on all labelled cells. Calling it again continues from the present weights.

        Parameters
        ----------
        max_epochs
            ``None`` is 12 up to 4,000 labelled cells and fewer beyond; up to 200 for few cells, to show 19,200 in all.
        accelerator
            ``"auto"`` uses a GPU where there is one; ``"cpu"``, ``"gpu"`` or ``"mps"`` use that one or raise.
        devices
            Number of devices, or ``[i]`` for one of them. ``devices=4`` trains in four processes, which run
            the script from its start; processes started by torchrun or srun are used as they are.
        train_size, validation_size
            Shares of each class. Validation cells choose the weights, by macro-F1, and the temperature of
            the probabilities; ``train_size=1.0`` leaves none.
        batch_size
            Cells per minibatch; ``None`` is 128, but 32 up to 10,000 labelled cells where more than sums of gene
            embeddings is learned by steps: attention, experts under a ``loss`` of your own, an extension.
        early_stopping
            Stop when validation macro-F1 stays more than a standard error below its best for half of the
            epochs (10 at least).
        class_prior
            How much the frequency of a class in the reference counts. ``"balanced"`` treats all classes alike
            and finds most rare cells; ``"reference"`` expects them as often as there, which gives most cells their
            label where classes overlap. A number between is a power of the frequencies, 0 and 1 for the two; below 0
            rare classes gain more. ``"auto"`` takes the power that gains accuracy without loss of macro-F1 in
            cross-validation; with few cells it is below 0.
        class_balance
            How often the minibatches show cells of rare classes, from 0 to 1. With b, a class of n cells is drawn in
            proportion to :math:`n^{1-b}`: at 0 each cell once an epoch, at 1 each class equally often. No cell comes
            more than 16 times, and an epoch stays as long. The loss keeps the class counts of the distinct cells. Rare
            classes gain a little recall, and where classes overlap accuracy falls. The default hardly changes, since
            its linear experts are solved at once, balanced by ``class_prior`` alone; new classes of an extended model,
            which are solved too, refuse it.
        loss
            One of :mod:`celler.losses`, for all parts of the network. ``None`` is GInf, ``losses.DEFAULT``, for what is
            learned by steps, and a balanced logistic regression for the linear parts.
        replay
            Which misclassified cells of an epoch the next one trains again; ``None`` for none.
            :attr:`hard_cells_` lists them afterwards.
        masked_weight
            Above 0, each step also hides genes of as many cells, unlabelled ones included, and adds this
            weight times the loss of predicting them. With few labels :meth:`pretrain` gains more.
        learning_rate
            Peak of the one-cycle schedule; an encoder of :meth:`from_pretrained` learns at a thirtieth.
        refit
            After validation train again on all labelled cells; ``None`` does so below 5,000 of them.
        n_members
            Number of networks that are trained side by side from different initial weights and averaged. Each is a sum
            of gene embeddings beside the base, or else an encoder and a head; base and linear experts exist once.
            ``class_prior="auto"`` is the mean of as many cross-validations. Two trainings then agree on more labels,
            and :meth:`annotate` writes how many members agree. ``None`` is 1 for a new model, and the number of a
            trained one.
        seed
            Seed of the split, the initial weights, the shuffling and all random draws.
        show_progress
            Show progress bars with the validation macro-F1 and the epoch kept so far. ``scvi.settings.verbosity`` above
            ``logging.INFO`` hides the bars of all models.
        datamodule
            The store that the model was made of, whose cells are read from disk:
            ``Celler(registry=dm.registry).train(datamodule=dm)``.
        ckpt_path
            File that is written after each epoch. If it exists, training continues from it to the model it
            would have become; a refit has its own file next to it.

        Raises
        ------
        RuntimeError
            If the model was loaded and has no registered AnnData.
        ValueError
            If an option or the labels cannot be used.
        """
        options = _train.Options(
            precision=self._arguments["precision"],
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            split=Split(train_size, validation_size, refit),
            batch_size=batch_size,
            early_stopping=early_stopping,
            class_prior=class_prior,
            class_balance=class_balance,
            loss=loss,
            replay=replay,
            masked_weight=masked_weight,
            learning_rate=learning_rate,
            n_members=n_members,
            seed=seed,
            show_progress=show_progress,
            ckpt_path=ckpt_path,
        )
        self._become(_train.train(self._state, self._registered, datamodule, options))

    @checked
    @_heavy
    def predict(
        self,
        adata: AnnData | str | os.PathLike[str] | None = None,
        indices: np.ndarray | list[int] | None = None,
        soft: bool = False,
        batch_size: int | None = None,
        *,
        layer: str | None = None,
        level: str | None = None,
        threshold: float | None = None,
        unknown_label: str = "Unknown",
        candidates: list[str] | None = None,
        false_alarm_rate: float | None = None,
        backoff: bool = False,
        correct_shift: bool = True,
        propagate: bool = False,
        dataloader: CellBlocks | None = None,
        adaptation: Adaptation | None = None,
        devices: int | str | list[int] = "auto",
    ) -> np.ndarray | pd.DataFrame:
        """Label the cells of any AnnData, matched by gene name; ``adata`` is not changed.

        A label depends on its cell, on the model, and with ``correct_shift`` on what up to 5,000 cells of
        ``adata`` say together, drawn by their values: the order of rows has no effect. Parts of a query get the
        labels of the whole by ``indices`` or ``adaptation``.

        Parameters
        ----------
        adata
            Cells to label; ``None`` is the AnnData of the model. Other genes, orders, batches, matrix
            formats, views and files in backed mode work; no label column is needed. A path is read into memory: a
            file ``.h5ad``, ``.zarr``, ``.h5mu``, ``.loom`` or Cell Ranger's ``.h5``, or its folder of ``matrix.mtx``.
        indices
            Rows to label, positions or a boolean mask; ``None`` is all.
        soft
            Return probabilities instead of labels.
        batch_size
            Cells per forward pass; ``None`` fills a fixed number of tokens.
        layer
            Where the values are: a name of ``adata.layers``, ``"X"`` or ``"raw"``. ``None`` is the layer of
            :meth:`setup_anndata`, or else ``X``; with a warning it is ``raw`` where ``X`` cannot be used, such as
            scaled values, or has only some of the model's genes that ``raw`` has.
        level
            ``"class"`` or ``"parent"``, whose probability is the sum of its classes'.
        threshold
            Give ``unknown_label`` where the best probability is below it.
        unknown_label
            Label of cells that get no class.
        candidates
            The only classes that are possible; the others get probability 0.
        false_alarm_rate
            Give ``unknown_label`` to cells more novel than all but this share of the reference's own
            cells, see :meth:`get_novelty`; ``None`` labels every cell.
        backoff
            Give the parent's name where the class is below the threshold and the parent is not. The
            threshold, 0.7 unless given, holds for both levels.
        correct_shift
            Undo differences from the reference that all classes share, as after another chemistry,
            estimated from up to 5,000 cells of ``adata``. Without it a label depends on its cell alone.
        propagate
            Spread the probabilities over the nearest cells of the query and of the model's labelled cells.
            Use it where labels are few and the query has thousands of cells. A label then depends on the
            other cells. A loaded model has labelled cells where ``load`` was given its reference.
        dataloader
            Cells of a store instead of ``adata``, read block by block:
            :meth:`celler.atlas.DataModule.inference_dataloader`.
        adaptation
            What :meth:`adapt` found in all cells of the query, of which ``adata`` is a part. ``None`` judges by
            the cells of ``adata``.
        devices
            Number of processes that label cells side by side, each with its share of the cores or, for a model on a
            GPU, with a GPU of its own; a list numbers the GPUs. Labels and probabilities are those of one process. They
            take six seconds to start, as each loads the package, and wait five minutes for the next call; none is
            started where it would not save as much, by the time that the first cells take. On a CPU they pay from about
            half a million cells, with attention from some thousand. ``"auto"`` is one, this process.

        Returns
        -------
        Array of str ``(N,)``, or with ``soft`` a DataFrame of obs_names x classes, whose columns are sorted
        and whose rows sum to 1. A cell without counts is ``unknown_label``, with equal probabilities.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If under 20 % of the model's genes are in ``adata``, or options contradict each other.
        """
        question = Question(
            "class" if level is None else level, threshold, unknown_label, candidates, false_alarm_rate, backoff
        )
        reading = self._reading(batch_size, correct_shift, adaptation, devices)
        self._state.trained()
        if dataloader is None:
            cells = self._cells(adata, indices, layer)
            return _predict.predict(self._state, cells, question, reading, soft=soft, propagate=propagate)
        _predict.check_store_call(adata, indices, layer, propagate=propagate)
        self._meet(dataloader.sample(1))
        return _predict.predict_store(self._state, dataloader, question, reading, soft=soft, reported=self._reported)

    @checked
    @_heavy
    def annotate(
        self,
        adata: AnnData | str | os.PathLike[str] | None = None,
        key_added: str = "celler",
        *,
        layer: str | None = None,
        cluster_key: str | None = None,
        threshold: float | None = None,
        unknown_label: str = "Unknown",
        false_alarm_rate: float | None = None,
        backoff: bool = False,
        correct_shift: bool = True,
        propagate: bool = False,
        adaptation: Adaptation | None = None,
        devices: int | str | list[int] = "auto",
    ) -> AnnData | None:
        """Write labels to ``adata.obs``, and how they were made to ``adata.uns[key_added]``.

        Calling it again overwrites, and removes columns of the last call that it does not write. A view
        becomes a copy, as with every write to one. Of a file in backed mode only what is in memory is
        written.

        Parameters
        ----------
        adata
            Cells to label; ``None`` is the AnnData of the model. A path as in :meth:`predict`; the file stays as it is.
        key_added
            Name of the column with the labels, and prefix of the others.
        layer
            As in :meth:`predict`.
        cluster_key
            Column of ``adata.obs`` with clusters. ``<key>_majority`` is then the most frequent label of each
            cell's cluster and ``<key>_majority_share`` its share; a cell without a cluster keeps its label.
        threshold, unknown_label, false_alarm_rate, backoff, correct_shift, propagate, adaptation, devices
            As in :meth:`predict`.

        Returns
        -------
        ``None``, or for a path the labelled cells.

        Notes
        -----
        Columns: ``<key>`` (categorical, all classes), ``<key>_confidence`` (probability of the best class),
        ``<key>_margin`` (that less the second best), ``<key>_second`` (second-best class) and
        ``<key>_novelty`` (see :meth:`get_novelty`); with members ``<key>_agreement``, the share of them whose own
        best class is the cell's; with parents ``<key>_parent``, which never contradicts the class, and
        ``<key>_parent_confidence``; with ``backoff`` ``<key>_level``: "class", "parent" or "unknown"; where the
        classes are types of atlases ``<key>_cl_id``, the Cell Ontology id of the label.

        ``uns[key]["expected_accuracy"]`` is the share of right labels to expect in this query, the mean
        confidence of a sample of its cells; ``uns[key]["shift"]`` is how far it is from the reference.

        A warning names types that the labels miss as far as markers tell, see :meth:`check_labels`;
        ``uns[key]["label_check"]`` keeps it.
        """
        cells = self._cells(adata, layer=layer)
        question = Question("class", threshold, unknown_label, None, false_alarm_rate, backoff)
        reading = self._reading(None, correct_shift, adaptation, devices)
        with unchanged_on_error(cells.adata):
            _predict.annotate(
                self._state, cells, key_added, question, reading, cluster_key=cluster_key, propagate=propagate
            )
        return cells.adata if isinstance(adata, str | os.PathLike) else None

    @checked
    @_heavy
    def check_labels(
        self,
        adata: AnnData | str | os.PathLike[str] | None = None,
        key: str = "celler",
        *,
        layer: str | None = None,
        cluster_key: str | None = None,
        min_cells: int = 3,
    ) -> LabelCheck:
        r"""Compare labels with markers of the reference's types, to find rare types that the labels miss.

        The markers are chosen from the mean expression of each type, which the model keeps, and are scored without the
        network and without the labels. A type is listed where most cells with its markers have another label, or where
        most cells without a label have its markers.

        Parameters
        ----------
        adata
            The cells, all of one query; ``None`` is the AnnData of the model. Not changed.
        key
            Column of ``adata.obs`` with labels, of :meth:`annotate` or any other source that uses the model's names.
            The parent of a type counts as its label. Cells without a label are checked too.
        layer
            As in :meth:`predict`.
        cluster_key
            Column of ``adata.obs`` with clusters, which are then compared as well.
        min_cells
            Fewest cells with another label for which a type is listed.

        Returns
        -------
        LabelCheck
            What was found, as a table and in words; :func:`celler.pl.label_check` draws it.

        Raises
        ------
        KeyError
            If a column does not exist.
        ValueError
            If no label is a name of the model.
        RuntimeError
            If the model keeps no mean expression: one that names cells by atlases, or of an early version.

        Notes
        -----
        Up to 40 markers of each type are genes with 1.5 times the mean :math:`r` of any other type. A cell has

        .. math:: \ell_k = \sum_g w_g (x_g \log r_{kg} - D\, r_{kg}),

        a quasi-Poisson log-likelihood with its counts :math:`x`, their sum :math:`D` and the inverse relative
        dispersion :math:`w`. The markers decide where the probability of a type is above 0.9 with the shares of the
        likeliest mixture as prior, and each half of the markers speaks for it. Types of fewer than 3 reference cells
        are not listed, nor are cells whose expression of the markers is nearer to that of their label's type or,
        for types of fewer than 10 reference cells, above that of these cells.

        Examples
        --------
        >>> model.annotate(query)
        >>> check = model.check_labels(query)
        >>> check
        >>> cl.pl.label_check(check)
        """
        return _predict.check_labels(self._state, self._cells(adata, layer=layer), key, cluster_key, min_cells)

    @checked
    @_heavy
    def annotate_store(
        self,
        datamodule: DataModule,
        key_added: str = "celler",
        *,
        threshold: float | None = None,
        unknown_label: str = "Unknown",
        false_alarm_rate: float | None = None,
        backoff: bool = False,
        correct_shift: bool = True,
        overwrite: bool = False,
        adaptation: Adaptation | None = None,
        devices: int | str | list[int] = "auto",
    ) -> Path:
        """Label every cell of a store and write the table next to its cells, with one block in memory.

        Parameters
        ----------
        datamodule
            The store. Its cells are not changed.
        key_added
            Name of the table, and prefix of its columns, which are those of :meth:`annotate`.
        threshold, unknown_label, false_alarm_rate, backoff, correct_shift, adaptation, devices
            As in :meth:`predict`.
        overwrite
            Replace a table of that name.

        Returns
        -------
        Path of the table, ``<store>/annotations/<key_added>.zarr``, which appears whole or not at all.
        :meth:`celler.atlas.DataModule.annotation` reads it.

        Raises
        ------
        FileExistsError
            If the table exists and ``overwrite`` is false.
        """
        self._state.trained()
        self._meet(datamodule.inference_dataloader().sample(1))
        question = Question("class", threshold, unknown_label, None, false_alarm_rate, backoff)
        return _predict.annotate_store(
            self._state,
            datamodule,
            key_added,
            question,
            self._reading(None, correct_shift, adaptation, devices),
            overwrite=overwrite,
            reported=self._reported,
        )

    @checked
    @_heavy
    def adapt(
        self, adata: AnnData | str | os.PathLike[str] | Sequence[AnnData] | CellBlocks, *, layer: str | None = None
    ) -> Adaptation:
        """Estimate what all cells of a query say together, to label parts of it as the whole would be.

        Up to 5,000 cells are drawn by their values, so that the order of rows has no effect; the genes that the
        reference detects better or worse, the weight of the base and the novelty of known cells are
        estimated from them.

        Parameters
        ----------
        adata
            All cells of the query: an AnnData, also in backed mode, or a path; its parts, with the same genes; or the
            dataloader of a store.
        layer
            As in :meth:`predict`.

        Returns
        -------
        For ``adaptation=`` of :meth:`predict`, :meth:`annotate`, :meth:`get_novelty` and others, with the
        attributes ``shift``, ``expected_accuracy``, ``factors``, ``encoder_share`` and ``novelty``.

        Examples
        --------
        >>> whole = model.adapt([first, second])
        >>> labels = model.predict(first, adaptation=whole)
        """
        self._state.trained()
        cells = opened(adata) if isinstance(adata, str | os.PathLike) else adata
        self._meet(_predict.first_of(cells), layer)
        return _predict.adapt(self._state, cells, self._reported, layer)

    @checked
    @_heavy
    def get_novelty(
        self,
        adata: AnnData | str | os.PathLike[str] | None = None,
        indices: np.ndarray | list[int] | None = None,
        batch_size: int | None = None,
        *,
        layer: str | None = None,
        correct_shift: bool = True,
        adaptation: Adaptation | None = None,
    ) -> np.ndarray:
        """Score how unlike every type of the reference each cell is.

        Parameters
        ----------
        adata, indices, batch_size, layer, correct_shift, adaptation
            As in :meth:`predict`.

        Returns
        -------
        Novelty ``(N,)`` in standard deviations of the reference's own cells, each scored by a fit without
        it: their mean is 0, and 3 is far outside. NaN for a cell without counts. It is averaged with that of
        the ten nearest cells of the query, and follows from the cell alone with ``correct_shift=False``.
        ``predict(false_alarm_rate=0.05)`` labels no cell above the 95 % quantile of those scores.

        Raises
        ------
        RuntimeError
            If the model has fewer than 20 labelled cells, or was extended or saved by an earlier version.
        """
        cells = self._cells(adata, indices, layer)
        return _predict.novelty(self._state, cells, self._reading(batch_size, correct_shift, adaptation))

    @checked
    @_heavy
    def get_latent_representation(
        self,
        adata: AnnData | str | os.PathLike[str] | None = None,
        indices: np.ndarray | list[int] | None = None,
        batch_size: int | None = None,
        *,
        layer: str | None = None,
        normalize: bool = False,
        correct_shift: bool = True,
        adaptation: Adaptation | None = None,
    ) -> np.ndarray:
        """Embed cells with the encoder, trained or pretrained.

        Parameters
        ----------
        adata, indices, batch_size, layer, correct_shift, adaptation
            As in :meth:`predict`.
        normalize
            Divide each row by its L2 norm, as scGPT does, so that products are cosines.

        Returns
        -------
        Cell embedding ``(N, D)``: 384 wide with the base, whose embedding all members share, else ``d_model``, and of
        several members the first's, as embeddings cannot be averaged.
        """
        cells = self._cells(adata, indices, layer, needs_classes=not self.is_pretrained)
        reading = self._reading(batch_size, correct_shift, adaptation)
        return _predict.embedding(self._state, cells, reading, normalize=normalize)

    @checked
    @_heavy
    def get_gene_importance(
        self,
        adata: AnnData | str | os.PathLike[str] | None = None,
        indices: np.ndarray | list[int] | None = None,
        groupby: str | None = None,
        n_genes: int | None = 10,
        *,
        layer: str | None = None,
        method: Literal["evidence", "gradient"] = "evidence",
        per_cell: bool = False,
        batch_size: int | None = None,
        correct_shift: bool = True,
    ) -> pd.DataFrame:
        r"""List the genes that speak for a label, best first, of each predicted class, group or cell.

        Parameters
        ----------
        adata, indices, layer, batch_size, correct_shift
            As in :meth:`predict`.
        groupby
            Column of ``adata.obs``; ``None`` is the predicted class. A group with the name of a class is
            explained as that class, another as the class that most of its cells are predicted to be.
        n_genes
            Genes of each group at most, of those with a positive contribution *and* importance, so that
            the cells express them. ``None`` is all genes of the model, for and against.
        method
            ``"evidence"``, the linear expert, exact: importances of all genes sum to the difference of its
            mean centred logits. ``"gradient"``, the full model: gradient times input, exact to first order,
            of up to 200 cells of each group, drawn at random with a fixed seed.
        per_cell
            Explain each cell by its own genes; the importance is then the gene's part of the logit of the
            label less that of the runner-up.

        Returns
        -------
        A row per gene: ``group``, ``gene``, ``importance`` and ``label``, the class explained; then
        ``contribution`` and ``elsewhere``, or with ``per_cell`` ``runner_up``.
        :func:`celler.pl.marker_bubble` takes it as its markers. Cells without counts or group are left out.

        Notes
        -----
        The contribution :math:`c_{igk}` of gene :math:`g` is its part of the logit of class :math:`k` in cell
        :math:`i`, less its part of the mean logit of all classes, since only differences of logits decide. The unit is
        that of a logit, a natural logarithm of odds, before the temperature. The importance in a group is the mean over
        its cells less the mean of the other groups' means:

        .. math:: \text{importance}_{gk} = \bar c_{gk}(\text{group}) - \bar c_{gk}(\text{other groups}).
        """
        cells = self._cells(adata, indices, layer)
        wanted = _explain.Explanation(groupby, n_genes, method, per_cell)
        reading = Reading(batch_size, correct_shift)
        return _explain.gene_importance(self._state, cells, wanted, reading)

    @checked
    @_heavy
    def pretrain(
        self,
        max_epochs: int | None = None,
        *,
        adata: AnnData | None = None,
        mask_ratio: float = 0.15,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        validation_size: float = 0.1,
        early_stopping: bool = True,
        accelerator: str = "auto",
        devices: int | str | list[int] = "auto",
        seed: int = 0,
        show_progress: bool = True,
        datamodule: DataModule | None = None,
    ) -> None:
        """Learn genes from cells, labelled or not: hide some of a cell's genes and predict them from the others.

        The encoder's gene embeddings start from the principal components of the cells. Then the bins of
        the hidden genes, and which genes are expressed, are predicted from the cell embedding.
        :meth:`train` starts from the encoder that results. A second call continues.

        Parameters
        ----------
        max_epochs
            ``None`` is 10 up to 50,000 cells, fewer beyond, and at least 1,000 steps.
        adata
            More cells, matched by gene name; they join those of the model.
        mask_ratio
            Share of a cell's genes that are hidden.
        batch_size
            Cells per minibatch.
        learning_rate
            Peak of the one-cycle schedule.
        validation_size
            Share of the cells, 5,000 at most, that chooses the weights; 0 leaves none.
        early_stopping
            Stop when the validation loss has not fallen for a quarter of the epochs (5 at least).
        accelerator, devices, seed, show_progress
            As in :meth:`train`.
        datamodule
            A store with the model's genes, whose training cells replace the registered ones.

        Raises
        ------
        RuntimeError
            If the model is trained: its classes rest on the encoder.
        """
        options = _pretrain.PretrainOptions(
            precision=self._arguments["precision"],
            max_epochs=max_epochs,
            mask_ratio=mask_ratio,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation_size=validation_size,
            early_stopping=early_stopping,
            accelerator=accelerator,
            devices=devices,
            seed=seed,
            show_progress=show_progress,
        )
        own = None if self.adata is None else self._all_of(self.adata)
        more = None if adata is None else self._all_of(adata)
        self._become(_pretrain.pretrain(self._state, own, more, datamodule, options))

    @checked
    @_heavy
    def learn_profiles(
        self,
        profiles: AnnData,
        dataset_key: str | None = None,
        *,
        max_epochs: int = 10,
        mask_ratio: float = 0.15,
        batch_size: int = 256,
        learning_rate: float = 1e-4,
        accelerator: str = "auto",
        seed: int = 0,
        show_progress: bool = True,
    ) -> pd.DataFrame:
        """Teach the base more cell types from their mean expression, in this model's genes; then :meth:`train`.

        Each profile generates pseudo-cells, with the noise of sequencing and gene-wise shifts between studies. The
        base learns to name their types and to predict hidden values.

        Parameters
        ----------
        profiles
            AnnData with a row for each cell type and mean counts in ``X``, NaN where a gene was not measured; genes
            are matched by name.
        dataset_key
            Column of ``profiles.obs`` with the data set of each type: types are told apart within a data set.
            ``None`` is one for all.
        max_epochs
            Epochs of 100 minibatches.
        mask_ratio
            Share of the values that are hidden.
        batch_size
            Pseudo-cells per minibatch.
        learning_rate
            Peak of the one-cycle schedule; small, so that what the base knows is kept.
        accelerator, seed, show_progress
            As in :meth:`train`.

        Returns
        -------
        Loss, error of hidden values and accuracy, one row per epoch.

        Raises
        ------
        RuntimeError
            If the model is trained, or does not start from the base.
        ValueError
            If values cannot be used or the genes do not match.

        Examples
        --------
        >>> profiles = sc.get.aggregate(atlas, "cell_type", func="mean", layer="counts")
        >>> profiles.X = profiles.layers["mean"]
        >>> model.learn_profiles(profiles)
        """
        options = _profiles.ProfileOptions(
            precision=self._arguments["precision"],
            max_epochs=max_epochs,
            mask_ratio=mask_ratio,
            batch_size=batch_size,
            learning_rate=learning_rate,
            accelerator=accelerator,
            seed=seed,
            show_progress=show_progress,
        )
        state, curves = _profiles.learn_profiles(self._state, profiles, dataset_key, options)
        self._become(state)
        return pd.DataFrame(curves).rename_axis("epoch")

    @checked
    def load_encoder(self, pretrained: Celler | str | os.PathLike[str]) -> None:
        """Start from the encoder of another pretrained model, matched by gene name; then :meth:`train`.

        Parameters
        ----------
        pretrained
            A Celler after :meth:`pretrain`, or the folder or address it was saved to, as in :meth:`load`; of several
            members the first. Genes it lacks start fresh, and a warning counts them.

        Raises
        ------
        RuntimeError
            If this model is trained.
        ValueError
            If the other model was not pretrained, has another encoder or other sizes, or shares under 20 %
            of this model's genes.
        """
        _pretrain.require_untrained(self._state)
        other = type(self).load(pretrained) if isinstance(pretrained, str | os.PathLike) else pretrained
        if not isinstance(other, type(self)) or other._state.pretrained is None:
            raise ValueError(f"{pretrained!r} was given; a Celler that was pretrained, or its folder, is needed.")
        self._become(_transfer.load_encoder(self._state, other._state))

    @checked
    @_heavy
    def predict_expression(
        self,
        adata: AnnData | str | os.PathLike[str] | None = None,
        genes: str | list[str] | None = None,
        indices: np.ndarray | list[int] | None = None,
        *,
        layer: str | None = None,
    ) -> pd.DataFrame:
        """Predict expression of genes, ``log1p`` of counts per 10,000, with a pretrained model.

        This is a denoised estimate from the cell's type and state, not a measurement: good for looking at
        genes that a query lacks, or where dropout hides a marker, and not for tests between groups.

        Parameters
        ----------
        adata, indices, layer
            As in :meth:`predict`.
        genes
            Names among the model's genes; ``None`` is all.

        Returns
        -------
        DataFrame of cells x genes, from the embedding that :meth:`get_latent_representation` returns: the probability
        that the gene is expressed times the value it would have, a quantile of the cell's own values.

        Raises
        ------
        RuntimeError
            Before :meth:`pretrain`.
        """
        _expression.check_decoder(self._state)
        cells = self._cells(adata, indices, layer, needs_classes=False)
        return _expression.predict_expression(self._state, cells, genes)

    @checked
    @_heavy
    def impute(self, adata: AnnData | None = None, layer_added: str = "celler_imputed") -> None:
        """Write :meth:`predict_expression` of the genes of ``adata`` to a dense layer.

        Parameters
        ----------
        adata
            As in :meth:`predict`.
        layer_added
            Name of the layer; NaN where the model lacks a gene.
        """
        _expression.check_decoder(self._state)
        cells = self._cells(adata, needs_classes=False)
        _expression.impute(self._state, cells, layer_added)

    @classmethod
    @checked
    def load_query_data(
        cls,
        adata: AnnData,
        reference_model: Celler | str | os.PathLike[str],
        extend_labels: bool = False,
        *,
        labels_key: str | None | OfReference = OF_REFERENCE,
        unlabeled_category: str | OfReference = OF_REFERENCE,
        layer: str | None | OfReference = OF_REFERENCE,
        batch_key: str | None | OfReference = OF_REFERENCE,
        parent_labels_key: str | None | OfReference = OF_REFERENCE,
        gene_key: str | None | OfReference = OF_REFERENCE,
        accelerator: str = "auto",
    ) -> Celler:
        """Make a model for new labelled cells that starts from a trained one; :meth:`train` it next.

        Genes and classes are matched by name. Those of the reference model stay, also where ``adata`` lacks
        them; genes that it lacks are added. The reference's cells are not needed: :meth:`train` adds cells
        generated from the class profiles that the model stores.

        With new classes, :meth:`train` solves their part of each expert in seconds, and all else stays as it is: among
        the classes of the reference the model decides as before. Cells of ``adata`` without a new label, with or
        without any, are used: the shift of their study from the reference is undone, and they show what the new
        classes are not. A warning gives the share of other cells that a new class takes where it is above 2 %.
        Without new classes, the network learns from the new cells and is distilled for its classes; so it does with
        a loss of yours.

        A model without a reference, of ``from_pretrained("celler-base", tissue=...)``, labels the unlabelled cells of
        ``adata`` that it is sure of, in the new column ``_celler_first_labels``; these and the given labels train a new
        model of both.

        Parameters
        ----------
        adata
            The new cells. :meth:`setup_anndata` is run on them; after an error they are unchanged.
        reference_model
            A trained model, which is not changed, or the folder or address of a saved one, as in :meth:`load`.
        extend_labels
            Make labels that the reference does not know new classes. Without it they are an error.
        labels_key, unlabeled_category, layer, batch_key, parent_labels_key, gene_key
            As in :meth:`setup_anndata`; those of the reference where not given.
        accelerator
            As in :meth:`load`, for a folder.

        Returns
        -------
        The untrained model.

        Raises
        ------
        ValueError
            For unknown labels without ``extend_labels``, for parents that contradict the reference's, and if
            under 20 % of its genes are in ``adata``.
        """
        reference = cls._trained(reference_model, accelerator)
        state = reference._state
        given = {
            "labels_key": labels_key,
            "unlabeled_category": unlabeled_category,
            "layer": layer,
            "batch_key": batch_key,
            "parent_labels_key": parent_labels_key,
            "gene_key": gene_key,
        }
        setup = _extend.extended_setup(state, given)
        with unchanged_on_error(adata):
            if state.names_atlases:
                of_new = _tissue.label_first(state, adata, setup, reference._arguments, extend_labels=extend_labels)
                cls.setup_anndata(adata, **vars(of_new))
                model = cls(adata, precision=reference._arguments["precision"])
                model._become(_tissue.with_ids_of(model._state, state))
                return model
            _extend.check_extendable(state)
            tree = _extend.extended_tree(state, adata, setup, extend_labels=extend_labels)
            genes = _extend.extended_genes(state, adata, setup.gene_key)
            cls.setup_anndata(adata, **vars(setup))
            # The encoder is the reference's, whether or not a new one for these genes could be made.
            model = cls(adata, **reference._arguments | {"encoder": None})
            factors = _extend.study_factors(state, adata, setup, tree, genes)
            model._become(_extend.extended_state(state, setup, tree, genes, reference._arguments, factors))
            return model

    @classmethod
    @checked
    def prepare_query_anndata(cls, adata: AnnData, reference_model: Celler | str | os.PathLike[str]) -> AnnData:
        """Make an AnnData of the cells of ``adata`` with a model's genes, in the model's order.

        It is for tools that need the same columns. :meth:`predict` does not need it and knows more: a gene
        that ``adata`` lacks is masked there, and a column of zeros here.

        Parameters
        ----------
        adata
            The cells; not changed.
        reference_model
            A trained model, or the folder or address of a saved one, as in :meth:`load`.

        Returns
        -------
        A new AnnData. ``var["is_measured"]`` is False for genes that ``adata`` lacks, which a warning counts.
        Values of ``X`` and of each layer are the same, as CSR.
        """
        return _extend.prepare_query(cls._trained(reference_model, "auto")._state, adata)

    @classmethod
    @checked
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        adata: AnnData | None = None,
        *,
        tissue: str | Sequence[str] | None = None,
        organism: Literal["human", "mouse"] | None = None,
        freeze_encoder: bool = False,
        evidence: bool = True,
        head: Literal["mlp", "vgg"] = "mlp",
        max_genes: int = 1200,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        accelerator: str = "auto",
    ) -> Celler:
        """Make a model without a reference, ``"celler-base"``, or from a folder: of :meth:`save`, or of scGPT.

        ``"celler-base"`` names cells by the types of the public atlases that the base in the package learned, with
        Cell Ontology ids. Called on cells, it solves its head for the genes they have, which takes seconds; a label
        then depends on its cell and on these genes alone.

        An scGPT folder holds ``args.json``, ``vocab.json`` and ``best_model.pt`` or ``model.pt``. Only tensors
        are read; a file that holds anything else is refused. Genes outside the vocabulary are reported with a
        warning and not read.

        Parameters
        ----------
        path
            ``"celler-base"``, the folder, or the address of a Celler model on a hub, as in :meth:`load`.
        adata
            AnnData registered with :meth:`setup_anndata`, to fine-tune scGPT on with :meth:`train`. Without it the
            model embeds cells, :meth:`get_latent_representation`, and has no classes.
        tissue
            For ``"celler-base"``: one or several tissues, whose types are the classes; ``None`` is all. The command
            ``celler tissues`` lists them.
        organism
            For ``"celler-base"``: whose atlases; ``None`` is those of both.
        freeze_encoder
            Train the head alone. The encoder then embeds each cell once before training. Otherwise it learns
            at a thirtieth of the learning rate.
        evidence, head, max_genes, precision
            As for a new model; 1,200 genes is what scGPT's own embedding reads. Not for Celler folders.
        accelerator
            Where to embed, as in :meth:`train`.

        Returns
        -------
        The model, trained only if the folder holds a trained Celler.

        Raises
        ------
        FileNotFoundError
            If the folder holds no model.
        ValueError
            If a file cannot be used.
        """
        options = _transfer.ScGPTOptions(freeze_encoder, evidence, head, max_genes, precision)
        if path == NAME:  # a folder of this name is ./celler-base
            _tissue.check_options(adata, options)
            found = tissue_types(tissue, organism)
            model = cls(registry=_tissue.tissue_registry(found), precision=precision)
            model._become(_tissue.ready(model._state, found).on(choose_device(accelerator), precision))
            return model
        if tissue is not None or organism is not None:
            close = closest(path, [NAME])
            raise ValueError(f"tissue and organism are for {NAME!r}; {str(path)!r} was given. Leave them out.{close}")
        if not _transfer.is_scgpt(path):
            _transfer.check_celler_folder(path, options)
            try:
                return cls.load(path, adata, accelerator)
            except ValueError as error:
                raise ValueError(f"{error} {_transfer.scgpt_needs()}") from error
        checkpoint, has_classes = read_scgpt(Path(path)), adata is not None
        registry = _transfer.scgpt_registry(checkpoint, is_frozen=freeze_encoder, is_vocabulary=not has_classes)
        model = cls(adata, registry, **options.arguments(checkpoint, has_classes=has_classes))
        model._become(_transfer.with_checkpoint(model._state, adata, checkpoint, accelerator, precision))
        return model

    @checked
    def save(self, dir_path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the trained or pretrained model to a folder, whole or not at all.

        ``config.json`` holds plain values, ``model.safetensors`` the arrays, and ``README.md`` is a model card:
        classes, genes and training, with fields for the author. Nothing in them can be executed. Other files are left
        alone.

        Parameters
        ----------
        dir_path
            The folder, made if needed.
        overwrite
            Replace a model, also the ``model.pt`` of Celler 0.1.0. A card that its author changed stays.

        Raises
        ------
        FileExistsError
            If the folder holds a model and ``overwrite`` is false.
        ValueError
            If training diverged, so that weights are not finite.
        """
        _checkpoint.save(self._saved, dir_path, overwrite=overwrite)

    @checked
    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
    ) -> str:
        """Upload the trained or pretrained model to a Hugging Face hub, in one commit.

        The three files are those of :meth:`save`. Needs ``pip install "celler[hub]"``.

        Parameters
        ----------
        repo_id
            Repository, ``"owner/name"``, made if needed.
        private
            Whether a new repository is private; ``None`` is the owner's default.
        token
            Token with write access; ``None`` is that of ``hf auth login`` or ``HF_TOKEN``.
        revision
            Branch, made if needed; ``None`` is the main branch.
        commit_message
            Message of the commit.
        license
            Licence of the model, an identifier of the hub such as ``"cc-by-4.0"``, for the model card. A card that its
            author changed, here or on the hub, stays otherwise as it is.

        Returns
        -------
        Address of the commit, ``"hf://owner/name@commit"``, for :meth:`load`.

        Raises
        ------
        PermissionError
            If the hub refuses access.
        ConnectionError
            If the hub cannot be reached.

        Examples
        --------
        >>> model.push_to_hub("owner/blood", license="cc-by-4.0")
        >>> model = Celler.load("hf://owner/blood")
        """
        upload = Upload(private, token, revision, commit_message)
        return _checkpoint.push(self._saved, repo_id, upload, license)

    @classmethod
    @checked
    def load(cls, dir_path: str | os.PathLike[str], adata: AnnData | None = None, accelerator: str = "auto") -> Celler:
        """Load the model that :meth:`save` or :meth:`push_to_hub` wrote, ready to predict.

        All contents are checked before a network is made.

        Parameters
        ----------
        dir_path
            The folder, or an address on a hub: ``"hf://owner/name"``, or ``"hf://owner/name@revision"`` with a branch,
            tag or commit. A download is cached; ``print(model)`` shows its commit.
        adata
            Default of :meth:`predict`; neither registered nor changed.
        accelerator
            Where to predict, as in :meth:`train`.

        Returns
        -------
        The model.

        Raises
        ------
        FileNotFoundError
            If there is no such folder or repository, or no model in it.
        ValueError
            If a file is damaged, foreign or of a later version.
        PermissionError
            If the hub refuses access.
        ConnectionError
            If the hub cannot be reached and the cache lacks the model.
        """
        contents = _checkpoint.read(dir_path)
        model = cls(registry=contents["registry"], **contents["init_params"])
        model._loaded_adata = adata
        model._become(_checkpoint.restored(model._state, contents, accelerator))
        return model

    @checked
    def view_anndata_setup(self, adata: AnnData | None = None, hide_state_registries: bool = False) -> None:
        """Print how the AnnData was set up.

        Parameters
        ----------
        adata
            AnnData that was set up; ``None`` is the one of the model. A loaded model has none, and prints the arguments
            of the setup.
        hide_state_registries
            Leave out the tables of labels and batches.
        """
        if adata is None and self.adata_manager is None:
            _notebook.print_setup(asdict(self._state.setup), summary(self._state))
        else:
            super().view_anndata_setup(adata, hide_state_registries)

    @property
    def adata(self) -> AnnData | None:
        """AnnData of the model: the registered one, or the one given to :meth:`load`."""
        return BaseModelClass.adata.fget(self) if self._loaded_adata is None else self._loaded_adata

    @adata.setter
    def adata(self, adata: AnnData) -> None:
        with registered(adata):
            BaseModelClass.adata.fset(self, adata)
        self._own = Registered.of(adata, self._state.setup)
        self._loaded_adata = None

    @property
    def classes_(self) -> np.ndarray:
        """Names of the classes, sorted ``(C,)``."""
        return np.array(self._state.tree.classes)

    @property
    def parents_(self) -> dict[str, str]:
        """Parent of each class; empty without parents."""
        return self._state.tree.parent_of

    @property
    def genes_(self) -> pd.Series:
        """Mean share of a reference cell's counts that each gene carries, by gene name.

        The index is named after the var column of the names, ``None`` for ``var_names``.
        """
        genes = self._state.genes
        return pd.Series(genes.share, genes.names.rename(genes.key), name="share")

    @property
    def history(self) -> pd.DataFrame | None:
        """Loss and validation curves, one row per epoch; ``None`` before training, and without a reference.

        ``train_loss`` is the loss that was minimised, ``validation_loss`` cross-entropy, ``validation_macro_f1`` what
        chooses the weights and ``validation_macro_f1_error`` its standard error; ``replayed_share`` the cells that were
        trained twice. ``is_kept`` marks the epoch whose weights validation chose, the latest within one standard error
        of the best macro-F1; without validation it is the last. Epochs count from 1, as in the progress bar. A refit on
        all cells runs the epochs again to the end, and has no curves. :func:`celler.pl.history` draws them.
        """
        fitted = self._state.fitted
        return None if fitted is None else _notebook.curves_of(fitted)

    @property
    def replay_history(self) -> pd.DataFrame | None:
        """Cells of each class that were trained twice, one row per epoch; ``None`` before training."""
        fitted = self._state.fitted
        return None if fitted is None else _notebook.replayed_of(fitted)

    @property
    def pretraining_history(self) -> pd.DataFrame | None:
        """Loss and correlation of hidden bins, one row per epoch; ``None`` before :meth:`pretrain`."""
        pretrained = self._state.pretrained
        if pretrained is None or not pretrained.history:
            return None
        return _notebook.by_epoch(pretrained.history, len(pretrained.history["train_loss"]))

    @property
    def hard_cells_(self) -> pd.DataFrame:
        """Training cells that were confidently misclassified in the most epochs: likely label errors.

        Up to ``n_per_class`` for each predicted class; empty after ``replay=None``. Columns ``cell``
        (obs_name), ``label`` (the one given), ``prediction``, ``confidence`` (its highest probability
        in training), ``n_epochs``, and ``n_failed`` (epochs in a row it was wrong after a replay).
        """
        return pd.DataFrame(self._state.trained().hard_cells)

    @property
    def is_pretrained(self) -> bool:
        """Whether the encoder has learned without labels, by :meth:`pretrain` or before :meth:`from_pretrained`."""
        return self._state.is_pretrained

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self._state.network.device

    def __repr__(self) -> str:
        return summary(self._state)

    def _repr_html_(self) -> str:
        return _notebook.html(summary(self._state))

    def __dir__(self) -> list[str]:
        unsupported = [name for name, value in vars(Celler).items() if isinstance(value, _Unsupported)]
        return _notebook.names_shown(super().__dir__(), unsupported)

    def _become(self, state: ModelState) -> None:
        """Take over a state, and show scvi-tools what it expects of a model."""
        self._state, self.module = state, state.network
        if state.fitted is not None:
            self.is_trained_ = True
            self.train_indices_ = state.fitted.train_indices
            self.validation_indices_ = state.fitted.validation_indices
            self.class_counts_ = state.fitted.class_counts
            self.history_ = state.fitted.history
        self._model_summary_string = summary(state)

    @property
    def _arguments(self) -> dict[str, Any]:
        """Arguments that the class was called with."""
        arguments: dict[str, Any] = self.init_params_["non_kwargs"]
        return arguments

    @property
    def _saved(self) -> Saved:
        """The model as it is saved; raise ``RuntimeError`` for one that has learned nothing."""
        if not self.is_pretrained:
            self._state.trained()
        return Saved(self._state, self.registry_, self._arguments)

    @property
    def _reference(self) -> Reference:
        return Reference(self.adata, self._own, self._reported)

    @property
    def _registered(self) -> Cells | None:
        """The registered cells; ``None`` for a model without."""
        return None if self.adata_manager is None else self._all_of(self.adata)

    def _all_of(self, adata: AnnData | None) -> Cells:
        assert adata is not None
        return Cells(adata, rows_of(adata, None), self._reference)

    def _cells(
        self,
        adata: AnnData | str | os.PathLike[str] | None,
        indices: np.ndarray | list[int] | None = None,
        layer: str | None = None,
        *,
        needs_classes: bool = True,
    ) -> Cells:
        """Return the cells that a method is called on."""
        if needs_classes:
            self._state.trained()
        cells = self.adata if adata is None else opened(adata)
        if cells is None:
            raise ValueError("this model has no AnnData; pass the cells as adata.")
        rows = rows_of(cells, indices)
        self._meet(cells, layer)
        return Cells(cells, rows, self._reference, layer)

    def _reading(
        self,
        batch_size: int | None,
        correct_shift: bool,
        adaptation: Adaptation | None,
        devices: int | str | list[int] = "auto",
    ) -> Reading:
        """Return how cells are read; raise for an adaptation or devices that cannot be used."""
        processes = choose_prediction_devices(devices, self._state.network.device)
        if adaptation is None:
            return Reading(batch_size, correct_shift, devices=processes)
        if not correct_shift:
            raise ValueError("correct_shift=False undoes no shift, which adaptation= is for; leave one of them out.")
        if adaptation.factors is not None and len(adaptation.factors) != self._state.network.config.n_genes:
            raise ValueError(
                f"adaptation is of a model with {len(adaptation.factors):,} genes; this one has "
                f"{self._state.network.config.n_genes:,}. Pass what this model's adapt returned."
            )
        return Reading(batch_size, correct_shift, adaptation=adaptation, devices=processes)

    def _meet(self, adata: AnnData, layer: str | None = None) -> None:
        """Solve a model of a tissue for the genes of the cells that it is called on; others stay as they are."""
        if self._state.tissue is not None:
            self._become(_tissue.adapted(self._state, adata, self._arguments, layer, self._reported))

    @classmethod
    def _trained(cls, model: Celler | str | os.PathLike[str], accelerator: str) -> Celler:
        """Return a trained model, loaded if need be."""
        if isinstance(model, str | os.PathLike):
            return cls.load(model, accelerator=accelerator)
        if not isinstance(model, cls):
            raise TypeError(f"reference_model is a {type(model).__name__}; a trained Celler or its folder is needed.")
        model._state.trained()
        return model
